"""A run that is killed and resumed with another number of processes trains on the images of an undisturbed one."""

import random
import signal
from pathlib import Path

from helpers.ranks import Ranks, read_log
from helpers.train_runs import PATIENCE, SAVE_OFTEN, Run, assert_ended, await_that, start

from loaders import Split, select

SIZES = (4, 1, 3)  # processes, one group after the other
BATCH_SIZE = 48
# 4 processes take a step in 2 parts of 6 images, one in 2 of 24, 3 in one of 16.
FLAGS = {4: ("--speed.microbatch", "6"), 1: ("--speed.microbatch", "24"), 3: ()}

Log = dict[int, list[str]]  # the keys of each global batch, by its position


def test_4_then_1_then_3_processes_train_on_what_one_does(trainers: Ranks, digits: Path, tmp_path: Path) -> None:
    calm = Run(digits, tmp_path / "calm")
    group = start(trainers, calm, 1, "fit-recorded")
    assert_ended(trainers.wait(PATIENCE), 0)
    undisturbed = read_log(group, 1)
    subset = select(Split(digits, "train"), 0.4)
    assert list(undisturbed) == list(range(0, 2 * len(subset), BATCH_SIZE))
    shown = [key for keys in undisturbed.values() for key in keys]
    assert set(shown[: len(subset)]) == set(subset.keys(range(len(subset))))

    stitched: Log = {}
    draw = random.Random(113)
    for size in SIZES:
        run = Run(digits, tmp_path / "run", (*SAVE_OFTEN, *FLAGS[size]))
        group, num_steps = start(trainers, run, size, "fit-recorded"), draw.randint(4, 8)
        if size == SIZES[-1]:
            assert_ended(trainers.wait(PATIENCE), 0)
        else:
            await_that(lambda group=group, size=size, num=num_steps: len(read_log(group, size)) >= num, "steps")
            assert_ended(trainers.kill(), -signal.SIGKILL)
        log = read_log(group, size)
        assert min(log) > 0 or not stitched, "it began again"
        stitched = {position: keys for position, keys in stitched.items() if position < min(log)} | log
    assert stitched == undisturbed
