"""A hang is ended, and who hung is named."""

import signal
from pathlib import Path

import pytest
from ranks import Ranks
from train_runs import PATIENCE, Run, await_that, count_logs, start

from train.watchdog import Beat, blame

pytest_plugins = ["train_fixtures"]
HANG_MINUTES = 0.05


@pytest.mark.parametrize("stopped", [0, 2])
def test_a_stopped_process_is_named_by_the_others(trainers: Ranks, digits: Path, tmp_path: Path, stopped: int) -> None:
    """Rank 0 holds the store in which they met: where it is stopped the others know that nobody answers."""
    run = Run(digits, tmp_path / "run", ("--run.hang-minutes", str(HANG_MINUTES)))
    group = start(trainers, run, 3)
    await_that(lambda: count_logs(group) > 0, "a log")
    trainers.signal(stopped, signal.SIGSTOP)
    others = [rank for rank in range(3) if rank != stopped]
    hang = run.folder / "hang.txt"
    await_that(lambda: hang.exists() and "step.py" in hang.read_text(), "a word of the others, and where they stood")
    trainers.signal(stopped, signal.SIGKILL)
    ended = trainers.wait(PATIENCE)
    assert [ended[rank].status for rank in others] == [1, 1], ended
    said = "\n".join(ended[rank].stderr for rank in others)  # the last line of a library may lack its end
    lines = [line for line in said.splitlines() if line.startswith("hung: ")]
    assert lines and "Traceback" not in said  # when the first has ended, the other may end for that
    culprit = f"rank {stopped} at image " if stopped else "the store of rank 0's machine does not answer"
    for line in lines:
        assert line.startswith(f"hung: no step in {HANG_MINUTES} minutes; {culprit}")
        assert line in hang.read_text()


AHEAD, BEHIND = Beat(7, 96, "training"), Beat(6, 96, "reading")


@pytest.mark.parametrize(
    ("beats", "silent", "words"),
    [
        ([AHEAD, BEHIND, AHEAD], [], "rank 1 at image 96, reading; held up by that rank 0, 2 at image 96, training"),
        ([AHEAD, AHEAD, BEHIND], [1], "rank 1 at image 96, training, silent; held up by that rank 0 "),
        ([AHEAD, AHEAD], [], "rank 0, 1 at image 96, training"),
        ([BEHIND], [], "rank 0 at image 96, reading"),
        ([AHEAD, AHEAD], [0, 1], "the store of rank 0's machine does not answer; last seen rank 0, 1 at image 96"),
    ],
)
def test_the_silent_or_the_last_is_to_blame(beats: list[Beat], silent: list[int], words: str) -> None:
    assert blame(beats, silent).startswith(words)
