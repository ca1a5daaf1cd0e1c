"""Shards written on a real Ray cluster of two processes: the bytes of a local run, also when workers are killed."""

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import CHECKOUT
from PIL import Image
from swift_server import swift_server

pytest.importorskip("ray", reason="needs ray")

SECONDS_TO_START = 90.0
SIDE = 500
NUM_IMAGES = 160  # 8 shards, each some tenths of a second of work


@dataclass(frozen=True)
class Cluster:
    address: str
    environment: dict[str, str]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head of its own ports, folder and token, so that no other cluster is met and no one else gets in."""
    folder = Path(tempfile.mkdtemp(prefix="ray-"))  # short: sockets lie in it
    quiet = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    environment = {**os.environ, **quiet, "RAY_TMPDIR": str(folder)}
    with socket.create_server(("127.0.0.1", 0)) as free, socket.create_server(("127.0.0.1", 0)) as also_free:
        port, client_port = free.getsockname()[1], also_free.getsockname()[1]
    command = [Path(sys.executable).with_name("ray"), "start", "--head", "--block", "--num-cpus=2", f"--port={port}"]
    command += ["--include-dashboard=false", "--disable-usage-stats", "--object-store-memory=100000000"]
    command += [f"--ray-client-server-port={client_port}", f"--temp-dir={folder / 'ray'}"]
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        _wait_until_started(process, folder / "log")
        yield Cluster(f"127.0.0.1:{port}", environment)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for pid in _processes(str(folder)):
            os.kill(pid, signal.SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)


def _wait_until_started(process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + SECONDS_TO_START
    while b"Ray runtime started" not in log.read_bytes():
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"ray did not start: {log.read_text()[-2000:]}")
        time.sleep(0.1)


def _processes(word: str) -> list[int]:
    """Those with a word in their command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if word.encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended meanwhile
    return found


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images that take a while: a shard must be long enough in work for a kill to hit it."""
    folder = tmp_path_factory.mktemp("photographs")
    draw = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (folder / "train" / name).mkdir(parents=True)
    for number in range(NUM_IMAGES):
        coarse_HWC = draw.integers(0, 256, (SIDE // 10, SIDE // 10, 3), dtype=np.uint8)
        image = Image.fromarray(coarse_HWC).resize((SIDE, SIDE))
        image.save(folder / "train" / ("cat", "dog")[number % 2] / f"{number}.png", compress_level=1)
    return folder


@pytest.fixture(scope="module")
def local(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What one process of this machine makes of them."""
    out = tmp_path_factory.mktemp("local")
    process = _start(photographs, out, dict(os.environ), "--workers", "1")
    _assert_clean(process)
    return _tree(out)


def _start(source: Path, out: object, environment: dict[str, str], *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "prep/shard.py", "--source", str(source), "--out", str(out)]
    command += ["--images-per-shard", "20", *options]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=CHECKOUT, env=environment, stdout=pipe, stderr=pipe, text=True)


def _assert_clean(process: subprocess.Popen[str]) -> None:
    _, stderr = process.communicate(timeout=120)
    assert (process.returncode, stderr) == (0, "")


def _tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("kind", ["none", "gone", "closed port", "nonsense"])
def test_no_cluster_is_told_in_one_line(kind: str, photographs: Path, tmp_path: Path) -> None:
    if kind == "none" and _processes("gcs_server"):
        pytest.skip("needs a machine where no Ray cluster runs: auto would find it")
    if kind == "gone":  # without `ray stop`
        (tmp_path / "ray").mkdir()
        (tmp_path / "ray" / "ray_current_cluster").write_text("127.0.0.1:1")
    address = {"closed port": "127.0.0.1:1", "nonsense": "nonsense"}.get(kind, "auto")
    environment = {**os.environ, "RAY_TMPDIR": str(tmp_path)}
    process = _start(photographs, tmp_path / "out", environment, "--ray", address)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 1
    assert stderr.startswith(f"error: no Ray cluster at {address} (")
    assert stderr.endswith(": start one with `ray start --head`\n")
    assert stderr.count("\n") == 1


def test_a_cluster_writes_the_same_bytes(
    cluster: Cluster, photographs: Path, local: dict[str, bytes], tmp_path: Path
) -> None:
    _assert_clean(_start(photographs, tmp_path, cluster.environment, "--ray", cluster.address))
    assert _tree(tmp_path) == local


def test_a_cluster_writes_to_s3(
    cluster: Cluster, photographs: Path, local: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3fs: Any = pytest.importorskip("s3fs", reason="needs s3fs")
    pytest.importorskip("swift", reason="needs an S3 server: pip install swift")
    with swift_server(tmp_path) as server:
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        # The workers have their credentials from their nodes; a job of Ray's can bring them along.
        job = {"RAY_JOB_CONFIG_JSON_ENV_VAR": json.dumps({"runtime_env": {"env_vars": server.environment()}})}
        files = s3fs.S3FileSystem(use_listings_cache=False, skip_instance_cache=True)
        files.mkdir("photographs")
        environment = {**cluster.environment, **server.environment(), **job}
        _assert_clean(_start(photographs, "s3://photographs/out", environment, "--ray", "auto"))
        written = {path.removeprefix("photographs/out/"): files.cat_file(path) for path in files.find("photographs")}
    assert written == local


def test_a_killed_worker_loses_nothing(
    cluster: Cluster, photographs: Path, local: dict[str, bytes], tmp_path: Path
) -> None:
    process = _start(photographs, tmp_path, cluster.environment, "--ray", "auto")
    killed = 0
    while killed < 2 and process.poll() is None:
        for pid in _processes("ray::write_shard"):  # its name while it does so
            if killed < 2 and list(tmp_path.glob("train/.prep/*.partial")):
                os.kill(pid, signal.SIGKILL)
                killed += 1
                time.sleep(0.3)
        time.sleep(0.01)
    assert killed == 2
    _assert_clean(process)
    assert _tree(tmp_path) == local


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_run_goes_on(
    number: int, cluster: Cluster, photographs: Path, local: dict[str, bytes], tmp_path: Path
) -> None:
    process = _start(photographs, tmp_path, cluster.environment, "--ray", "auto")
    while process.poll() is None and not list(tmp_path.glob("train/*.tar")):
        time.sleep(0.01)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    if number == signal.SIGINT:
        ours = [line for line in stderr.splitlines() if not line.startswith("[")]  # Ray's core may add lines of its log
        assert (process.returncode, ours) == (1, ["interrupted: run the same command again to go on"])
    assert not (tmp_path / "train" / "manifest.json").exists()
    for path in tmp_path.glob("train/*.tar"):
        assert path.read_bytes() == local[f"train/{path.name}"], path
    _assert_clean(_start(photographs, tmp_path, cluster.environment, "--ray", "auto"))  # at once
    assert _tree(tmp_path) == local


def test_what_a_worker_cannot_do_is_told_in_one_line(cluster: Cluster, digits_source: Path, tmp_path: Path) -> None:
    shutil.copytree(digits_source, tmp_path / "source")
    path = tmp_path / "source" / "data" / "train-00000-of-00001.parquet"
    data = path.read_bytes()
    path.write_bytes(data[:4] + bytes(len(data) // 2) + data[4 + len(data) // 2 :])
    process = _start(tmp_path / "source", tmp_path / "out", cluster.environment, "--ray", "auto")
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 1
    assert stderr.startswith(f"error: {path} cannot be read (")
    assert stderr.count("\n") == 1
