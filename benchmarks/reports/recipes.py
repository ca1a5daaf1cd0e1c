"""The table of recipes: what each costs and reaches, from train/recipe.py, published figures and the rates of a GPU."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from phases.plan import list_shares
from reports.words import format_number, make_table
from verdict.cost import IMAGENET_IMAGES

from loaders.plan import TrainTransform
from train.config import DataConfig, Recipe
from train.recipe import RECIPES

REFERENCE = 224  # pixels, the unit of work
P4D = 21.96  # dollars per hour on demand, 8 x A100 40 GB
P5_4XLARGE = 6.88  # dollars per hour on demand, one H100
SMALL_SIZES, GPU_MODEL = "h200/small-sizes.json", "h200/gpu-model.json"
COLUMNS = (
    "recipe",
    "epochs",
    "pixels: training, evaluation",
    "work",
    "published top-1",
    "published time, at p4d's price",
)
IN_README = (0, 1, 2, 3, 4, 6)


@dataclass(frozen=True)
class Published:
    """What others reached with a recipe."""

    top1: str  # in percent, with the publisher
    minutes: tuple[float, float] | None = None  # shortest and longest, on 8 x A100


REFERENCE_RUN = "78.5%, reference run"
PUBLISHED = {
    "seed_113": Published(f"{REFERENCE_RUN}, with more augmentation"),
    "seed_113_aug": Published(REFERENCE_RUN),
    "fast_16": Published("73.8%, FFCV, with mirror images", (14.9, 14.9)),
    "fast_24": Published("75.6%, FFCV, with mirror images", (21.7, 21.7)),
    "fast_88": Published("78.4%, FFCV, with mirror images", (77.2, 77.2)),
    "quick_24": Published("75.3 to 75.6%, MosaicML and Ailiverse, 10 MLPerf runs", (20.3, 25.8)),
    "quick_27": Published("76.0 to 76.3%, MosaicML and Ailiverse, the same 10 runs", (23.6, 29.4)),
    "quick_60": Published("75 to 78.1% (a range), MosaicML, for fewer than 60 epochs"),
}


def count_work(transform: TrainTransform, epochs: float, reference: int = REFERENCE) -> float:
    """Return the work of a run in epochs at `reference` pixels: the sum over its epochs of (size / reference)²."""
    return sum(share * (size / reference) ** 2 for size, share in list_shares(transform, epochs))


def seconds_per_image(rates: dict[int, float], size: int) -> float:
    """Return the time of an image at any size between the measured ones, linear in the number of pixels.

    Args:
        rates: images/s by size in pixels.
    """
    sizes = sorted(rates)
    for low, high in pairwise(sizes):
        if low <= size <= high:
            share = (size**2 - low**2) / (high**2 - low**2)
            return (1 - share) / rates[low] + share / rates[high]
    raise AssertionError(f"{size} pixels is outside of the measured {sizes[0]} to {sizes[-1]}")


def gpu_rates(small_sizes: dict[str, Any], gpu_model: dict[str, Any]) -> tuple[dict[int, float], float]:
    """Return images/s of ResNet-50's eager bf16 step by size, and how much longer ResNet-50D's step takes."""
    cases = {**gpu_model["cases"], **small_sizes["cases"]}
    rate = {name: each["result"]["images_per_second"]["median"] for name, each in cases.items() if _is_rate(each)}
    by_size = {size: rate[f"eager-{size}-bf16"] for size in (88, 128, 160, 224)}
    return by_size, rate["ours-224-bf16"] / rate["ours-resnet50d-224-bf16"]


def _is_rate(case: dict[str, Any]) -> bool:
    return case["status"] == "done" and "images_per_second" in case["result"]


def gpu_hours(recipe: Recipe, small_sizes: dict[str, Any], gpu_model: dict[str, Any]) -> float:
    """Return the hours of a recipe's training steps alone on one GPU, without BlurPool and without evaluation."""
    rates, deeper = gpu_rates(small_sizes, gpu_model)
    shares = list_shares(recipe.transform, recipe.epochs)
    seconds = IMAGENET_IMAGES * sum(share * seconds_per_image(rates, size) for size, share in shares)
    return seconds * (deeper if recipe.model.name == "resnet50d" else 1) / 3600


def describe_recipe(recipe: Recipe, small_sizes: dict[str, Any], gpu_model: dict[str, Any]) -> list[str]:
    """Return the cells of a recipe's row."""
    sizes = recipe.image_sizes().train
    training = " to ".join(map(str, dict.fromkeys((sizes[0], sizes[-1]))))
    published, hours = PUBLISHED[recipe.name], gpu_hours(recipe, small_sizes, gpu_model)
    return [
        f"`{recipe.name}`",
        f"{recipe.epochs:g}",
        f"{training}, {recipe.evaluation.size}",
        format_number(count_work(recipe.transform, recipe.epochs)),
        published.top1,
        format_minutes(published.minutes),
        f"{format_number(hours)} h, {format_number(hours * P5_4XLARGE)} dollars",
    ]


def format_minutes(minutes: tuple[float, float] | None) -> str:
    """Return the published time, and what it costs on 8 x A100 at p4d's price."""
    if minutes is None:
        return "none"
    low, high = minutes
    times, dollars = (
        (f"{low:g}", f"{low / 60 * P4D:.2f}")
        if low == high
        else (
            f"{low:g} to {high:g}",
            f"{low / 60 * P4D:.2f} to {high / 60 * P4D:.2f}",
        )
    )
    return f"{times} min, {dollars} dollars"


def list_imagenet_recipes() -> list[Recipe]:
    """Return the recipes for ImageNet."""
    return [
        each for each in (make() for make in RECIPES.values()) if each.data == DataConfig() and each.name in PUBLISHED
    ]


def write_recipes(
    small_sizes: dict[str, Any], gpu_model: dict[str, Any], columns: Sequence[int] = tuple(range(len(COLUMNS) + 1))
) -> str:
    """Return the table; the last column names the GPU that was measured."""
    gpu = gpu_model["hardware"]["gpu"].partition(",")[0].removeprefix("NVIDIA ")
    header = [*COLUMNS, f"one {gpu}, training step alone"]
    rows = [describe_recipe(each, small_sizes, gpu_model) for each in list_imagenet_recipes()]
    kept = [[cells[i] for i in columns] for cells in [header, *rows]]
    return "\n" + "\n".join(make_table(kept[0], kept[1:]))


def write_short(small_sizes: dict[str, Any], gpu_model: dict[str, Any]) -> str:
    """Return the table without the published times, for README."""
    return write_recipes(small_sizes, gpu_model, IN_README)
