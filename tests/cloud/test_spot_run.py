"""From a source to a finished run: a bucket, machines that are reclaimed or killed, each with an empty disk.

prep/shard.py writes into a bucket; cloud/run.sh trains from there and saves there. The result must have the same bits
as a run from a local folder that nothing disturbed.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path

import pytest
from helpers.commands import CHECKOUT, run_command
from helpers.imds import Instance, metadata_service
from helpers.swift_server import SwiftServer
from helpers.train_runs import FLAGS, PATIENCE, SAVE_OFTEN, Run, assert_same_end, await_that, torchrun

pytest.importorskip("swift", reason="needs an S3 server: pip install swift")

pytestmark = pytest.mark.needs("simplejpeg", "tyro", "obstore")
BUCKET = "spot"
RUNS_UNTIL_FINISHED = 60
NUM_KILLS = int(os.environ.get("PENSTOCK_SOAK_SPOT_KILLS", "0"))
SIZES = (1, 2) if NUM_KILLS else (2,)  # processes per machine


class Machine:
    """A checkout and a disk that no other machine has; all its processes can be killed at once."""

    def __init__(self, folder: Path, server: SwiftServer, instance: Instance, size: int) -> None:
        self.folder, self.checkout = folder, folder / "checkout"
        for name in ("cloud", "train", "loaders", "prep"):
            shutil.copytree(CHECKOUT / name, self.checkout / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name, command in (("torchrun", "-m torch.distributed.run"), ("python", "")):
            path = self.checkout / ".venv/bin" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f'#!/bin/sh\nexec {sys.executable} {command} "$@"\n')
            path.chmod(0o755)
        self.mark = f"MACHINE={folder}"
        self.variables = {
            **{name: value for name, value in os.environ.items() if not name.startswith("AWS_")},
            **server.environment(),
            "AWS_EC2_METADATA_SERVICE_ENDPOINT": instance.url,
            "PENSTOCK_DATA": f"s3://{BUCKET}/digits",
            "PENSTOCK_MIRROR": f"s3://{BUCKET}/runs/first",
            "PENSTOCK_DISK": str(folder / "disk"),
            "PENSTOCK_NPROC": str(size),
            "PENSTOCK_SKIP_SETUP": "1",
            "PYTHONPATH": str(self.checkout),
            "OMP_NUM_THREADS": "1",
            "MACHINE": str(folder),
        }

    def start(self) -> subprocess.Popen[str]:
        """Start the one command; what it says goes to a file."""
        with open(self.folder / "said", "w") as said:
            command = [self.checkout / "cloud/run.sh", "demo", *FLAGS, *SAVE_OFTEN]
            return subprocess.Popen(
                command, env=self.variables, stdout=said, stderr=said, text=True, cwd="/", start_new_session=True
            )

    def said(self) -> str:
        """Return what the command has said so far."""
        return (self.folder / "said").read_text()

    def kill(self) -> None:
        """Kill every process of this machine, as a loss of power does."""
        while pids := list(self.find_processes()):
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)

    def find_processes(self) -> Iterator[int]:
        """Yield the processes that were started on this machine and have not ended."""
        for path in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                is_dead = path.joinpath("stat").read_text().rpartition(")")[2].split()[0] in "ZX"
                if not is_dead and self.mark.encode() in path.joinpath("environ").read_bytes().split(b"\0"):
                    yield int(path.name)


@pytest.fixture(scope="module")
def prepared(server: SwiftServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits, prepared into a folder and into the bucket; the folder."""
    folder = tmp_path_factory.mktemp("digits")
    assert run_command("prep/digits.py", "--out", folder / "source").returncode == 0
    server.make_bucket(BUCKET)
    server.empty_bucket(BUCKET)
    for out in (str(folder / "local"), f"s3://{BUCKET}/digits"):
        command = [sys.executable, "prep/shard.py", "--source", folder / "source", "--out", out]
        variables = {**os.environ, **server.environment()}
        made = subprocess.run(command, cwd=CHECKOUT, env=variables, capture_output=True, text=True, check=False)
        assert made.returncode == 0, made.stderr
    return folder / "local"


@pytest.fixture
def instance() -> Iterator[Instance]:
    """The metadata service of all machines."""
    with metadata_service() as served:
        yield served


