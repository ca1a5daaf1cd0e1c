"""From a record to the data of its pictures, drawn or printed: bars with spread, stacked bars, and curves."""

import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from feeding.contenders import RESTARTS
from reports.dollars import SHOWN_STORED, describe_longest, format_hours, group_shown
from reports.quoted import OURS
from reports.races import OF_ORIGINALS, name_contender, rate_of, sort_by_rate
from reports.rates import SPENT
from reports.reading import Record

NAMES = {  # of the contenders, short because there is little room
    OURS: "Penstock",
    "libjpeg-turbo": "libjpeg-turbo alone",
    "dali-reader": "DALI's own reader",
    "torchvision-v2": "torchvision v2",
    "imagefolder-pillow": "torchvision, Pillow",
    "timm-wds": "timm, wds/",
    "webdataset-pillow": "webdataset, Pillow",
    "webdataset-v2": "webdataset",
    "litdata-v2": "LitData",
    "mosaicml-v2": "MosaicML Streaming",
    "spdl-io": "SPDL, its own decoder",
    "spdl-v2": "SPDL",
    "ffcv": "FFCV",
}
CONSUMER, PRODUCER = SPENT[:3], SPENT[3:]
THREADS = {  # by stage; in the loader's stage the consumer only waits, so it is left out
    "loader": {"the loader alone": PRODUCER},
    "train": {"training: its loop": CONSUMER, "training: the loader": PRODUCER},
}


@dataclass(frozen=True)
class Bar:
    """One contender's images/s."""

    label: str
    median: float
    low: float
    high: float
    is_ours: bool
    ratio: str  # our rate divided by this one; "" for ours
    of_originals: str  # of a contender that reads restart shards: its rate divided by that on the original shards
    group: str  # the race, which is a heading above its first bar


@dataclass(frozen=True)
class Stack:
    """One thread's time per batch by part, and the wall time per batch, in milliseconds."""

    label: str
    parts: dict[str, float]
    period: float


@dataclass(frozen=True)
class Point:
    """Images/s at one setting."""

    x: float
    label: str  # next to the point, "" for none
    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Spend:
    """The dollars of a run on one machine."""

    label: str
    running: float  # training and evaluation, on demand
    start: float  # boot, environment and staging, on demand
    spot: float  # all of it on the spot market, with reclaims
    hours: str  # on demand
    binds: str
    group: str  # the stored form, which is a heading above its first row

    @property
    def on_demand(self) -> float:
        """The dollars of all of it, on demand."""
        return self.running + self.start


@dataclass(frozen=True)
class Picture:
    """A title, a subtitle with the machine and the images, and marks of one kind."""

    name: str  # suffix to the record's name: "" or "-threads"
    title: str
    subtitle: str
    marks: tuple[Bar, ...] | tuple[Stack, ...] | tuple[Point, ...] | tuple[Spend, ...]
    axis: str = ""  # label of the points' x axis
    unit: str = ""  # of that axis
    cores: int = 0  # of the machine, if the x axis is threads


def show_peers(content: dict[str, Any]) -> Iterator[Picture]:
    """Yield the picture of the loader and its peers, one group per race."""
    bars = [
        _peer_bar(name, each, _group(race, contenders))
        for race, contenders in content["races"].items()
        for name, each in sort_by_rate(contenders)
        if name != f"{OURS}-original"
    ]
    subtitle = (
        f"{_machine(content)}, {content['workers']} workers, batch {content['batch_size']}; {content['transform']}\n"
        f"{_images(content)}; medians, thin lines from the slowest to the fastest window"
    )
    yield Picture("", "Images per second from the loader alone", subtitle, tuple(bars))


def _group(race: str, contenders: dict[str, Any]) -> str:
    """Return a race's name, with the bytes per image in our format."""
    ours = contenders.get(OURS)
    return f"{race}, {ours['bytes_per_image'] / 1000:.0f} KB per image" if ours else race


def _peer_bar(name: str, each: dict[str, Any], group: str) -> Bar:
    rate, ratio, of_originals = rate_of(each), each.get("ours_in_images_per_second"), each.get(OF_ORIGINALS)
    is_ours = name in (OURS, OURS + RESTARTS)
    note = f"{ratio:.2f} ×" if ratio and not is_ours else ""
    own = f"{of_originals:.2f} × originals" if of_originals else ""
    shown = name_contender(name, NAMES)
    return Bar(shown, rate["median"], rate["min"], rate["max"], is_ours, note, own, group)


