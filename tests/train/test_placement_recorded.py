"""A run prints its placement once and records it; one choice, rank 0's, holds for all processes."""

import json
import os
import runpy
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.commands import CHECKOUT
from helpers.evaluations import evaluate
from helpers.ranks import Ranks
from helpers.train_runs import PATIENCE, Run, assert_ended, start

import train.dist
from loaders import LoaderConfig, Split, Stats, TrainTransform, World, build_loader
from loaders.placement import choose_placement
from prep.errors import InputError
from train import loader_settings
from train.checkpoint import read_meta
from train.loader_settings import agree_on_placement
from train.metrics import find_remedy

ON_CPU = {"placement": "cpu", "reason": "the model is on the CPU too", "decode": "roi"}
GPUS = [World(rank, 2, rank, 2, torch.device("cuda", rank)) for rank in range(2)]


def test_a_run_and_its_evaluation_tell_where_images_were_decoded(trainers: Ranks, digits: Path, tmp_path: Path) -> None:
    run = Run(digits, tmp_path / "run")
    group = start(trainers, run, 2)
    assert_ended(trainers.wait(PATIENCE), 0)
    said = [(group / f"stdout-{rank}").read_text() for rank in range(2)]
    assert said[0].count("images are decoded on the CPU (the model is on the CPU too)") == 1 and said[1] == ""
    meta = read_meta(run.checkpoints[-1])
    assert meta["placement"] == ON_CPU
    assert (meta["recipe"]["loader"]["placement"], meta["recipe"]["loader"]["decode"]) == ("cpu", "roi")
    (header,) = [json.loads(line) for line in (run.folder / "starts.jsonl").read_text().splitlines()]
    assert header["loader"] == ON_CPU
    scores = json.loads(evaluate(trainers, 2, tmp_path / "evaluated", run.folder))
    assert {name: scores[name] for name in ON_CPU} == ON_CPU


@pytest.mark.parametrize(
    ("placement", "line"), [("gpu", "placement gpu needs a GPU, but this process runs on the CPU: set")]
)
def test_a_placement_that_this_machine_lacks_is_one_line_before_anything_is_written(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, placement: str, line: str
) -> None:
    words = ["demo", "--data.root", digits, "--run.dir", tmp_path / "run", "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", ["main.py", *map(str, words), "--loader.placement", placement])
    with pytest.raises(SystemExit) as exit_:
        runpy.run_path(str(CHECKOUT / "train/main.py"), run_name="__main__")
    assert str(exit_.value.code).startswith(f"error: {line}") and "\n" not in str(exit_.value.code)
    assert list(tmp_path.iterdir()) == []


def test_a_placement_that_this_machine_lacks_is_not_blamed_on_the_tuned_file(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The copy of a tuned file in the run folder replaces the file, not a placement."""
    from train.recipe import demo  # noqa: PLC0415

    (tmp_path / "tuned.json").write_text("{}")
    recipe = demo()
    recipe = replace(recipe, run=replace(recipe.run, dir=tmp_path), loader=LoaderConfig(placement="gpu"))
    with pytest.raises(InputError, match="placement gpu needs a GPU"):
        loader_settings.apply_tuned(recipe, World())
    assert capsys.readouterr().out == ""


def test_rank_0_chooses_for_machines_with_other_numbers_of_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[object] = []

    def broadcast(value: object, world: World) -> object:
        told.extend([value] if world.rank == 0 else [])
        return told[0]

    monkeypatch.setattr(train.dist, "broadcast_from_rank0", broadcast)
    for world, num_cores in zip(GPUS, (32, 2), strict=True):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, num_cores=num_cores: set(range(num_cores)))
        assert agree_on_placement(LoaderConfig(), world).side == "cpu"
    assert choose_placement(LoaderConfig(), GPUS[1]).side == "gpu"  # what rank 1 would have chosen alone
    told.clear()
    for world in GPUS:
        with pytest.raises(InputError, match="placement must be one of auto, cpu, gpu, got 'hybrid'"):
            agree_on_placement(LoaderConfig(placement="hybrid"), world)  # pyright: ignore


def test_a_choice_of_rank_0_is_taken_by_a_loader_as_it_is(digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    split, choice = Split(digits, "train"), choose_placement(LoaderConfig(), GPUS[0])
    assert build_loader(split, TrainTransform(16), 8, GPUS[1], config=choice).placement is choice
    # Plans are looked at on the CPU too, as by the list of batches of a run that diverged on a GPU.
    assert len(build_loader(split, TrainTransform(16), 8, World(), config=choice).plan(0).rows_B) == 8


def test_a_gpu_that_waits_for_its_decoder_is_told_of_the_cpu() -> None:
    """The producer's clocks do not show what the GPU decodes: only storage that took as long explains a wait."""
    nothing = Stats(1.0, 8, 0.4, 0.0, 0.0, 0.0, 0, 0.01, 0.0, 0, 0, 0)
    assert "--loader.placement cpu" in find_remedy(nothing, "gpu")
    assert "--data.order blocks" in find_remedy(replace(nothing, read_seconds=0.5), "gpu")
    assert "--loader.placement gpu" in find_remedy(nothing, "cpu")
