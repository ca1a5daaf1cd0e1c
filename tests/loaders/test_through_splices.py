"""Training from a bucket whose shards have segments: the pixels of complete images, whatever the cache holds."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.buckets import upload, using
from helpers.swift_server import SwiftServer
from helpers.through import OTHER_RANK, await_that, iterating, take_batches

from loaders import Loader, LoaderConfig, Split, TrainTransform, World, build_loader, open_splits
from prep.segments import HEADER, RECORD

URL = "s3://through-splices/data"
pytestmark = pytest.mark.usefixtures("few_connections", "fillers_end")


@pytest.fixture(scope="module", autouse=True)
def bucket(server: SwiftServer, restart_pair: tuple[Path, Path]) -> Any:
    """The shards with restart markers in a bucket."""
    with using(server):
        upload(server, restart_pair[1], URL)
        yield


def _loader(split: Split) -> Loader:
    return build_loader(split, TrainTransform(size=24), 8, config=LoaderConfig("reference"))


def _open(cache: Path | str, world: World | None = None) -> Split:
    (split,) = open_splits(URL, ["train"], cache, world or World())
    return split


def test_a_cache_that_fills_is_spliced_from(restart_pair: tuple[Path, Path], tmp_path: Path) -> None:
    ours, plain = _loader(_open(tmp_path / "cache")), _loader(Split(restart_pair[0], "train"))
    assert take_batches(ours) == take_batches(plain)

    # When all shards have come.
    ours = _loader(_open(tmp_path / "cache"))
    with iterating(ours) as batches:
        next(batches)
        await_that(lambda: (next(batches), ours.stats().cached_share == 1)[1])
        before = ours.stats()
        for _ in range(8):
            next(batches)
        spent = ours.stats().since(before)
    assert spent.decode_bytes < spent.read_bytes < spent.image_bytes and spent.remote_images == 0


def test_without_a_cache_images_are_complete(restart_pair: tuple[Path, Path]) -> None:
    ours, plain = _loader(_open("none")), _loader(Split(restart_pair[0], "train"))
    assert take_batches(ours) == take_batches(plain)
    stats = ours.stats()
    assert stats.decode_bytes == stats.read_bytes == stats.image_bytes > 0


@pytest.mark.parametrize("is_wrong", [False, True])
def test_complete_images_from_the_bucket_are_spliced_if_their_segments_are_here(
    restart_pair: tuple[Path, Path], tmp_path: Path, is_wrong: bool
) -> None:
    """The files with segments come before the shards. If they are wrong, the images are used as they came."""
    split = _open(tmp_path / "cache", OTHER_RANK)  # which fetches no shards
    for path in (restart_pair[1] / "train").glob("*.seg"):
        copy = Path(shutil.copy(path, split.folder))
        if is_wrong:
            content = bytearray(copy.read_bytes())
            firsts = np.frombuffer(content, RECORD, 32, HEADER.itemsize)["first"].tolist()
            for first in firsts:
                content[first] ^= 1
            copy.write_bytes(content)
    ours, plain = _loader(split), _loader(Split(restart_pair[0], "train"))
    assert take_batches(ours) == take_batches(plain)
    stats = ours.stats()
    assert stats.read_bytes == stats.image_bytes <= stats.remote_bytes
    assert stats.decode_bytes == stats.image_bytes if is_wrong else stats.decode_bytes < stats.image_bytes


def test_a_shard_in_the_cache_whose_segments_were_lost_is_fetched_from_the_bucket(
    restart_pair: tuple[Path, Path], tmp_path: Path
) -> None:
    split = _open(tmp_path / "cache", OTHER_RANK)  # which fetches no shards
    for path in (restart_pair[1] / "train").glob("train-*"):
        shutil.copy(path, split.folder)
    split.segments_path(1).unlink()
    ours, plain = _loader(split), _loader(Split(restart_pair[0], "train"))
    assert take_batches(ours) == take_batches(plain)
    assert ours.stats().remote_images > 0
    assert 0.5 < ours.stats().cached_share < 1
