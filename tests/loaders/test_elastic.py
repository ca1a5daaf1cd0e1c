"""Training that is killed and continues with another number of processes shows the images of an uninterrupted run.

PENSTOCK_SOAK_ELASTIC sets how many pairs of moments to kill at are drawn for each case (1 unless told).
"""

import json
import os
import random
import shutil
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from helpers.rank_jobs import STATE
from helpers.ranks import Ended, Ranks, read_log

from loaders.quarantine import Quarantine
from prep.dataset import Split

NUM_SEEDS = int(os.environ.get("PENSTOCK_SOAK_ELASTIC", "1"))
SIZES = (4, 1, 3)  # processes, one group after the other
BATCH_SIZE = 48  # all sizes divide it
NUM_BATCHES = 60  # two epochs of 1,437 images, the last batch filled from the third
PATIENCE = 60.0  # seconds
DAMAGED = (5, 6, 700, 1436)  # rows

Log = dict[int, list[Any]]  # the images of each global batch, by its position


@dataclass(frozen=True)
class Case:
    """The settings to load the images of a split's folder."""

    backend: str
    order: str
    damaged: bool = False

    def arguments(self, folder: Path, seed: int, until: int | None) -> dict[str, Any]:
        """Return the arguments of the job `train`, for the split in `folder`."""
        loader = {"backend": self.backend, "order": self.order, "seed": seed, "batch_size": BATCH_SIZE, "save_every": 4}
        return {"data": [str(folder.parent), folder.name], "loader": loader, "until": until}


CASES = [Case("dali", "shuffle"), Case("dali", "blocks"), Case("reference", "shuffle"), Case("dali", "shuffle", True)]


@pytest.fixture(scope="module")
def damaged(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits' train split with zeros instead of some images."""
    folder = Path(shutil.copytree(digits / "train", tmp_path_factory.mktemp("damaged") / "train"))
    split = Split(folder.parent, "train")
    for row in DAMAGED:
        shard, offset, size = (int(split.column(name)[row]) for name in ("shard", "offset", "size"))
        with split.shard_paths[shard].open("r+b") as file:
            file.seek(offset)
            file.write(bytes(size))
    return folder


def _await_lines(path: Path, num_lines: int) -> None:
    given_up = time.monotonic() + PATIENCE
    while not path.exists() or path.read_bytes().count(b"\n") < num_lines:
        assert time.monotonic() < given_up, f"{path} never had {num_lines} lines"
        time.sleep(0.001)


def _saved_position(folder: Path) -> int:
    state = folder / STATE
    return json.loads(state.read_text())["position"] if state.exists() else 0


def _assert_well(ended: list[Ended], status: int) -> None:
    for rank in ended:
        assert rank.status == status, rank.stderr
        assert "Traceback" not in rank.stderr


def _train_disturbed(ranks: Ranks, case: Case, data: Path, folder: Path, seed: int) -> list[tuple[int, Log]]:
    """For each group the position that it started from and what it logged; all except the last are killed."""
    draw, logs = random.Random(seed), []
    for i, size in enumerate(SIZES):
        start, last = _saved_position(folder), i == len(SIZES) - 1
        until = max(NUM_BATCHES * BATCH_SIZE, start + BATCH_SIZE) if last else None
        group = ranks.start("train", size, folder, **case.arguments(data, seed, until))
        if last:
            _assert_well(ranks.wait(PATIENCE), 0)
        else:
            num_lines = draw.randint(1, NUM_BATCHES // 3)
            _await_lines(group / f"log-{draw.randrange(size)}", num_lines)
            _assert_well(ranks.kill(), -signal.SIGKILL)
        logs.append((start, read_log(group, size)))
    return logs


def _stitch(logs: list[tuple[int, Log]]) -> Log:
    """Return the log that counts: a group's entries after the position at which the next one continued are dropped."""
    stitched: Log = {}
    for start, log in logs:
        stitched = {position: images for position, images in stitched.items() if position < start} | log
    return stitched


def _assert_two_epochs(undisturbed: Log, case: Case, folder: Path) -> None:
    """Two permutations, with others instead of the damaged images: the measure is right itself."""
    assert list(undisturbed) == list(range(0, NUM_BATCHES * BATCH_SIZE, BATCH_SIZE))
    split = Split(folder.parent, folder.name)
    sound = set(split.keys(range(len(split)))) - set(split.keys(DAMAGED) if case.damaged else [])
    shown = [image[0] for images in undisturbed.values() for image in images]
    first, second = shown[: len(split)], shown[len(split) : 2 * len(split)]
    assert set(first) == set(second) == sound
    assert first != second


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("seed", range(NUM_SEEDS))
def test_4_then_1_then_3_processes_show_what_one_does(
    ranks: Ranks, digits: Path, damaged: Path, tmp_path: Path, case: Case, seed: int
) -> None:
    data, total = damaged if case.damaged else digits / "train", NUM_BATCHES * BATCH_SIZE
    calm = ranks.start("train", 1, tmp_path / "calm", **case.arguments(data, seed, total))
    _assert_well(ranks.wait(PATIENCE), 0)
    undisturbed = read_log(calm, 1)
    _assert_two_epochs(undisturbed, case, data)

    logs = _train_disturbed(ranks, case, data, tmp_path / "disturbed", seed)
    for _, log in logs:  # what is superseded was right, too
        for position in set(log) & set(undisturbed):
            assert log[position] == undisturbed[position], f"seed {seed}, position {position}"
    stitched = _stitch(logs)
    assert {position: stitched.get(position) for position in undisturbed} == undisturbed, f"seed {seed}"


def test_an_image_found_by_two_at_once_is_one(digits: Path) -> None:
    """A batch planned before the trainer heard of an image from another process fails on it all the same."""
    quarantine = Quarantine(Split(digits, "train"), len(DAMAGED), "another image takes its place")
    quarantine.add(DAMAGED, "found by another process")
    quarantine.add(DAMAGED[:1], "found by this one")
    assert quarantine.rows.tolist() == list(DAMAGED)


def test_a_number_of_processes_that_does_not_divide_the_batch_is_refused_by_each(
    ranks: Ranks, digits: Path, tmp_path: Path
) -> None:
    for ended in ranks.run("train", 5, tmp_path, **CASES[0].arguments(digits / "train", 0, 1)):
        assert ended.status == 1
        assert ended.stderr == (
            "error: the batch size must be a multiple of the number of processes, 5, got 48: use 45 or 50\n"
        )
