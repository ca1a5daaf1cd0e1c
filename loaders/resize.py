"""Finish decoded windows on the CPU: torch resizes them, in a quarter of DALI's time, and Pillow augments them.

torch's antialiased bilinear filter of uint8 is Pillow's to within 1 of 255 (`tests/loaders/test_parity.py`).

Resizing runs without Python's global lock (GIL): `resize_windows` is compiled by TorchScript, and a thread calls it
once for all its images. Calls from Python, eight for each image, take the lock and pass it on between all threads of
the process. On 16 cores that limited the loader to 3,400 images/s with nine cores idle, and the training thread needed
twice the time to launch a step's kernels (docs/LOG.md, first light).
"""

import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from types import TracebackType
from typing import Any

import numpy as np
import torch
from PIL import Image

from loaders.batch import allocate_host
from loaders.plan import Plan
from loaders.reference import apply_ops


class Resizer:
    """Finishes a plan's windows in threads. Use as a context manager.

    Args:
        device: the device to which the caller will upload the batches; for a GPU they are made in pinned memory.
    """

    def __init__(self, num_threads: int, device: torch.device) -> None:
        self.num_threads, self.device = num_threads, device
        self.resize_windows = compile_resize()
        self.threads = ThreadPoolExecutor(num_threads, thread_name_prefix="penstock-resize")

    def __enter__(self) -> "Resizer":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self.threads.shutdown(wait=True, cancel_futures=True)

    def __call__(self, plan: Plan, windows: Sequence[Any]) -> torch.Tensor:
        """Return the finished batch, in host memory.

        Args:
            windows: uint8 [height, width, 3] of each image, in any type that supports DLPack.

        Returns:
            uint8 [B, size, size, 3].
        """
        images_BHWC = allocate_host((len(windows), plan.size, plan.size, 3), torch.uint8, self.device)

        # Thread t finishes the images t, t + num_threads, ...
        def finish(first: int) -> None:
            self._finish(plan, windows, slice(first, None, self.num_threads), images_BHWC)

        list(self.threads.map(finish, range(min(self.num_threads, len(windows)))))
        return images_BHWC

    def _finish(self, plan: Plan, windows: Sequence[Any], here: slice, images_BHWC: torch.Tensor) -> None:
        """Resize, crop, flip and augment the windows `here` of a plan; write them to the batch."""
        indices = range(len(windows))[here]
        tensors = [torch.from_dlpack(windows[i]) for i in indices]
        sizes, crops, flips = (each[here].tolist() for each in (plan.resized_B2, plan.crops_B2, plan.flips_B))
        self.resize_windows(tensors, sizes, crops, flips, images_BHWC[here])
        for i, is_augmented in zip(indices, plan.ops_BL[here].any(axis=1), strict=True):
            if is_augmented:
                out_HWC = images_BHWC[i].numpy()
                np.copyto(out_HWC, np.asarray(apply_ops(Image.fromarray(out_HWC), plan, i)))


@cache
def compile_resize() -> Any:
    """Return `resize_windows`, compiled by TorchScript."""
    with warnings.catch_warnings():
        # torch advises against TorchScript, but has nothing else that runs a loop over tensors without Python's lock.
        warnings.simplefilter("ignore")
        return torch.jit.script(resize_windows)


def resize_windows(
    windows: list[torch.Tensor],
    sizes: list[list[int]],
    crops: list[list[int]],
    flips: list[bool],
    out_BHWC: torch.Tensor,
) -> None:
    """Resize, crop and flip windows. This is TorchScript: only tensors and plain Python types, no globals.

    Args:
        windows: uint8 [height, width, 3] of each image.
        sizes: height and width of each image after resizing.
        crops: top and left of the crop from each resized image.
        flips: whether an image is flipped.
        out_BHWC: uint8 [B, size, size, 3], where the images are written.
    """
    size = out_BHWC.size(1)
    # torch divides work on 32,768 elements or more among its own threads, which costs more time than one small image
    # takes. So copies are made in strips of fewer elements. The resize does not divide an image.
    rows = max(1, 32767 // (3 * size))
    for i in range(len(windows)):
        # This order of dimensions gives exactly the strides of channels_last, for which torch's filter is fastest.
        window_1CHW = windows[i].unsqueeze(0).permute(0, 3, 1, 2)
        out_1CHW = out_BHWC[i].unsqueeze(0).permute(0, 3, 1, 2)

        # Neither crop nor flip: resize directly into `out`.
        if sizes[i] == [size, size] and not flips[i]:
            torch.ops.aten._upsample_bilinear2d_aa(window_1CHW, sizes[i], False, out=out_1CHW)
            continue

        # Otherwise resize into a new tensor, and copy the crop.
        resized_1CHW = torch.ops.aten._upsample_bilinear2d_aa(window_1CHW, sizes[i], False)
        crop_1CHW = resized_1CHW.narrow(2, crops[i][0], size).narrow(3, crops[i][1], size)
        for top in range(0, size, rows):
            strip_1CHW = crop_1CHW.narrow(2, top, min(rows, size - top))
            if flips[i]:
                strip_1CHW = strip_1CHW.flip(3)
            out_1CHW.narrow(2, top, min(rows, size - top)).copy_(strip_1CHW)
