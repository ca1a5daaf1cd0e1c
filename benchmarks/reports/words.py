"""Format records' values for reading: figures, spreads, machines, tables in Markdown."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

Summary = dict[str, Any]  # what record.summarize returns: median, min, max, repetitions


def is_summary(value: Any) -> bool:
    """Check whether a value is a median with its spread."""
    return isinstance(value, dict) and {"median", "min", "max"} <= value.keys()


def format_number(value: float) -> str:
    """Return a number with about three digits, and commas between thousands."""
    if isinstance(value, int) or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def format_median(summary: Summary | None) -> str:
    """Return the median of a summary, "" for None."""
    return format_number(float(summary["median"])) if summary else ""


def format_spread(summary: Summary | None) -> str:
    """Return "median (min to max)" of a summary, "" for None."""
    if not summary:
        return ""
    low, high = (format_number(float(summary[end])) for end in ("min", "max"))
    return f"{format_median(summary)} ({low} to {high})"


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


def format_versions(versions: dict[str, str]) -> str:
    """Return packages with their versions."""
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def format_options(options: dict[str, Any]) -> str:
    """Return settings with their values."""
    return ", ".join(f"{name} {value}" for name, value in options.items())


def format_bytes(stage: dict[str, Any]) -> str:
    """Return the KB per image that a stage of throughput read, those stored, and those decoded; "" if unknown."""
    each = stage.get("bytes_per_image")
    return "/".join(f"{each[kind] / 1000:.0f}" for kind in ("read", "stored", "decoded")) if each else ""


def format_placement(placement: dict[str, Any]) -> str:
    """Return where and how images were decoded, and the reason, from a result of `record.describe_placement`."""
    load = f", hardware decoder load {placement['hw_decoder_load']:g}" if "hw_decoder_load" in placement else ""
    how = f"{placement['decode']}{load}; {placement['reason']}"
    return f"images decoded on the {placement['placement'].upper()} ({how})"


def make_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """Yield the lines of a Markdown table and an empty line after it; columns without any value are left out."""
    cells = [header, *rows]
    kept = [i for i in range(len(header)) if i == 0 or any(row[i] for row in cells[1:])]
    for number, row in enumerate(cells):
        yield f"| {' | '.join(_escape(row[i]) for i in kept)} |"
        if number == 0:
            yield f"|{'|'.join('---' for _ in kept)}|"
    yield ""


def _escape(cell: str) -> str:
    return " ".join(cell.replace("|", "\\|").split())


def list_origin(content: dict[str, Any]) -> Iterator[str]:
    """Yield the origin of a record's figures, and the command that repeats them."""
    yield f"* machine: {format_machine(content['hardware'])}"
    if content.get("placement"):  # records that are older than placements do not have one
        yield f"* {format_placement(content['placement'])}"
    if "command" in content:
        yield f"* command: `{content['command']}`"
    dirty = " with uncommitted changes" if content["commit"].endswith("+") else ""
    yield f"* commit {content['commit'].removesuffix('+')}{dirty}; {content['date']}"
    yield f"* versions: {format_versions(content['versions'])}"
    yield ""


def list_method(content: dict[str, Any]) -> Iterator[str]:
    """Yield the record's notes on the method, in a collapsed section."""
    if content.get("method"):
        yield from ("<details><summary>method</summary>", "")
        yield from (f"* {line}" for line in content["method"])
        yield from ("", "</details>", "")


def list_unable(content: dict[str, Any]) -> Iterator[str]:
    """Yield the contenders that were skipped or failed, with the reason."""
    for kind in ("skipped", "failed"):
        if content.get(kind):
            yield from (f"* {kind}: {name}: {reason}" for name, reason in content[kind].items())
            yield ""
