"""Smaller images: never larger in pixels or bytes than they came, antialiased, and counted."""

import io
import shutil
from pathlib import Path

import numpy as np
import pytest
import sklearn.datasets
from helpers.commands import run_command
from helpers.datasets import prepare_folder
from helpers.hostile import encode, photo
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from prep.dataset import Options, Split
from prep.images import as_jpeg
from prep.jpeg import target_size

CHINA = (Path(sklearn.datasets.__file__).parent / "images" / "china.jpg").read_bytes()  # 640 x 427, quality 96
MOST_MEAN_ERROR = 5.0  # grey levels, against Pillow's own downscaling; JPEG alone costs 3 to 4 of them here

sides = st.integers(1, 3000)
bounds = st.one_of(st.none(), st.integers(1, 3000))


@given(width=sides, height=sides, max_side=bounds, short_side=bounds)
def test_a_target_fits_its_bounds_is_never_larger_and_keeps_the_aspect(
    width: int, height: int, max_side: int | None, short_side: int | None
) -> None:
    found = target_size(width, height, Options(max_side=max_side, short_side=short_side))
    assert 1 <= found[0] <= width
    assert 1 <= found[1] <= height
    assert max_side is None or max(found) <= max_side
    assert short_side is None or min(found) <= short_side
    scale = min(1.0, (max_side or 10**9) / max(width, height), (short_side or 10**9) / min(width, height))
    assert all(
        abs(side - max(1.0, whole * scale)) <= 0.5 + 1e-9 for side, whole in zip(found, (width, height), strict=True)
    )


@pytest.mark.parametrize(
    ("options", "size"),
    [
        (Options(max_side=500), (500, 334)),
        (Options(max_side=500, quality=90), (500, 334)),
        (Options(short_side=256, quality=90), (384, 256)),
        (Options(max_side=100, short_side=256), (100, 67)),
        (Options(short_side=2000, quality=80), (640, 427)),
    ],
    ids=str,
)
def test_an_image_is_scaled_down_as_pillow_would(options: Options, size: tuple[int, int]) -> None:
    stored = as_jpeg(CHINA, options)
    assert len(stored.data) < len(CHINA)
    with Image.open(io.BytesIO(stored.data)) as image, Image.open(io.BytesIO(CHINA)) as original:
        assert (stored.width, stored.height) == image.size == size
        wanted = original.resize(size, Image.Resampling.BILINEAR)
        error = np.abs(np.asarray(image).astype(float) - np.asarray(wanted))
    assert error.mean() < MOST_MEAN_ERROR


@pytest.mark.parametrize(
    ("data", "options"),
    [
        (CHINA, Options(max_side=640)),
        (CHINA, Options(short_side=5000)),
        (encode(photo("china.jpg"), "JPEG", quality=20), Options(quality=95)),
        (encode(photo("china.jpg"), "JPEG", quality=5), Options(max_side=150, quality=100)),
    ],
)
def test_what_would_not_shrink_is_kept_bit_for_bit(data: bytes, options: Options) -> None:
    stored = as_jpeg(data, options)
    assert stored.data == data
    with Image.open(io.BytesIO(data)) as image:
        assert (stored.width, stored.height) == image.size


def test_grey_stays_grey_and_a_repaired_image_is_made_smaller_too() -> None:
    grey = as_jpeg(encode(photo("china.jpg").convert("L"), "JPEG", quality=95), Options(max_side=80))
    assert Image.open(io.BytesIO(grey.data)).mode == "L"
    repaired = as_jpeg(encode(photo("china.jpg"), "PNG"), Options(max_side=80))
    assert (repaired.width, repaired.height) == (80, 60)
    assert repaired.findings == (("repaired", "PNG RGB made RGB JPEG"),)


def test_fine_stripes_become_grey_not_stripes_of_another_width() -> None:
    stripes = np.tile(np.array([0, 255], np.uint8), (200, 250))  # one pixel wide
    stored = as_jpeg(encode(Image.fromarray(stripes), "JPEG", quality=95), Options(max_side=200))
    pixels = np.asarray(Image.open(io.BytesIO(stored.data)).convert("L")).astype(float)
    assert abs(pixels.mean() - 127.5) < 3
    assert pixels.std() < 32  # 127 for stripes


def test_the_index_and_the_summary_tell_the_stored_size(tmp_path: Path) -> None:
    (tmp_path / "images" / "train" / "thing").mkdir(parents=True)
    for name in ("china.jpg", "flower.jpg"):
        shutil.copy(Path(sklearn.datasets.__file__).parent / "images" / name, tmp_path / "images" / "train" / "thing")
    options = ["--max-side", "320", "--quality", "85", "--images-per-shard", "1"]
    result = run_command("prep/shard.py", "--source", tmp_path / "images", "--out", tmp_path / "out", *options)
    assert result.returncode == 0, result.stderr
    split = Split(tmp_path / "out", "train")
    assert set(zip(split.column("width").tolist(), split.column("height").tolist(), strict=True)) == {(320, 214)}
    manifest = split.manifest
    assert manifest.size_bytes == split.column("size").sum() < manifest.source_size_bytes / 4
    assert (
        f"{manifest.source_size_bytes / 2:,.0f} bytes per image before, {manifest.size_bytes / 2:,.0f} after"
        in result.stdout
    )
    again = Options(images_per_shard=1, max_side=320, quality=85)
    prepare_folder(tmp_path / "images", "train", tmp_path / "again", again, num_workers=2)
    for path in sorted((tmp_path / "out" / "train").iterdir()):
        assert path.read_bytes() == (tmp_path / "again" / "train" / path.name).read_bytes()


@pytest.mark.parametrize("given_quality", ["0", "101", "x"])
def test_a_quality_that_is_none_is_refused(given_quality: str, tmp_path: Path) -> None:
    result = run_command("prep/shard.py", "--source", tmp_path, "--quality", given_quality)
    assert result.returncode == 2
    assert f"must be a whole number from 1 to 100, got {given_quality}" in result.stderr