def show_batch(content: dict[str, Any]) -> Iterator[Picture]:
    """Yield the picture of the time per batch, of the thread that consumes batches and of the one that makes them."""
    stacks = []
    for stage, each in content["stages"].items():
        if times := each.get("milliseconds_a_batch"):
            mean_rate = statistics.harmonic_mean(each["images_per_second"]["repetitions"])  # the times are means too
            period = 1000 * content["batch_size"] / mean_rate
            for thread, names in THREADS.get(stage, {}).items():
                stacks.append(Stack(thread, {name: times[name] for name in names if name in times}, period))
    if stacks:
        model = f", {content['model']}" if content.get("model") else ""
        machine = f"{_machine(content)}, batch {content['batch_size']}{model}"
        subtitle = f"milliseconds per batch; {machine}; {_images(content)}"
        yield Picture("", "Where a batch spends its time", subtitle, tuple(stacks))


def show_sweeps(content: dict[str, Any]) -> Iterator[Picture]:
    """Yield the pictures of images/s by number of decoding threads, and by stored size, if there are several."""
    machine, images = _machine(content), _images(content)
    threads = [_point(each, each["num_threads"], "") for each in content["threads"]]
    title, subtitle = "Images per second by number of decoding threads", f"{machine}; {images}, original bytes"
    cores = content["hardware"]["cores"]
    if len(threads) > 1:
        yield Picture("-threads", title, subtitle, tuple(threads), "decoding threads", "threads", cores)
    sizes = [_point(each, each["bytes_per_image"] / 1000, each["name"]) for each in content["sizes"]]
    sizes.sort(key=lambda point: point.x)
    title, subtitle = "Images per second by stored size", f"{machine}; {images}; {content['transform']}"
    if len(sizes) > 1:
        yield Picture("-sizes", title, subtitle, tuple(sizes), "KB per stored image", "KB")


def _point(each: dict[str, Any], x: float, label: str) -> Point:
    rate = rate_of(each)
    return Point(x, label, rate["median"], rate["min"], rate["max"])


def _machine(content: dict[str, Any]) -> str:
    hardware = content["hardware"]
    return hardware["gpu"] or f"{hardware['cores']} CPU cores"


def _images(content: dict[str, Any]) -> str:
    data = content["dataset"]
    return f"{data['num_images']:,} images of {data['name']}"


def show_cost(content: dict[str, Any]) -> Iterator[Picture]:
    """Yield the picture of what the first recipe costs by machine, one group per stored form."""
    recipe, groups = group_shown(content)
    spends = [
        _spend(f"{name}, {content['machines'][name].partition(',')[0]}", forms[form], words)
        for form, words in SHOWN_STORED.items()
        for name, forms in groups.items()
        if form in forms
    ]
    top1 = content["recipes"][recipe]["published"].partition(",")[0]
    reclaims = f"{content['reclaims']} reclaim{'s' * (content['reclaims'] != 1)}"
    subtitle = (
        f"to a published top-1 of {top1}; computed from prices, records and publications, not measured on EC2\n"
        f"blue: training and evaluation; grey: boot, environment, staging; orange: all of it on spot, with {reclaims}"
    )
    yield Picture("", f"What {recipe} costs on EC2", subtitle, tuple(spends))


def _spend(label: str, row: dict[str, Any], group: str) -> Spend:
    offer = row["on_demand"]
    start = row["start_hours"] * offer["dollars_per_hour"]
    hours = format_hours(offer["hours"])
    return Spend(label, offer["dollars"] - start, start, row["spot"]["dollars"], hours, describe_longest(row), group)


SHOWN: dict[str, Callable[[dict[str, Any]], Iterator[Picture]]] = {
    "feeding": show_peers,
    "throughput": show_batch,
    "sweeps": show_sweeps,
    "cost of a recipe": show_cost,
}


def name_pictures(record: Record) -> list[tuple[str, Picture]]:
    """Return a record's pictures with the names of their files; an empty list if its kind has none."""
    stem = record.name.removesuffix(".json").replace("/", "-")
    pictures = SHOWN[record.what](record.content) if record.what in SHOWN else iter(())
    return [(f"{stem}{picture.name}.png", picture) for picture in pictures]
