"""The pictures of records, one function for each, and the detection of pictures that are older than their record.

One accent colour is Penstock, grey are the others; figures and names are next to what they name.
"""

import hashlib
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from peers.registry import OURS, RESTARTS, label_reader
from PIL import Image, UnidentifiedImageError
from reports.profiles import IDLE, LEAST_SHOWN, describe_step, list_shares
from reports.rates import OF_ORIGINALS, SPENT, sort_by_rate
from reports.recipes import SHOWN_STORED, describe_longest, format_hours, group_shown
from reports.records import Record, Records, format_number, rate_of, read_record

from prep.curves import STYLE
from prep.files import write_whole

ACCENT, ALARM, INK, FAINT, GREY, TRACK = "C0", "C1", "#1f2933", "#6b7785", "#b4bcc6", "#edf0f3"
HEADING: dict[str, Any] = {"color": FAINT, "fontsize": 9}
SHADES = {"decode": ACCENT, "read": "#6ba6e2", "copy": "#c2dbf4", "step": FAINT, "take": GREY, "wait": ALARM}
WIDTH, RIGHT, EDGE, DPI = 8.0, 0.25, 0.2, 150  # inches: total, free on the right, free on the left
TITLE, LINE = 0.72, 0.18  # inches: the title, and each line of the subtitle
ROW, NAMES, BAR, GAP = 0.31, 1.75, 0.7, 0.4  # inches: a row, the names; in rows: a bar, the distance between groups
CHARACTER = 0.079  # inches of a name's character, for names that need more than NAMES
LEAST_LABELLED = 0.12  # share of the longest time: narrower parts have no room for their figure
OURS_BOTH = (OURS, OURS + RESTARTS)
CONSUMER, PRODUCER = SPENT[:3], SPENT[3:]
THREADS = {  # by stage; in the loader's stage the consumer only waits, so it is left out
    "loader": {"the loader alone": PRODUCER},
    "train": {"training: its loop": CONSUMER, "training: the loader": PRODUCER},
}
COST_COLUMNS = {"on demand": 0.60, "spot": 0.70, "time": 0.80, "binds longest": 1.0}  # right ends, shares of the axes
COST_BARS = 0.47  # share of the axes that the longest bar takes
RECORD, DIGEST = "Record", "Record-SHA256"  # keywords of the PNG's text


@dataclass(frozen=True)
class Picture:
    """A picture of a record, which is drawn when it is needed."""

    name: str  # of the file
    title: str
    draw: Callable[[], Figure]


def list_pictures(record: Record) -> list[Picture]:
    """Return a record's pictures; an empty list if its kind has none, or if it has too few points for a curve."""
    stem, content = record.name.removesuffix(".json").replace("/", "-"), record.content
    pictures = DRAWN[record.what](content) if record.what in DRAWN else {}
    return [
        Picture(f"{stem}{suffix}.png", title, partial(draw, content, title))
        for suffix, (title, draw) in pictures.items()
    ]


def save_picture(picture: Picture, path: Path, record: Record) -> None:
    """Draw a picture into a PNG file; the same record gives the same bytes.

    The file's text names the record, without a date and a version, so that a stale picture is detected.
    """
    with plt.style.context(STYLE):
        figure = picture.draw()
        content, metadata = BytesIO(), {"Software": None, RECORD: record.name, DIGEST: find_digest(record)}
        figure.savefig(content, dpi=DPI, metadata=metadata)
        plt.close(figure)
    write_whole(path, content.getvalue())


def draw_next_to(path: Path) -> Path:
    """Draw a record's only picture as FILE.png next to FILE.json; return its path."""
    record, out = read_record(path), path.with_suffix(".png")
    (picture,) = list_pictures(record)
    save_picture(picture, out, record)
    return out


def find_digest(record: Record) -> str:
    """Return the SHA-256 of a record's file."""
    return hashlib.sha256(record.path.read_bytes()).hexdigest()


def read_origin(path: Path) -> tuple[str, str]:
    """Return the name and digest of a picture's record; "" without them, or if the file is missing or damaged."""
    try:
        with Image.open(path) as image:
            return str(image.info.get(RECORD, "")), str(image.info.get(DIGEST, ""))
    except (FileNotFoundError, UnidentifiedImageError):
        return "", ""


