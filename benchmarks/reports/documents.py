"""RESULTS.md and README.md's figures, written from the records.

RESULTS.md has one section for each kind of record, in a fixed order, with all records of the kind. In README.md the
text between <!--NAME--> and <!--/NAME--> is written; images/s outside of such markers must be in a record, or must name
their publisher in the same paragraph.
"""

import math
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from peers.registry import OURS, RESTARTS, label_reader, label_writer
from reports.gpu_runs import tables_of_suite
from reports.kinds import GPU_SUITE, KINDS, make_tables
from reports.plots import list_pictures
from reports.rates import OF_ORIGINALS, sort_by_rate
from reports.recipes import COST, GPU_MODEL, SMALL_SIZES, write_cost, write_recipes
from reports.records import (
    Record,
    Records,
    format_machine,
    format_median,
    format_number,
    format_ratio,
    format_spread,
    make_table,
    rate_of,
)
from tables import Table, to_markdown

from prep.errors import InputError

PICTURES = "../docs/pictures"  # relative to RESULTS.md
INTRODUCTION = """# Results

All figures in this file are from `benchmarks/records/`; `python benchmarks/report.py` writes it. To change a figure,
run its benchmark again. The records contain every repetition. A figure is valid for the machine and the images named
with it. "Median (min to max)" is over the repetitions.

Records written before 2026-11-27 name the commands as they were then called: `peers.py` is `compare.py`, `sweeps.py` is
`compare.py --sweep`, `preparation.py` is `prepare.py write`, `staging.py` is `prepare.py stage`, `startup.py` is
`latency.py first-batch`, `serving.py` is `latency.py app`; `prove_verdict.py`, `prove_tuning.py` and `ingredients.py`
are the subcommands `verdict`, `tuning` and `ingredients` of `prove.py`.
"""

ORIGINAL, CHECKED = "original bytes", "original bytes, checked"  # races
SMALLER = "max side 500, quality 90"
RATIO = "ours_in_images_per_second"
GPU_ROWS = {  # cases of the GPU suite, in README's table
    "loader-gpu": "the loader alone, decoding on the GPU, with 0.65",
    "loader-cpu": "the loader alone, decoding on the CPU",
    "model-resnet50": "the training step alone",
    "train-resnet50-full-0.99": "**training, decoding on the GPU** (the default there)",
    "train-resnet50-gpu": "the same with `--loader.hw-decoder-load 0.65`",
    "train-resnet50-gpu-fp16": "with 0.65 and `--amp fp16`",
    "compile-default": "with 0.65 and `--speed.compile default`",
    "train-resnet50-cpu": "training, decoding on the CPU",
}
WRITERS = ("webdataset", "litdata", "mosaicml")
IMAGES_OF_BOTH_SPLITS = 1_281_167 + 50_000  # of training and validation
MARKED = re.compile(r"<!--([\w-]+)-->(.*?)<!--/\1-->", re.DOTALL)
MARKER = re.compile(r"<!--/?[\w-]+-->")
RATE = re.compile(r"(\d[\d,]*(?:\.\d+)?)\s+images/s")
PUBLISHED = {"940": "MLPerf"}  # images/s, and their publisher, which the same paragraph must name


# RESULTS.md.


def write_document(records: Records) -> str:
    """Return the text of RESULTS.md.

    Raises:
        InputError: a record lacks a field of its kind.
    """
    # The table of all records, then the sections of the known kinds.
    blocks = [INTRODUCTION, to_markdown([list_all(records.values())])]
    for what, (title, _) in KINDS.items():
        found = [record for record in records.values() if record.what == what]
        blocks += [f"## {title}\n"] * bool(found)
        blocks += [describe_record(record) for record in sort_by_machine(found)]

    # Last the GPU suite, and kinds without a section.
    blocks += describe_folders([record for record in records.values() if record.what == GPU_SUITE])
    others = [record for record in records.values() if record.what not in (*KINDS, GPU_SUITE)]
    blocks += ["## Records of other kinds\n"] * bool(others)
    blocks += [describe_record(record) for record in others]
    return "\n".join(blocks).rstrip("\n") + "\n"


