"""Strips, images many times as long as they are wide: bounded memory everywhere, and the pixels of the whole image."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from helpers.commands import run_command
from helpers.datasets import prepare_folder
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import CenterCrop, Compose, Resize

from loaders import EvalTransform, LoaderConfig, Split, build_loader
from loaders.plan import LONGEST_RATIO, Images, eval_plan
from loaders.reference import render
from serve.preprocess import Preprocessing, show_crop

TRANSFORMS = [EvalTransform(), EvalTransform(32, 32), EvalTransform(64, 73), EvalTransform(160, 182)]
STRIPS = [(1, 60_000), (60_000, 1), (2, 20_000), (20_000, 2)]  # height, width
MOST_MEGABYTES = 500  # that loaders, DALI and torch take for all of it together; one strip resized as a whole: 2,000

WORK = """
import json, resource, sys
from pathlib import Path
import torch
from PIL import Image
from loaders import EvalTransform, LoaderConfig, Split, TrainTransform, build_loader
from serve.preprocess import Preprocessing, show_crop

def peak():
    # Of this program alone: getrusage's ru_maxrss begins with the peak of the process that started it.
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) / 1024

data, pictures = Path(sys.argv[1]), sorted(Path(sys.argv[2]).rglob("*.jpg"))
# What the old way asks for is refused by the system, not taken from other processes.
resource.setrlimit(resource.RLIMIT_AS, (16 << 30, 16 << 30))
before, peaks = peak(), {}
for name in pictures:
    show_crop(Image.open(name), Preprocessing())
peaks["serving"] = peak() - before
tasks = [("training", "train", TrainTransform()), ("evaluation", "validation", EvalTransform())]
for backend in ("reference", "dali"):
    for what, split, transform in tasks:
        loader = build_loader(Split(data, split), transform, 4, config=LoaderConfig(backend))
        images = next(iter(loader)).images_BCHW
        assert images.shape == (4, 3, 224, 224)
        assert not len(loader.quarantine.rows)
        peaks[f"{what} {backend}"] = peak() - before
print(json.dumps(peaks))
"""


def draw(height: int, width: int) -> Image.Image:
    noise_HWC = np.random.default_rng(height * 7 + width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(noise_HWC)


def encode(picture: Image.Image) -> np.ndarray:
    encoded = io.BytesIO()
    picture.save(encoded, "PNG")
    return np.frombuffer(encoded.getvalue(), np.uint8)


def see(picture: Image.Image, transform: EvalTransform) -> np.ndarray:
    """Return the pixels of a picture that evaluation uses, int [size, size, 3]."""
    images = Images(np.array([picture.width]), np.array([picture.height]))
    return render(encode(picture), eval_plan(0, range(1), images, transform), 0).astype(int)


@pytest.fixture(scope="module")
def strips(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The strips as shards and as files."""
    source, out = tmp_path_factory.mktemp("strips"), tmp_path_factory.mktemp("strips-shards")
    for split in ("train", "val"):
        for height, width in STRIPS:
            folder = source / split / f"{height}x{width}"
            folder.mkdir(parents=True)
            draw(height, width).save(folder / "strip.jpg", quality=95, subsampling=0)
    for split in ("train", "validation"):
        prepare_folder(source, split, out)
    return out, source


def test_memory_is_bounded_in_training_evaluation_and_serving(strips: tuple[Path, Path]) -> None:
    done = run_command("-c", WORK, *strips)
    assert done.returncode == 0, done.stderr
    peaks = json.loads(done.stdout)
    print(peaks)
    assert len(peaks) == 5 and max(peaks.values()) < MOST_MEGABYTES, peaks


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(1, 12), st.integers(LONGEST_RATIO, 4 * LONGEST_RATIO), st.booleans(), st.sampled_from(TRANSFORMS))
def test_a_strip_is_seen_as_if_it_was_resized_as_a_whole(
    short: int, ratio: int, tall: bool, transform: EvalTransform
) -> None:
    height, width = (short * ratio + 1, short) if tall else (short, short * ratio + 1)
    picture = draw(height, width)
    whole = Compose([Resize(transform.resize), CenterCrop(transform.size)])(picture)
    seen_HWC = see(picture, transform)
    assert np.abs(seen_HWC - np.asarray(whole, int)).max() <= 1
    served = show_crop(picture, Preprocessing(transform.resize, transform.size))
    np.testing.assert_array_equal(seen_HWC, np.asarray(served))


def test_backends_see_the_same_of_strips(strips: tuple[Path, Path]) -> None:
    split = Split(strips[0], "validation")
    seen = [
        next(iter(build_loader(split, EvalTransform(), 4, config=LoaderConfig(backend)))).images_BCHW.int()
        for backend in ("reference", "dali")
    ]
    assert (seen[0] - seen[1]).abs().max() <= 1 and seen[0].float().std() > 10


@pytest.mark.parametrize(
    ("height", "width"), [(1, 1), (1, 2), (2, 1), (1, LONGEST_RATIO), (3 * LONGEST_RATIO, 3), (375, 500)]
)
def test_other_images_are_resized_as_a_whole(height: int, width: int) -> None:
    images = Images(np.array([width]), np.array([height]))
    assert eval_plan(0, range(1), images, EvalTransform()).windows_B4.tolist() == [[0, 0, height, width]]
    whole = Compose([Resize(256), CenterCrop(224)])(draw(height, width))
    np.testing.assert_array_equal(see(draw(height, width), EvalTransform()), np.asarray(whole, int))


def test_a_window_is_central_and_no_longer_than_it_must_be() -> None:
    sides = np.array([[1, 60_000], [60_001, 1], [2, 20_000], [7, 9_999], [1_000, 65_535]])
    plan = eval_plan(0, range(5), Images(sides[:, 1], sides[:, 0]), EvalTransform())
    for (height, width), (top, left, part_height, part_width) in zip(sides, plan.windows_B4, strict=True):
        assert 2 * top + part_height == height and 2 * left + part_width == width
        short, long = sorted((part_height, part_width))
        assert min(LONGEST_RATIO * short, max(height, width)) <= long <= 2 * LONGEST_RATIO * short
    assert plan.resized_B2.max() <= 256 * 2 * LONGEST_RATIO
