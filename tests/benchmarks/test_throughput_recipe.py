"""`throughput.py --recipe`: the phases of a recipe, their sum, and the command on small images."""

import importlib
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers.commands import CHECKOUT, start_command
from helpers.ranks import Ranks
from hypothesis import given
from hypothesis import strategies as st

from loaders import World
from loaders.plan import TrainTransform
from prep.errors import InputError
from train.config import Recipe, RunConfig
from train.recipe import RECIPES, fast_24, quick_24

SCRIPT = CHECKOUT / "benchmarks" / "throughput.py"
SMALL = ("--device", "cpu", "--seconds", "0.05", "--batch-size", "16", "--model", "test_resnet", "--amp", "none")
IMAGENET = 1_281_167
RATES = st.floats(10.0, 1e5)


def part(name: str) -> Any:
    return importlib.import_module(name)


def figures(loader: float, model: float, train: float | None = None, cores: float | None = None) -> Any:
    """A loader and a model on a GPU, or on a CPU of which an image needs 1 / `cores` seconds."""
    return part("verdict").Figures(
        read_warm=float("inf"),
        decode=loader,
        model=model,
        loader=loader,
        train=train or min(loader, model),
        read_cold=None,
        fits_memory=True,
        cpu_read=0.0,
        cpu_decode=0.5 / cores if cores else 0.0,
        cpu_model=0.5 / cores if cores else 0.0,
        num_cores=1.0,
        shares_cores=cores is not None,
        decodes_on_gpu=False,
        mean_bytes=1e5,
    )


def result(num_images: int, size: int = 88, promised: tuple[Any, ...] = (), **rates: float) -> Any:
    phase = part("phases").Phase(size, size, num_images)
    return part("phases").PhaseResult(phase, figures(**rates), promised)


def advice(rate: float, **change: Any) -> Any:
    return part("verdict").Advice(f"change to {change}", rate, change)


@pytest.fixture(scope="module", autouse=True)
def imported() -> None:
    """Import everything before hypothesis measures how long an example takes."""
    part("resolutions")


# The phases.


@pytest.mark.parametrize("name", RECIPES)
def test_the_phases_hold_all_images_of_a_recipe(name: str) -> None:
    recipe = RECIPES[name]()
    *training, evaluation = part("phases").plan_phases(recipe)
    assert sum(phase.num_images for phase in training) == pytest.approx(recipe.epochs * IMAGENET, abs=len(training))
    assert sorted({phase.size for phase in training}) == [phase.size for phase in training]
    assert evaluation.evaluates and evaluation.size == recipe.evaluation.size
    assert evaluation.num_images == 50_000 * recipe.epochs  # one evaluation per epoch


def test_quick_24_trains_on_half_of_its_images_at_88_pixels() -> None:
    *training, evaluation = part("phases").plan_phases(quick_24())
    assert [phase.size for phase in training] == [88, 104, 120, 136, 152, 168, 176]
    assert training[0].num_images / (24 * IMAGENET) == pytest.approx(13 / 24, abs=0.05)
    assert evaluation.size == 224


def test_part_of_an_epoch_counts_as_part_and_the_last_evaluation_always_counts() -> None:
    recipe = Recipe(
        "short",
        epochs=2.5,
        transform=TrainTransform(size=64, first_size=32, grow=(1.0, 2.0)),
        run=RunConfig(evaluate_every=2.0),
    )
    small, large, evaluation = part("phases").plan_phases(recipe)
    assert (small.num_images, large.num_images) == (2 * IMAGENET, round(0.5 * IMAGENET))
    assert evaluation.num_images == 2 * 50_000
    never = replace(recipe, run=RunConfig(evaluate_every=float("inf")))
    assert part("phases").plan_phases(never)[-1].num_images == 50_000


def test_scaled_resolutions_are_even_and_must_differ() -> None:
    *training, evaluation = part("phases").plan_phases(quick_24(), 0.25)
    assert [phase.measured_size for phase in training] == [22, 26, 30, 34, 38, 42, 44]
    assert [phase.size for phase in training] == [88, 104, 120, 136, 152, 168, 176] and evaluation.measured_size == 56
    close = part("phases").plan_phases(quick_24(), 0.05)
    with pytest.raises(InputError, match="times --scale must differ from each other, got 4, 6, 6"):
        part("phases").check_sizes(close)


# Their sum.


@given(st.lists(st.tuples(st.integers(1, 10**8), RATES, RATES), min_size=1, max_size=8))
def test_the_rate_of_a_recipe_is_weighted_by_images(rows: list[tuple[int, float, float]]) -> None:
    total = part("phases")
    results = [result(count, loader=loader, model=model) for count, loader, model in rows]
    seconds = sum(count / min(loader, model) for count, loader, model in rows)
    assert total.sum_seconds(results) == pytest.approx(seconds)
    assert total.mean_rate(results) == pytest.approx(sum(count for count, *_ in rows) / seconds)
    groups = total.group_by_bottleneck(results)
    assert sum(map(len, groups.values())) == len(results)
    for name, group in groups.items():
        assert {each.bottleneck for each in group} == {name}
        assert total.gain_without(results, name) >= 1 - 1e-9


