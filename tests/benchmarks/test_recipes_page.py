"""docs/recipes.md and README have the recipes as train/recipe.py has them; every ingredient has a test."""

import ast
import importlib
import math
import re
from functools import reduce
from typing import Any

import pytest
from helpers import recorded
from helpers.commands import CHECKOUT
from hypothesis import given
from hypothesis import strategies as st

from loaders.plan import TrainTransform
from train.recipe import RECIPES

PAGE = (CHECKOUT / "docs" / "recipes.md").read_text(encoding="utf-8")
PREPARING = (CHECKOUT / "docs" / "preparing.md").read_text(encoding="utf-8")
VALUE = re.compile(r"`([a-z_.]+)=([^`]+)`")
TEST = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)`")
INGREDIENTS = re.findall(r"^\| ingredient .*? field in `(\w+)` \| test \|\n\|[-|]+\n((?:\|.*\n)+)", PAGE, re.MULTILINE)
ROWS = [(name, row) for name, rows in INGREDIENTS for row in rows.splitlines()]


@pytest.fixture
def reports() -> Any:
    """The module of the table."""
    return importlib.import_module("reports.recipes")


@pytest.fixture
def contents(reports: Any) -> list[dict[str, Any]]:
    """The two records that the table is written from."""
    return [recorded.read(name) for name in (reports.SMALL_SIZES, reports.GPU_MODEL)]


def test_both_tables_of_ingredients_are_read() -> None:
    assert [name for name, _ in INGREDIENTS] == ["quick_24", "fast_24"] and len(ROWS) > 20


@pytest.mark.parametrize(("name", "row"), ROWS, ids=[row.split("|")[1].strip() for _, row in ROWS])
def test_an_ingredient_has_the_value_of_the_recipe_and_a_test(name: str, row: str) -> None:
    recipe = RECIPES[name]()
    values, tests = VALUE.findall(row), TEST.findall(row)
    assert values or "--" in row
    for path, value in values:
        assert reduce(getattr, path.split("."), recipe) == ast.literal_eval(value), path
    assert tests
    for file, test in tests:
        assert f"def {test}(" in (CHECKOUT / file).read_text(encoding="utf-8"), f"{file} has no {test}"


def test_the_page_has_the_table_of_all_recipes(reports: Any, contents: list[dict[str, Any]]) -> None:
    """To write it again: paste what `reports.recipes.write_recipes` returns."""
    assert reports.write_recipes(*contents).strip() in PAGE
    missing = RECIPES.keys() - {each.name for each in reports.list_imagenet_recipes()}
    assert {"tiny_imagenet", "demo"} <= missing <= {"tiny_imagenet", "demo", "finetune"}


@pytest.mark.parametrize(
    ("name", "work"),
    [
        ("seed_113", 113.0),
        # FFCV's configurations: 18 epochs of 24 at 160 pixels, 6 at 192 (from the middle of the ramp, 17 to 20).
        ("fast_24", (19 * 160**2 + 5 * 192**2) / 224**2),
    ],
)
def test_work_is_the_pixels_in_epochs_at_224(reports: Any, name: str, work: float) -> None:
    recipe = RECIPES[name]()
    assert reports.count_work(recipe.transform, recipe.epochs) == pytest.approx(work)


@given(st.integers(1, 6), st.sampled_from([0.0, 0.25, 0.5]))
def test_work_of_growing_images_counts_the_part_of_the_last_epoch(whole: int, part: float) -> None:
    """By hand: 32 pixels in the epochs 0 and 1, then 64."""
    recipes = importlib.import_module("reports.recipes")
    transform = TrainTransform(size=64, first_size=32, grow=(1.0, 2.0), size_step=32)
    sides = [32, 32, 64, 64, 64, 64, 64]
    expected = sum((side / 64) ** 2 for side in sides[:whole]) + part * (sides[whole] / 64) ** 2
    assert recipes.count_work(transform, whole + part, 64) == pytest.approx(expected)


def test_quick_24_has_half_of_the_work_of_fast_24(reports: Any) -> None:
    quick, fast = (
        reports.count_work(each.transform, each.epochs) for each in (RECIPES["quick_24"](), RECIPES["fast_24"]())
    )
    assert 0.45 < quick / fast < 0.5


def test_time_per_image_is_the_measured_one_and_linear_in_pixels_between(reports: Any) -> None:
    rates = {100: 1000.0, 200: 250.0}
    assert reports.seconds_per_image(rates, 100) == pytest.approx(1e-3)
    assert reports.seconds_per_image(rates, 200) == pytest.approx(4e-3)
    assert reports.seconds_per_image(rates, 150) == pytest.approx(2.25e-3)
    with pytest.raises(AssertionError, match="300 pixels"):
        reports.seconds_per_image(rates, 300)


def test_hours_at_one_size_are_images_by_the_measured_rate(reports: Any, contents: list[dict[str, Any]]) -> None:
    cases = contents[1]["cases"]
    rate = {
        name: cases[name]["result"]["images_per_second"]["median"]
        for name in cases
        if "224-bf16" in name and cases[name]["status"] == "done"
    }
    deeper = rate["ours-224-bf16"] / rate["ours-resnet50d-224-bf16"]
    hours = 113 * 1_281_167 / rate["eager-224-bf16"] * deeper / 3600
    assert reports.gpu_hours(RECIPES["seed_113"](), *contents) == pytest.approx(hours)


def test_published_dollars_are_minutes_at_the_price_of_a_p4d(reports: Any) -> None:
    assert reports.format_minutes((21.7,)) == f"21.7 min, {21.7 / 60 * 21.96:.2f} dollars"
    assert reports.format_minutes((20.3, 25.8)).startswith("20.3 to 25.8 min, 7.43 to 9.44")
    assert reports.format_minutes(()) == "none"


def test_the_page_on_preparing_has_the_figures_of_the_record() -> None:
    record = recorded.read("sweeps-88.json")
    for each in record["sizes"]:
        cpu, rate = each["cpu_seconds_per_1000_images"], each["images_per_second"]
        assert (
            f"{each['bytes_per_image'] / 1000:.0f} KB | {cpu['median']:.2f} ({cpu['min']:.2f} to {cpu['max']:.2f})"
            in PREPARING
        )
        assert f"{rate['median']:,.0f} ({rate['min']:,.0f} to {rate['max']:,.0f})" in PREPARING
    original, _, small = record["sizes"]
    share = small["cpu_seconds_per_1000_images"]["median"] / original["cpu_seconds_per_1000_images"]["median"]
    assert f"{share:.2f} of the CPU time" in PREPARING and math.isclose(share, 0.42, abs_tol=0.01)
