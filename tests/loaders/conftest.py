"""Fixtures of the tests that read through a cache from a bucket, or splice images."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.buckets import upload, using
from helpers.datasets import prepare_folder
from helpers.rank_jobs import FEW_CONNECTIONS, make_blocks_small
from helpers.restarts import CAN_TRANSCODE, KINDS, make_jpeg
from helpers.sharing import build_once
from helpers.swift_server import SwiftServer
from helpers.through import URL

from loaders import order, reader, through, windows
from loaders.filler import Filler
from prep.dataset import Options


@pytest.fixture(scope="module")
def bucket(server: SwiftServer, digits: Path) -> Iterator[None]:
    """The digits in a bucket, which this process and its children find."""
    with using(server):
        upload(server, digits, URL)
        yield


@pytest.fixture
def few_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not ask more of the tests' server than it can answer in time."""
    monkeypatch.setattr(through, "CONNECTIONS", FEW_CONNECTIONS)


@pytest.fixture
def fillers_end(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No test leaves a process behind."""
    made: list[Filler] = []
    usual = Filler.__init__

    def note(self: Filler, *arguments: Any) -> None:
        usual(self, *arguments)
        made.append(self)

    monkeypatch.setattr(Filler, "__init__", note)
    yield
    for each in made:
        each.stop()


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Blocks of 16 and windows of 128 images, so that the batches of a test come from several windows."""
    places = [(order, "BLOCK_IMAGES"), (order, "GROUP_BLOCKS"), (reader, "WINDOW_IMAGES"), (windows, "WINDOW_IMAGES")]
    for module, name in places:
        monkeypatch.setattr(module, name, getattr(module, name))
    make_blocks_small()
    order.epoch_order.cache_clear()
    yield
    order.epoch_order.cache_clear()


@pytest.fixture(scope="session")
def restart_pair(shared_folder: Path) -> tuple[Path, Path]:
    """96 JPEGs of all subsamplings as shards without and with restart markers, 3 of 32 images. Only to read."""
    if not CAN_TRANSCODE:
        pytest.skip("needs a transcoder for restart markers: a compiler and jpeglib.h, or jpegtran")

    def prepare(out: Path) -> None:
        random = np.random.default_rng(18)
        for i in range(96):
            path = out / "source" / "train" / f"class{i % 3}" / f"{i:03d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(make_jpeg(KINDS[i % len(KINDS)], *random.integers(20, 250, 2).tolist(), seed=i))
        for name in ("original", "restarts"):
            options = Options(images_per_shard=32, restarts=name == "restarts")
            prepare_folder(out / "source", "train", out / name, options)

    folder = build_once(shared_folder, "restart-pair", prepare)
    return folder / "original", folder / "restarts"


@pytest.fixture
def restarts_copy(restart_pair: tuple[Path, Path], tmp_path: Path) -> Path:
    """A copy of the shards with restart markers, to damage."""
    return Path(shutil.copytree(restart_pair[1], tmp_path / "copy"))