def test_a_loader_that_binds_only_at_small_sizes_is_named_there_alone() -> None:
    total = part("phases")
    results = [
        result(300, 88, loader=1_000.0, model=3_000.0),
        result(100, 176, loader=1_000.0, model=500.0),
    ]
    assert [each.bottleneck for each in results] == ["decode", "model"]
    assert list(total.group_by_bottleneck(results)) == ["decode", "model"]  # 0.3 s and 0.2 s
    # Without the loader's limit: 300 / 3,000 + 100 / 500 seconds instead of 300 / 1,000 + 100 / 500.
    assert total.gain_without(results, "decode") == pytest.approx(0.5 / 0.3)
    assert total.gain_without(results, "model") == pytest.approx(0.5 / 0.4)


def test_a_change_counts_in_the_phases_in_which_it_was_tried() -> None:
    total = part("phases")
    results = [
        result(300, 88, (advice(2_000.0, short_side=256),), loader=1_000.0, model=3_000.0),
        result(100, 176, loader=1_000.0, model=500.0),
    ]
    (gain,) = total.sum_gains(results)
    assert gain.kind == "short_side" and gain.gain == pytest.approx(0.5 / (0.15 + 0.2))
    # A change of the whole run counts where it makes training slower, too; here it helps nothing.
    slower = [
        result(300, 88, (advice(1_100.0, placement="gpu"),), loader=1_000.0, model=3_000.0),
        result(100, 176, (advice(400.0, placement="gpu"),), loader=1_000.0, model=500.0),
    ]
    assert total.sum_gains(slower) == []


def test_storage_is_advised_for_the_phase_that_needs_most() -> None:
    results = [
        result(100, 88, (advice(4_000.0, megabytes_per_second=500.0),), loader=1_000.0, model=4_000.0),
        result(100, 176, (advice(2_000.0, megabytes_per_second=250.0),), loader=1_000.0, model=2_000.0),
    ]
    (gain,) = part("phases").sum_gains(results)
    assert "500" in gain.what and gain.gain == pytest.approx(0.2 / 0.075)


def test_the_words_hold_the_sum() -> None:
    words = part("phases")
    results = [
        result(27 * 10**6, 88, (advice(2_000.0, short_side=256),), loader=1_000.0, model=3_000.0),
        result(9 * 10**6, 176, loader=1_000.0, model=500.0),
    ]
    total = words.Total(12.5, 0.5, words.Preparation(650.0, 2.0, "a record"))
    says = list(words.write_total(fast_24(), results, total, 2.0, is_full=False))
    assert says[0].startswith("fast_24: 24 epochs of ImageNet-1k (30.7 million images) in 12.5 hours, 25.00 dollars")
    assert "at 800 images/s on average" in says[0]
    assert (
        says[1].startswith("The bottleneck is the loader at 88 px (60% of the training time)") and "1.67 x" in says[1]
    )
    assert says[2].startswith("The bottleneck is the model at 176 px (40% of the training time)")
    assert "Evaluation adds 30.0 minutes, 1.00 dollars" in says[3] and "650 images/s per core as in a record" in says[3]
    assert "All together: 15.0 hours, 30.00 dollars, of which preparation is 13%" in says[3]
    assert "1.43 x for the recipe; training in 8.8 hours, 17.50 dollars" in says[4]
    assert "--compile default" in says[5] and "--full measures them" in says[6]
    full = list(words.write_total(fast_24(), results, total, None, is_full=True))
    assert "The bottleneck is decoding at 88 px" in full[1] and not any("--full" in line for line in full)


def test_a_sign_is_said_once_where_it_is_strongest() -> None:
    words, plan = part("phases"), part("phases")
    judge = part("signs").judge_communication
    phases = [plan.Phase(size, size, 1) for size in (88, 120, 176)]
    found = list(zip(phases, [judge(2.0), judge(1.5), judge(1.01)], strict=True))
    (line,) = words.write_signs(found)
    assert line.startswith("At 88 px: Communication between the processes takes 50%") and line.endswith(
        "Also at 120 px."
    )
    assert list(words.write_signs([])) == []


# The command.


