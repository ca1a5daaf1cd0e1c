"""README.md's figures: the function of NAME writes the text between <!--NAME--> and <!--/NAME--> from the records.

Images/s outside of such markers must be in a record, or must name their publisher in the same paragraph.
"""

import math
import re
from collections.abc import Callable, Iterator
from typing import Any

from feeding.contenders import RESTARTS
from reports.dollars import COST, write_cost
from reports.races import OF_ORIGINALS, name_contender, rate_of, sort_by_rate
from reports.reading import Records
from reports.recipes import GPU_MODEL, SMALL_SIZES, write_short
from reports.words import format_median, format_number, format_ratio, format_spread, make_table

from prep.errors import InputError

PEERS, PREPARATION, STARTUP, VERDICT = "peers.json", "preparation.json", "startup.json", "verdict.json"
RESTART_RACE, RESTART_READERS, RESTART_PREPARATION = (f"restarts{each}.json" for each in ("", "-readers", "-prepared"))
GPU = "h200/rates.json"
OURS, ORIGINAL, SMALLER = "penstock", "original bytes", "max side 500, quality 90"
NAMES = {  # of the contenders, in README's table
    OURS: "Penstock (`dali` on the CPU)",
    "libjpeg-turbo": "libjpeg-turbo alone: full decoding, nothing else",
    "dali-reader": "DALI's own `readers.webdataset` + `image_random_crop`",
    "torchvision-v2": "torchvision, decode_jpeg + transforms v2",
    "imagefolder-pillow": "torchvision ImageFolder, Pillow",
    "timm": "timm's loader with prefetcher",
    "timm-wds": "timm's `wds/` reader",
    "webdataset-pillow": "webdataset, Pillow",
    "webdataset-v2": "webdataset, decode_jpeg + transforms v2",
    "litdata-v2": "LitData, decode_jpeg + transforms v2",
    "mosaicml-v2": "MosaicML Streaming, decode_jpeg + transforms v2",
    "spdl-io": "SPDL, its own decoder",
    "spdl-v2": "SPDL, decode_jpeg + transforms v2",
    "ffcv": "FFCV",
}
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
WRITERS = {"webdataset": "webdataset's ShardWriter", "litdata": "LitData", "mosaicml": "MosaicML"}
IMAGES_OF_BOTH_SPLITS = 1_281_167 + 50_000  # of training and validation
MARKED = re.compile(r"<!--([\w-]+)-->(.*?)<!--/\1-->", re.DOTALL)
MARKER = re.compile(r"<!--/?[\w-]+-->")
RATE = re.compile(r"(\d[\d,]*(?:\.\d+)?)\s+images/s")
PUBLISHED = {"940": "MLPerf"}  # images/s, and their publisher, which the same paragraph must name


def write_quotes(text: str, records: Records) -> str:
    """Return README's text with the values of the records between its markers.

    Raises:
        InputError: a marker is unknown, has no end or begins a line, or its record is missing.
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
    """Return one value.

    Raises:
        InputError: the value is unknown, or its record is missing or lacks a field.
    """
    if name not in QUOTES:
        raise InputError(f"README.md: unknown figure '{name}': choose from {', '.join(QUOTES)}")
    named, describe = QUOTES[name]
    files = (named,) if isinstance(named, str) else named
    for file in files:
        if file not in records:
            raise InputError(
                f"README.md quotes {file}, which does not exist: write that record, or remove <!--{name}-->"
            )
    try:
        return describe(*(records[file].content for file in files))
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
                    "source in the paragraph and in reports/quoted.py"
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


def write_peers(content: dict[str, Any]) -> str:
    """Return the table of both races, and its picture."""
    races = content["races"]
    original, smaller = races[ORIGINAL], races.get(SMALLER, {})
    rows = [[name_contender(name, NAMES), *_rate_and_ratio(name, each)] for name, each in sort_by_rate(original)]
    rows += [_smaller_row(name, smaller) for name, _ in sort_by_rate(smaller) if name != f"{OURS}-original"]
    table = "\n".join(make_table(("", "images/s", "Penstock is"), rows))
    return f"\n![images/s of Penstock and its peers](docs/pictures/peers.png)\n\n{table}"


def _rate_and_ratio(name: str, each: dict[str, Any]) -> tuple[str, str]:
    ratio = each.get("ours_in_images_per_second")
    if OF_ORIGINALS in each:
        return format_median(rate_of(each)), f"{each[OF_ORIGINALS]:.2f} × itself on originals"
    return format_median(rate_of(each)), f"{ratio:.2f} ×" if ratio and name != OURS else ""


def _smaller_row(name: str, race: dict[str, Any]) -> list[str]:
    """Return the row of a contender on smaller images; ours is compared with itself on the original ones."""
    each, itself = race[name], race.get(f"{OURS}-original", {})
    stored = f"{each['bytes_per_image'] / 1000:.0f} KB per image, {SMALLER}"
    rate, ratio = _rate_and_ratio(name, each)
    if name == OURS and "ours_in_images_per_second" in itself:
        ratio = f"{itself['ours_in_images_per_second']:.2f} × itself on originals"
    return [f"*at {stored}:* {NAMES.get(name, name)}", rate, ratio]


def _describe_race(content: dict[str, Any]) -> str:
    cores, batch_size = content["hardware"]["cores"], content["batch_size"]
    return f"{cores} CPU cores, each loader with {content['workers']} workers, batch {batch_size}"


def _describe_windows(content: dict[str, Any]) -> str:
    num_windows = len(content["races"][ORIGINAL][OURS]["images_per_second"]["repetitions"])
    return f"{num_windows} windows of {content['seconds']:g} s"


def _checked(content: dict[str, Any]) -> dict[str, Any]:
    """Return our contender of the race with the check of all images, which is the default of preparation."""
    return content["races"]["original bytes, checked"]["contenders"][OURS]


def _imagenet_minutes(content: dict[str, Any]) -> str:
    return f"{IMAGES_OF_BOTH_SPLITS / _checked(content)['images_per_second']['median'] / 60:.0f} minutes"


def _smaller_percent(content: dict[str, Any]) -> str:
    smaller = content["races"]["max side 500"]["contenders"][OURS]
    return f"{100 * smaller['output_bytes'] / _checked(content)['output_bytes']:.0f}%"


def _describe_writers(content: dict[str, Any]) -> str:
    writers = content["races"][ORIGINAL]["contenders"]
    ratios = [(title, writers[name]["ours_in_images_per_second"]["median"]) for name, title in WRITERS.items()]
    return ", ".join(f"{ratio:.1f} × {title}" for title, ratio in ratios)


def _describe_pillow(content: dict[str, Any]) -> str:
    races = [content["races"][name]["contenders"]["pillow"] for name in ("max side 500", "short side 256")]
    ratios = sorted(each["ours_in_images_per_second"]["median"] for each in races)
    return f"{ratios[0]:.1f} to {ratios[1]:.1f} ×"


def _first_batch(content: dict[str, Any]) -> str:
    seconds = max(each["first_batch_seconds"]["median"] for each in content["moments"].values())
    return f"{seconds:.1f} s"


def _named_cases(content: dict[str, Any]) -> str:
    return f"{content['num_named']} of {len(content['cases'])}"


def _worst_promise(content: dict[str, Any]) -> str:
    errors = [abs(each["error"]) for case in content["cases"].values() for each in case["followed"]]
    return f"{math.ceil(100 * max(errors))}%"


def write_gpu(content: dict[str, Any]) -> str:
    """Return the table of the rates on a GPU: images/s with spread, relative to the training step alone, CPU cores."""
    cases = {name: content["cases"][name]["result"] for name in GPU_ROWS}
    cases["compile-default"] = cases["compile-default"]["train"]
    step = cases["model-resnet50"]["images_per_second"]["median"]
    rows = [
        [
            GPU_ROWS[name],
            format_spread(each["images_per_second"]),
            format_ratio(each["images_per_second"]["median"] / step),
            format_number(each["usage"]["cpu_cores"]),
        ]
        for name, each in cases.items()
    ]
    return "\n" + "\n".join(make_table(("", "images/s (min to max)", "of the bf16 step alone", "CPU cores busy"), rows))


def _describe_gpu(content: dict[str, Any]) -> str:
    """Return the machine of the GPU's rates."""
    hardware = content["cases"]["train-resnet50-gpu"]["hardware"]
    return f"{hardware['gpu'].partition(',')[0]}, {hardware['cores']} vCPUs"


