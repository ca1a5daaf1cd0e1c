"""What recipes cost: the table of all recipes (hours on a GPU, published figures), and the dollars of one on EC2."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from phases import list_shares
from reports.records import format_number
from tables import Table, to_markdown
from verdict import IMAGENET_IMAGES, NAMES

from loaders.plan import TrainTransform
from train.config import DataConfig, Recipe
from train.recipe import RECIPES

REFERENCE = 224  # pixels, the unit of work
P4D = 21.96  # dollars per hour on demand, 8 x A100 40 GB
P5_4XLARGE = 6.88  # dollars per hour on demand, one H100
SMALL_SIZES, GPU_MODEL = "h200/small-sizes.json", "h200/gpu-model.json"  # the records of the GPU's rates
MEASURED_SIZES = (88, 128, 160, 224)  # pixels
REFERENCE_RUN = "78.5%, reference run"
COST = "cost.json"
OFFERS = {"on_demand": "on demand", "spot": "spot"}
# Of the table in README and the picture, if a record has more machines than MOST_SHOWN.
MOST_SHOWN = 12
SHOWN_MACHINES = (
    *("g5.xlarge", "g5.12xlarge", "g6.xlarge", "g6.12xlarge", "g6e.xlarge", "g6e.4xlarge", "g6e.12xlarge"),
    *("p4d.24xlarge", "p5.4xlarge", "p5.48xlarge", "p5en.48xlarge"),
)
SHOWN_STORED = {"original": "photographs as they are", "500": "at most 500 pixels", "256": "short side of 256 pixels"}
COSTS = ("machine", "stored", *OFFERS.values(), "MB/s: needs, has", "vCPUs: needs, has", "binds longest", "rate")
HOURS = ("training", "evaluation", "start", "reclaim")
PARTS = ("machine", "stored", "dollars per hour: on demand; spot", *HOURS, "what binds")
MINUTES_BELOW = 1.5  # hours: shorter times are given in minutes
Row = dict[str, Any]


@dataclass(frozen=True)
class Published:
    """What others reached with a recipe."""

    top1: str  # in percent, with the publisher
    minutes: tuple[float, ...] = ()  # shortest and longest, or the only one, on 8 x A100


PUBLISHED = {
    "seed_113": Published(f"{REFERENCE_RUN}, with more augmentation"),
    "seed_113_aug": Published(REFERENCE_RUN),
    "fast_16": Published("73.8%, FFCV, with mirror images", (14.9,)),
    "fast_24": Published("75.6%, FFCV, with mirror images", (21.7,)),
    "fast_88": Published("78.4%, FFCV, with mirror images", (77.2,)),
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
    assert sizes[0] <= size <= sizes[-1], f"{size} pixels is outside of the measured {sizes[0]} to {sizes[-1]}"
    return float(np.interp(size**2, np.square(sizes), [1 / rates[each] for each in sizes]))


def gpu_rates(small_sizes: dict[str, Any], gpu_model: dict[str, Any]) -> tuple[dict[int, float], float]:
    """Return images/s of ResNet-50's eager bf16 step by size, and how much longer ResNet-50D's step takes."""
    results = {name: case["result"] or {} for name, case in (gpu_model["cases"] | small_sizes["cases"]).items()}
    rate = {name: each["images_per_second"]["median"] for name, each in results.items() if "images_per_second" in each}
    by_size = {size: rate[f"eager-{size}-bf16"] for size in MEASURED_SIZES}
    return by_size, rate["ours-224-bf16"] / rate["ours-resnet50d-224-bf16"]


def gpu_hours(recipe: Recipe, small_sizes: dict[str, Any], gpu_model: dict[str, Any]) -> float:
    """Return the hours of a recipe's training steps alone on one GPU, without BlurPool and without evaluation."""
    rates, deeper = gpu_rates(small_sizes, gpu_model)
    shares = list_shares(recipe.transform, recipe.epochs)
    seconds = IMAGENET_IMAGES * sum(share * seconds_per_image(rates, size) for size, share in shares)
    return seconds * (deeper if recipe.model.name == "resnet50d" else 1) / 3600


def format_minutes(minutes: tuple[float, ...]) -> str:
    """Return the published time, and what it costs on 8 x A100 at p4d's price."""
    if not minutes:
        return "none"
    times = " to ".join(f"{each:g}" for each in minutes)
    dollars = " to ".join(f"{each / 60 * P4D:.2f}" for each in minutes)
    return f"{times} min, {dollars} dollars"


