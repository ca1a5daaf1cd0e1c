"""A hung run is ended, and the rank that hung is named."""

import itertools
import signal
import time
from pathlib import Path

import pytest
from helpers.ranks import Ranks
from helpers.train_runs import PATIENCE, Run, await_that, count_logs, start

from train.watchdog import Heartbeat, describe_hang

HANG_MINUTES = 0.05
MAX_TICKS = 600  # 10 are a hang


def have_seen(group: Path, ranks: list[int], tick: int) -> bool:
    """Return True if both threads of the watchdog of each rank have worked through a tick."""
    seen = [path.read_text() for rank in ranks for path in group.glob(f"waiting-{rank}-*")]
    return len(seen) == 2 * len(ranks) and all(text and int(text) >= tick for text in seen)


@pytest.mark.parametrize("stopped", [0, 2])
def test_a_stopped_process_is_named_by_the_others(trainers: Ranks, digits: Path, tmp_path: Path, stopped: int) -> None:
    """Rank 0 holds the store through which they connected: if it is stopped, the others report it."""
    run = Run(digits, tmp_path / "run", ("--run.hang-minutes", str(HANG_MINUTES)))
    group = start(trainers, run, 3, "fit-ticking", pulse=60 * HANG_MINUTES / 10)
    await_that(lambda: count_logs(group) > 0, "a log")
    trainers.signal(stopped, signal.SIGSTOP)
    others = [rank for rank in range(3) if rank != stopped]
    hang = run.folder / "hang.txt"
    # Let time pass, but only when both threads of each live watchdog have seen the last tick: a slow process is not
    # silent. Without rank 0's store they cannot publish, so there only the time passes.
    for tick in itertools.count(1):
        if stopped != 0:
            await_that(lambda tick=tick: hang.exists() or have_seen(group, others, tick - 1), f"tick {tick}")
        if hang.exists() and "step.py" in hang.read_text():
            break
        assert tick < MAX_TICKS
        (group / "tick").write_text(str(tick))
        time.sleep(0.1)
    trainers.signal(stopped, signal.SIGKILL)
    ended = trainers.wait(PATIENCE)
    assert [ended[rank].status for rank in others] == [1, 1], ended
    said = "\n".join(ended[rank].stderr for rank in others)  # the last line of a library may lack its end
    lines = [line for line in said.splitlines() if line.startswith("hung: ")]
    assert lines and "Traceback" not in said  # when the first has ended, the other may end for that
    culprit = f"rank {stopped} at image " if stopped else "the store on rank 0's machine does not answer"
    for line in lines:
        assert line.startswith(f"hung: no step in {HANG_MINUTES} minutes; {culprit}")
        assert line in hang.read_text()


AHEAD, BEHIND = Heartbeat(7, 96, "training"), Heartbeat(6, 96, "reading")


@pytest.mark.parametrize(
    ("beats", "silent", "words"),
    [
        ([AHEAD, BEHIND, AHEAD], [], "rank 1 at image 96, reading; waiting for it: rank 0, 2 at image 96, training"),
        ([AHEAD, AHEAD, BEHIND], [1], "rank 1 at image 96, training, silent; waiting for it: rank 0 "),
        ([AHEAD, AHEAD], [], "rank 0, 1 at image 96, training"),
        ([BEHIND], [], "rank 0 at image 96, reading"),
        ([AHEAD, AHEAD], [0, 1], "the store on rank 0's machine does not answer; last seen: rank 0, 1 at image 96"),
    ],
)
def test_the_silent_or_the_last_is_to_blame(beats: list[Heartbeat], silent: list[int], words: str) -> None:
    assert describe_hang(beats, silent).startswith(words)
