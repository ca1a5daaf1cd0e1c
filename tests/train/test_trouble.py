"""A run with a loss that is not finite, and one with a loader that is too slow."""

import json
from pathlib import Path

import pytest
from helpers.ranks import Ranks
from helpers.train_runs import PATIENCE, SAVE_OFTEN, Run, start
from safetensors.torch import load_file

from loaders import Sampling, Split, TrainTransform, build_loader, select
from loaders.order import epoch_order
from train.checkpoint import newest_complete, read_meta
from train.metrics import DataWaitWarning

BATCH_SIZE = 48
FIRST_BAD = 240  # position; then all are


def test_a_run_that_diverges_ends_with_one_line_and_a_list_of_the_images(
    trainers: Ranks, digits: Path, tmp_path: Path
) -> None:
    run = Run(digits, tmp_path / "run", ("--run.most-bad-steps", "3", *SAVE_OFTEN))
    start(trainers, run, 2, "fit-poisoned", first_bad=FIRST_BAD)
    path = run.folder / "bad_batches.json"
    for ended in trainers.wait(PATIENCE):
        assert ended.status == 1, ended
        assert "Traceback" not in ended.stderr
        line = ended.stderr.partition("\n")[0]
        assert line.startswith(f"error: the loss was not finite for 3 steps in a row: {path} lists the images ")
    split = select(Split(digits, "train"), 0.4)
    order = epoch_order(Sampling(), 0, len(split))
    positions = [FIRST_BAD + i * BATCH_SIZE for i in (2, 1, 0)]
    expected = [{"position": at, "keys": split.keys(order[at : at + BATCH_SIZE])} for at in positions]
    assert json.loads(path.read_text()) == expected
    checkpoint, damaged = newest_complete(run.folder / "checkpoints")
    assert checkpoint is not None and damaged == []
    assert read_meta(checkpoint)["clock"] < positions[0] + BATCH_SIZE
    for name in ("model", "ema"):
        assert all(tensor.isfinite().all() for tensor in load_file(checkpoint / f"{name}.safetensors").values())


@pytest.mark.parametrize(
    ("counter", "words"),
    [("read_seconds", "--data.order blocks"), ("decode_seconds", "--loader.num-threads"), ("copy_seconds", "device")],
)
def test_a_starving_run_is_told_once_what_to_try(digits: Path, counter: str, words: str) -> None:
    loader = build_loader(Split(digits, "train"), TrainTransform(size=16), BATCH_SIZE)
    said: list[str] = []
    starvation = DataWaitWarning(loader)
    starvation.check_wait(90.0, said.append)  # the loader had to start
    starvation.check_wait(4.9, said.append)
    assert said == []
    setattr(loader.counters, counter, 10.0)
    starvation.check_wait(37.4, said.append)
    starvation.check_wait(90.0, said.append)
    (line,) = said
    assert line.startswith("warning: training waited for data 37% of the time") and words in line
    starvation.restart()
    starvation.check_wait(38.0, said.append)
    assert len(said) == 2


def test_what_counts_is_the_time_since_the_last_look(digits: Path) -> None:
    loader = build_loader(Split(digits, "train"), TrainTransform(size=16), BATCH_SIZE)
    loader.counters.read_seconds = 100.0
    starvation, said = DataWaitWarning(loader), []
    starvation.check_wait(0.0, said.append)
    loader.counters.decode_seconds = 1.0
    starvation.check_wait(6.0, said.append)
    assert "--loader.num-threads" in said[0]