def is_current(path: Path, record: Record) -> bool:
    """Check whether a file is a picture of a record as it is."""
    return read_origin(path) == (record.name, find_digest(record))


def find_stale(folder: Path, records: Records) -> Iterator[str]:
    """Yield what is wrong with a folder: pictures whose record was changed or removed, and missing pictures."""
    for path in sorted(folder.glob("*.png")):
        name, found = read_origin(path)
        if name and (name not in records or find_digest(records[name]) != found):
            yield f"{path.name} is out of date, {name} was changed or removed"
    for record in records.values():
        yield from (
            f"{each.name} does not exist, or is not a picture of a record"
            for each in list_pictures(record)
            if not read_origin(folder / each.name)[0]
        )


# Parts that several pictures have.


def new_figure(title: str, subtitle: str, height: float, margins: tuple[float, float]) -> tuple[Figure, Axes]:
    """Return a figure with titles and axes of `height` inches; `margins` are free inches on the left and below."""
    head, (left, below) = TITLE + LINE * len(subtitle.splitlines()), margins
    whole = height + head + below
    figure = plt.figure(figsize=(WIDTH, whole))
    figure.text(EDGE / WIDTH, 1 - 0.18 / whole, title, va="top", fontweight="bold", fontsize=14)
    figure.text(EDGE / WIDTH, 1 - 0.52 / whole, subtitle, va="top", color=FAINT, fontsize=9, linespacing=1.4)
    return figure, figure.add_axes((left / WIDTH, below / whole, (WIDTH - left - RIGHT) / WIDTH, height / whole))


def place_rows(groups: Sequence[str]) -> tuple[list[float], dict[float, str]]:
    """Return the row of each bar, and the rows of the headings, from the name of each bar's group."""
    rows, headings, row = [], {}, 0.0
    for number, group in enumerate(groups):
        if number == 0 or group != groups[number - 1]:
            row += GAP if number else 0
            headings[row] = group
            row += 0.85
        rows.append(row)
        row += 1
    return rows, headings


def name_rows(ax: Axes, rows: Sequence[float], names: Sequence[str], ends: tuple[float, float]) -> None:
    """Name the rows on the left and remove the other parts of the axes, because the figures are at the bars."""
    ax.set_ylim(*ends)
    ax.spines[["bottom", "left"]].set_visible(False)
    ax.tick_params(left=False, bottom=False, labelbottom=False)
    ax.set_yticks(rows, names)


def write_column(ax: Axes, end: float, row: float, text: str, **style: Any) -> None:
    """Write a figure into a row so that it ends at a share of the axes."""
    ax.text(end, row, text.replace("$", r"\$"), va="center", ha="right", transform=ax.get_yaxis_transform(), **style)


def name_machine(content: dict[str, Any]) -> str:
    """Return the GPU of a record, or its CPU cores."""
    hardware = content["hardware"]
    return hardware["gpu"] or f"{hardware['cores']} CPU cores"


def name_images(content: dict[str, Any]) -> str:
    """Return the number and the name of a record's images."""
    data = content["dataset"]
    return f"{data['num_images']:,} images of {data['name']}"


# Feeding: one bar per contender.