def list_imagenet_recipes() -> list[Recipe]:
    """Return the recipes for ImageNet."""
    recipes = [make() for make in RECIPES.values()]
    return [each for each in recipes if each.data == DataConfig() and each.name in PUBLISHED]


def write_recipes(small_sizes: dict[str, Any], gpu_model: dict[str, Any], with_times: bool = True) -> str:
    """Return the table; the last column names the GPU that was measured.

    Args:
        with_times: with the published times.
    """
    rows = []
    for recipe in list_imagenet_recipes():
        sizes, published = recipe.image_sizes().train, PUBLISHED[recipe.name]
        hours = gpu_hours(recipe, small_sizes, gpu_model)
        rows.append(
            [
                f"`{recipe.name}`",
                f"{recipe.epochs:g}",
                f"{' to '.join(map(str, dict.fromkeys((sizes[0], sizes[-1]))))}, {recipe.evaluation.size}",
                format_number(count_work(recipe.transform, recipe.epochs)),
                published.top1,
                format_minutes(published.minutes) if with_times else "",  # a column without values is left out
                f"{format_number(hours)} h, {format_number(hours * P5_4XLARGE)} dollars",
            ]
        )
    gpu = gpu_model["hardware"]["gpu"].partition(",")[0].removeprefix("NVIDIA ")
    header = (
        *("recipe", "epochs", "pixels: training, evaluation", "work", "published top-1"),
        *("published time, at p4d's price", f"one {gpu}, training step alone"),
    )
    return "\n" + to_markdown([Table(header=header, rows=rows)])


# The costs of a recipe on EC2, by machine.


def tables_of_cost(content: dict[str, Any], offers: Sequence[str] = tuple(OFFERS)) -> list[Table]:
    """Return for each recipe its costs and their parts by machine, the cheapest first; the rates; and the assumptions.

    Args:
        offers: keys of OFFERS that are shown; the first one orders the rows.
    """
    tables = []
    for name, recipe in content["recipes"].items():
        rows = [row for row in content["rows"] if row["recipe"] == name]
        rows.sort(key=lambda row: row[offers[0]]["dollars"])
        title = f"{name}, {recipe['epochs']:g} epochs, published top-1: {recipe['published']}"
        tables.append(Table(title, COSTS, [_cost_row(row, offers) for row in rows]))
        tables.append(Table(f"{name}: parts of a run", PARTS, [_parts_row(row) for row in rows]))
    tables.append(Table("Rates of training", ("recipes and machines", "rate"), group_rates(content)))

    # The assumptions; prices and origin collapsed.
    stored, sources, files = content["stored"], content["prices"]["sources"], content["computed_from"]
    forms = [f"stored {it}: {each['what']}, {each['bytes_per_image'] / 1000:.0f} KB" for it, each in stored.items()]
    origin = [f"{it}: {each['source']} ({each['hand']}; date: {each['date']})" for it, each in sources.items()]
    origin += [f"computed from {path} (sha256 {digest[:12]})" for path, digest in files.items()]
    origin += [f"command: `{content['command']}`", f"commit {content['commit'].removesuffix('+')}; {content['date']}"]
    return [*tables, Table(notes=[*forms, *content["says"]]), Table(notes=origin, detail="prices and origin")]


def _cost_row(row: Row, offers: Sequence[str]) -> list[str]:
    needs, has, storage = row["needs"], row["has"], "storage_megabytes_per_second"
    costs = {name: f"{format_hours(row[name]['hours'])}, {row[name]['dollars']:,.2f} $" for name in offers}
    return [
        row["machine"],
        row["stored"],
        *(costs.get(name, "") for name in OFFERS),
        f"{needs[storage]:,.0f}, {has[storage]:,.0f}{' (in memory)' * row['shards_fit_memory']}",
        f"{needs['vcpus']:,.0f}, {has['vcpus']}",
        describe_longest(row),
        row["rate"]["kind"],
    ]


def _parts_row(row: Row) -> list[str]:
    hours = [format_hours(row[f"{name}_hours"]) for name in HOURS]
    return [row["machine"], row["stored"], format_prices(row), *hours, describe_binding(row)]


def format_hours(hours: float) -> str:
    """Return a time as `35 min` or `4.10 h`."""
    return f"{60 * hours:.0f} min" if hours < MINUTES_BELOW else f"{format_number(hours)} h"


