"""`python benchmarks/cost.py [--recipe NAME ...]`: hours and dollars of a recipe on EC2, on demand and spot.

For each recipe and machine: the time to the recipe's published accuracy, with staging, start and reclaims; the bytes/s
that storage must give, the vCPUs that decoding needs, and what binds. It measures nothing: rates are from records
(--record, and the committed ones) or from publications (cloud/machines.json), and each row says which. A table goes to
stderr, one JSON record to stdout. throughput.py measures one machine. docs/benchmarks.md explains the figures.
"""

import argparse
import hashlib
import os
from pathlib import Path
from typing import Any

from dollars.decoding import FILES, STORED, choose_stored, read_decoding
from dollars.estimate import READ_THROUGH, STAGED, Assumptions, Case, estimate_cost
from dollars.machines import MACHINES, Catalogue, choose_machines, read_catalogue, replace_prices
from dollars.speeds import PYTORCH_SHARE, Speed, join_records, quote_publication
from dollars.table import describe_machine, describe_row, list_assumptions
from record import describe_command, describe_date, print_progress, publish
from reports.reading import CHECKOUT, RECORDS, Record, Records, read_record, read_records
from reports.recipes import GPU_MODEL, PUBLISHED, SMALL_SIZES, gpu_rates

from prep.errors import InputError, run
from train.config import Recipe
from train.recipe import RECIPES

WHAT = "cost of a recipe"
RATES = "h200/rates.json"
DEFAULTS = Assumptions()


def parse_arguments() -> argparse.Namespace:
    """Return the command line's arguments."""
    parser = argparse.ArgumentParser(
        prog="benchmarks/cost.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--recipe", nargs="+", default=["quick_24"], metavar="NAME", help="recipes (default: quick_24)")
    add("--machine", nargs="+", default=[], metavar="NAME", help="machines or families, such as g6e (default: all)")
    stored = f"how the images are stored: {', '.join(STORED)} (default: original)"
    add("--stored", nargs="+", default=["original"], metavar="FORM", help=stored)
    add("--record", type=Path, nargs="+", default=[], metavar="FILE", help="records with the rates of your GPUs")
    add("--machines", type=Path, default=MACHINES, metavar="FILE", help="default: cloud/machines.json")
    add("--price", nargs="+", default=[], metavar="NAME=D", help="dollars per hour on demand, such as g6e.xlarge=1.86")
    add("--spot-price", nargs="+", default=[], metavar="NAME=D", help="dollars per hour on the spot market")
    offers = parser.add_mutually_exclusive_group()
    offers.add_argument("--on-demand", action="store_true", help="show and sort by the cost on demand alone")
    offers.add_argument("--spot", action="store_true", help="show and sort by the cost on the spot market alone")
    add("--reclaims", type=int, default=DEFAULTS.reclaims, metavar="N", help="of a spot run (default: 1)")
    boot, environment = DEFAULTS.boot_minutes, DEFAULTS.environment_minutes
    add("--boot-minutes", type=float, default=boot, help=f"assumed, of each start (default: {boot:g})")
    add("--environment-minutes", type=float, default=environment, help=f"the same (default: {environment:g})")
    start = "staged: all shards before training; read-through: while they arrive (default: staged)"
    add("--start", choices=(STAGED, READ_THROUGH), default=STAGED, help=start)
    add("--burst", action="store_true", help="count on the burst rate of the network")
    add("--lost-epochs", type=float, metavar="E", help="lost per reclaim (default: half of the interval between saves)")
    share = f"PyTorch's share of a rate published for MXNet (default: {PYTORCH_SHARE})"
    add("--pytorch-share", type=float, default=PYTORCH_SHARE, metavar="S", help=share)
    add("--out", type=Path, metavar="FILE", help="also write the record to this file")
    add("--picture", type=Path, metavar="PNG", help="draw the first recipe; needs --out FILE")
    return parser.parse_args()


def check_arguments(arguments: argparse.Namespace) -> None:
    """Check the values of the flags; raise InputError for the first one that cannot be used."""
    for name in ("reclaims", "boot_minutes", "environment_minutes", "lost_epochs"):
        value = getattr(arguments, name)
        if value is not None and not 0 <= value < float("inf"):
            raise InputError(f"--{name.replace('_', '-')} must be at least 0, got {value}")
    if not 0 < arguments.pytorch_share <= 1:
        raise InputError(f"--pytorch-share must be more than 0 and at most 1, got {arguments.pytorch_share}")
    if arguments.picture and not arguments.out:
        raise InputError("--picture needs --out FILE: the picture names the record that it shows")
    for path in (arguments.out, arguments.picture):
        if path and not path.resolve().parent.is_dir():
            raise InputError(f"{path.parent} does not exist: create it or choose another path")


def choose_recipes(names: list[str]) -> list[Recipe]:
    """Return the recipes with a published accuracy; raise InputError for an unknown name."""
    for name in names:
        if name not in PUBLISHED:
            has_none = ", which has no published accuracy on ImageNet" if name in RECIPES else ""
            raise InputError(f"unknown recipe {name}{has_none}: choose from {', '.join(PUBLISHED)}")
    return [RECIPES[name]() for name in dict.fromkeys(names)]


def read_given(paths: list[Path]) -> list[Record]:
    """Return the records of the flag --record, named as they were given."""
    return [read_record(path, path.parent) for path in paths]


