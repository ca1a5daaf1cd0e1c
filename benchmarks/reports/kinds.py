"""The kinds of records, in the order of RESULTS.md; records as tables; and what a command does with its record."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from record import write_json
from reports import claims, rates
from reports.gpu_runs import tables_of_model, tables_of_suite
from reports.profiles import tables_of_profile
from reports.recipes import tables_of_cost
from reports.records import ORIGIN, format_number, format_spread, is_summary, origin_tables
from tables import Table, print_tables

Content = dict[str, Any]  # of a record; the field "what" has its kind
KINDS: dict[str, tuple[str, Callable[[Content], list[Table]]]] = {
    "feeding": ("Feeding, compared with peers", rates.tables_of_feeding),
    "sweeps": ("Loader rate by threads and by stored size", rates.tables_of_sweeps),
    "throughput": ("Throughput of each stage, and the bottleneck", rates.tables_of_throughput),
    "throughput of a recipe": ("A recipe, resolution by resolution", rates.tables_of_phases),
    "profile of a step": ("Where the time of a training step goes", tables_of_profile),
    "cost of a recipe": ("A recipe on EC2, in dollars", tables_of_cost),
    "proof of the verdict": ("Tests of the verdict", claims.tables_of_proof),
    "loader settings": ("Tuned settings", claims.tables_of_settings),
    "tuning": ("Tests of tuning", claims.tables_of_tuning),
    "certificates": ("Certificates", claims.tables_of_certificates),
    "startup": ("Start-up", rates.tables_of_startup),
    "preparation": ("Preparation, compared with other writers", rates.tables_of_preparation),
    "staging": ("Staging from S3, compared with other programs", rates.tables_of_staging),
    "gpu model": ("A ResNet-50's training step on a GPU, without data", tables_of_model),
    "ingredients": ("Ingredients of a recipe, on a proxy", claims.tables_of_ingredients),
    "serving": ("Latency of the app", rates.tables_of_serving),
}
GPU_SUITE = "gpu suite"  # its records belong together by folder


def make_tables(content: Content) -> list[Table]:
    """Return the tables of a record; of a kind that is not known, all its fields."""
    what = content["what"]
    if what == GPU_SUITE:
        return tables_of_suite([content])
    return KINDS[what][1](content) if what in KINDS else tables_of_any(content)


def publish(record: Content, out: Path | None) -> None:
    """Print a command's record as tables on standard output; write it to the file `out` unless that is None."""
    if out:
        write_json(out, record)
    print_tables(make_tables(record))


def tables_of_any(content: Content) -> list[Table]:
    """Return a table of all fields by path, then the origin if the record has one."""
    has_origin = content.keys() >= ORIGIN
    told_elsewhere = {"what"} | (ORIGIN | {"method", "skipped", "failed"} if has_origin else set())
    rows = [row for name, value in content.items() if name not in told_elsewhere for row in _flatten(name, value)]
    return [Table(header=("field", "value"), rows=rows), *(origin_tables(content) if has_origin else [])]


def _flatten(name: str, value: Any) -> Iterator[tuple[str, str]]:
    """Yield the path and value of a field, or of the fields that it contains."""
    if is_summary(value):
        yield name, format_spread(value)
    elif isinstance(value, dict):
        for key, each in value.items():
            yield from _flatten(f"{name}, {key}", each)
    elif isinstance(value, list) and any(isinstance(each, dict | list) for each in value):
        for number, each in enumerate(value, 1):
            yield from _flatten(f"{name} {number}", each)
    else:
        yield name, _format_plain(value)


def _format_plain(value: Any) -> str:
    """Return a value that is not a dict; of a list, its values."""
    if isinstance(value, list):
        return ", ".join(map(_format_plain, value))
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    return format_number(value) if isinstance(value, int | float) else str(value)
