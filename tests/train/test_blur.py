"""Blur before convolutions with a stride: the values of a plain reference, in every kind of convolution and network."""

import copy
import io
from typing import Any

import pytest
import timm
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from timm.layers import Conv2dSame, ScaledStdConv2d, ScaledStdConv2dSame, StdConv2d, StdConv2dSame
from torch import nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from prep.blur import BLUR_KERNEL, BLURRED, BlurConv2d, blur_first, is_blurred
from prep.errors import InputError
from train.config import ModelConfig, Sizes
from train.model import build_model

CPU = torch.device("cpu")
DTYPES = st.sampled_from([torch.float32, torch.float64])
# Of the largest value. Float32 rounds to 6e-8 of each value.
PRECISION = {torch.float32: 1e-6, torch.float64: 1e-12}


def blur_plainly(images_BCHW: torch.Tensor) -> torch.Tensor:
    """The reference: each channel alone, at stride 1, with a row of zeros around it."""
    kernel_1133 = torch.tensor([[[[1, 2, 1], [2, 4, 2], [1, 2, 1]]]], dtype=images_BCHW.dtype) / 16
    channels = [functional.conv2d(channel_B1HW, kernel_1133, padding=1) for channel_B1HW in images_BCHW.split(1, 1)]
    return torch.cat(channels, 1)


def blur_by_hook(model: nn.Module) -> int:
    """Turn a model of timm into the reference: no class or setting of it changes. Return the number of convolutions."""
    convolutions = [
        module
        for module in model.modules()
        if isinstance(module, nn.Conv2d) and max(module.stride) > 1 and module.in_channels >= 16
    ]
    for module in convolutions:
        module.register_forward_pre_hook(lambda _, inputs: blur_plainly(inputs[0]))
    return len(convolutions)


def assert_close(ours: torch.Tensor, theirs: torch.Tensor, share: float) -> None:
    """Check that no value differs by more than a share of the largest one."""
    assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
    largest = theirs.abs().max().clamp(min=1e-30)
    assert (ours - theirs).abs().max() <= share * largest


@st.composite
def draw_convolution(draw: st.DrawFn) -> nn.Conv2d:
    """A convolution with a stride: any kernel, padding, dilation and groups; one in three as in a shortcut, 1 x 1."""
    stride = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)).filter(lambda pair: max(pair) > 1))
    channels, groups = draw(st.sampled_from([(16, 1), (18, 3), (24, 24)]))
    options: dict[str, Any] = {"stride": stride, "groups": groups, "bias": draw(st.booleans())}
    if draw(st.integers(0, 2)):
        sides = st.tuples(st.integers(1, 5), st.integers(1, 5))
        options |= {"padding": draw(st.integers(0, 2)), "dilation": draw(st.integers(1, 2))}
        return nn.Conv2d(channels, 2 * groups, draw(sides), **options)
    return nn.Conv2d(channels, 2 * groups, 1, **options)


@settings(deadline=None, max_examples=150)
@given(draw_convolution(), st.integers(1, 13), st.integers(1, 13), DTYPES, st.integers(0, 99))
def test_values_and_gradients_are_those_of_a_blur_at_stride_1_then_the_convolution(
    plain: nn.Conv2d, height: int, width: int, dtype: torch.dtype, seed: int
) -> None:
    for side, pad, dilation, kernel in zip(
        (height, width), plain.padding, plain.dilation, plain.kernel_size, strict=True
    ):
        assume(side + 2 * int(pad) >= dilation * (kernel - 1) + 1)
    # All values are positive, so that no sum is near zero: then rounding would be large compared with it.
    torch.manual_seed(seed)
    plain = plain.to(dtype)
    for parameter in plain.parameters():
        nn.init.uniform_(parameter, 0.1, 1)
    blurred = blur_first(nn.Sequential(copy.deepcopy(plain)))
    images_BCHW = torch.rand(2, plain.in_channels, height, width, dtype=dtype, requires_grad=True)
    theirs_BCHW = images_BCHW.detach().clone().requires_grad_()

    ours, theirs = blurred(images_BCHW), plain(blur_plainly(theirs_BCHW))
    assert_close(ours, theirs, PRECISION[dtype])
    direction = torch.rand_like(theirs)
    ours.backward(direction)
    theirs.backward(direction)
    pairs = [(images_BCHW, theirs_BCHW), *zip(blurred.parameters(), plain.parameters(), strict=True)]
    for one, two in pairs:
        assert one.grad is not None and two.grad is not None
        assert_close(one.grad, two.grad, PRECISION[dtype])


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("kind", [Conv2dSame, StdConv2d, StdConv2dSame, ScaledStdConv2d, ScaledStdConv2dSame])
def test_timms_own_convolutions_pad_and_standardize_as_before(kind: Any, kernel: int) -> None:
    torch.manual_seed(0)
    for stride, side in ((2, 8), (2, 9), (3, 10), (4, 15)):
        plain = kind(16, 8, kernel, stride=stride).double()
        blurred = blur_first(nn.Sequential(copy.deepcopy(plain)))
        images_BCHW = torch.randn(2, 16, side, side, dtype=torch.float64)
        assert_close(blurred(images_BCHW), plain(blur_plainly(images_BCHW)), 1e-12)