def _restart_gain(content: dict[str, Any]) -> str:
    return format_ratio(content["races"][ORIGINAL][OURS + RESTARTS][OF_ORIGINALS])


def _restart_lead(content: dict[str, Any]) -> str:
    """Return our rate on restart shards, divided by LitData's."""
    race = content["races"][ORIGINAL]
    return format_ratio(rate_of(race[OURS + RESTARTS])["median"] / rate_of(race["litdata-v2"])["median"])


def _restart_slowdown(content: dict[str, Any]) -> str:
    """Return the largest ratio of another reader's time on restart shards to that on the original ones."""
    readers = content["races"]["readers of restart shards"].values()
    return format_ratio(max(1 / each[OF_ORIGINALS] for each in readers if OF_ORIGINALS in each))


def _restart_cost(content: dict[str, Any]) -> str:
    contenders = content["races"]["original bytes, checked"]["contenders"]
    return format_ratio(contenders[OURS + RESTARTS]["ours_in_images_per_second"])


# The text of each marker, and the record or records that it is written from.
QUOTES: dict[str, tuple[str | tuple[str, ...], Callable[..., str]]] = {
    "recipes": ((SMALL_SIZES, GPU_MODEL), write_short),
    "cost": (COST, write_cost),
    "gpu": (GPU, write_gpu),
    "gpu-machine": (GPU, _describe_gpu),
    "peers": (PEERS, write_peers),
    "peers-race": (PEERS, _describe_race),
    "peers-images": (PEERS, lambda content: f"{content['dataset']['num_images']:,}"),
    "peers-windows": (PEERS, _describe_windows),
    "prepared": (PREPARATION, lambda content: format_number(_checked(content)["images_per_second"]["median"])),
    "prepared-minutes": (PREPARATION, _imagenet_minutes),
    "prepared-smaller": (PREPARATION, _smaller_percent),
    "prepared-writers": (PREPARATION, _describe_writers),
    "prepared-pillow": (PREPARATION, _describe_pillow),
    "restarts-gain": (RESTART_RACE, _restart_gain),
    "restarts-lead": (RESTART_RACE, _restart_lead),
    "restarts-read": (RESTART_RACE, lambda content: f"{content['dataset']['restarts']['read_share']:.0%}"),
    "restarts-decoded": (RESTART_RACE, lambda content: f"{content['dataset']['restarts']['mcu_share']:.0%}"),
    "restarts-index": (RESTART_RACE, lambda content: f"{content['dataset']['restarts']['index_bytes_per_image']:,.0f}"),
    "restarts-readers": (RESTART_READERS, _restart_slowdown),
    "restarts-cost": (RESTART_PREPARATION, _restart_cost),
    "startup": (STARTUP, _first_batch),
    "verdict-named": (VERDICT, _named_cases),
    "verdict-error": (VERDICT, _worst_promise),
}
