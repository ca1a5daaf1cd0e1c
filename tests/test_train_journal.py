"""What a run tells beside its metrics: each start, its settings for TensorBoard, pictures."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_train_guard import build_step, small

from loaders import EvalTransform, Split, World, build_loader
from loaders.normalize import Normalize
from train.config import Recipe
from train.journal import Journal
from train.pictures import NUM_PICTURES, show_mistakes
from train.recipe import demo

EPOCH_SIZE = 1000


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    return replace(demo(), run=replace(demo().run, dir=tmp_path))


def events(recipe: Recipe) -> EventAccumulator:
    return EventAccumulator(str(recipe.run_dir / "tensorboard"), size_guidance={"images": 0}).Reload()


def test_each_start_is_recorded_with_what_it_ran_on(recipe: Recipe) -> None:
    for clock in (0, 640):
        with Journal(recipe, clock, EPOCH_SIZE, World()):
            pass
    first, second = [json.loads(line) for line in (recipe.run_dir / "starts.jsonl").read_text().splitlines()]
    assert (first["clock"], second["clock"]) == (0, 640)
    assert first["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert Recipe.from_dict(first["recipe"]) == recipe
    assert first["num_processes"] == 1 and first["device"] and first["command"] and first["date"]


def test_tensorboard_gets_the_settings_and_no_figure_that_was_not_measured(recipe: Recipe) -> None:
    with Journal(recipe, 0, EPOCH_SIZE, World()) as journal:
        journal.log("validation", 100, {"top1": 12.5})
    found = events(recipe)
    assert "_hparams_/session_start_info" in found.PluginTagToContent("hparams")
    assert found.Tags()["scalars"] == ["validation/top1"]
    settings = found.PluginTagToContent("hparams")["_hparams_/session_start_info"]
    assert b"optim.lr" in settings and b"resnet10t" in settings


def test_pictures_are_shown_and_only_by_rank_0(recipe: Recipe) -> None:
    images = torch.arange(2 * 3 * 8 * 8, dtype=torch.uint8).view(2, 3, 8, 8)
    for rank in (1, 0):
        with Journal(recipe, 0, EPOCH_SIZE, World(rank=rank, size=2)) as journal:
            journal.show("train/augmented", images, 640)
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
    with Journal(recipe, 0, EPOCH_SIZE, World()) as journal:
        show_mistakes(journal, step, batch, split)
    found = events(recipe)
    (grid,) = found.Images("validation/mistakes")
    assert (grid.width, grid.height) == (4 * (16 + 2) + 2,) * 2
    (text,) = found.Tensors("validation/mistakes/text_summary")
    lines = text.tensor_proto.string_val[0].decode().splitlines()
    named = [
        f"1. {split.keys([i])[0]}: {split.class_names[batch.labels_B[i]]}, taken for {split.class_names[guesses[i]]} ("
        for i in wrong
    ]
    assert [line[: len(name)] for line, name in zip(lines, named, strict=True)] == named