def draw_peers(content: dict[str, Any], title: str) -> Figure:
    """Draw images/s of the loader and its peers, by race; on the right, our rate divided by each one's."""
    subtitle = (
        f"{name_machine(content)}, {content['workers']} workers, batch {content['batch_size']}; "
        f"{content['transform']}\n{name_images(content)}; medians, thin lines from the slowest to the fastest window"
    )
    # One row for each contender, below the heading of its race.
    bars = [
        (_name_race(race, contenders), name, each)
        for race, contenders in content["races"].items()
        for name, each in sort_by_rate(contenders)
        if name != f"{OURS}-original"
    ]
    rows, headings = place_rows([race for race, _, _ in bars])
    names = [label_reader(name, short=True) for _, name, _ in bars]
    left = max(NAMES, CHARACTER * max(map(len, names)))
    figure, ax = new_figure(title, subtitle, ROW * (max(rows) + 1), (left, 0.15))
    name_rows(ax, rows, names, (max(rows) + 0.5, -0.5))

    # The bars, each with its spread, its rate, and our rate divided by it.
    for row, (_, name, each), label in zip(rows, bars, ax.get_yticklabels(), strict=True):
        rate, is_ours = rate_of(each), name in OURS_BOTH
        style: dict[str, Any] = {"color": ACCENT, "fontweight": "bold"} if is_ours else {"color": INK}
        ax.barh(row, rate["median"], BAR, color=ACCENT if is_ours else GREY)
        ax.plot([rate["min"], rate["max"]], [row, row], color=INK, linewidth=1.2, solid_capstyle="butt")
        place: dict[str, Any] = {"textcoords": "offset points", "va": "center"} | style
        ax.annotate(format_number(rate["median"]), (rate["max"], row), (6, 0), **place)
        of_originals = f"{each[OF_ORIGINALS]:.2f} × originals" if OF_ORIGINALS in each else ""
        write_column(ax, 1, row, _compare(name, each) or of_originals)
        label.set(**style)

    # The headings.
    for row, race in headings.items():
        ax.text(0, row, race, va="center", **HEADING)
        is_compared = any(_compare(name, each) for other, name, each in bars if other == race)
        write_column(ax, 1, row, "Penstock is" if is_compared else "", **HEADING)
    room = 1.6 if any(OF_ORIGINALS in each for _, _, each in bars) else 1.3  # for the figures
    ax.set_xlim(0, max(rate_of(each)["max"] for _, _, each in bars) * room)
    return figure


def _name_race(race: str, contenders: dict[str, Any]) -> str:
    """Return a race's name, with the bytes per image in our format."""
    ours = contenders.get(OURS)
    return f"{race}, {ours['bytes_per_image'] / 1000:.0f} KB per image" if ours else race


def _compare(name: str, each: dict[str, Any]) -> str:
    """Return our rate divided by a contender's; "" for ours, and for a race without us."""
    ratio = each.get("ours_in_images_per_second")
    return f"{ratio:.2f} ×" if ratio and name not in OURS_BOTH else ""


# Throughput: the time of a batch, stacked by part.


def draw_batch(content: dict[str, Any], title: str) -> Figure:
    """Draw one row per thread: its parts of a batch's time, on a track as long as the time per batch."""
    model = f", {content['model']}" if content.get("model") else ""
    machine = f"{name_machine(content)}, batch {content['batch_size']}{model}"
    threads = list_threads(content)
    longest = max(period for _, _, period in threads)
    figure, ax = new_figure(
        title, f"milliseconds per batch; {machine}; {name_images(content)}", 1.3 * ROW * len(threads), (NAMES, 0.45)
    )
    for row, (_, parts, period) in enumerate(threads):
        ax.barh(row, period, BAR, color=TRACK)
        start = 0.0
        for part, value in parts.items():
            ax.barh(row, value, BAR, left=start, color=SHADES[part])
            if value > LEAST_LABELLED * longest:
                place: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 9}
                color = INK if part in ("copy", "take") else "white"
                ax.text(start + value / 2, row, f"{part} {value:.1f}", color=color, **place)
            start += value
        ax.text(period + longest / 100, row, f"{period:.1f} total", va="center", color=FAINT)
    name_rows(ax, range(len(threads)), [name for name, _, _ in threads], (len(threads) - 0.4, -0.6))
    ax.set_xlim(0, longest * 1.18)

    # A legend below the bars, because the narrow parts have no room for their names.
    shown = dict.fromkeys(part for _, parts, _ in threads for part in parts)
    patches = [Patch(color=SHADES[part], label=part) for part in shown] + [Patch(color=TRACK, label="idle")]
    key = {"loc": "upper left", "bbox_to_anchor": (-0.008, 0), "ncols": len(patches), "columnspacing": 1.4}
    ax.legend(handles=patches, frameon=False, fontsize=9, labelcolor=INK, handlelength=0.9, handleheight=0.9, **key)
    return figure


