"""Finish decoded windows on the CPU: torch resizes them, in a quarter of DALI's time, and Pillow augments them.

torch's antialiased bilinear filter of uint8 is Pillow's to within 1 of 255 (`tests/loaders/test_parity.py`).
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image

from loaders.batch import allocate_host
from loaders.plan import Plan
from loaders.reference import apply_ops

# The operator of `torch.nn.functional.interpolate(antialias=True)`, which also has a version that writes to `out`.
bilinear = torch.ops.aten._upsample_bilinear2d_aa


class Resizer:
    """Finishes a plan's windows in threads. Use as a context manager.

    Args:
        device: the device to which the caller will upload the batches; for a GPU they are made in pinned memory.
    """

    def __init__(self, num_threads: int, device: torch.device) -> None:
        self.num_threads, self.device = num_threads, device
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
            for i in range(first, len(windows), self.num_threads):
                finish_window(torch.from_dlpack(windows[i]), plan, i, images_BHWC[i])

        list(self.threads.map(finish, range(self.num_threads)))
        return images_BHWC


def finish_window(window_HWC: torch.Tensor, plan: Plan, i: int, out_HWC: torch.Tensor) -> None:
    """Resize, crop, flip and augment one window as image `i` of a plan; write it to `out`."""
    resize_window(window_HWC, plan, i, out_HWC)
    if plan.ops_BL[i].any():
        np.copyto(out_HWC.numpy(), np.asarray(apply_ops(Image.fromarray(out_HWC.numpy()), plan, i)))


def resize_window(window_HWC: torch.Tensor, plan: Plan, i: int, out_HWC: torch.Tensor) -> None:
    """Do what `finish_window` does, except the augmentation.

    Copies are made by OpenCV and numpy: torch would divide one image among its own threads, which costs more time.
    """
    size, (top, left) = plan.resized_B2[i].tolist(), plan.crops_B2[i].tolist()
    window_1CHW = window_HWC[None].permute(0, 3, 1, 2)  # this order gives exactly the strides of channels_last

    # Neither crop nor flip: resize directly into `out`.
    if size == [plan.size, plan.size] and not plan.flips_B[i]:
        bilinear.out(window_1CHW, size, False, out=out_HWC[None].permute(0, 3, 1, 2))
        return

    # Otherwise resize into a new tensor, and copy the crop.
    resized_HWC = bilinear(window_1CHW, size, False)[0].permute(1, 2, 0).numpy()
    cropped_HWC = resized_HWC[top : top + plan.size, left : left + plan.size]
    if plan.flips_B[i]:
        cv2.flip(cropped_HWC, 1, dst=out_HWC.numpy())
    else:
        np.copyto(out_HWC.numpy(), cropped_HWC)
