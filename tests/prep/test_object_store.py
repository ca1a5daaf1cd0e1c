"""Shards in an object store: a real S3 server gets the same bytes as a folder, through kills, errors and corruption."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from fsspec import register_implementation
from fsspec.implementations.memory import MemoryFileSystem
from helpers.commands import CHECKOUT, start_command
from helpers.swift_server import SECRET, SwiftServer
from PIL import Image

from prep.errors import InputError
from prep.object_store import ATTEMPTS, ObjectStore, open_object_store
from prep.store import open_store

obstore: Any = pytest.importorskip("obstore", reason="needs obstore")
pytest.importorskip("swift", reason="needs an S3 server: pip install swift")

NUM_KILLS = int(os.environ.get("PENSTOCK_SOAK_KILLS", "2"))
BUCKET = "images"
NUM_IMAGES, PER_SHARD = 60, 10
NUM_PUTS = NUM_IMAGES // PER_SHARD * 3 + 6  # tar, index and record of each, and what closes the split
MEASURE_PUT = """
import resource, sys
from prep.object_store import open_object_store
store = open_object_store(sys.argv[1])
file = store.create("big.tar")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for number in range(120):
    file.write(bytes([number]) * 1_000_000)
file.close()
store.publish(file, "big.tar")
file.discard()
print(file.sha256, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.fixture
def staging(server: SwiftServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Commands find the server, and stage their files in this folder, where none may stay."""
    folder = tmp_path / "staging"
    folder.mkdir()
    for name, value in {**server.environment(), "TMPDIR": str(folder)}.items():
        monkeypatch.setenv(name, value)
    yield folder
    assert not list(folder.iterdir())


@pytest.fixture
def bucket(staging: Path, server: SwiftServer) -> SwiftServer:
    """The server with an empty bucket."""
    server.make_bucket(BUCKET)
    server.empty_bucket(BUCKET)
    return server


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of images, which is sooner open than a dataset in parquet."""
    folder = tmp_path_factory.mktemp("source")
    draw = np.random.default_rng(0)
    for number in range(NUM_IMAGES):
        path = folder / "train" / ("even", "odd")[number % 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    return folder


@pytest.fixture(scope="module")
def local(images: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Prepare the same dataset to a folder."""
    out = tmp_path_factory.mktemp("local")
    assert _prepare(images, out).returncode == 0
    return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}


def _start(source: Path, out: object) -> subprocess.Popen[str]:
    command = ("prep/shard.py", "--source", source, "--out", out, "--workers", 2, "--images-per-shard", PER_SHARD)
    return start_command(*command)


def _prepare(source: Path, out: object) -> subprocess.CompletedProcess[str]:
    process = _start(source, out)
    stdout, stderr = process.communicate(timeout=120)
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


def test_s3_gets_the_bytes_of_a_folder(bucket: SwiftServer, local: dict[str, bytes], images: Path) -> None:
    out = "a/prefix"
    result = _prepare(images, f"s3://{BUCKET}/{out}")
    assert (result.returncode, result.stderr) == (0, "")
    assert f"s3://{BUCKET}/{out}/train: 60 images" in result.stdout
    assert bucket.objects(BUCKET, out) == local
    bucket.open(BUCKET).delete(f"{out}/train/train-000003.tar")  # as a user may by mistake
    result = _prepare(images, f"s3://{BUCKET}/{out}/")
    assert (result.returncode, result.stderr) == (0, "")
    assert bucket.objects(BUCKET) == {f"a/prefix/{name}": content for name, content in local.items()}


def _kill_after(
    num_puts: int, seconds: float, process: subprocess.Popen[str], server: SwiftServer, group: bool
) -> bool:
    """Wait for a number of puts and seconds, then kill; return whether the command was still running."""
    awaited = server.num_objects() + num_puts
    while process.poll() is None and server.num_objects() < awaited:
        time.sleep(0.005)
    time.sleep(seconds)
    at_work = process.poll() is None
    if group:
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.communicate()  # to the end of the pipes: the workers have closed them, too
    return at_work


def test_killed_at_any_moment_it_goes_on_to_the_same_objects(
    bucket: SwiftServer, local: dict[str, bytes], images: Path
) -> None:
    draw = random.Random(2)
    landed = 0
    for number in range(NUM_KILLS):
        out = f"run{number // 2}"  # two in a row
        process = _start(images, f"s3://{BUCKET}/{out}")
        landed += _kill_after(draw.randrange(NUM_PUTS // 2), draw.uniform(0, 0.3), process, bucket, number % 2 == 0)
        left = bucket.objects(BUCKET, out)
        assert all(content == local[name] for name, content in left.items() if "/.prep/" not in name)
        if number % 2 or number == NUM_KILLS - 1:
            assert _prepare(images, f"s3://{BUCKET}/{out}").returncode == 0
            assert bucket.objects(BUCKET, out) == local
    assert landed


@pytest.mark.parametrize(
    ("changes", "out", "words"),
    [
        ({"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, f"s3://{BUCKET}/x", "no AWS credentials were found"),
        ({"AWS_SECRET_ACCESS_KEY": "sesame-opens"}, f"s3://{BUCKET}/x", "check AWS_SECRET_ACCESS_KEY"),
        ({}, "s3://nowhere/x", "check the bucket's name"),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:1"}, f"s3://{BUCKET}/x", "check the network and AWS_ENDPOINT_URL"),
    ],
    ids=["no credentials", "wrong secret", "no bucket", "no server"],
)
def test_a_store_that_cannot_be_used_is_refused_in_one_line(
    changes: dict[str, str],
    out: str,
    words: str,
    bucket: SwiftServer,
    images: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in changes.items():
        monkeypatch.setenv(name, value)
    started = time.monotonic()
    result = _prepare(images, out)
    assert time.monotonic() - started < 60
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith("error: ")
    assert words in result.stderr
    assert result.stderr.count("\n") == 1
    assert "sesame" not in result.stderr
    assert SECRET not in result.stderr.replace(str(images), "")
    assert bucket.objects(BUCKET) == {}


@pytest.mark.parametrize("url", ["s3://", "s3:///", "s3://bucket/all*", "s3://bucket/[ab]", "nope://bucket/x"])
def test_a_url_that_is_no_place_is_refused(url: str) -> None:
    with pytest.raises(
        InputError, match=r"cannot write to .*expected s3://BUCKET/PREFIX|needs fsspec's package for nope"
    ):
        open_store(url)


def test_a_large_shard_is_put_in_parts_with_little_memory(bucket: SwiftServer) -> None:
    url = f"s3://{BUCKET}/big"
    command = [sys.executable, "-c", MEASURE_PUT, url]
    result = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=True)
    assert result.stderr == ""
    sha256, growth_kb = result.stdout.split()
    found = bucket.open(BUCKET).head("big/big.tar")
    assert found["size"] == 120_000_000
    assert "-" in found["e_tag"]  # of parts
    assert ObjectStore(url)._digest(f"{url}/big.tar") == sha256
    assert int(growth_kb) < 80_000


def test_a_file_is_read_from_its_start_on(bucket: SwiftServer) -> None:
    store = open_object_store(f"s3://{BUCKET}/some")
    assert store.read("folder/a") is None
    assert store.size("folder/a") is None
    assert store.names() == []
    store.remove("folder")
    store.write("folder/a", b"abc" * 1000)
    store.write("b", b"")
    assert store.names() == ["b", "folder"]
    assert store.size("folder/a") == 3000
    assert store.child("folder").read("a") == b"abc" * 1000
    assert store.read("b") == b""
    with store.open("folder/a") as file:
        assert (file.read(4), file.read()) == (b"abca", b"bc" + b"abc" * 998)
    store.remove("folder")
    assert store.names() == ["b"]


class FlippingFileSystem(MemoryFileSystem):
    """A store that flips a bit of each object, for a number of puts."""

    protocol: ClassVar[Any] = "flipping"
    num_flips: ClassVar[int] = 0

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: Any) -> None:
        super().pipe_file(path, self._spoil(value), mode, **kwargs)

    def put_file(self, lpath: str, rpath: str, *_: Any, **kwargs: Any) -> None:
        super().pipe_file(rpath, self._spoil(Path(lpath).read_bytes()))

    def _spoil(self, value: bytes) -> bytes:
        if type(self).num_flips == 0:
            return value
        type(self).num_flips -= 1
        return value[:-1] + bytes([value[-1] ^ 1])


@pytest.fixture
def flipping() -> ObjectStore:
    register_implementation("flipping", FlippingFileSystem, clobber=True)
    MemoryFileSystem.store.clear()
    return open_object_store("flipping://bucket/prefix")


def _put_both(store: ObjectStore, content: bytes) -> None:
    store.write("small", content)
    file = store.create("big")
    try:
        file.write(content)
        file.close()
        store.publish(file, "big")
    finally:
        file.discard()


def test_what_a_store_spoils_is_put_again(flipping: ObjectStore) -> None:
    FlippingFileSystem.num_flips = ATTEMPTS - 1
    _put_both(flipping, b"shard")
    assert FlippingFileSystem.num_flips == 0
    assert (flipping.read("small"), flipping.read("big")) == (b"shard", b"shard")


@pytest.mark.parametrize("num_good", [0, 1])
def test_a_store_that_spoils_everything_is_refused(
    num_good: int, flipping: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    if num_good:
        monkeypatch.setattr(ObjectStore, "write", lambda *_: None)
    FlippingFileSystem.num_flips = ATTEMPTS
    with pytest.raises(InputError, match=r"prefix/(small|big) came back different from what was put, 3 times"):
        _put_both(flipping, b"shard")
    assert flipping.names() == []  # or the next run would take it for whole
