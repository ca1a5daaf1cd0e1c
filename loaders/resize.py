"""Finish decoded windows on the CPU: torch resizes them, in a quarter of DALI's time, and Pillow augments them.

torch's antialiased bilinear filter of uint8 is Pillow's to within 1 of 255 (`tests/loaders/test_parity.py`).

A batch is resized without Python's global lock (GIL), by one call of TorchScript: it forks tasks, which torch runs in
its inter-op pool of C++ threads (one per core, `torch.set_num_interop_threads` changes that). Python threads would take
the lock about eight times for each image. On 16 cores that limited the loader to 3,400 images/s while nine cores were
idle, and the training thread, which needs the lock to launch kernels, took twice as long for a step (docs/LOG.md, first
run on a GPU).
"""

import warnings
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any

import numpy as np
import torch
from PIL import Image

from loaders.batch import allocate_host
from loaders.plan import Plan
from loaders.reference import apply_ops


class Resizer:
    """Finishes the windows of plans in the background. Use as a context manager.

    Args:
        num_threads: tasks at once, and threads for Pillow's operations.
        device: the device to which the caller will upload the batches; for a GPU they are made in pinned memory.
    """

    def __init__(self, num_threads: int, device: torch.device) -> None:
        self.num_threads, self.device = num_threads, device
        self.background = ThreadPoolExecutor(1, thread_name_prefix="penstock-resize")
        self.threads = ThreadPoolExecutor(num_threads, thread_name_prefix="penstock-augment")  # started when first used

    def __enter__(self) -> "Resizer":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        for pool in (self.background, self.threads):
            pool.shutdown(wait=True, cancel_futures=True)

    def start(self, plan: Plan, windows: Sequence[Any]) -> "Future[torch.Tensor]":
        """Start to finish a batch in the background; return its future: uint8 [B, size, size, 3] in host memory.

        Args:
            windows: uint8 [height, width, 3] of each image, in any type that supports DLPack.
        """
        images_BHWC = allocate_host((len(windows), plan.size, plan.size, 3), torch.uint8, self.device)
        return self.background.submit(self._finish, plan, windows, images_BHWC)

    def _finish(self, plan: Plan, windows: Sequence[Any], images_BHWC: torch.Tensor) -> torch.Tensor:
        """Resize, crop, flip and augment the windows of a plan; return the batch to which they are written."""
        tensors = [torch.from_dlpack(window) for window in windows]
        steps_B5 = np.concatenate([plan.resized_B2, plan.crops_B2, plan.flips_B[:, None]], axis=1)
        RESIZE_BATCH(tensors, steps_B5.tolist(), images_BHWC, self.num_threads)
        augmented = np.flatnonzero(plan.ops_BL.any(axis=1)).tolist()
        list(self.threads.map(lambda i: augment(plan, i, images_BHWC[i].numpy()), augmented))
        return images_BHWC


def augment(plan: Plan, i: int, image_HWC: np.ndarray) -> None:
    """Apply the operations of image `i` of a plan to its pixels, uint8 [size, size, 3], in place."""
    np.copyto(image_HWC, np.asarray(apply_ops(Image.fromarray(image_HWC), plan, i)))


def resize_batch(windows: list[torch.Tensor], steps: list[list[int]], out_BHWC: torch.Tensor, num_tasks: int) -> None:
    """Resize, crop and flip windows in `num_tasks` parallel tasks. This and `resize_share` are TorchScript.

    Args:
        windows: uint8 [height, width, 3] of each image.
        steps: of each image, height and width after resizing, top and left of the crop, and 1 to flip it or 0.
        out_BHWC: uint8 [B, size, size, 3], where the images are written.
        num_tasks: task t makes the images t, t + num_tasks, ...
    """
    tasks: list[torch.jit.Future[None]] = []
    for first in range(min(num_tasks, len(windows))):
        task = torch.jit.fork(resize_share, windows, steps, out_BHWC, first, num_tasks)
        tasks.append(task)  # pyright: ignore[reportArgumentType]
    for task in tasks:
        torch.jit.wait(task)


def resize_share(
    windows: list[torch.Tensor], steps: list[list[int]], out_BHWC: torch.Tensor, first: int, stride: int
) -> None:
    """Do what `resize_batch` does, for the images first, first + stride, ..."""
    size = out_BHWC.size(1)
    # torch divides work on 32,768 elements or more among other threads of its own, which costs more time than it saves
    # on one small image. So copies are made in strips of fewer elements. (The filter does not divide an image on x86.)
    rows = max(1, 32767 // (3 * size))
    for i in range(first, len(windows), stride):
        height, width, crop_top, crop_left, flip = steps[i]
        # This order of dimensions gives exactly the strides of channels_last, for which torch's filter is fastest.
        window_1CHW = windows[i].unsqueeze(0).permute(0, 3, 1, 2)
        out_1CHW = out_BHWC[i].unsqueeze(0).permute(0, 3, 1, 2)

        # Neither crop nor flip: resize directly into `out`.
        if height == size and width == size and flip == 0:
            torch.ops.aten._upsample_bilinear2d_aa(window_1CHW, [height, width], False, out=out_1CHW)
            continue

        # Otherwise resize into a new tensor, and copy the crop.
        resized_1CHW = torch.ops.aten._upsample_bilinear2d_aa(window_1CHW, [height, width], False)
        crop_1CHW = resized_1CHW.narrow(2, crop_top, size).narrow(3, crop_left, size)
        for top in range(0, size, rows):
            strip_1CHW = crop_1CHW.narrow(2, top, min(rows, size - top))
            if flip == 1:
                strip_1CHW = strip_1CHW.flip(3)
            out_1CHW.narrow(2, top, min(rows, size - top)).copy_(strip_1CHW)


def _compile() -> Any:
    """Return `resize_batch`, compiled by TorchScript, in 10 ms. Run by the import: it changes filters of warnings."""
    with warnings.catch_warnings():
        # torch advises against TorchScript, but has nothing else that runs a loop over tensors without Python's lock.
        warnings.filterwarnings("ignore", r"`torch\.jit\.script` is deprecated")
        return torch.jit.script(resize_batch)


RESIZE_BATCH = _compile()
