"""Resizing on the CPU: the same bits as torch's own filter, a crop and a flip; in one Python thread."""

import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from loaders import AugmentConfig, LoaderConfig, Split, TrainTransform, build_loader
from loaders.resize import RESIZE_BATCH

SIDES = st.integers(1, 40)
# Height and width of the window; what the resized image has above, below, left and right of the crop; whether to flip.
IMAGES = st.tuples(SIDES, SIDES, *[st.integers(0, 5)] * 4, st.booleans())


@given(st.lists(IMAGES, min_size=1, max_size=6), st.sampled_from([1, 8, 105, 130]), st.integers(1, 4))
def test_windows_are_resized_cropped_and_flipped(
    images: list[tuple[int, int, int, int, int, int, bool]], size: int, num_tasks: int
) -> None:
    """At 105 pixels an image has 33,075 values: it is copied in two strips."""
    windows, steps, wanted = [], [], []
    for number, (height, width, above, below, left, right, flip) in enumerate(images):
        window_HWC = np.random.default_rng(number).integers(0, 256, (height, width, 3), np.uint8)
        resized = (above + size + below, left + size + right)
        window_1CHW = torch.from_numpy(window_HWC)[None].permute(0, 3, 1, 2)
        filtered = torch.nn.functional.interpolate(window_1CHW, resized, mode="bilinear", antialias=True)
        cropped_HWC = filtered[0].permute(1, 2, 0).numpy()[above : above + size, left : left + size]
        windows.append(torch.from_numpy(window_HWC))
        steps.append([*resized, above, left, int(flip)])
        wanted.append(cropped_HWC[:, ::-1] if flip else cropped_HWC)
    out_BHWC = torch.empty((len(images), size, size, 3), dtype=torch.uint8)
    RESIZE_BATCH(windows, steps, out_BHWC, num_tasks)
    assert np.array_equal(out_BHWC.numpy(), np.stack(wanted))


@pytest.mark.parametrize(("kind", "threads"), [("none", {"penstock-resize_0"}), ("rand", None)])
def test_resizing_needs_one_python_thread_for_any_number_of_cores(
    digits: Path, kind: str, threads: set[str] | None
) -> None:
    """Each further one would take Python's lock from the training thread. Only Pillow's operations need them."""
    assert isinstance(RESIZE_BATCH, torch.jit.ScriptFunction)
    transform = TrainTransform(32, augment=AugmentConfig(kind))  # pyright: ignore[reportArgumentType]
    before = set(threading.enumerate())
    batches = iter(build_loader(Split(digits, "train"), transform, 64, config=LoaderConfig(num_threads=8)))
    next(batches)
    names = {thread.name for thread in set(threading.enumerate()) - before}
    batches.close()  # pyright: ignore[reportAttributeAccessIssue]  (a generator)
    working = {name for name in names if name.startswith(("penstock-resize", "penstock-augment"))}
    assert working == threads if threads else len(working) > 1