def test_the_command_measures_each_resolution_and_adds_up(ranks: Ranks, digits: Path, tmp_path: Path) -> None:
    out = tmp_path / "record.json"
    words = ("--data", digits, "--recipe", "quick_24", "--scale", "0.2", "--dollars-per-hour", "2", "--out", out)
    done = ranks.run_command(tmp_path, SCRIPT, *words, *SMALL)
    assert done.returncode == 0, done.stderr
    record = json.loads(out.read_text())
    assert record["what"] == "throughput of a recipe"

    # Every phase has its rates with their spread; the hours are those of its images at its rate.
    assert [phase["size"] for phase in record["phases"]] == [88, 104, 120, 136, 152, 168, 176]
    assert [phase["measured_size"] for phase in record["phases"]] == [18, 20, 24, 28, 30, 34, 36]
    for phase in record["phases"]:
        assert phase["stages"].keys() == {"loader", "model", "train"}
        assert all(len(stage["total"]["repetitions"]) == 5 for stage in phase["stages"].values())
        rate = phase["stages"]["train"]["total"]["median"]
        assert phase["hours"] == pytest.approx(phase["num_images"] / rate / 3600)
        assert phase["bottleneck"] in ("the loader", "the model", "the number of CPU cores")
        assert "launching" in phase["signs"]
    total = record["total"]
    assert total["training_hours"] == pytest.approx(sum(phase["hours"] for phase in record["phases"]))
    parts = total["training_hours"] + total["evaluation_hours"] + total["preparation"]["hours"]
    assert total["hours"] == pytest.approx(parts) and total["dollars"] == pytest.approx(2 * parts)
    assert sum(phase["share_of_images"] for phase in record["phases"]) == pytest.approx(1)
    assert sum(phase["share_of_time"] for phase in record["phases"]) == pytest.approx(1)

    # What differs from the recipe is said, and everything said is shown.
    assert record["says"][0].startswith("Not measured as the recipe trains: sizes times 0.2, test_resnet instead of")
    assert all(line in done.stdout for line in record["says"])

    # The same figures are in the section of RESULTS.md.
    section = part("tables").to_markdown(part("reports.kinds").make_tables(record))
    assert section.count("\n| ") == 9 and all(line in section for line in record["says"])


def test_a_killed_measurement_keeps_the_phases_it_has_measured(digits: Path, tmp_path: Path) -> None:
    out = tmp_path / "record.json"
    words = ("--data", digits, "--recipe", "quick_24", "--scale", "0.2", *SMALL, "--model", "resnet10t", "--out", out)
    process = start_command(SCRIPT, *words)
    while not out.is_file() and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    process.communicate()
    record = json.loads(out.read_text())
    assert record["what"] == "part of the throughput of a recipe" and "total" not in record
    assert [phase["size"] for phase in record["phases"]] == [88, 104, 120, 136, 152, 168, 176][: len(record["phases"])]
    assert record["phases"][0]["stages"]["train"]["total"]["median"] > 0
    assert record["recipe"]["name"] == "quick_24" and record["hardware"]


def test_in_full_it_measures_all_stages_and_changes(ranks: Ranks, digits: Path, tmp_path: Path) -> None:
    out = tmp_path / "record.json"
    words = ("--data", digits, "--recipe", "fast_24", "--scale", "0.2", "--full", "--out", out)
    done = ranks.run_command(tmp_path, SCRIPT, *words, *SMALL)
    assert done.returncode == 0, done.stderr
    record = json.loads(out.read_text())
    for phase in record["phases"]:
        assert {"read warm", "decode", "loader", "model", "train"} <= phase["stages"].keys()
        assert phase["bottleneck"] in ("storage", "decoding", "the model", "the number of CPU cores")
    assert not any("--full" in line for line in record["says"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--size", "64"), "--recipe and --size exclude each other"),
        (("--mode", "loader"), "--recipe and --mode exclude each other"),
        (("--tune",), "--recipe and --tune exclude each other"),
        (("--scale", "0"), "--scale must be greater than 0, got 0"),
        (("--batch-size", "0"), "--batch-size must be greater than 0, got 0"),
    ],
)
def test_flags_that_contradict_a_recipe_are_refused(words: tuple[str, ...], message: str) -> None:
    command = part("throughput")
    with pytest.raises(InputError, match=message):
        command.read_options(["--recipe", "quick_24", *words]).check()


def test_the_recipes_values_are_the_defaults_and_flags_change_them() -> None:
    command = part("throughput")

    def read(*words: str) -> Any:
        return command.read_options(list(words)).read_setting(Path(), World())

    own = read("--recipe", "quick_24")
    assert (own.model, own.amp, own.batch_size, own.compile) == ("resnet50", "bf16", 2048, "none")
    changed = read("--recipe", "quick_24", "--model", "resnet10t", "--amp", "none", "--batch-size", "32")
    assert (changed.model, changed.amp, changed.batch_size) == ("resnet10t", "none", 32)
    plain = read()
    assert (plain.batch_size, plain.size, plain.model, plain.recipe) == (64, 224, "resnet50d", None)


def test_the_step_is_that_of_the_recipe(digits: Path) -> None:
    stages, setting = part("stages"), part("stages").Setting(32, 32, "test_resnet", "none")
    setting = replace(
        setting, microbatch=16, recipe=replace(quick_24(), model=replace(quick_24().model, pretrained="a1"))
    )
    loaders = part("loaders")
    loader = loaders.build_loader(loaders.Split(digits, "train"), TrainTransform(32), 32)
    recipe = stages.build_step(setting, loader).recipe
    assert recipe.loss == "bce" and recipe.optim == quick_24().optim and recipe.label_smoothing == 0.08
    assert (recipe.batch_size, recipe.model.name, recipe.model.pretrained, recipe.amp) == (
        32,
        "test_resnet",
        "",
        "none",
    )
    assert recipe.speed.num_parts(32) == 2 and recipe.transform.size == 32 and recipe.transform.first_size is None
