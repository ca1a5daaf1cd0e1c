"""Tables of what a recipe costs on EC2: for README.md, RESULTS.md and the terminal."""

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from reports.words import format_number, make_table
from verdict.words import NAMES

if TYPE_CHECKING:
    from rich.console import Console

COST = "cost.json"
OFFERS = {"on_demand": "on demand", "spot": "spot"}
# Of the table in README and the picture, if a record has more machines than MOST_SHOWN.
MOST_SHOWN = 12
SHOWN_MACHINES = (
    *("g5.xlarge", "g5.12xlarge", "g6.xlarge", "g6.12xlarge", "g6e.xlarge", "g6e.4xlarge", "g6e.12xlarge"),
    *("p4d.24xlarge", "p5.4xlarge", "p5.48xlarge", "p5en.48xlarge"),
)
SHOWN_STORED = {"original": "photographs as they are", "500": "at most 500 pixels", "256": "short side of 256 pixels"}
NEEDS = ("MB/s: storage must give, has", "vCPUs: to decode, has", "what binds")
FULL_HEADER = ("machine", "stored", "on demand", "spot", "training", "evaluation", "start", "each reclaim", *NEEDS)
TERMINAL_WIDTH = 132  # columns, at least
MINUTES_BELOW = 1.5  # hours: shorter times are given in minutes
Row = dict[str, Any]


def format_hours(hours: float) -> str:
    """Return a time as `35 min` or `4.10 h`."""
    return f"{60 * hours:.0f} min" if hours < MINUTES_BELOW else f"{format_number(hours)} h"


def format_price(offer: dict[str, Any]) -> str:
    """Return a price per hour; one that is only a typical share is marked."""
    return f"{'about ' * offer.get('is_typical', False)}{offer['dollars_per_hour']:,.2f}"


def list_sizes(sizes: Sequence[int]) -> str:
    """Return resolutions as `160` or `88 to 176`."""
    return " to ".join(str(size) for size in sorted({min(sizes), max(sizes)}))


def describe_binding(row: Row) -> str:
    """Return what binds, the longest first, such as `storage at 88 px (61%), the model at 144 to 176 px (39%)`."""
    whole = len(row["binds"]) == 1
    return ", ".join(
        NAMES[part] if whole else f"{NAMES[part]} at {list_sizes(each['sizes'])} px ({each['share']:.0%})"
        for part, each in row["binds"].items()
    )


def describe_longest(row: Row) -> str:
    """Return the part that binds for the longest time, with its share of the time if it is not all."""
    part, each = next(iter(row["binds"].items()))
    return NAMES[part].removeprefix("the ") + (f" ({each['share']:.0%})" if len(row["binds"]) > 1 else "")


def describe_rate(row: Row) -> str:
    """Return whether the rate is a record or somebody's publication, which one, and what was derived from it."""
    rate = row["rate"]
    return "; ".join(filter(None, (f"{rate['kind']}: {rate['origin']}", rate["derived"])))