@pytest.mark.parametrize(
    ("name", "num_blurred", "size"),
    [
        ("resnet50", 6, 65),
        ("resnet50d", 3, 64),  # its shortcuts average instead of having a stride
        ("regnety_002", 8, 63),
        ("convnext_atto", 3, 64),
        ("mobilenetv3_small_050", 4, 64),
        ("tf_efficientnet_b0", 4, 67),
        ("test_nfnet", 4, 64),
        ("resnetv2_50x1_bit", 6, 64),
    ],
)
def test_a_whole_network_computes_the_references_logits_and_gradients(name: str, num_blurred: int, size: int) -> None:
    # Running statistics and shortcuts as training leaves them: every layer counts.
    torch.manual_seed(0)
    plain = timm.create_model(name, num_classes=7).double()
    for module in plain.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
    blurred = blur_first(copy.deepcopy(plain))
    assert blur_by_hook(plain) == sum(isinstance(module, BlurConv2d) for module in blurred.modules()) == num_blurred

    images_BCHW = torch.randn(2, 3, size, size, dtype=torch.float64)
    for model in (blurred, plain):
        torch.manual_seed(1)  # of dropout
        model(images_BCHW).square().sum().backward()
    for (name_, ours), theirs in zip(blurred.named_parameters(), plain.parameters(), strict=True):
        assert (ours.grad is None) == (theirs.grad is None), name_
        if ours.grad is not None and theirs.grad is not None and theirs.grad.abs().max() > 1e-9:
            assert_close(ours.grad, theirs.grad, 1e-6)
    with torch.inference_mode():
        assert_close(blurred.eval()(images_BCHW), plain.eval()(images_BCHW), 1e-9)


def test_resnet50_in_float32_agrees_to_a_millionth() -> None:
    torch.manual_seed(0)
    plain = timm.create_model("resnet50", num_classes=10).eval()
    blurred = blur_first(copy.deepcopy(plain))
    blur_by_hook(plain)
    images_BCHW = torch.randn(2, 3, 96, 96)
    with torch.inference_mode():
        assert_close(blurred(images_BCHW), plain(images_BCHW), 1e-6)


def test_the_work_of_resnet50_grows_by_a_quarter_of_a_percent() -> None:
    gigamacs = {}
    for blurs in (False, True):
        with torch.device("meta"):
            model = timm.create_model("resnet50").eval()
            images_BCHW = torch.zeros(1, 3, 224, 224)
        with FlopCounterMode(display=False) as counter:
            (blur_first(model) if blurs else model)(images_BCHW)
        gigamacs[blurs] = counter.get_total_flops() / 2e9  # two operations for each multiplication
    assert gigamacs[False] == pytest.approx(4.089, abs=0.001)
    # The blurs of 3 x 3 convolutions are at the larger resolution, those of shortcuts at the smaller one.
    full, halved = 128 * 56**2 + 256 * 28**2 + 512 * 14**2, 256 * 28**2 + 512 * 14**2 + 1024 * 7**2
    assert gigamacs[True] - gigamacs[False] == pytest.approx(9e-9 * (full + halved), rel=1e-6)
    assert gigamacs[True] <= 1.0025 * gigamacs[False]


def test_only_strides_and_enough_channels_are_blurred_and_pooling_stays() -> None:
    layers = [nn.Conv2d(3, 15, 3, 2), nn.Conv2d(15, 16, 3, 2), nn.Conv2d(16, 16, 3), nn.Conv2d(16, 16, 1, (1, 2))]
    model = blur_first(nn.Sequential(*layers, nn.MaxPool2d(3, 2)))
    assert [type(layer) for layer in model.children()] == [nn.Conv2d, nn.Conv2d, nn.Conv2d, BlurConv2d, nn.MaxPool2d]


def test_random_weights_are_the_same_objects_with_and_without_blur() -> None:
    torch.manual_seed(3)
    plain = build_model(ModelConfig("resnet10t"), 10, CPU)
    after = torch.rand(1)
    torch.manual_seed(3)
    blurred = build_model(ModelConfig("resnet10t", blur_first=True), 10, CPU, Sizes((48, 64), 64))
    assert torch.equal(torch.rand(1), after)
    ours, theirs = dict(blurred.named_parameters()), dict(plain.named_parameters())
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)
    kept = list(plain.parameters())
    assert all(one is two for one, two in zip(kept, blur_first(plain).parameters(), strict=True))


def test_weights_with_blur_do_not_load_without_it_or_the_other_way_around() -> None:
    plain, blurred = (build_model(ModelConfig("test_resnet", blur_first=blurs), 10, CPU) for blurs in (False, True))
    with pytest.raises(RuntimeError, match=r"Unexpected key.*layer2\.0\.conv1\.blur_kernel"):
        plain.load_state_dict(blurred.state_dict())
    with pytest.raises(RuntimeError, match=r"Missing key.*layer2\.0\.conv1\.blur_kernel"):
        blurred.load_state_dict(plain.state_dict())
    assert is_blurred(blurred.state_dict()) and not is_blurred(plain.state_dict())


