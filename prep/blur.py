"""Blur the input of each convolution with a stride, so that its output depends less on shifts of the image by a pixel.

BlurPool (Zhang 2019, arXiv 1904.11486) as FFCV and Composer train it ("blur first"): a fixed 3 x 3 binomial blur of
each channel, with one row of zeros around the image, before each convolution that has a stride above 1 and at least 16
input channels. The convolution keeps its stride; pooling layers stay as they are. In ResNet-50 it costs 0.23% more
multiplications.

It is here, not in train/ or serve/, because both build such networks. It is the only module of prep whose import
needs torch, and none of prep imports it, so that preparation starts without torch.
"""

from collections.abc import Iterable

import torch
from timm.layers import Conv2dSame, ScaledStdConv2d, ScaledStdConv2dSame, StdConv2d, StdConv2dSame
from torch import nn
from torch.nn import functional

from prep.errors import InputError

BINOMIAL = ((1, 2, 1), (2, 4, 2), (1, 2, 1))  # sixteenths, exact in float16 and bfloat16 too
MIN_CHANNELS = 16  # input channels; fewer are those of images and of the narrowest stems
BLUR_KERNEL = "blur_kernel"  # name of the buffer, in the state_dict after the convolution's own


class BlurConv2d(nn.Conv2d):
    """A convolution that blurs its input; `blur_first` makes it of an existing one, which keeps its weights.

    The kernel [C, 1, 3, 3] is saved with the weights, although it never changes: so weights that were trained with blur
    do not load into a network without it, or the other way around, which would compute other logits without an error.
    """

    blur_kernel: torch.Tensor
    blur_stride: tuple[int, ...]

    def add_blur(self) -> None:
        """Add the kernel, and decide whether the blur or the convolution has the stride."""
        kernel_33 = torch.tensor(BINOMIAL, dtype=self.weight.dtype, device=self.weight.device) / 16
        self.register_buffer(BLUR_KERNEL, kernel_33.repeat(self.in_channels, 1, 1, 1))

        # A 1 x 1 convolution reads only every stride-th position, so the others need not be blurred: the same values
        # from a fraction of the work (a quarter for a stride of 2).
        self.blur_stride = (1, 1)
        if self.kernel_size == (1, 1) and self.padding == (0, 0):
            self.blur_stride, self.stride = self.stride, (1, 1)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Blur the input [B, C, H, W], then convolve it."""
        blurred_BCHW = functional.conv2d(
            input, self.blur_kernel, stride=self.blur_stride, padding=1, groups=self.in_channels
        )
        return super().forward(blurred_BCHW)

    def extra_repr(self) -> str:
        """Return the convolution's settings, and the stride of the blur."""
        return f"{super().extra_repr()}, blur_stride={self.blur_stride}"


# The same for timm's convolutions that pad as TensorFlow does or standardize their weights: their `forward` follows.
# pyright says that two of them give its argument another name than torch does.


class BlurConv2dSame(BlurConv2d, Conv2dSame):
    """Conv2dSame of the blurred input."""


class BlurStdConv2d(BlurConv2d, StdConv2d):  # pyright: ignore[reportIncompatibleMethodOverride]
    """StdConv2d of the blurred input."""


class BlurStdConv2dSame(BlurConv2d, StdConv2dSame):
    """StdConv2dSame of the blurred input."""


class BlurScaledStdConv2d(BlurConv2d, ScaledStdConv2d):  # pyright: ignore[reportIncompatibleMethodOverride]
    """ScaledStdConv2d of the blurred input."""


class BlurScaledStdConv2dSame(BlurConv2d, ScaledStdConv2dSame):
    """ScaledStdConv2dSame of the blurred input."""


BLURRED: dict[type[nn.Module], type[BlurConv2d]] = {
    nn.Conv2d: BlurConv2d,
    Conv2dSame: BlurConv2dSame,
    StdConv2d: BlurStdConv2d,
    StdConv2dSame: BlurStdConv2dSame,
    ScaledStdConv2d: BlurScaledStdConv2d,
    ScaledStdConv2dSame: BlurScaledStdConv2dSame,
}


def blur_first(model: nn.Module) -> nn.Module:
    """Blur before each convolution that has a stride above 1 and at least 16 input channels, in place.

    Parameters stay the same objects under the same names, and no random number is drawn. Call this once, before the
    model is copied, compiled or wrapped.

    Returns:
        The model.

    Raises:
        InputError: the model has no such convolution, or one of a class whose padding and stride are not known; then
            nothing was changed.
    """
    # Find them. A convolution that several parts share is found once.
    found = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d) and max(module.stride) > 1 and module.in_channels >= MIN_CHANNELS
    }
    if not found:
        raise InputError(
            f"expected a convolution with a stride above 1 and at least {MIN_CHANNELS} input channels to blur before, "
            "found none"
        )
    for name, module in found.items():
        if type(module) not in BLURRED:
            raise InputError(f"expected to blur before torch's or timm's convolutions, found {name} of {type(module)}")

    # Change their class: this keeps the parameters, and everything else that refers to them.
    for module in found.values():
        module.__class__ = BLURRED[type(module)]
        assert isinstance(module, BlurConv2d)
        module.add_blur()
    return model


def is_blurred(names: Iterable[str]) -> bool:
    """Return True if these are names of tensors of a network that `blur_first` changed."""
    return any(name.rpartition(".")[2] == BLUR_KERNEL for name in names)