def sort_by_machine(records: Iterable[Record]) -> list[Record]:
    """Sort records so that those of one machine are together, the newest first."""
    newest = sorted(records, key=lambda record: record.content.get("date", ""), reverse=True)
    return sorted(newest, key=lambda record: format_hardware(record.content))


def list_all(records: Iterable[Record]) -> Table:
    """Return the table of all records, one line per record."""
    rows = []
    for record in records:
        when = [str(record.content.get(name, "")) for name in ("commit", "date")]
        link = f"[{record.name}](records/{record.name})"
        rows.append([link, record.what, format_hardware(record.content), *when])
    return Table(header=("record", "kind", "machine", "commit", "date"), rows=rows)


def format_hardware(content: dict[str, Any]) -> str:
    """Return the machine of a record, "" if it does not name one for all its figures."""
    return format_machine(content["hardware"]) if isinstance(content.get("hardware"), dict) else ""


def describe_record(record: Record, tell: Callable[[dict[str, Any]], list[Table]] = make_tables) -> str:
    """Return the text of one record, with its name and machine as heading.

    Raises:
        InputError: it lacks a field of its kind.
    """
    title = ", on ".join(filter(None, (record.name, format_hardware(record.content))))
    with record.explain_errors():
        pictures = [f"![{each.title}]({PICTURES}/{each.name})\n" for each in list_pictures(record)]
        return "\n".join([f"### {title}", "", *pictures, to_markdown(tell(record.content))])


def describe_folders(records: list[Record]) -> Iterator[str]:
    """Yield the section of the GPU suite; each folder is one run of it."""
    if records:
        yield "## On a GPU\n"
    for folder in sorted({record.folder for record in records}):
        stages = [record for record in records if record.folder == folder]
        names = ", ".join(record.name for record in stages)
        contents = [record.content for record in stages]
        whole = Record(stages[0].path, names, {"what": GPU_SUITE})
        yield describe_record(whole, lambda _, contents=contents: tables_of_suite(contents))


# README.md.


def write_quotes(text: str, records: Records) -> str:
    """Return README's text with the values of the records between its markers.

    Raises:
        InputError: a marker has no end, begins a line or is unknown, or its record is missing or lacks a field.
    """
    if stray := MARKER.search(MARKED.sub("", text)):
        raise InputError(f"README.md: {stray[0]} does not enclose anything: end it with <!--/NAME-->")
    for match in MARKED.finditer(text):
        if "\n" not in match[2] and not text[: match.start()].rpartition("\n")[2].strip():
            raise InputError(
                f"README.md: <!--{match[1]}--> begins a line, which Markdown then treats as HTML: move it behind a word"
            )
    return MARKED.sub(lambda match: f"<!--{match[1]}-->{write_quote(match[1], records)}<!--/{match[1]}-->", text)


def write_quote(name: str, records: Records) -> str:
    """Return the value of one marker.

    Raises:
        InputError: the marker is unknown, or its record is missing or lacks a field.
    """
    if name not in QUOTES:
        raise InputError(f"README.md: unknown figure '{name}': choose from {', '.join(QUOTES)}")
    files, quote = QUOTES[name]
    for file in files:
        if file not in records:
            raise InputError(
                f"README.md quotes {file}, which does not exist: write that record, or remove <!--{name}-->"
            )
    try:
        return quote(*(records[file].content for file in files))
    except KeyError as error:
        lacking = " or ".join(files)
        raise InputError(
            f"README.md's figure '{name}' needs the field {error}, which {lacking} lacks: run the benchmark again"
        ) from error


def find_unfounded(text: str, records: Records) -> Iterator[str]:
    """Yield an error for each images/s outside of markers that is neither in a record nor published elsewhere."""
    rates = {format_median(summary) for record in records.values() for summary in _find_rates(record.content)}
    for paragraph in MARKED.sub("…", text).split("\n\n"):
        for match in RATE.finditer(paragraph):
            publisher = PUBLISHED.get(match[1])
            if match[1] not in rates and not (publisher and publisher in paragraph):
                yield (
                    f"README.md quotes {match[1]} images/s, which is in no record: put it between markers, or name its "
                    "source in the paragraph and in reports/documents.py"
                )


