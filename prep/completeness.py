"""Which parts of a dataset are not there, by what its file names and its card say. Pure functions.

`NAME-KKKKK-of-NNNNN` says how many files there are; a card says how many rows. Each finding is a line for people.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from prep.table_splits import canonical_split, name_some

PART = re.compile(r"(?P<prefix>.*?)(?P<part>\d+)-of-(?P<total>\d+)(?P<rest>[^/]*)", re.IGNORECASE)
NUMBERED = re.compile(r"(?P<prefix>.*?)(?P<part>\d{2,})(?P<rest>\.[^/.]+)")
UNFINISHED = (".incomplete", ".crdownload", ".part", ".partial", ".aria2", ".download", ".tmp", ".filepart")
HASH = re.compile(r"-[0-9a-f]{8,}(?=\.)")  # what older versions of `push_to_hub` add to each file's name


@dataclass(frozen=True)
class Finding:
    """What is wrong with the files of a split: `missing` can be allowed, `contradictions` cannot."""

    missing: tuple[str, ...] = ()
    contradictions: tuple[str, ...] = ()


@dataclass
class _Set:
    """The files that count themselves up to one total."""

    example: "re.Match[str]"
    files: dict[int, list[str]] = field(default_factory=dict)


def check_parts(names: Iterable[str]) -> Finding:
    """Check the `-of-` sets and the numbering among the file names of one split."""
    names = sorted(names)
    sets: dict[tuple[str, str], dict[int, _Set]] = {}
    for name in names:
        if match := PART.fullmatch(name):
            series = (match["prefix"], str(PurePosixPath(HASH.sub("", match["rest"])).suffix))
            of = sets.setdefault(series, {}).setdefault(int(match["total"]), _Set(match))
            of.files.setdefault(int(match["part"]), []).append(name)
    missing, contradictions = [], []
    for by_total in sets.values():
        if len(by_total) > 1:
            shown = [next(iter(found.files.values()))[0] for found in by_total.values()]
            contradictions.append(f"sets of {' and of '.join(map(str, sorted(by_total)))} files ({', '.join(shown)})")
            continue
        total, found = next(iter(by_total.items()))
        contradictions += [f"the same part twice ({', '.join(twice)})" for twice in found.files.values() if twice[1:]]
        missing += _absent_parts(total, found, contradictions)
    missing += _gaps([name for name in names if not PART.fullmatch(name)])
    return Finding(tuple(missing), tuple(contradictions[:1]))


def _absent_parts(total: int, found: _Set, contradictions: list[str]) -> list[str]:
    """A line for the parts that are not there. Parts count from 0; some writers count from 1."""
    first = 1 if 0 not in found.files and total in found.files else 0
    beyond = [part for part in found.files if not first <= part < first + total]
    if beyond:
        contradictions.append(f"a part beyond the last ({found.files[beyond[0]][0]})")
    absent = [part for part in range(first, first + total) if part not in found.files]
    if not absent:
        return []
    match = found.example
    width = len(match["part"])
    rest = HASH.sub("-*", match["rest"])
    shown = [f"{match['prefix']}{part:0{width}d}-of-{match['total']}{rest}" for part in absent]
    return [f"{len(absent):,} of {total:,} files: {name_some(shown)}"]


def _gaps(names: Sequence[str]) -> list[str]:
    """A line for each gap in files that are numbered with leading zeros from 0 or 1."""
    series: dict[tuple[str, int, str], dict[int, str]] = {}
    for name in names:
        if match := NUMBERED.fullmatch(name):
            key = (match["prefix"], len(match["part"]), match["rest"])
            series.setdefault(key, {})[int(match["part"])] = name
    lines = []
    for (prefix, width, rest), parts in series.items():
        absent = [part for part in range(min(parts), max(parts)) if part not in parts]
        if min(parts) <= 1 and absent and len(absent) < max(parts):
            shown = name_some([f"{prefix}{part:0{width}d}{rest}" for part in absent])
            lines.append(f"{len(absent):,} of {max(parts) - min(parts) + 1:,} numbered files: {shown}")
    return lines


def check_rows(split: str, num_rows: int, declared: Mapping[str, int], card: str) -> list[str]:
    """Compare the rows of a split (by the source's name) with what the card says; a line where they differ."""
    named = [name for name in declared if name == split] or [
        name for name in declared if canonical_split(name) == canonical_split(split)
    ]
    if not named or declared[named[0]] == num_rows:
        return []
    return [f"{num_rows:,} rows are there, {declared[named[0]]:,} are declared in {card}"]


def absent_splits(splits: Iterable[str], declared: Iterable[str], card: str) -> list[str]:
    """Name the splits that a card declares and that have no file. The test split may be absent: it is not prepared."""
    present = {canonical_split(split) for split in splits}
    absent = [name for name in declared if canonical_split(name) not in present | {"test"}]
    return [f"the split {name}, declared in {card}" for name in absent]


def unfinished_downloads(names: Iterable[str]) -> list[str]:
    """Name the files that a download has not finished: their names end in what browsers and tools add meanwhile."""
    return [
        f"{name} is an unfinished download"
        for name in sorted(names)
        if name.lower().endswith(UNFINISHED) and any(kind in name.lower() for kind in (".parquet", ".arrow"))
    ]


def partial_exports(names: Iterable[str]) -> list[str]:
    """Name folders such as partial-train, where the dataset viewer puts the first 5 GB of a split."""
    folders = {part for name in names for part in PurePosixPath(name).parent.parts if part.startswith("partial-")}
    return [f"the folder {folder} holds only the first part of its split" for folder in sorted(folders)]
