"""Training under torchrun itself: a killed process is replaced, and two nodes end as one does."""

import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path

from helpers.train_runs import PATIENCE, SAVE_OFTEN, Run, assert_same_end, await_that, find_workers, torchrun

Calm = Callable[[int], Run]


def test_torchrun_goes_on_after_a_process_was_killed(calm: Calm, digits: Path, tmp_path: Path) -> None:
    run = Run(digits, tmp_path / "run", SAVE_OFTEN)
    launcher = torchrun(run, 2, "--standalone", "--max-restarts", "2")
    await_that(lambda: run.checkpoints, "a checkpoint")
    os.kill(find_workers(launcher)[1], signal.SIGKILL)
    said, _ = launcher.communicate(timeout=PATIENCE)
    assert launcher.returncode == 0, said
    assert ", resuming at image " in said
    assert_same_end(run, calm(2))


def test_two_nodes_end_as_one_does(calm: Calm, digits: Path, tmp_path: Path) -> None:
    run = Run(digits, tmp_path / "run", SAVE_OFTEN)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    meeting = ("--nnodes", "2", "--rdzv-backend", "c10d", "--rdzv-endpoint", address, "--rdzv-id", "test")
    nodes = [torchrun(run, 1, *meeting, "--local-addr", "localhost") for _ in range(2)]
    for node in nodes:
        said, _ = node.communicate(timeout=PATIENCE)
        assert node.returncode == 0, said
    assert_same_end(run, calm(2))