def _find_rates(value: Any, name: str = "") -> Iterator[dict[str, Any]]:
    """Yield every summary of images/s in a record, at any depth."""
    if isinstance(value, dict):
        if "median" in value and ("images_per_second" in name or name == "total"):
            yield value
        for key, each in value.items():
            yield from _find_rates(each, key)
    elif isinstance(value, list):
        for each in value:
            yield from _find_rates(each, name)


def quote_peers(content: dict[str, Any]) -> str:
    """Return the table of both races with its picture."""
    original, smaller = content["races"][ORIGINAL], content["races"].get(SMALLER, {})
    rows = [_peer_row(name, each, label_reader(name)) for name, each in sort_by_rate(original)]
    for name, each in sort_by_rate(smaller):
        label = f"*at {each['bytes_per_image'] / 1000:.0f} KB per image, {SMALLER}:* {label_reader(name)}"
        itself = smaller.get(f"{OURS}-original", {})  # ours is compared with itself on the original images
        if name == OURS and RATIO in itself:
            rows.append(_peer_row(name, {OF_ORIGINALS: itself[RATIO]} | each, label))
        elif each is not itself:
            rows.append(_peer_row(name, each, label))
    picture = "![images/s of Penstock and its peers](docs/pictures/peers.png)"
    return f"\n{picture}\n\n{to_markdown([make_table(rows)])}"


def _peer_row(name: str, each: dict[str, Any], label: str) -> dict[str, str]:
    compared = format_ratio(each.get(RATIO)) if name != OURS else ""
    if OF_ORIGINALS in each:
        compared = f"{each[OF_ORIGINALS]:.2f} × itself on originals"
    return {"": label, "images/s": format_median(rate_of(each)), "Penstock is": compared}


def quote_race(content: dict[str, Any]) -> str:
    """Return how the races were run."""
    cores, batch_size = content["hardware"]["cores"], content["batch_size"]
    return f"{cores} CPU cores, each loader with {content['workers']} workers, batch {batch_size}"


def quote_windows(content: dict[str, Any]) -> str:
    """Return the number and the length of a contender's windows."""
    num_windows = len(content["races"][ORIGINAL][OURS]["images_per_second"]["repetitions"])
    return f"{num_windows} windows of {content['seconds']:g} s"


def rate_of_preparation(content: dict[str, Any]) -> float:
    """Return our images/s with the check of all images, which is the default."""
    return content["races"][CHECKED]["contenders"][OURS]["images_per_second"]["median"]


def quote_smaller_bytes(content: dict[str, Any]) -> str:
    """Return the share of the bytes that smaller images take."""
    checked, smaller = (content["races"][race]["contenders"][OURS] for race in (CHECKED, "max side 500"))
    return f"{smaller['output_bytes'] / checked['output_bytes']:.0%}"


def quote_writers(content: dict[str, Any]) -> str:
    """Return our rate of preparation, divided by that of each other writer."""
    contenders = content["races"][ORIGINAL]["contenders"]
    return ", ".join(f"{contenders[name][RATIO]['median']:.1f} × {label_writer(name)}" for name in WRITERS)


def quote_pillow(content: dict[str, Any]) -> str:
    """Return our rate of preparation, divided by that of Pillow, for both smaller sizes."""
    races = [content["races"][race]["contenders"]["pillow"] for race in ("max side 500", "short side 256")]
    low, high = sorted(each[RATIO]["median"] for each in races)
    return f"{low:.1f} to {high:.1f} ×"


def quote_gpu(content: dict[str, Any]) -> str:
    """Return the table of the rates on a GPU: images/s, relative to the training step alone, CPU cores."""
    cases = {name: content["cases"][name]["result"] for name in GPU_ROWS}
    cases["compile-default"] = cases["compile-default"]["train"]
    step = cases["model-resnet50"]["images_per_second"]["median"]
    rows = (
        {
            "": GPU_ROWS[name],
            "images/s (min to max)": format_spread(each["images_per_second"]),
            "of the bf16 step alone": format_ratio(each["images_per_second"]["median"] / step),
            "CPU cores busy": format_number(cores) if (cores := each["usage"].get("cpu_cores")) is not None else "",
        }
        for name, each in cases.items()
    )
    return "\n" + to_markdown([make_table(rows)])