def test_copies_and_saved_modules_blur_too() -> None:
    torch.manual_seed(0)
    model = build_model(ModelConfig("test_resnet", blur_first=True), 10, CPU).eval()
    images_BCHW = torch.randn(1, 3, 32, 32)
    copied = copy.deepcopy(model)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    other = build_model(ModelConfig("test_resnet", blur_first=True), 10, CPU).eval()
    other.load_state_dict(model.state_dict())
    with torch.inference_mode():
        for again in (copied, torch.load(file, weights_only=False), other):
            assert torch.equal(again(images_BCHW), model(images_BCHW))
    copied.get_buffer(f"layer2.0.conv1.{BLUR_KERNEL}").zero_()
    assert model.get_buffer(f"layer2.0.conv1.{BLUR_KERNEL}").sum() == 32, "an average shares no memory with the model"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_blurs_in_its_own_type_with_an_exact_kernel(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model: Any = blur_first(nn.Sequential(nn.Conv2d(16, 8, 3, 2)))
    assert torch.equal(model[0].blur_kernel.to(dtype).float(), model[0].blur_kernel)
    images_BCHW = torch.randn(2, 16, 12, 12)
    with torch.autocast("cpu", dtype), torch.no_grad():
        ours = model(images_BCHW)
        blurred = functional.conv2d(images_BCHW.to(dtype), model[0].blur_kernel.to(dtype), padding=1, groups=16)
        theirs = functional.conv2d(blurred, model[0].weight.to(dtype), model[0].bias.to(dtype), 2)
    assert ours.dtype == blurred.dtype == dtype and torch.equal(ours, theirs)


def test_it_compiles_without_a_break_and_keeps_channels_last() -> None:
    torch.manual_seed(0)
    model = build_model(ModelConfig("test_resnet", blur_first=True), 10, CPU).eval()
    images_BCHW = torch.randn(2, 3, 32, 32).to(memory_format=torch.channels_last)
    outputs: list[torch.Tensor] = []
    model.get_submodule("layer2.0.conv1").register_forward_hook(lambda *facts: outputs.append(facts[2]))
    with torch.inference_mode():
        expected = model(images_BCHW)
    assert outputs[0].is_contiguous(memory_format=torch.channels_last)
    compiled = torch.compile(copy.deepcopy(model), backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        assert_close(compiled(images_BCHW), expected, 1e-6)


def test_a_network_with_nothing_to_blur_is_refused_in_a_line_with_the_remedy() -> None:
    with pytest.raises(InputError, match=r"^test_vit: .*stride above 1 .*found none: give --model\.no-blur-first$"):
        build_model(ModelConfig("test_vit", blur_first=True), 10, CPU, Sizes((64,), 64))


def test_a_convolution_of_an_unknown_class_is_refused_by_name_and_nothing_changes() -> None:
    class OwnConv2d(nn.Conv2d):
        pass

    model = nn.Sequential(nn.Conv2d(16, 16, 3, 2), nn.Sequential(OwnConv2d(16, 16, 3, 2)))
    with pytest.raises(InputError, match=r"torch's or timm's convolutions, found 1\.0 of .*OwnConv2d") as refused:
        blur_first(model)
    assert "\n" not in str(refused.value) and not is_blurred(model.state_dict())


def test_every_convolution_of_timm_is_known() -> None:
    ours = set(BLURRED.values())
    kinds = {kind for kind in nn.Conv2d.__subclasses__() if kind.__module__.startswith("timm.")}
    assert {kind.__name__ for kind in kinds - BLURRED.keys() - ours} <= {"Conv2dSameExport"}  # for ONNX, on request


def test_a_blur_and_a_convolution_are_not_one_larger_convolution_at_the_borders() -> None:
    """The reason why an export is not an ordinary network of timm: folding is exact inside an image alone."""
    torch.manual_seed(0)
    plain = nn.Conv2d(16, 4, 3, 2, padding=1, bias=False).double()
    kernel_1133 = torch.tensor([[1, 2, 1], [2, 4, 2], [1, 2, 1]], dtype=torch.float64)[None, None] / 16
    folded_OI55 = functional.conv2d(plain.weight.flatten(0, 1)[:, None], kernel_1133, padding=2).view(4, 16, 5, 5)
    images_BCHW = torch.randn(1, 16, 16, 16, dtype=torch.float64)
    ours = blur_first(nn.Sequential(copy.deepcopy(plain)))(images_BCHW)
    folded = functional.conv2d(images_BCHW, folded_OI55, stride=2, padding=2)
    assert_close(folded[..., 1:, 1:], ours[..., 1:, 1:], 1e-12)
    assert (folded - ours)[..., 0, :].abs().max() > 0.05 * ours.abs().max(), "it reads blurred rows outside the image"
