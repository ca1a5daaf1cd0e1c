"""From the files of each split to a source: columns, completeness, names of splits, and what the manifest keeps.

The same for parquet and for saved datasets. Whatever is wrong with one split becomes that split's problem, which is
raised when it is to be prepared: a test split without labels stops nobody who did not ask for it.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

from prep.card import README
from prep.columns import Columns, Table, choose_columns
from prep.completeness import check_parts, check_rows
from prep.dataset import Origin
from prep.errors import InputError
from prep.parquet_files import SplitFiles
from prep.source import Item, Reading
from prep.table_splits import SplitNames, name_some, name_splits
from prep.tables import Spans, TableFile, TableSource, unlabelled


class Files(Protocol):
    """How one format's files are read; `path` is as in SplitFiles."""

    @property
    def reader(self) -> Callable[[Spans, str, str], Iterable[Item]]: ...
    @property
    def source(self) -> str: ...
    def url(self, path: str) -> str: ...
    def num_rows(self, path: str) -> int: ...
    def table(self, path: str) -> Table: ...
    def describe(self, path: str, columns: Columns) -> TableFile: ...
    def origin(self, columns: Columns) -> Origin: ...


def assemble(files: Files, found: SplitFiles, wanted: Reading) -> TableSource:
    """Make the source of the files found.

    Raises:
        InputError: `wanted` does not fit the source, or no split of it can be prepared.
    """
    names = name_splits(files.source, list(found.files), wanted.split_map)
    by_split = {split: found.files[name] for name, split in names.prepared.items()}
    unreadable: dict[str, str] = {}
    columns = _agree_on_columns(files, by_split, wanted, unreadable)
    described = {split: _describe(files, paths, split, columns, unreadable) for split, paths in by_split.items()}
    problems = names.problems | unreadable
    missing = {}
    for name, split in names.prepared.items():
        missing[split] = [*found.missing, *_check_complete(files, name, split, found, problems)]
        if missing[split] and not wanted.allow_missing:
            problems.setdefault(
                split,
                f"{files.source} is not complete: {'; '.join(missing[split])}; get what is missing, "
                "or go on without it with --allow-missing",
            )
    if len(problems) == len(by_split):
        raise InputError(next(problems[split] for split in by_split))
    chosen = next(columns[split] for split in by_split if split not in unreadable)
    notes = [*found.notes, *_describe_labels(chosen, [each for files in described.values() for each in files])]
    readings = {split: _reading(split, names, found, columns[split], missing[split], notes) for split in by_split}
    return TableSource(files.origin(chosen), chosen, described, files.reader, readings, problems)


def _agree_on_columns(
    files: Files, by_split: dict[str, tuple[str, ...]], wanted: Reading, problems: dict[str, str]
) -> dict[str, Columns]:
    """The columns of each split: the same two in every file. A split that has others, or none, has a problem."""
    columns: dict[str, Columns] = {}
    chosen: dict[bytes, Columns] = {}
    first, first_url = None, ""
    for split, paths in by_split.items():
        for path in paths:
            try:
                table = files.table(path)
                key = table.schema.serialize().to_pybytes()
                each = chosen[key] if key in chosen else chosen.setdefault(key, choose_columns(table, wanted))
                if first is None:
                    first, first_url = each, table.url
                _check_alike(first, first_url, each, table.url)
            except InputError as error:
                problems.setdefault(split, str(error))
                break
            first = first if first.class_names else each
            columns[split] = _merge(columns[split], each) if split in columns else each
    named = next((each.class_names for each in columns.values() if each.class_names), ())
    return {split: _with_names(columns.get(split, Columns("", "")), named) for split in by_split}


def _check_alike(first: Columns, first_url: str, each: Columns, url: str) -> None:
    """Raises InputError where two files would be read by other columns, or name other classes."""
    for kind, one, other in (("image", first.image, each.image), ("label", first.label, each.label)):
        if one != other:
            raise InputError(
                f"{url} has its {kind}s in column {other}, {first_url} in column {one}: "
                f"choose one that both have with --{kind}-column, or give them the same name"
            )
    if first.class_names and each.class_names and first.class_names != each.class_names:
        raise InputError(f"{url} names other classes than {first_url}: cast both to the same ClassLabel")


def _merge(one: Columns, other: Columns) -> Columns:
    images = tuple(dict.fromkeys(one.other_images + other.other_images))
    labels = tuple(dict.fromkeys(one.other_labels + other.other_labels))
    return Columns(one.image, one.label, one.class_names or other.class_names, images, labels)


def _with_names(columns: Columns, class_names: tuple[str, ...]) -> Columns:
    return Columns(columns.image, columns.label, class_names, columns.other_images, columns.other_labels)


def _describe(
    files: Files, paths: tuple[str, ...], split: str, columns: dict[str, Columns], problems: dict[str, str]
) -> tuple[TableFile, ...]:
    """What is known of each file of a split; of one with a problem its rows are counted all the same."""
    described = []
    for path in paths:
        if split not in problems:
            try:
                described.append(files.describe(path, columns[split]))
                if described[-1].lowest_label < 0:  # as in ImageNet's test split
                    found = f"the label {described[-1].lowest_label}, which means none,"
                    problems[split] = unlabelled(files.table(path), columns[split].label, found)
                continue
            except InputError as error:
                problems[split] = str(error)
        described.append(TableFile(files.url(path), 0, files.num_rows(path), 0, 0, frozenset()))
    return tuple(described)


def _check_complete(files: Files, name: str, split: str, found: SplitFiles, problems: dict[str, str]) -> list[str]:
    """Lines on what is missing from a split; contradictions among its files are its problem."""
    paths = found.files[name]
    parts = check_parts(paths)
    if parts.contradictions:
        problems.setdefault(
            split,
            f"{files.source}: the split {name} has {parts.contradictions[0]}: "
            "keep the set that you mean, and move the other away",
        )
    num_rows = sum(files.num_rows(path) for path in paths)
    rows = check_rows(name, num_rows, found.info.num_rows, README)
    lacking = [*parts.missing, *found.lacking.get(name, ())]
    return [f"the split {name} lacks {line}" for line in lacking] + [f"the split {name}: {line}" for line in rows]


def _reading(
    split: str, names: SplitNames, found: SplitFiles, columns: Columns, missing: list[str], notes: list[str]
) -> dict[str, Any]:
    """What the manifest keeps, besides the columns."""
    passed_over = [f"image column {other}" for other in columns.other_images]
    passed_over += [f"label column {other}" for other in columns.other_labels]
    passed_over += [f"split {other}" for other in names.alternatives.get(split, ())]
    kept = {
        "config": found.config,
        "split_map": names.recorded_map(split),
        "passed_over": [*passed_over, *found.passed_over],
        "missing": missing,
        "notes": notes,
    }
    return {key: value for key, value in kept.items() if value}


def _describe_labels(columns: Columns, files: Sequence[TableFile]) -> list[str]:
    """A line where classes have only numbers for names, and some numbers occur in no row."""
    counted = [file for file in files if file.labels != frozenset()]  # has rows, and could be read
    if columns.class_names or not counted:
        return []
    if any(file.labels is None for file in counted):
        lowest = min(file.lowest_label for file in counted)
        return [f"the labels start at {lowest}: no image has a lower one"] if lowest > 0 else []
    found = frozenset().union(*(file.labels or () for file in counted))
    absent = [str(label) for label in range(min(max(found) + 1, 100_000)) if label not in found]
    return [f"no image has the labels {name_some(absent)} of 0 to {max(found)}"] if absent else []
