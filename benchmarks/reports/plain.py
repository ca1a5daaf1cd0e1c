"""The section of benchmarks/RESULTS.md for a record of an unknown kind: a table of all its fields."""

from collections.abc import Iterator
from typing import Any

from reports.words import format_number, format_spread, is_summary, list_method, list_origin, make_table

NOT_IN_TABLE = {"what", "command", "commit", "versions", "hardware", "date", "method"}
ORIGIN = {"command", "commit", "versions", "hardware", "date"}


def describe_plainly(content: dict[str, Any]) -> Iterator[str]:
    """Yield a table of all fields by path, then the origin if the record has one."""
    rows = [row for name, value in content.items() if name not in NOT_IN_TABLE for row in flatten(name, value)]
    yield from make_table(("field", "value"), rows)
    if content.keys() >= ORIGIN:
        yield from list_origin(content)
    yield from list_method(content)


def flatten(name: str, value: Any) -> Iterator[tuple[str, str]]:
    """Yield the path and value of a field, or of the fields that it contains."""
    if is_summary(value):
        yield name, format_spread(value)
    elif isinstance(value, dict):
        for key, each in value.items():
            yield from flatten(f"{name}, {key}", each)
    elif isinstance(value, list) and any(isinstance(each, dict | list) for each in value):
        for number, each in enumerate(value, 1):
            yield from flatten(f"{name} {number}", each)
    else:
        yield name, format_plain(value)


def format_plain(value: Any) -> str:
    """Return a value that is not a dict; of a list, its values."""
    if isinstance(value, list):
        return ", ".join(map(format_plain, value))
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    return format_number(value) if isinstance(value, int | float) else str(value)