def read_efficiency(records: Records) -> float:
    """Return what training reaches of its lowest bound, where the step alone was measured too."""
    train, step = (
        records[RATES].content["cases"][name]["result"]["images_per_second"]["median"]
        for name in ("train-resnet50-full-0.99", "model-resnet50")
    )
    return train / step


def choose_speed(gpu: str, speeds: dict[str, Speed], catalogue: Catalogue, share: float) -> Speed:
    """Return the rates of a GPU: from a record, else from a publication."""
    return speeds[gpu] if gpu in speeds else quote_publication(gpu, catalogue.publications.get(gpu, []), share)


def network_cost(recipe: Recipe, speed: Speed, deeper: float) -> float:
    """Return the time of a recipe's network relative to that of the rates.

    Args:
        deeper: the time of ResNet-50D relative to ResNet-50's.
    """
    cost = {"resnet50": 1.0, "resnet50d": deeper}
    return cost[recipe.model.name] / cost[speed.network]


def compute_record(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the record: one row for each recipe, machine and stored form."""
    # The inputs, and the refusal of those that are unknown.
    recipes = choose_recipes(arguments.recipe)
    catalogue = replace_prices(read_catalogue(arguments.machines), arguments.price, arguments.spot_price)
    machines = choose_machines(catalogue, arguments.machine)
    records, given = read_records(RECORDS), read_given(arguments.record)
    decoding = read_decoding(records)
    stored = [choose_stored(decoding, name) for name in dict.fromkeys(arguments.stored)]

    # A given record replaces the committed one of its GPU.
    gpus = sorted({machine.gpu for machine in catalogue.machines.values()})
    speeds = join_records([records[GPU_MODEL], records[SMALL_SIZES]], gpus) | join_records(given, gpus)
    _, deeper = gpu_rates(records[SMALL_SIZES].content, records[GPU_MODEL].content)
    assumed = read_assumptions(arguments, read_efficiency(records))

    rows = []
    for recipe in recipes:
        for machine in machines:
            speed = choose_speed(machine.gpu, speeds, catalogue, assumed.pytorch_share)
            for form in stored:
                case = Case(recipe, machine, form, speed, network_cost(recipe, speed, deeper))
                rows.append(describe_row(case, estimate_cost(case, decoding, assumed), assumed))
    used = [arguments.machines, *(RECORDS / name for name in sorted({GPU_MODEL, SMALL_SIZES, *FILES, RATES}))]
    return {
        "what": WHAT,
        "says": list_assumptions(assumed, decoding),
        "reclaims": assumed.reclaims,
        "prices": {"date": catalogue.sources["on_demand"]["date"], "sources": catalogue.sources},
        "recipes": {each.name: {"epochs": each.epochs, "published": PUBLISHED[each.name].top1} for each in recipes},
        "machines": {each.name: describe_machine(each) for each in machines},
        "stored": {each.name: {"what": STORED[each.name], "bytes_per_image": each.bytes_per_image} for each in stored},
        "rows": rows,
        "computed_from": describe_files([*used, *arguments.record]),
        **describe_where(),
    }


def read_assumptions(arguments: argparse.Namespace, efficiency: float) -> Assumptions:
    """Return what the flags assume."""
    return Assumptions(
        reclaims=arguments.reclaims,
        boot_minutes=arguments.boot_minutes,
        environment_minutes=arguments.environment_minutes,
        start=arguments.start,
        uses_burst=arguments.burst,
        lost_epochs=arguments.lost_epochs,
        pytorch_share=arguments.pytorch_share,
        efficiency=efficiency,
    )


def describe_files(paths: list[Path]) -> dict[str, str]:
    """Return the SHA-256 of files by path, relative to the checkout where they are in it."""
    names = [path.resolve() for path in paths]
    return {
        os.path.relpath(path, CHECKOUT) if path.is_relative_to(CHECKOUT) else path.name: hashlib.sha256(
            path.read_bytes()
        ).hexdigest()
        for path in names
    }


def describe_where() -> dict[str, str | None]:
    """Return command, commit and date of the computation."""
    from train.versions import describe_commit  # noqa: PLC0415  (starts git)

    return {
        "command": describe_command("benchmarks/cost.py"),
        "commit": describe_commit(),
        "date": describe_date(),
    }


def draw(arguments: argparse.Namespace) -> None:
    """Draw the record that was written."""
    from drawing.shown import name_pictures  # noqa: PLC0415
    from drawing.style import save  # noqa: PLC0415  (matplotlib)
    from pictures import draw_marks  # noqa: PLC0415

    record = read_record(arguments.out, arguments.out.parent)
    (_, picture), *_ = name_pictures(record)
    save(draw_marks(picture), arguments.picture, record)


def main() -> None:
    """Compute, print and write the record."""
    arguments = parse_arguments()
    check_arguments(arguments)
    record = compute_record(arguments)
    from reports.dollars import print_rows  # noqa: PLC0415  (rich)

    offers = [name for name in ("on_demand", "spot") if getattr(arguments, name)] or ["on_demand", "spot"]
    print_rows(record, offers)
    for line in record["says"]:
        print_progress(line)
    publish(record, arguments.out)
    if arguments.picture:
        draw(arguments)


if __name__ == "__main__":
    run(main)
