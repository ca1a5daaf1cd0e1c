"""A schedule that is longer than the run: the learning rate by its formula; a run that stops early and goes on."""

import json
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.steps import build_step, small
from hypothesis import given, settings
from hypothesis import strategies as st

from loaders import EvalTransform, TrainTransform, World
from prep.errors import InputError
from train.checkpoint import newest_complete
from train.config import OptimConfig, Recipe
from train.fit import fit
from train.recipe import demo
from train.start import change_epochs
from train.step import Step

TOTAL = 1600  # images of `build_step`'s run
STATE = build_step(small()).state


def rates(step: Step, num_steps: int) -> list[float]:
    """Return the shares of the peak in the first steps."""
    found = []
    for number in range(num_steps):
        step.state.clock = 16 * number
        found.append(step._lr_factor())
    return found


@settings(deadline=None, derandomize=True)
@given(
    st.integers(0, TOTAL // 16 - 1),
    st.sampled_from([1, 2, 8, 10]),
    st.one_of(st.none(), st.integers(TOTAL, 5 * TOTAL)),
    st.floats(0, 1),
    st.sampled_from(["cosine", "linear"]),
)
def test_the_rate_is_the_formula_of_the_share_of_the_schedule(
    number: int, epochs: int, longer: int | None, warmup: float, kind: str
) -> None:
    """In epochs: peak * e / warm-up, then half a cosine or a line that reaches zero at the end of the schedule."""
    length = (longer or TOTAL) / (TOTAL / epochs)
    schedule_epochs = length if longer else None
    optim = OptimConfig(lr=0.2, warmup_epochs=warmup * length, schedule_epochs=schedule_epochs, schedule=kind)  # pyright: ignore[reportArgumentType]
    step = Step(small(epochs=epochs, optim=optim), STATE, TOTAL, World())
    step.state.clock = 16 * number
    epoch = (number + 0.5) * 16 / (TOTAL / epochs)  # at the middle of the batch
    left = (epoch - warmup * length) / (length - warmup * length) if epoch >= warmup * length else 0.0
    falls = 0.5 * (1 + math.cos(math.pi * left)) if kind == "cosine" else 1 - left
    expected = epoch / (warmup * length) if epoch < warmup * length else falls
    assert step._lr_factor() == pytest.approx(expected, abs=1e-9)


def test_a_run_that_stops_early_has_the_rates_of_the_longer_run_up_to_there() -> None:
    longer = small(epochs=10, optim=OptimConfig(lr=0.2, warmup_epochs=1.0))
    short = replace(longer, epochs=5, optim=replace(longer.optim, schedule_epochs=10))
    complete, stopped = Step(longer, STATE, TOTAL, World()), Step(short, STATE, TOTAL // 2, World())
    assert rates(stopped, 50) == rates(complete, 50)
    assert rates(stopped, 50)[-1] > 0.5


@pytest.mark.parametrize(
    ("epochs", "optim", "words"),
    [
        (
            2.0,
            OptimConfig(schedule_epochs=1.5, warmup_epochs=0),
            "schedule_epochs must be at least epochs, which is 2, got 1.5",
        ),
        (
            2.0,
            OptimConfig(schedule_epochs=math.nan, warmup_epochs=0),
            "schedule_epochs must be at least epochs.* got nan",
        ),
        (
            2.0,
            OptimConfig(schedule_epochs=math.inf, warmup_epochs=0),
            "schedule_epochs must be at least epochs.* got inf",
        ),
        (2.0, OptimConfig(schedule_epochs=-3, warmup_epochs=0), "schedule_epochs must be at least epochs.* got -3"),
        (
            2.0,
            OptimConfig(schedule_epochs=4, warmup_epochs=4.5),
            "warmup_epochs must be 0 to schedule_epochs, which is 4",
        ),
        (2.0, OptimConfig(warmup_epochs=2.5), "warmup_epochs must be 0 to epochs, which is 2, got 2.5"),
    ],
)
def test_lengths_that_exclude_each_other_are_refused(epochs: float, optim: OptimConfig, words: str) -> None:
    with pytest.raises(InputError, match=words):
        replace(demo(), epochs=epochs, optim=optim).check_lengths()
    replace(demo(), epochs=epochs, optim=OptimConfig(schedule_epochs=4, warmup_epochs=3)).check_lengths()


@pytest.fixture(scope="module")
def early(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """A finished run of two of four epochs of its schedule; an epoch is three steps."""
    recipe = demo()
    recipe = replace(
        recipe,
        epochs=2.0,
        batch_size=48,
        model=replace(recipe.model, name="test_resnet"),
        optim=replace(recipe.optim, warmup_epochs=0.5, schedule_epochs=4.0),
        transform=TrainTransform(size=16, hflip=0.0),
        evaluation=EvalTransform(size=16, resize=16),
        data=replace(recipe.data, root=digits, fraction=0.1),
        run=replace(recipe.run, dir=tmp_path_factory.mktemp("early") / "run", log_every=48, spot="off"),
    )
    assert fit(recipe, World())
    return recipe


def train_losses(recipe: Recipe) -> list[tuple[int, float]]:
    """Return clocks and losses that a run has logged."""
    entries = [json.loads(line) for line in (recipe.run_dir / "metrics.jsonl").read_text().splitlines()]
    return [(entry["clock"], entry["loss"]) for entry in entries if entry["kind"] == "train"]


def test_a_run_that_stopped_early_goes_on_as_if_it_had_not(
    early: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """More epochs of the same schedule change no learning rate, so the bits are those of the longer run."""
    run, calm = (replace(early, run=replace(early.run, dir=tmp_path / name)) for name in ("run", "calm"))
    shutil.copytree(early.run_dir, run.run_dir)
    run, calm = (replace(recipe, epochs=3.0) for recipe in (run, calm))
    assert fit(calm, World())
    capsys.readouterr()
    assert fit(run, World())
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "epochs 2 -> 3" in line]
    before, after = re.findall(r"learning rate (\S+) -> (\S+)", line)[0]
    assert before == after and float(after) > 0
    ours, theirs = (newest_complete(recipe.run_dir / "checkpoints")[0] for recipe in (run, calm))
    assert ours is not None and theirs is not None and ours.name == theirs.name
    for name in ("model.safetensors", "ema.safetensors"):
        assert (ours / name).read_bytes() == (theirs / name).read_bytes()
    assert train_losses(run) == train_losses(calm) and len(train_losses(run)) == 10


def test_a_run_at_the_end_of_its_schedule_is_finished_for_good(early: Recipe) -> None:
    whole = replace(early, epochs=4.0)
    with pytest.raises(InputError, match=r"schedule_epochs must be at least epochs, which is 5, got 4"):
        replace(whole, epochs=5.0).check_lengths()
    assert change_epochs(whole, 4.0, 145, 580) is None
    plain = replace(early, epochs=3.0, optim=replace(early.optim, schedule_epochs=None))
    with pytest.raises(InputError, match="is finished after 2 epochs, its learning rate at its lowest"):
        change_epochs(plain, 2.0, 145, 290)


@pytest.mark.parametrize(("schedule_epochs", "expected"), [(4.0, (0.25, 0.25)), (None, (0.5, 1 / 3))])
def test_another_number_of_epochs_moves_only_a_schedule_of_the_runs_own_length(
    early: Recipe, schedule_epochs: float | None, expected: tuple[float, float]
) -> None:
    """At epoch 1 of 2 or 3: the share of the schedule that is done, seen through the cosine."""
    optim = replace(early.optim, warmup_epochs=0, schedule_epochs=schedule_epochs)
    change = change_epochs(replace(early, epochs=3.0, optim=optim), 2.0, 145, 145)
    assert change is not None and change.progress == pytest.approx((0.5, 1 / 3))
    peak = optim.lr * 48 / 256
    assert change.lr == pytest.approx(tuple(peak * 0.5 * (1 + math.cos(math.pi * done)) for done in expected))


def test_a_longer_schedule_is_another_run(early: Recipe) -> None:
    """It changes the rates of what was trained already, so it is refused as any other setting."""
    with pytest.raises(InputError, match=r"optim\.schedule_epochs differs"):
        fit(replace(early, optim=replace(early.optim, schedule_epochs=5.0)), World())