def group_rates(content: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the recipes and machines of each different rate, and the rate in words."""
    groups: dict[str, dict[str, dict[str, None]]] = {}
    for row in content["rows"]:
        names = groups.setdefault(describe_rate(row), {"recipe": {}, "machine": {}})
        for kind, each in names.items():
            each[row[kind]] = None
    return [
        (f"{', '.join(names['recipe'])} on {', '.join(names['machine'])}", words) for words, names in groups.items()
    ]


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
    rows = [_readme_row(name, forms, content) for name, forms in groups.items()]
    table = "\n".join(make_table(header, rows))
    picture = f"![dollars of {recipe} by machine, on demand and on the spot market](docs/pictures/cost.png)"
    files = ", ".join(f"`{name}`" for name in content["computed_from"])
    basis = (
        f"Computed on {content['date'][:10]} from {files}. Prices on demand: {content['prices']['date']}; *about*: no "
        f"spot price was found, a typical share of the price on demand. Reclaims of a spot run: {content['reclaims']}."
    )
    return f"\n{picture}\n\n{table}\n{basis}\n"


def _readme_row(name: str, forms: dict[str, Row], content: dict[str, Any]) -> list[str]:
    first = forms["original"]
    costs = [
        f"{format_hours(forms[form]['on_demand']['hours'])}, {forms[form]['on_demand']['dollars']:,.2f}; "
        f"{forms[form]['spot']['dollars']:,.2f}"
        for form in SHOWN_STORED
    ]
    prices = "; ".join(format_price(first[offer]) for offer in OFFERS)
    machine = f"{name}, {content['machines'][name]}"
    return [machine, prices, *costs, describe_longest(first), _name_rate(first)]


def _name_rate(row: Row) -> str:
    """Return the origin of a rate in few words: the record, or the publisher and the software."""
    kind, origin = row["rate"]["kind"], row["rate"]["origin"]
    if kind == "record":
        return f"record of one {row['rate']['gpu']}: {origin}"
    quoted, _, source = origin.partition("; ")
    publisher = source.partition(":")[0].partition(";")[0].partition(" (")[0]
    return f"published: {publisher}, {quoted.partition(' ')[0]}"


def describe_cost(content: dict[str, Any]) -> Iterator[str]:
    """Yield a table per recipe with all machines, what the rates are, and the assumptions."""
    for name, recipe in content["recipes"].items():
        yield from (f"**{name}**, {recipe['epochs']:g} epochs, published top-1: {recipe['published']}", "")
        yield from make_table(FULL_HEADER, [_full_row(row) for row in content["rows"] if row["recipe"] == name])
    yield from make_table(("recipes and machines", "rate"), group_rates(content))
    yield from (f"* stored {name}: {_describe_stored(each)}" for name, each in content["stored"].items())
    yield from (f"* {line}" for line in content["says"])
    yield from (f"* {name}: {_describe_source(each)}" for name, each in content["prices"]["sources"].items())
    files = ", ".join(f"{name} (sha256 {digest[:12]})" for name, digest in content["computed_from"].items())
    yield f"* computed from {files}"
    yield f"* command: `{content['command']}`"
    yield f"* commit {content['commit'].removesuffix('+')}; {content['date']}"
    yield ""


def _describe_stored(each: dict[str, Any]) -> str:
    return f"{each['what']}, {each['bytes_per_image'] / 1000:.0f} KB per image"


def _describe_source(each: dict[str, str]) -> str:
    return f"{each['source']} ({each['hand']}; date: {each['date']})"


def _full_row(row: Row) -> list[str]:
    hours = [row[f"{name}_hours"] for name in ("training", "evaluation", "start", "reclaim")]
    offers = [
        f"{format_hours(row[name]['hours'])}, {row[name]['dollars']:,.2f} dollars at {format_price(row[name])}"
        for name in OFFERS
    ]
    return [
        row["machine"],
        row["stored"],
        *offers,
        *map(format_hours, hours),
        *_describe_needs(row),
        describe_binding(row),
    ]


def _describe_needs(row: Row) -> list[str]:
    """Return what storage and vCPUs must give, and have."""
    needs, has, storage = row["needs"], row["has"], "storage_megabytes_per_second"
    memory = " (in memory)" * row["shards_fit_memory"]
    return [f"{needs[storage]:,.0f}, {has[storage]:,.0f}{memory}", f"{needs['vcpus']:,.0f}, {has['vcpus']}"]


def sort_rows(rows: Iterable[Row], offer: str) -> list[Row]:
    """Sort rows by recipe as they come, then by dollars."""
    found = list(rows)
    order = {name: number for number, name in enumerate(dict.fromkeys(row["recipe"] for row in found))}
    return sorted(found, key=lambda row: (order[row["recipe"]], row[offer]["dollars"]))


def print_rows(content: dict[str, Any], offers: Sequence[str], console: "Console | None" = None) -> None:
    """Print the rows on standard error, the cheapest first, then the rates."""
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    console = console or Console(stderr=True, highlight=False)
    console.width = max(console.width, TERMINAL_WIDTH)
    table = Table(box=None, pad_edge=False)
    for name in ("recipe", "machine", "stored", *(OFFERS[each] for each in offers), *NEEDS, "rate"):
        table.add_column(name)
    for row in sort_rows(content["rows"], offers[0]):
        costs = [f"{format_hours(row[name]['hours'])}, {row[name]['dollars']:,.2f} $" for name in offers]
        cells = (*costs, *_describe_needs(row), describe_longest(row), row["rate"]["kind"])
        table.add_row(row["recipe"], row["machine"], row["stored"], *cells)
    console.print(table)
    for names, words in group_rates(content):
        console.print(f"{names}: {words}", markup=False, soft_wrap=True)