def list_threads(content: dict[str, Any]) -> list[tuple[str, dict[str, float], float]]:
    """Return each thread's name, its milliseconds per batch by part, and the wall time per batch."""
    threads = []
    for stage, each in content["stages"].items():
        if times := each.get("milliseconds_a_batch"):
            mean_rate = statistics.harmonic_mean(each["images_per_second"]["repetitions"])  # the times are means too
            period = 1000 * content["batch_size"] / mean_rate
            for thread, parts in THREADS.get(stage, {}).items():
                threads.append((thread, {part: times[part] for part in parts if part in times}, period))
    return threads


# A profile: the time of a step by class.


def draw_profile(content: dict[str, Any], title: str) -> Figure:
    """Draw one bar per class, the longest first, with its milliseconds per step and its share; idle time is grey."""
    shares, profile, processes = list_shares(content), content["profile"], content["num_processes"]
    overlap = profile["overlap"]["milliseconds_a_step"]
    subtitle = (
        f"{describe_step(content)}\n{name_machine(content)}; time and share of a step under the profiler, "
        f"{profile['num_steps']} steps{' of rank 0' if processes > 1 else ''}"
    )
    if profile["overlap"]["share"] >= LEAST_SHOWN:
        subtitle += f"\n{format_number(overlap)} ms of a step count in several classes"
    figure, ax = new_figure(title, subtitle, ROW * len(shares), (NAMES, 0.15))
    name_rows(ax, range(len(shares)), [name for name, _ in shares], (len(shares) - 0.5, -0.5))
    for row, (name, each) in enumerate(shares):
        milliseconds = each["milliseconds_a_step"]
        ax.barh(row, milliseconds, BAR, color=GREY if name == IDLE else ACCENT)
        text = f"{format_number(milliseconds)} ms, {each['share']:.1%}"
        ax.annotate(text, (milliseconds, row), (6, 0), textcoords="offset points", va="center", color=INK)
    ax.set_xlim(0, 1.3 * max(each["milliseconds_a_step"] for _, each in shares))  # room for the figures
    return figure


# Sweeps: images/s by a setting.


def draw_threads(content: dict[str, Any], title: str) -> Figure:
    """Draw images/s by number of decoding threads, with the machine's cores."""
    subtitle = f"{name_machine(content)}; {name_images(content)}, original bytes"
    points = [(each["num_threads"], "", rate_of(each)) for each in content["threads"]]
    figure = draw_curve(title, subtitle, points, "decoding threads")
    (ax,), cores = figure.axes, content["hardware"]["cores"]
    ax.axvline(cores, ymax=0.2, color=FAINT, linewidth=0.8, linestyle=(0, (2, 3)), zorder=0)
    ax.annotate(f"{cores} cores", (cores, 0), (5, 24), textcoords="offset points", color=FAINT, fontsize=9)
    return figure


def draw_sizes(content: dict[str, Any], title: str) -> Figure:
    """Draw images/s by stored size."""
    subtitle = f"{name_machine(content)}; {name_images(content)}; {content['transform']}"
    points = [(each["bytes_per_image"] / 1000, each["name"], rate_of(each)) for each in content["sizes"]]
    return draw_curve(title, subtitle, sorted(points, key=lambda point: point[0]), "KB per stored image")


def draw_curve(title: str, subtitle: str, points: Sequence[tuple[float, str, dict[str, Any]]], axis: str) -> Figure:
    """Draw connected points with their spread; both axes start at 0, so that twice as high is twice as fast.

    Args:
        points: in order, each with its place on the x axis, its name ("" for none) and its images/s.
        axis: label of the x axis.
    """
    figure, ax = new_figure(title, subtitle, 2.9, (0.25, 0.6))
    ax.plot([x for x, _, _ in points], [rate["median"] for _, _, rate in points], color=ACCENT, linewidth=2)
    for x, name, rate in points:
        spread = ([rate["median"] - rate["min"]], [rate["max"] - rate["median"]])
        ax.errorbar(x, rate["median"], spread, fmt="none", ecolor=INK, elinewidth=1.2, capsize=3, zorder=3)
        ax.plot(x, rate["median"], "o", color=ACCENT, markersize=5.5, zorder=4)
        # The figure is above the point; that of a point with a name is on its right, where the curve falls.
        offset, side = ((8, 3), "left") if name else ((0, 7), "center")
        text = "\n".join(filter(None, (name, format_number(rate["median"]))))
        place: dict[str, Any] = {"textcoords": "offset points", "ha": side, "fontsize": 9.5}
        ax.annotate(text, (x, rate["max"]), offset, **place)
    # Room for the figures of the highest and the rightmost point.
    ax.set_ylim(0, 1.25 * max(rate["max"] for _, _, rate in points))
    ax.set_xlim(0, 1.2 * points[-1][0])
    ax.set_yticks([])
    ax.set_xticks([x for x, _, _ in points], [f"{x:,.0f}" for x, _, _ in points])
    ax.set_xlabel(axis)
    ax.tick_params(axis="x", length=3)
    ax.spines["left"].set_visible(False)
    return figure


