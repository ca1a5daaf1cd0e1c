"""The output of a run besides its metrics: each start, its settings for TensorBoard, pictures."""

import json
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.steps import build_step, small
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from loaders import EvalTransform, Split, World, build_loader
from loaders.batch import Normalize
from prep.errors import InputError
from train.config import Recipe
from train.logger import NUM_PICTURES, RunLogger, log_mistakes
from train.recipe import demo
from train.start import Start, find_start

EPOCH_SIZE = 1000


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    folder = tmp_path / "run"
    folder.mkdir()
    return replace(demo(), run=replace(demo().run, dir=folder))


def events(recipe: Recipe) -> EventAccumulator:
    return EventAccumulator(str(recipe.run_dir / "tensorboard"), size_guidance={"images": 0}).Reload()


def test_each_start_is_recorded_with_what_it_ran_on(recipe: Recipe) -> None:
    for clock in (0, 640):
        with RunLogger(recipe, clock, EPOCH_SIZE, World()):
            pass
    first, second = [json.loads(line) for line in (recipe.run_dir / "starts.jsonl").read_text().splitlines()]
    assert (first["clock"], second["clock"]) == (0, 640)
    assert first["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert Recipe.from_dict(first["recipe"]) == recipe
    assert first["num_processes"] == 1 and first["device"] and first["command"] and first["date"]


def test_tensorboard_gets_the_settings_and_no_figure_that_was_not_measured(recipe: Recipe) -> None:
    with RunLogger(recipe, 0, EPOCH_SIZE, World()) as logger:
        logger.log_metrics("validation", 100, {"top1": 12.5})
    found = events(recipe)
    assert "_hparams_/session_start_info" in found.PluginTagToContent("hparams")
    assert found.Tags()["scalars"] == ["validation/top1"]
    settings = found.PluginTagToContent("hparams")["_hparams_/session_start_info"]
    assert b"optim.lr" in settings and b"resnet10t" in settings


def _clocks(recipe: Recipe) -> list[tuple[str, int]]:
    lines = (recipe.run_dir / "metrics.jsonl").read_text().splitlines()
    return sorted((entry["kind"], entry["clock"]) for entry in map(json.loads, lines))


def _points(recipe: Recipe, kind: str) -> list[int]:
    return [event.step for event in events(recipe).Scalars(f"{kind}/loss")]


def _log(logger: RunLogger, *clocks: int, kind: str = "train") -> None:
    for clock in clocks:
        logger.log_metrics(kind, clock, {"loss": 1.0})


@pytest.mark.parametrize("skew", [0, -3600, 3600])
@pytest.mark.parametrize("end", [b"", b'{"kind": "train", "clo', b"\0" * 9], ids=["whole", "half a line", "zeros"])
def test_a_run_that_is_killed_and_goes_on_has_each_point_once(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch, skew: int, end: bytes
) -> None:
    """Also where the clock is an hour behind or ahead; TensorBoard's file ends in the middle of a record."""
    now = time.time()
    for number, (clock, logged) in enumerate(((0, (64, 128, 192)), (128, (192, 256)), (256, (320,)))):
        monkeypatch.setattr(time, "time", lambda number=number: now + number * skew)
        logger = RunLogger(recipe, clock, EPOCH_SIZE, World())
        _log(logger, *logged)
        logger.file.close()
        folder = shutil.copytree(recipe.run_dir, recipe.run_dir.with_name(f"killed-{number}"))  # what a kill leaves
        logger.tensorboard.close()
        for path in (folder / "metrics.jsonl", folder / "starts.jsonl", max((folder / "tensorboard").iterdir())):
            path.write_bytes(path.read_bytes() + (end if path.suffix == ".jsonl" else b"\x18\0\0\0"))
        recipe = replace(recipe, run=replace(recipe.run, dir=folder))
    with RunLogger(recipe, 320, EPOCH_SIZE, World()):
        pass
    assert _clocks(recipe) == [("train", clock) for clock in (64, 128, 192, 256, 320)]
    assert _points(recipe, "train") == [64, 128, 192, 256, 320]
    starts = [json.loads(line)["clock"] for line in (recipe.run_dir / "starts.jsonl").read_text().splitlines()]
    assert starts == [0, 128, 256, 320]


@pytest.mark.parametrize("owes_evaluation", [True, False])
def test_an_evaluation_that_was_logged_and_not_saved_is_not_there_twice(recipe: Recipe, owes_evaluation: bool) -> None:
    with RunLogger(recipe, 0, EPOCH_SIZE, World()) as logger:
        _log(logger, 64, 128)
        _log(logger, 64, 128, kind="validation")
    start = Start(clock=128, owes_evaluation=owes_evaluation)
    with RunLogger(recipe, 128, EPOCH_SIZE, World(), start=start) as logger:
        if owes_evaluation:
            _log(logger, 128, kind="validation")
        _log(logger, 192)
    assert _clocks(recipe) == [*(("train", clock) for clock in (64, 128, 192)), ("validation", 64), ("validation", 128)]
    assert (_points(recipe, "train"), _points(recipe, "validation")) == ([64, 128, 192], [64, 128])


def test_a_journal_that_is_damaged_in_the_middle_is_refused(recipe: Recipe) -> None:
    (recipe.run_dir / "metrics.jsonl").write_bytes(b'{"kind": "train"\n{"kind": "train", "clock": 64}\n')
    with pytest.raises(InputError, match=r"metrics.jsonl, line 1 is not complete"):
        find_start(recipe, EPOCH_SIZE)


def test_pictures_are_shown_and_only_by_rank_0(recipe: Recipe) -> None:
    images = torch.arange(2 * 3 * 8 * 8, dtype=torch.uint8).view(2, 3, 8, 8)
    for rank in (1, 0):
        with RunLogger(recipe, 0, EPOCH_SIZE, World(rank=rank, size=2)) as logger:
            logger.log_images("train/augmented", images, 640)
    found = events(recipe)
    assert found.Tags()["images"] == ["train/augmented"]
    (grid,) = found.Images("train/augmented")
    assert (grid.step, grid.width, grid.height) == (640, 2 * (8 + 2) + 2, 8 + 4)  # side by side, framed


def test_normalised_images_come_back() -> None:
    images = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
    normalize = Normalize()
    assert torch.equal(normalize.inverse(normalize(images)), images)
    assert normalize.inverse(torch.full((1, 3, 2, 2), 100.0)).unique().tolist() == [255]


def test_mistakes_are_shown_with_a_line_that_names_each(recipe: Recipe, digits: Path) -> None:
    split, step = Split(digits, "validation"), build_step(small())
    batch = next(iter(build_loader(split, EvalTransform(size=16, resize=16), 40)))
    step.state.ema.eval()
    with torch.no_grad():
        guesses = step.state.ema(step.augment.normalize(batch.images_BCHW)).argmax(1)
    wrong = torch.nonzero(guesses != batch.labels_B)[:NUM_PICTURES, 0].tolist()
    assert len(wrong) == NUM_PICTURES  # it is not trained
    with RunLogger(recipe, 0, EPOCH_SIZE, World()) as logger:
        log_mistakes(logger, step, batch, split)
    found = events(recipe)
    (grid,) = found.Images("validation/mistakes")
    assert (grid.width, grid.height) == (4 * (16 + 2) + 2,) * 2
    (text,) = found.Tensors("validation/mistakes/text_summary")
    lines = text.tensor_proto.string_val[0].decode().splitlines()
    named = [
        f"1. {split.keys([i])[0]}: {split.class_names[batch.labels_B[i]]}, predicted {split.class_names[guesses[i]]} ("
        for i in wrong
    ]
    assert [line[: len(name)] for line, name in zip(lines, named, strict=True)] == named
