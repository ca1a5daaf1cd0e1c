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

import numpy as np
import pytest
from helpers.commands import assert_clean, start_command
from helpers.datasets import tree
from helpers.swift_server import SwiftServer
from PIL import Image

pytest.importorskip("ray", reason="needs ray")

SECONDS_TO_START = 90.0
SIDE = 500
NUM_IMAGES = 160  # 8 shards, each some tenths of a second of work


@dataclass(frozen=True)
class Cluster:
    address: str
    environment: dict[str, str]
    pid: int  # of `ray start`, which started all its other processes

    def find_workers(self, name: str = "ray::") -> list[int]:
        """Return this cluster's processes whose name begins so; workers bear that of the function that they run."""
        return [pid for pid in descendants(self.pid) if read_name(pid).startswith(name.encode())]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Start a head with separate ports, folder and token, so that it meets no other cluster."""
    folder = Path(tempfile.mkdtemp(prefix="ray-"))  # short: it holds sockets
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
        yield Cluster(f"127.0.0.1:{port}", environment, process.pid)
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


def descendants(pid: int) -> list[int]:
    """Return the process's children, their children, and so on."""
    with suppress(FileNotFoundError, ProcessLookupError):  # it ended meanwhile
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return [found for child in map(int, children) for found in (child, *descendants(child))]
    return []


def read_name(pid: int) -> bytes:
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def read_ours(stderr: str) -> list[str]:
    """Return the lines that are not of the log of Ray's core, which writes some when the machine is slow."""
    return [line for line in stderr.splitlines() if not line.startswith("[")]


def _processes(word: str) -> list[int]:
    """Return the processes with a word in their command line."""
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
    """Prepare them in one process of this machine."""
    out = tmp_path_factory.mktemp("local")
    process = _start(photographs, out, dict(os.environ), "--workers", "1")
    assert_clean(process)
    return tree(out)


def _start(source: Path, out: object, environment: dict[str, str], *options: str) -> subprocess.Popen[str]:
    command = ("prep/shard.py", "--source", source, "--out", out, "--images-per-shard", 20, *options)
    return start_command(*command, environment=environment)


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
    assert_clean(_start(photographs, tmp_path, cluster.environment, "--ray", cluster.address))
    assert tree(tmp_path) == local


def test_a_cluster_writes_to_s3(
    cluster: Cluster,
    photographs: Path,
    local: dict[str, bytes],
    server: SwiftServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("obstore", reason="needs obstore")
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)
    # The workers have their credentials from their nodes; a job of Ray's can bring them along.
    job = {"RAY_JOB_CONFIG_JSON_ENV_VAR": json.dumps({"runtime_env": {"env_vars": server.environment()}})}
    server.make_bucket("photographs")
    environment = {**cluster.environment, **server.environment(), **job}
    assert_clean(_start(photographs, "s3://photographs/out", environment, "--ray", "auto"))
    assert server.objects("photographs", "out") == local


def test_a_killed_worker_loses_nothing(
    cluster: Cluster, photographs: Path, local: dict[str, bytes], tmp_path: Path
) -> None:
    process = _start(photographs, tmp_path, cluster.environment, "--ray", "auto")
    killed = 0
    while killed < 2 and process.poll() is None:
        for pid in cluster.find_workers("ray::write_shard"):  # the name of a worker while it does so
            if killed < 2 and list(tmp_path.glob("train/.prep/*.partial")):
                os.kill(pid, signal.SIGKILL)
                killed += 1
                time.sleep(0.3)
        time.sleep(0.01)
    assert killed == 2
    assert_clean(process)
    assert tree(tmp_path) == local


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_run_goes_on(
    number: int, cluster: Cluster, photographs: Path, local: dict[str, bytes], tmp_path: Path
) -> None:
    process = _start(photographs, tmp_path, cluster.environment, "--ray", "auto")
    while process.poll() is None and not list(tmp_path.glob("train/.prep/*.partial")):
        time.sleep(0.01)
    # The run has begun. Stop all its workers, so that it cannot end however slow this process is.
    workers = cluster.find_workers()
    for pid in workers:
        os.kill(pid, signal.SIGSTOP)
    assert not (tmp_path / "train" / "manifest.json").exists()
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    for pid in workers:  # of those that still exist
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
    if number == signal.SIGINT:
        assert (process.returncode, read_ours(stderr)) == (1, ["interrupted: run the same command again to continue"])
    assert not (tmp_path / "train" / "manifest.json").exists()
    for path in tmp_path.glob("train/*.tar"):
        assert path.read_bytes() == local[f"train/{path.name}"], path
    assert_clean(_start(photographs, tmp_path, cluster.environment, "--ray", "auto"))  # at once
    assert tree(tmp_path) == local


def test_what_a_worker_cannot_do_is_told_in_one_line(cluster: Cluster, digits_source: Path, tmp_path: Path) -> None:
    shutil.copytree(digits_source, tmp_path / "source")
    path = tmp_path / "source" / "data" / "train-00000-of-00001.parquet"
    data = path.read_bytes()
    path.write_bytes(data[:4] + bytes(len(data) // 2) + data[4 + len(data) // 2 :])
    process = _start(tmp_path / "source", tmp_path / "out", cluster.environment, "--ray", "auto")
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 1
    (line,) = read_ours(stderr)
    assert line.startswith(f"error: {path} cannot be read (")