def quote_gpu_machine(content: dict[str, Any]) -> str:
    """Return the machine of the rates on a GPU."""
    hardware = content["cases"]["train-resnet50-gpu"]["hardware"]
    return f"{hardware['gpu'].partition(',')[0]}, {hardware['cores']} vCPUs"


def quote_restart_lead(content: dict[str, Any]) -> str:
    """Return our rate on restart shards, divided by LitData's."""
    race = content["races"][ORIGINAL]
    return format_ratio(rate_of(race[OURS + RESTARTS])["median"] / rate_of(race["litdata-v2"])["median"])


def quote_restart_readers(content: dict[str, Any]) -> str:
    """Return the largest ratio of another reader's time on restart shards to that on the original ones."""
    readers = content["races"]["readers of restart shards"].values()
    return format_ratio(max(1 / each[OF_ORIGINALS] for each in readers if OF_ORIGINALS in each))


def quote_startup(content: dict[str, Any]) -> str:
    """Return the seconds to the first batch, of the slowest position in an epoch."""
    return f"{max(each['first_batch_seconds']['median'] for each in content['moments'].values()):.1f} s"


def quote_verdict_error(content: dict[str, Any]) -> str:
    """Return the largest error of a promised gain."""
    errors = [abs(each["error"]) for case in content["cases"].values() for each in case["followed"]]
    return f"{math.ceil(100 * max(errors))}%"


# The records of each marker, and the function that writes its text from their contents.
PEERS, PREPARATION, GPU = ("peers.json",), ("preparation.json",), ("h200/rates.json",)
RESTART_RACE, VERDICT = ("restarts.json",), ("verdict.json",)
QUOTES: dict[str, tuple[tuple[str, ...], Callable[..., str]]] = {
    "recipes": ((SMALL_SIZES, GPU_MODEL), lambda *contents: write_recipes(*contents, with_times=False)),
    "cost": ((COST,), write_cost),
    "gpu": (GPU, quote_gpu),
    "gpu-machine": (GPU, quote_gpu_machine),
    "peers": (PEERS, quote_peers),
    "peers-race": (PEERS, quote_race),
    "peers-images": (PEERS, lambda content: f"{content['dataset']['num_images']:,}"),
    "peers-windows": (PEERS, quote_windows),
    "prepared": (PREPARATION, lambda content: format_number(rate_of_preparation(content))),
    "prepared-minutes": (
        PREPARATION,
        lambda content: f"{IMAGES_OF_BOTH_SPLITS / rate_of_preparation(content) / 60:.0f} minutes",
    ),
    "prepared-smaller": (PREPARATION, quote_smaller_bytes),
    "prepared-writers": (PREPARATION, quote_writers),
    "prepared-pillow": (PREPARATION, quote_pillow),
    "restarts-gain": (
        RESTART_RACE,
        lambda content: format_ratio(content["races"][ORIGINAL][OURS + RESTARTS][OF_ORIGINALS]),
    ),
    "restarts-lead": (RESTART_RACE, quote_restart_lead),
    "restarts-read": (RESTART_RACE, lambda content: f"{content['dataset']['restarts']['read_share']:.0%}"),
    "restarts-decoded": (RESTART_RACE, lambda content: f"{content['dataset']['restarts']['mcu_share']:.0%}"),
    "restarts-index": (RESTART_RACE, lambda content: f"{content['dataset']['restarts']['index_bytes_per_image']:,.0f}"),
    "restarts-readers": (("restarts-readers.json",), quote_restart_readers),
    "restarts-cost": (
        ("restarts-prepared.json",),
        lambda content: format_ratio(content["races"][CHECKED]["contenders"][OURS + RESTARTS][RATIO]),
    ),
    "startup": (("startup.json",), quote_startup),
    "verdict-named": (VERDICT, lambda content: f"{content['num_named']} of {len(content['cases'])}"),
    "verdict-error": (VERDICT, quote_verdict_error),
}