def format_prices(row: Row) -> str:
    """Return the prices per hour, on demand and spot; one that is only a typical share is marked."""
    offers = [row[name] for name in OFFERS]
    return "; ".join(f"{'about ' * each.get('is_typical', False)}{each['dollars_per_hour']:,.2f}" for each in offers)


def describe_binding(row: Row) -> str:
    """Return what binds, the longest first, such as `storage at 88 px (61%), the model at 144 to 176 px (39%)`."""
    if len(row["binds"]) == 1:
        return NAMES[next(iter(row["binds"]))]
    parts = []
    for part, each in row["binds"].items():
        sizes = " to ".join(str(size) for size in sorted({min(each["sizes"]), max(each["sizes"])}))
        parts.append(f"{NAMES[part]} at {sizes} px ({each['share']:.0%})")
    return ", ".join(parts)


def describe_longest(row: Row) -> str:
    """Return the part that binds for the longest time, with its share of the time if it is not all."""
    part, each = next(iter(row["binds"].items()))
    return NAMES[part].removeprefix("the ") + (f" ({each['share']:.0%})" if len(row["binds"]) > 1 else "")


def group_rates(content: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the recipes and machines of each different rate, and the rate in words: its kind, origin, derivation."""
    groups: dict[str, tuple[dict[str, None], dict[str, None]]] = {}  # dicts are ordered sets
    for row in content["rows"]:
        rate = row["rate"]
        words = "; ".join(filter(None, (f"{rate['kind']}: {rate['origin']}", rate["derived"])))
        recipes, machines = groups.setdefault(words, ({}, {}))
        recipes[row["recipe"]] = machines[row["machine"]] = None
    return [(f"{', '.join(recipes)} on {', '.join(machines)}", words) for words, (recipes, machines) in groups.items()]


# The table in README.


def group_shown(content: dict[str, Any]) -> tuple[str, dict[str, dict[str, Row]]]:
    """Return a record's first recipe, and its rows by machine and stored form."""
    recipe, machines = next(iter(content["recipes"])), list(content["machines"])
    if len(machines) > MOST_SHOWN:
        machines = [name for name in SHOWN_MACHINES if name in content["machines"]]
    groups: dict[str, dict[str, Row]] = {name: {} for name in machines}
    for row in content["rows"]:
        if row["recipe"] == recipe and row["machine"] in groups:
            groups[row["machine"]][row["stored"]] = row
    return recipe, groups


def write_cost(content: dict[str, Any]) -> str:
    """Return README's picture and table: the first recipe on some machines, by stored form."""
    recipe, groups = group_shown(content)
    header = (
        "machine",
        "dollars per hour: on demand; spot",
        *(f"{words}: time, dollars; dollars on spot" for words in SHOWN_STORED.values()),
        "what binds longest, with photographs as they are",
        "whose rate",
    )
    rows = [_short_row(f"{name}, {content['machines'][name]}", forms) for name, forms in groups.items()]
    picture = f"![dollars of {recipe} by machine, on demand and on the spot market](docs/pictures/cost.png)"
    files = ", ".join(f"`{name}`" for name in content["computed_from"])
    basis = (
        f"Computed on {content['date'][:10]} from {files}. Prices on demand: {content['prices']['date']}; *about*: no "
        f"spot price was found, a typical share of the price on demand. Reclaims of a spot run: {content['reclaims']}."
    )
    return f"\n{picture}\n\n{to_markdown([Table(header=header, rows=rows)])}\n{basis}\n"


def _short_row(machine: str, forms: dict[str, Row]) -> list[str]:
    first = forms["original"]
    costs = []
    for form in SHOWN_STORED:
        usual, spot = (forms[form][offer] for offer in OFFERS)
        costs.append(f"{format_hours(usual['hours'])}, {usual['dollars']:,.2f}; {spot['dollars']:,.2f}")

    # The origin of the rate in few words: the record, or the publisher and the software.
    rate = first["rate"]
    quoted, _, source = rate["origin"].partition("; ")
    publisher = source.partition(":")[0].partition(";")[0].partition(" (")[0]
    whose = f"published: {publisher}, {quoted.partition(' ')[0]}"
    if rate["kind"] == "record":
        whose = f"record of one {rate['gpu']}: {rate['origin']}"
    return [machine, format_prices(first), *costs, describe_longest(first), whose]
