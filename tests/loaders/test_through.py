"""Training reads a dataset that is in a bucket: the same batches as from a folder, whatever the cache holds."""

import hashlib
import os
import select as system_select
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from helpers.buckets import list_processes
from helpers.datasets import tree
from helpers.rank_jobs import describe_images
from helpers.ranks import Ranks, read_log
from helpers.swift_server import SwiftServer
from helpers.through import (
    BATCH_SIZE,
    NUM_BATCHES,
    OTHER_RANK,
    URL,
    await_that,
    iterating,
    make_loader,
    open_digits,
    take_batches,
)

from loaders import (
    EvalTransform,
    LoaderConfig,
    OrderKind,
    Sampling,
    Split,
    TrainTransform,
    World,
    build,
    build_loader,
    open_splits,
    order,
    select,
    through,
)
from loaders import world as world_module
from loaders.order import locate
from loaders.through import BucketSplit
from loaders.windows import Windows
from prep.files import hold_lock
from prep.remote import Remote

pytestmark = pytest.mark.usefixtures("bucket", "few_connections", "fillers_end")


# The same batches.


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("kind", ["shuffle", "blocks"])
@pytest.mark.parametrize(("cached", "backend"), [(True, "dali"), (False, "reference")])
def test_batches_are_those_of_a_folder(
    digits: Path, tmp_path: Path, kind: OrderKind, cached: bool, backend: str
) -> None:
    """From an empty cache, which fills meanwhile; and without one."""
    split = open_digits(tmp_path / "cache" if cached else "none")
    ours, theirs = make_loader(split, kind, backend), make_loader(Split(digits, "train"), kind, backend)
    assert take_batches(ours) == take_batches(theirs)
    assert ours.state_dict() == theirs.state_dict()
    stats = ours.stats()
    assert stats.remote_images >= BATCH_SIZE and stats.remote_bytes > 0
    if not cached:
        assert stats.cached_share == 0 and stats.remote_bytes >= stats.read_bytes
    assert theirs.stats().remote_images == 0 and theirs.stats().cached_share == 1


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize(("kind", "cached"), [("shuffle", True), ("blocks", False)])
def test_two_processes_share_the_batches_of_a_folder(
    ranks: Ranks, server: SwiftServer, digits: Path, tmp_path: Path, kind: OrderKind, cached: bool
) -> None:
    loader = {"order": kind, "seed": 7, "backend": "reference", "batch_size": BATCH_SIZE, "save_every": 100}
    data = [URL, "train", str(tmp_path / "cache") if cached else "none"]
    job = {"data": data, "loader": loader, "until": NUM_BATCHES * BATCH_SIZE}
    group = ranks.start("train", 2, tmp_path, environment=server.environment(), **job)
    assert [(each.status, "Traceback" in each.stderr) for each in ranks.wait(60)] == [(0, False), (0, False)]
    plain = make_loader(Split(digits, "train"), kind)
    batches = islice(plain, NUM_BATCHES)
    assert read_log(group, 2) == {batch.position: describe_images(plain, batch) for batch in batches}