@pytest.fixture(scope="module")
def undisturbed(prepared: Path) -> Callable[[int], Run]:
    """Return a function that gives the run of so many processes from a local folder, which is trained once."""

    @cache
    def train(size: int) -> Run:
        run = Run(prepared, prepared.with_name(f"undisturbed-{size}"), SAVE_OFTEN)
        process = torchrun(run, size)
        said, _ = process.communicate(timeout=3 * PATIENCE)
        assert process.returncode == 0, said
        return run

    return train


def fetch(server: SwiftServer, folder: Path) -> Run:
    """Fetch the run from the bucket with the command."""
    command = [sys.executable, "train/mirror.py", f"s3://{BUCKET}/runs/first", "--to", folder]
    variables = {**os.environ, **server.environment()}
    fetched = subprocess.run(command, cwd=CHECKOUT, env=variables, capture_output=True, text=True, check=False)
    assert fetched.returncode == 0, fetched.stderr
    return Run(folder, folder)


def count_checkpoints(server: SwiftServer) -> int:
    """Return how many whole checkpoints the bucket holds."""
    chunks = server.open(BUCKET).list("runs/first/checkpoints")
    return sum(each["path"].endswith("/meta.json") for chunk in chunks for each in chunk)


def newest_checkpoint(server: SwiftServer) -> str:
    """Return the path of the newest whole checkpoint in the bucket; empty without one."""
    chunks = server.open(BUCKET).list("runs/first/checkpoints")
    return max((each["path"] for chunk in chunks for each in chunk if each["path"].endswith("/meta.json")), default="")


def remove_run(server: SwiftServer) -> None:
    """Empty the bucket, except for the data."""
    store = server.open(BUCKET)
    paths = [each["path"] for chunk in store.list("runs") for each in chunk]
    for path in paths:
        store.delete(path)


@pytest.mark.parametrize("size", SIZES)
def test_a_notice_moves_the_run_to_another_machine(
    size: int, undisturbed: Callable[[int], Run], server: SwiftServer, instance: Instance, tmp_path: Path
) -> None:
    remove_run(server)
    # The first machine has a notice as soon as it asks: it trains a few steps.
    instance.has_notice = True
    first = Machine(tmp_path / "first", server, instance, size)
    process = first.start()
    assert process.wait(3 * PATIENCE) == 75, first.said()
    assert "SPOT_NOTICE: saved at image" in first.said()
    assert first.said().count("Traceback") == 1, "torchrun's own, about the status 75"
    assert count_checkpoints(server) == 1
    shutil.rmtree(tmp_path / "first")

    # The second has a checkout of its own and an empty disk.
    instance.has_notice = False
    second = Machine(tmp_path / "second", server, instance, size)
    process = second.start()
    assert process.wait(3 * PATIENCE) == 0, second.said()
    assert "resuming at image" in second.said()
    assert_same_end(fetch(server, tmp_path / "fetched"), undisturbed(size))


@pytest.mark.skipif(not NUM_KILLS, reason="set PENSTOCK_SOAK_SPOT_KILLS=10, as make soak does")
@pytest.mark.parametrize("size", SIZES)
def test_machines_that_die_lose_nothing(
    size: int, undisturbed: Callable[[int], Run], server: SwiftServer, instance: Instance, tmp_path: Path
) -> None:
    remove_run(server)
    draw, kills = random.Random(size), 0
    for number in range(RUNS_UNTIL_FINISHED):
        machine = Machine(tmp_path / str(number), server, instance, size)
        process, before = machine.start(), newest_checkpoint(server)
        if kills < NUM_KILLS:
            # Half of the machines die in a new checkpoint's upload or soon after it, the others at any moment.
            if number % 2 == 0:
                await_that(
                    lambda process=process, before=before: (
                        process.poll() is not None or newest_checkpoint(server) != before
                    ),
                    "a checkpoint or the end",
                )
            time.sleep(draw.uniform(0, 2.0 if number % 2 else 0.5))
            kills += process.poll() is None
            machine.kill()
            process.wait()
        else:
            assert process.wait(3 * PATIENCE) == 0, machine.said()
        assert "error: " not in machine.said(), machine.said()
        shutil.rmtree(tmp_path / str(number))
        if process.returncode == 0:
            break
    else:
        pytest.fail("the run is never finished")
    print(f"{kills} machines died")
    assert kills
    assert_same_end(fetch(server, tmp_path / "fetched"), undisturbed(size))