# Cost: the dollars of a run by machine.


def draw_cost(content: dict[str, Any], title: str) -> Figure:
    """Draw one row per machine, in groups by stored form: a bar on demand, a mark for spot, the figures in columns."""
    recipe, groups = group_shown(content)
    top1 = content["recipes"][recipe]["published"].partition(",")[0]
    reclaims = f"{content['reclaims']} reclaim{'s' * (content['reclaims'] != 1)}"
    subtitle = (
        f"to a published top-1 of {top1}; computed from prices, records and publications, not measured on EC2\n"
        f"blue: training and evaluation; grey: boot, environment, staging; orange: all of it on spot, with {reclaims}"
    )
    spends = [
        (words, f"{name}, {content['machines'][name].partition(',')[0]}", forms[form])
        for form, words in SHOWN_STORED.items()
        for name, forms in groups.items()
        if form in forms
    ]
    rows, headings = place_rows([words for words, _, _ in spends])
    figure, ax = new_figure(title, subtitle, 0.27 * (max(rows) + 1), (1.9, 0.12))
    for row, (_, _, each) in zip(rows, spends, strict=True):
        _draw_spend(ax, row, each)
    for row, words in headings.items():
        ax.text(0, row, words, va="center", **HEADING)
        for column, end in COST_COLUMNS.items():
            write_column(ax, end, row, column, **HEADING)
    name_rows(ax, rows, [name for _, name, _ in spends], (max(rows) + 0.5, -0.5))
    longest = max(max(each["on_demand"]["dollars"], each["spot"]["dollars"]) for _, _, each in spends)
    ax.set_xlim(0, longest / COST_BARS)
    ax.tick_params(labelsize=9)
    return figure


def _draw_spend(ax: Axes, row: float, each: dict[str, Any]) -> None:
    offer, spot = each["on_demand"], each["spot"]["dollars"]
    start = each["start_hours"] * offer["dollars_per_hour"]
    ax.barh(row, offer["dollars"] - start, 0.66, color=ACCENT)
    ax.barh(row, start, 0.66, left=offer["dollars"] - start, color=GREY)
    ax.plot(spot, row, "D", color=ALARM, markeredgecolor="white", markersize=6.5)
    cells = (f"{offer['dollars']:.2f} $", f"{spot:.2f} $", format_hours(offer["hours"]), describe_longest(each))
    for end, text in zip(COST_COLUMNS.values(), cells, strict=True):
        write_column(ax, end, row, text, fontsize=9)


# The pictures of a record by its kind: title and function, by the suffix to the record's name.

Drawn = dict[str, tuple[str, Callable[[dict[str, Any], str], Figure]]]


def list_sweeps(content: dict[str, Any]) -> Drawn:
    """Return the pictures of the settings that were swept; one point alone is not drawn."""
    threads = {"-threads": ("Images per second by number of decoding threads", draw_threads)}
    sizes = {"-sizes": ("Images per second by stored size", draw_sizes)}
    return (threads if len(content["threads"]) > 1 else {}) | (sizes if len(content["sizes"]) > 1 else {})


DRAWN: dict[str, Callable[[dict[str, Any]], Drawn]] = {
    "feeding": lambda _: {"": ("Images per second from the loader alone", draw_peers)},
    "throughput": lambda content: {"": ("Where a batch spends its time", draw_batch)} if list_threads(content) else {},
    "sweeps": list_sweeps,
    "profile of a step": lambda _: {"": ("Where the time of a training step goes", draw_profile)},
    "cost of a recipe": lambda content: {"": (f"What {next(iter(content['recipes']))} costs on EC2", draw_cost)},
}
