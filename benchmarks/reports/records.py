"""Read records, which are files of JSON, each with its kind in the field "what"; format their values for reading."""

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tables import Table

from prep.errors import InputError

Summary = dict[str, Any]  # what record.summarize returns: median, min, max, repetitions
CHECKOUT = Path(__file__).resolve().parent.parent.parent
RECORDS = CHECKOUT / "benchmarks" / "records"
PICTURES = CHECKOUT / "docs" / "pictures"  # of the records
ORIGIN = {"command", "commit", "versions", "hardware", "date"}  # fields that record.describe_origin adds
LEAST_UNDISTURBED = 3  # windows of a contender: fewer have no median


@dataclass(frozen=True)
class Record:
    """One file of a benchmark's figures."""

    path: Path
    name: str  # relative to the folder of records: peers.json, h100/rates.json
    content: dict[str, Any]

    @property
    def what(self) -> str:
        """The kind of benchmark."""
        return self.content["what"]

    @property
    def folder(self) -> str:
        """The record's folder, relative to that of all records: "" or "h100"."""
        return self.name.rpartition("/")[0]

    @contextmanager
    def explain_errors(self) -> Iterator[None]:
        """Raise InputError if the record lacks a field of its kind, as after a change of the benchmark."""
        try:
            yield
        except (KeyError, TypeError, AttributeError) as error:
            found = f"{type(error).__name__} {error}"
            raise InputError(
                f"{self.path} was written by another version of the benchmark of {self.what} ({found}): run it again"
            ) from error


Records = dict[str, Record]  # by name, in order


def read_records(folder: Path) -> Records:
    """Read all records of a folder and its subfolders.

    Raises:
        InputError: there are none, or a file is not a record.
    """
    paths = sorted(folder.rglob("*.json"))
    if not paths:
        raise InputError(f"{folder} holds no records: write one, for example with `benchmarks/compare.py --out FILE`")
    return {record.name: record for record in (read_record(path, folder) for path in paths)}


def read_record(path: Path, folder: Path = RECORDS) -> Record:
    """Read one record; its name is relative to `folder` if it is in there.

    Raises:
        InputError: the file does not exist or is not a record.
    """
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist: give a record of a benchmark") from error
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON ({error}): run the benchmark again") from error
    if not isinstance(content, dict) or not isinstance(content.get("what"), str):
        raise InputError(f'{path} has no field "what", so it is not a record: run the benchmark again, or move it away')
    whole, folder = path.resolve(), folder.resolve()
    return Record(path, whole.relative_to(folder).as_posix() if whole.is_relative_to(folder) else path.name, content)


# Values in words.


def is_summary(value: Any) -> bool:
    """Check whether a value is a median with its spread."""
    return isinstance(value, dict) and {"median", "min", "max"} <= value.keys()


def rate_of(each: dict[str, Any]) -> Summary:
    """Return the images/s from which ratios are computed: of the undisturbed windows if enough, else of all windows."""
    quiet = each.get("undisturbed_images_per_second")
    return quiet if quiet and len(quiet["repetitions"]) >= LEAST_UNDISTURBED else each["images_per_second"]


def format_number(value: float) -> str:
    """Return a number with about three digits, and commas between thousands."""
    if isinstance(value, int) or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def format_median(summary: Summary | None) -> str:
    """Return the median of a summary, "" for None."""
    return format_number(float(summary["median"])) if summary else ""


def format_spread(summary: Summary | None, digits: int | None = None) -> str:
    """Return "median (min to max)" of a summary, "" for None.

    Args:
        digits: after the point; None: those of format_number.
    """
    if not summary:
        return ""
    values = [float(summary[name]) for name in ("median", "min", "max")]
    median, low, high = (format_number(each) if digits is None else f"{each:.{digits}f}" for each in values)
    return f"{median} ({low} to {high})"


def format_ratio(value: float | Summary | None) -> str:
    """Return a ratio, as "1.50 ×"; of a summary, its median."""
    if value is None:
        return ""
    return f"{value['median'] if isinstance(value, dict) else value:.2f} ×"


def format_dataset(data: dict[str, Any]) -> str:
    """Return the number and name of a dataset's images, with its label, such as [not ImageNet]."""
    images = f"{data['num_images']:,} images of " if "num_images" in data else ""
    label = f" [{data['label']}]" if "label" in data else ""
    return f"{images}{data['name']}{label}"


def format_machine(hardware: dict[str, Any]) -> str:
    """Return CPU, cores, GPU, and the other fields of a machine."""
    more = [f"{name} {value}" for name, value in hardware.items() if name not in ("cpu", "cores", "gpu") and value]
    return ", ".join([hardware["cpu"], f"{hardware['cores']} cores", hardware["gpu"] or "no GPU", *more])


def format_options(options: dict[str, Any]) -> str:
    """Return settings with their values, or packages with their versions."""
    return ", ".join(f"{name} {value}" for name, value in options.items())


def format_placement(placement: dict[str, Any]) -> str:
    """Return where and how images were decoded, and the reason, from a result of `record.describe_placement`."""
    load = f", hardware decoder load {placement['hw_decoder_load']:g}" if "hw_decoder_load" in placement else ""
    how = f"{placement['decode']}{load}; {placement['reason']}"
    return f"images decoded on the {placement['placement'].upper()} ({how})"


def make_table(rows: Iterable[dict[str, str]], title: str = "", detail: str = "") -> Table:
    """Return a table of rows that all have the same columns, by header."""
    found = list(rows)
    return Table(title, list(found[0]) if found else (), [list(row.values()) for row in found], detail=detail)


def origin_tables(content: dict[str, Any]) -> list[Table]:
    """Return what ends the tables of a record: contenders that could not run, the origin, and notes on the method."""
    unable = [
        f"{kind}: {name}: {reason}"
        for kind in ("skipped", "failed")
        for name, reason in (content.get(kind) or {}).items()
    ]
    tables = [Table(notes=unable), Table(notes=list(_list_origin(content)))]
    return [*tables, Table(detail="method", notes=content.get("method") or ())]


def _list_origin(content: dict[str, Any]) -> Iterator[str]:
    """Yield the origin of a record's figures, and the command that repeats them."""
    yield f"machine: {format_machine(content['hardware'])}"
    if content.get("placement"):  # records that are older than placements do not have one
        yield format_placement(content["placement"])
    if "command" in content:
        yield f"command: `{content['command']}`"
    commit = content["commit"]  # None: the command ran outside a checkout
    dirty = " with uncommitted changes" if commit and commit.endswith("+") else ""
    yield f"{'commit ' + commit.removesuffix('+') if commit else 'no git checkout'}{dirty}; {content['date']}"
    yield f"versions: {format_options(content['versions'])}"
