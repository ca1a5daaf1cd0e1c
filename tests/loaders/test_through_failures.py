"""Reading from a bucket that does not answer or is damaged; caches and datasets that cannot be used."""

import re
import signal
import threading
import time
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from helpers.buckets import upload, using
from helpers.datasets import prepare_folder, tree
from helpers.swift_server import SwiftServer
from helpers.through import BATCH_SIZE, OTHER_RANK, URL, iterating, make_loader, open_digits

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
    opening,
    through,
)
from loaders.prefetch import Prefetcher
from loaders.stats import Counters
from loaders.subset import Subset
from loaders.through import BucketSplit
from prep import s3
from prep.dataset import Options
from prep.errors import InputError, RankError
from prep.remote import Remote

pytestmark = pytest.mark.usefixtures("bucket", "few_connections", "fillers_end")


# When S3 fails.


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give a connection up after a second, not after half a minute."""
    monkeypatch.setattr(s3, "READ_SECONDS", 1)
    monkeypatch.setattr(s3, "RETRIES", {"max_retries": 0, "retry_timeout": timedelta(seconds=1)})


@pytest.mark.usefixtures("impatient")
def test_a_server_that_stops_is_waited_out(
    server: SwiftServer, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines, waits = [], threading.Event()

    def report(line: str) -> None:
        lines.append(line)
        waits.set()

    monkeypatch.setattr(through, "warn", report)
    loader = build_loader(
        open_digits(tmp_path, world=OTHER_RANK), TrainTransform(24), 8, config=LoaderConfig("reference")
    )
    bucket = loader.split
    assert isinstance(bucket, BucketSplit)
    bucket.warns = True
    plain = build_loader(Split(digits, "train"), TrainTransform(24), 8, config=LoaderConfig("reference"))
    with iterating(loader) as ours, iterating(plain) as theirs:
        assert next(ours).images_BCHW.equal(next(theirs).images_BCHW)
        with server.stopped():
            threading.Thread(target=_continue_proxy, args=(server, waits), daemon=True).start()
            for _ in range(10):
                assert next(ours).images_BCHW.equal(next(theirs).images_BCHW)
    assert re.fullmatch(
        rf"waiting since \S+: {URL}/train/train-\d+.tar: no answer, .*; giving up after 600 s", lines[0]
    )
    assert re.fullmatch(r"S3 answers again, after \d+ s", lines[-1])


def _continue_proxy(server: SwiftServer, waits: threading.Event) -> None:
    """Let a stopped server answer again, once a client waits for it."""
    waits.wait(60)
    server.proxy.send_signal(signal.SIGCONT)


@pytest.mark.usefixtures("impatient")
def test_a_loader_that_waits_for_a_server_can_be_closed(server: SwiftServer, monkeypatch: pytest.MonkeyPatch) -> None:
    waits = threading.Event()
    monkeypatch.setattr(through, "warn", lambda _: waits.set())
    loader = make_loader(open_digits("none"))
    with server.stopped():
        with Prefetcher(loader._produce(0), 1, Counters(), loader._interrupt) as prefetcher:
            assert waits.wait(60)
            assert re.fullmatch(rf"waiting since \S+: {URL}/train/.*", loader.describe_wait())
            started = time.monotonic()
        assert time.monotonic() - started < 60  # not the 600 s of its patience
        assert not prefetcher.thread.is_alive()


@pytest.fixture(scope="module")
def flipped(digits: Path, server: SwiftServer) -> tuple[str, str]:
    """A dataset with one flipped byte in an image; its URL and the image's key."""
    url, split = "s3://through/data/flipped", Split(digits, "validation")
    with using(server):
        upload(server, digits, url)
        shard, offset, size = (int(split.column(name)[200]) for name in ("shard", "offset", "size"))
        content = bytearray(split.shard_paths[shard].read_bytes())
        content[offset + size // 2] ^= 1
        Remote(url).put(f"validation/{split.shard_paths[shard].name}", bytes(content))
    return url, split.keys([200])[0]


@pytest.mark.parametrize("kind", ["shuffle", "blocks"])
def test_a_flipped_byte_in_the_bucket_is_one_line_with_the_key(flipped: tuple[str, str], kind: OrderKind) -> None:
    url, key = flipped
    (split,) = open_splits(url, ["validation"], "none", World())
    part = Subset(split, np.arange(196, 204), range(10))
    loader = build_loader(part, TrainTransform(24), 8, sampling=Sampling(0, kind), config=LoaderConfig("reference"))
    with pytest.raises(RankError) as caught:
        next(iter(loader))
    assert str(caught.value) == (
        f"{url}/validation/validation-000000.tar has wrong bytes in its image {key}, read 3 times: repair it with "
        f"`python prep/verify.py {url} --repair --source SRC`, then run this again"
    )


def test_a_shard_that_cannot_be_cached_is_said_and_its_images_come_from_the_bucket(
    flipped: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, _ = flipped
    lines: list[str] = []
    monkeypatch.setattr("loaders.filler.warn", lines.append)
    (split,) = open_splits(url, ["validation"], tmp_path, World())
    assert isinstance(split, BucketSplit) and split.filler is not None
    loader = build_loader(Subset(split, np.arange(8), range(10)), EvalTransform(24, 28), 8)
    assert len(list(loader)) == 1
    split.filler.thread.join()
    assert lines == [
        f"the cache is not complete ({url}/validation/validation-000000.tar does not match its manifest, fetched 3 "
        f"times: repair it with `python prep/verify.py {url} --repair --source SRC`, then run this again); what is "
        f"missing is read from {url}"
    ]
    assert [path.name for path in tmp_path.glob("validation/*.tar")] == ["validation-000001.tar"]
    assert len(list(loader)) == 1


# What is refused.


def test_a_cache_of_another_dataset_is_refused_and_stays(
    flipped: tuple[str, str], digits: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    prepare_folder(digits.parent / "digits-source", "validation", cache, Options(images_per_shard=200))
    before = tree(cache)
    with pytest.raises(
        InputError, match=r"validation/manifest.json is of another dataset than s3://through/.*: give a"
    ):
        open_splits(flipped[0], ["validation"], cache, World())
    assert tree(cache) == before


def _fill_with_photos(cache: Path) -> None:
    (cache / "train").mkdir(parents=True)
    (cache / "train" / "photo.jpg").write_bytes(b"mine")


REFUSED = {
    "no cache": (
        URL,
        "",
        "s3://through/data/digits is in a bucket, which needs a cache: give a folder on a local disk",
    ),
    "a cache of a folder": ("DIGITS", "CACHE", "a cache is for a dataset in a bucket, and .* is a folder: leave out"),
    "no such bucket": ("s3://nowhere-at-all/x", "none", "s3://nowhere-at-all/x cannot be listed .NoSuchBucket"),
    "no dataset": ("s3://through/data/other", "CACHE", "s3://through/data/other holds nothing: s3://through/data has"),
    "a split itself": (f"{URL}/train", "none", "is one split: give the folder above it"),
    "the folder above": ("s3://through/data", "none", "has no prepared split train: it has digits"),
    "a cache that is a file": (URL, __file__, "the cache .*.py cannot be used .Not a directory.: give a f"),
    "a cache that cannot be made": (URL, "/proc/cache", "the cache /proc/cache cannot be used .No such file or direct"),
    "another protocol": ("gs://through/data", "CACHE", "expected a URL such as s3://BUCKET/PREFIX, got gs://through/"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_work_is_one_line(case: str, digits: Path, tmp_path: Path) -> None:
    root, cache, words = REFUSED[case]
    root, cache = root.replace("DIGITS", str(digits)), cache.replace("CACHE", str(tmp_path / "cache"))
    with pytest.raises(InputError, match=words) as refusal:
        build(root, "train", BATCH_SIZE, backend="reference", cache=cache)
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "cache").exists()


def test_a_cache_with_other_files_is_refused(tmp_path: Path) -> None:
    _fill_with_photos(tmp_path)
    with pytest.raises(InputError, match=r"holds files that prep/stage.py did not fetch .photo.jpg.: give a folder on"):
        open_digits(tmp_path)
    assert tree(tmp_path) == {"train/photo.jpg": b"mine"}


def test_a_disk_that_is_too_small_is_refused_before_the_first_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening.shutil, "disk_usage", lambda _: SimpleNamespace(free=1_000_000))
    with pytest.raises(
        InputError, match=r"the cache .* lacks 0.0 GB, and its disk has 0.0 GB free: give a folder"
    ) as e:
        open_digits(tmp_path)
    assert isinstance(e.value, RankError)
    assert not list(tmp_path.glob("**/*.tar"))


def test_what_one_machine_finds_is_said_by_its_first_process() -> None:
    for world, line in (
        (World(8, 16, 0, 8), f"error: rank 8: {URL} has no prepared split lost: it has train, validation"),
        (World(9, 16, 1, 8), None),
    ):
        with pytest.raises(InputError) as refusal:
            open_splits(URL, ["lost"], "none", world)
        assert refusal.value.describe(world.rank) == line