@pytest.mark.usefixtures("small_blocks")
def test_without_a_cache_one_process_reads_blocks_by_few_requests(
    digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests, usual = [], Remote.read_range

    def note(self: Remote, name: str, start: int, stop: int, into: Any) -> None:
        requests.append((name, start, stop))
        usual(self, name, start, stop, into)

    monkeypatch.setattr(Remote, "read_range", note)
    loader, plain = make_loader(open_digits("none"), "blocks"), make_loader(Split(digits, "train"), "blocks")
    for each in (loader, plain):
        each.position = 1400  # the last, shorter window, and those of the next epoch
    assert take_batches(loader) == take_batches(plain)
    assert loader.stats().remote_images > 150 > 5 * len(requests)


class FolderRemote:
    """Reads ranges of files, as `Remote` does of objects."""

    def __init__(self, root: Path) -> None:
        self.root, self.read_bytes = root, 0

    def read_range(self, name: str, start: int, stop: int, into: Any) -> None:
        into[:] = np.frombuffer((self.root / name).read_bytes()[start:stop], np.uint8)
        self.read_bytes += stop - start


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("repeats", [1, 3])
@pytest.mark.parametrize("slots", [range(48), range(16, 32)])
def test_windows_hold_every_image_that_a_process_needs(digits: Path, slots: range, repeats: int) -> None:
    split, sampling, first = Split(digits, "train"), Sampling(3, "blocks", repeats), 1200
    remote: Any = FolderRemote(digits)
    size_bytes = 0
    with ThreadPoolExecutor(2) as threads, Windows(split, sampling, 48, slots, remote, threads) as ahead:
        plans: list[Any] = [SimpleNamespace(position=position) for position in range(first, first + 48 * 20, 48)]
        for plan in ahead.follow(plans):
            _, rows = locate(sampling, plan.position + np.array(slots), len(split))
            for row, sha256 in zip(rows.tolist(), split.sha256_of_rows(rows), strict=True):
                run, offset, size = ahead.find_run(row), *(int(split.column(name)[row]) for name in ("offset", "size"))
                assert run is not None
                image = run.content.result()[offset - run.start :][:size]
                assert hashlib.sha256(image.tobytes()).digest() == sha256
                size_bytes += size
            assert len(ahead.runs) <= 4  # the last one of an epoch is short
    if len(slots) < 48:  # not the images of the other processes: they are twice as many
        assert remote.read_bytes < 2.5 * size_bytes / repeats + 128 * 2000


# What is in the cache.


def test_a_subset_and_an_evaluation_are_those_of_a_folder(digits: Path, tmp_path: Path) -> None:
    parts = [select(split, 0.05, ["2-4"]) for split in (open_digits(tmp_path / "cache"), Split(digits, "train"))]
    assert parts[0].digest == parts[1].digest
    assert take_batches(make_loader(parts[0]), 3) == take_batches(make_loader(parts[1]), 3)
    passes = []
    for split in (open_digits(tmp_path / "cache", "validation", OTHER_RANK), Split(digits, "validation")):
        part = select(split, 0.2)
        passes.append(
            take_batches(build_loader(part, EvalTransform(24, 28), 50, config=LoaderConfig("reference")), 100)
        )
    assert passes[0] == passes[1] and len(passes[0]) == 2


def test_shards_are_used_as_they_come_and_the_last_one_ends_the_threads(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(through, "SECONDS_BETWEEN_LOOKS", 0.0)
    split = open_digits(tmp_path, world=OTHER_RANK)
    loader, plain = make_loader(split), make_loader(Split(digits, "train"))
    with iterating(loader) as ours, iterating(plain) as theirs:

        def advance(num_batches: int) -> float:
            for _ in range(num_batches):
                batch, other = next(ours), next(theirs)
                assert np.array_equal(batch.rows_B, other.rows_B) and batch.images_BCHW.equal(other.images_BCHW)
            return loader.stats().cached_share

        # A shard that was cut is not there; a whole one is.
        names = [shard.name for shard in split.manifest.shards]
        (tmp_path / "train" / names[0]).write_bytes((digits / "train" / names[0]).read_bytes()[:-1])
        shares = [advance(8)]
        for name in names:
            (tmp_path / "partial").write_bytes((digits / "train" / name).read_bytes())
            (tmp_path / "partial").replace(tmp_path / "train" / name)
            shares.append(advance(8))
        assert shares == sorted(set(shares)) and shares[0] == 0 and shares[-1] == 1

        # From now on nothing comes from the bucket.
        before = loader.stats().remote_images
        advance(20)
        assert loader.stats().remote_images == before > 0
        await_that(lambda: not any(thread.name.startswith("penstock-remote") for thread in threading.enumerate()))


def test_the_cache_becomes_the_folder_that_prep_wrote(digits: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    splits = open_splits(URL, ["train", "validation"], cache, World())
    assert all(
        isinstance(split, BucketSplit) and split.digest == Split(digits, split.folder.name).digest for split in splits
    )
    loader = make_loader(splits[0])
    loader.position = 1000
    take_batches(loader, 1)
    first, second = (split.filler for split in splits if isinstance(split, BucketSplit))
    assert first is not None and first is second
    first.thread.join()

    # In the order of first use, from the position on.
    rows = order.epoch_order(Sampling(7), 0, 1437)[1000:]
    shards = list(dict.fromkeys(splits[0].column("shard")[rows].tolist()))
    assert first.order.splitlines() == [f"train/train-{shard:06d}.tar" for shard in shards]
    assert tree(cache) == tree(digits)

    # The next run reads from a folder.
    again = open_splits(URL, ["train", "validation"], cache, World())
    assert [type(split) for split in again] == [Split, Split]


def test_a_shard_that_was_removed_is_fetched_again(digits: Path, tmp_path: Path) -> None:
    shutil.copytree(digits, tmp_path / "cache")
    (tmp_path / "cache" / "train" / "train-000003.tar").unlink()
    split = open_digits(tmp_path / "cache")
    assert isinstance(split, BucketSplit) and split.filler is not None
    ours, theirs = make_loader(split), make_loader(Split(digits, "train"))
    assert take_batches(ours, 3) == take_batches(theirs, 3)
    assert 0 < ours.stats().remote_images < ours.stats().num_batches * BATCH_SIZE
    split.filler.thread.join()
    assert tree(tmp_path / "cache") == tree(digits)


def test_the_filler_ends_with_its_trainer(ranks: Ranks, server: SwiftServer, tmp_path: Path) -> None:
    """The trainer is killed while the filler waits for the folder's lock, so that it cannot end by itself."""
    cache = tmp_path / "cache"
    cache.mkdir()
    loader = {"order": "shuffle", "seed": 7, "backend": "reference", "batch_size": BATCH_SIZE, "save_every": 100}
    with hold_lock(cache):
        job = {"data": [URL, "train", str(cache)], "loader": loader, "until": None}
        ranks.start("train", 1, tmp_path, environment=server.environment(), **job)
        await_that(lambda: len(list_processes(str(cache))) == 1)
        (filler,) = list_processes(str(cache))
        ended = os.pidfd_open(filler)
        ranks.kill()
        assert system_select.select([ended], [], [], 60)[0]
        os.close(ended)


# Other loops.


def test_other_loops_read_through_a_cache(digits: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"dtype": "uint8", "backend": "reference", "transform": TrainTransform(24)}
    ours = build(Path(URL), "train", BATCH_SIZE, cache=tmp_path, **options)  # a Path has one slash only
    theirs = build(digits, "train", BATCH_SIZE, **options)
    for _, one, other in zip(range(3), ours, theirs, strict=False):
        assert all(a.equal(b) for a, b in zip(one, other, strict=True))
    assert ours.state_dict() == theirs.state_dict()
    for each in (ours, theirs):
        each.close()


def test_what_an_epoch_without_a_cache_costs_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    world_module.log_once.cache_clear()
    for sampling, size in ((Sampling(), 1), (Sampling(order="blocks"), 1), (Sampling(order="blocks"), 2)):
        through.warn_of_requests(1_281_167, sampling, World(0, size))
    (one, two) = caplog.messages
    assert one.startswith(
        "without a cache each of 1,281,167 images of an epoch is one request to S3, together 0.51 dollars"
    )
    assert one.endswith(": give a cache, or the order blocks, in which one process makes few requests")
    assert two.endswith(": give a cache")
