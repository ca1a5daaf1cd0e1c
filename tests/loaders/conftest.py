"""Fixtures of the tests that read through a cache from a bucket."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.buckets import upload, using
from helpers.rank_jobs import FEW_CONNECTIONS, make_blocks_small
from helpers.swift_server import SwiftServer
from helpers.through import URL

from loaders import order, reader, through, windows
from loaders.filler import Filler


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
