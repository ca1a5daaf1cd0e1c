"""Find the missing parts of a set of tars, by the numbers in their names and by the files next to them.

It uses numbers in the names, `-of-NNNNN`, `_info.json` (timm, Penstock), `sizes.json` (webdataset), and the files that
img2dataset writes for each tar (`00000_stats.json`, `00000.parquet`).
"""

import json
import re
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from prep.errors import InputError

INFO, SIZES = "_info.json", "sizes.json"
STATS = "_stats.json"
MOST_NAMED = 3
LONGEST_NUMBER = 6  # digits of a part's number; longer ones are an id or a date, unless they start at 0 or 1


def find_missing(paths: Sequence[Path], split: str, *, is_whole_folder: bool) -> list[str]:
    """Return a line for each kind of part that is not on disk; empty if none is known to be missing.

    Args:
        paths: the tars of `split`.
        is_whole_folder: they are all tars of a folder, so that unfinished files there are missing parts of the split.
    """
    # All names in the folders: a tar that was not given, but exists, is not missing.
    existing = set(chain.from_iterable(_list_names(folder) for folder in {path.parent for path in paths}))
    existing |= {path.name for path in paths}

    # Gaps in the numbers, unless a list names every tar; then what each folder's files list.
    lines = [] if _are_all_listed(paths) else _find_gaps(paths, existing)
    for folder in sorted({path.parent for path in paths}):
        own = [path for path in paths if path.parent == folder]
        lines += _find_unlisted(folder, own, existing)
        lines += _find_without_tar(own)
        if is_whole_folder:
            lines += [f"{name} is not complete" for name in sorted(_list_names(folder)) if _is_unfinished(name)]
    return list(dict.fromkeys(lines))


def find_expected_samples(paths: Sequence[Path]) -> dict[str, int]:
    """Return how many samples each tar should have, by its name, if a file next to the tars says it."""
    expected: dict[str, int] = {}
    names = {path.name for path in paths}
    for folder in {path.parent for path in paths}:
        own = [path for path in paths if path.parent == folder]
        for path in own:
            if (count := _count_of_img2dataset(path)) is not None:
                expected[path.name] = count
        for _, counts in _read_infos(folder, own).values():
            expected |= {name: count for name, count in counts.items() if name in names}
        expected |= {name: count for name, count in _read_sizes(folder).items() if name in names}
    return expected


def list_info_splits(paths: Iterable[Path]) -> dict[str, str]:
    """Return the split of each tar, by its name, from an `_info.json` next to the tars."""
    paths = list(paths)
    found: dict[str, str] = {}
    for folder in {path.parent for path in paths}:
        for split, (names, _) in _read_infos(folder, [path for path in paths if path.parent == folder]).items():
            found |= dict.fromkeys(names, split)
    return found


def _list_names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} if folder.is_dir() else set()


def _is_unfinished(name: str) -> bool:
    return bool(re.search(r"\.tar\.(part|partial|incomplete|tmp|crdownload|aria2|download)$", name))


# Numbers in the names.


def _find_gaps(paths: Sequence[Path], existing: set[str]) -> list[str]:
    """Return a line for each sequence of numbered names with gaps; `existing` are the names on disk."""
    # Group the names that differ only in numbers: their text parts are equal.
    lines = []
    sequences: dict[tuple[str, ...], list[tuple[str, ...]]] = {}
    for name in sorted({path.name for path in paths}):
        parts = tuple(re.split(r"(\d+)", name))  # text and numbers alternate
        sequences.setdefault(parts[::2], []).append(parts)
    for members in sequences.values():
        for family in _split_families(members):
            lines += _find_gaps_of(family, existing)
    return lines


def _split_families(members: list[tuple[str, ...]]) -> list[tuple[int, list[tuple[str, ...]]]]:
    """Split names of one form into sequences, each with the position of the number that counts the parts.

    It is the number before `-of-`, else the last one that differs between the names.
    """
    # Find the number that counts.
    first = members[0]
    numbers = range(1, len(first), 2)
    counting = [i for i in numbers if i + 2 < len(first) and re.fullmatch(r"[-_.]of[-_.]", first[i + 1])]
    if not counting:
        counting = [i for i in numbers if len({parts[i] for parts in members}) > 1]
    if not counting:
        return []
    place = counting[-1]

    # Names that differ elsewhere belong to other sequences.
    families: dict[tuple[str, ...], list[tuple[str, ...]]] = {}
    for parts in members:
        families.setdefault((*parts[:place], *parts[place + 1 :]), []).append(parts)
    return [(place, family) for family in families.values()]


def _find_gaps_of(family: tuple[int, list[tuple[str, ...]]], existing: set[str]) -> list[str]:
    # Find the numbers that there should be.
    place, members = family
    numbers = {int(parts[place]) for parts in members}
    first, last = min(numbers), max(numbers)
    sample = members[0]
    if place + 2 < len(sample) and re.fullmatch(r"[-_.]of[-_.]", sample[place + 1]):
        total = int(sample[place + 2])  # -of-NNNNN counts from 0 or from 1
        wanted = range(1, total + 1) if total in numbers else range(total)
    elif len(numbers) < 2 or not _counts_parts(members, place):
        return []
    else:
        wanted = range(min(first, 1) if first <= 1 else 0, last + 1)
    if len(wanted) > 100 * len(numbers) + 10_000:
        return []  # the numbers count something else

    # Name the tars of those that are missing.
    absent = [_name(sample, place, number) for number in wanted if number not in numbers]
    absent = [name for name in absent if name not in existing]
    if not absent:
        return []
    return [f"{len(absent):,} of {len(wanted):,} numbered tars: {_shorten(absent)}"]


def _counts_parts(members: list[tuple[str, ...]], place: int) -> bool:
    """Check whether numbers count parts (from 0 or 1, or padded with zeros) and are not ids or dates."""
    texts = [parts[place] for parts in members]
    numbers = [int(text) for text in texts]
    is_padded = any(text.startswith("0") and len(text) <= LONGEST_NUMBER for text in texts if len(text) > 1)
    return min(numbers) <= 1 or is_padded or max(numbers) < 10 * len(numbers) + 10


def _name(sample: tuple[str, ...], place: int, number: int) -> str:
    text = sample[place]
    padded = str(number).zfill(len(text)) if text.startswith("0") else str(number)
    return "".join((*sample[:place], padded, *sample[place + 1 :]))


def _shorten(names: Sequence[str]) -> str:
    return ", ".join(names[:MOST_NAMED]) + (", ..." if len(names) > MOST_NAMED else "")


# Files next to the tars.


def _are_all_listed(paths: Sequence[Path]) -> bool:
    """Check whether a list next to the tars names each of them, so that the numbers in the names need no guess."""
    listed = set(list_info_splits(paths)).union(*(_read_sizes(folder) for folder in {path.parent for path in paths}))
    return {path.name for path in paths} <= listed


def _find_unlisted(folder: Path, paths: Sequence[Path], existing: set[str]) -> list[str]:
    """Return lines about tars that a list next to them names and that do not exist."""
    lines = []
    given = {path.name for path in paths}
    for split, (names, _) in _read_infos(folder, paths).items():
        absent = [name for name in names if name not in existing]
        if absent and given.intersection(names):
            lines.append(f"{len(absent):,} of {len(names):,} tars that {INFO} lists for {split}: {_shorten(absent)}")
    sizes = _read_sizes(folder)
    absent = [name for name in sizes if name not in existing]
    if absent and given.intersection(sizes):
        lines.append(f"{len(absent):,} of {len(sizes):,} tars that {SIZES} lists: {_shorten(absent)}")
    return lines


def _find_without_tar(paths: Sequence[Path]) -> list[str]:
    """Return lines about files of img2dataset whose tar is missing, and about tars that it did not finish."""
    if not paths:
        return []
    folder, lines = paths[0].parent, []
    names, stems = _list_names(folder), {path.stem for path in paths}
    for suffix in (STATS, ".parquet"):
        described = {name.removesuffix(suffix) for name in names if name.endswith(suffix)}
        if not described & stems:
            continue
        absent = sorted(stem for stem in described - stems if stem.isdigit() and f"{stem}.tar" not in names)
        if absent:
            lines.append(f"{len(absent):,} tars that files such as {absent[0]}{suffix} describe: {_shorten(absent)}")
        unfinished = sorted(stems - described)
        if suffix == STATS and unfinished:
            lines.append(f"{len(unfinished):,} tars are not finished, they have no {STATS}: {_shorten(unfinished)}")
    return lines


def _count_of_img2dataset(path: Path) -> int | None:
    """Return the number of samples in a tar according to img2dataset; None if it wrote no such file."""
    stats = path.with_name(f"{path.stem}{STATS}")
    if stats.is_file():
        count = _read_json(stats).get("successes")
        return count if type(count) is int else None
    table = path.with_suffix(".parquet")
    if table.is_file():
        try:
            if "status" in pq.read_schema(table).names:
                return pq.read_table(table, columns=["status"]).column("status").to_pylist().count("success")
        except (OSError, ValueError):  # pyarrow's own errors are subclasses of these
            return None
    return None


def _read_infos(folder: Path, paths: Sequence[Path]) -> dict[str, tuple[list[str], dict[str, int]]]:
    """Return for each split of an `_info.json` the base names of its tars, and the number of samples in each.

    The file is next to the tars, or one folder above, where Penstock writes it.
    """
    own = {path.name for path in paths}
    for path in (folder / INFO, folder.absolute().parent / INFO):
        if not path.is_file():
            continue
        splits = _read_json(path).get("splits")
        found = {}
        for split, described in splits.items() if isinstance(splits, dict) else ():
            # Read the names, unless they are another folder's.
            names = described.get("filenames") if isinstance(described, dict) else None
            if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
                continue
            if path.parent != folder and not all(name.startswith(f"{folder.absolute().name}/") for name in names):
                continue
            names = [name.rpartition("/")[2] for name in names]

            # Read the number of samples of each, if there is one for every name.
            lengths = described.get("shard_lengths")
            lengths = lengths if isinstance(lengths, list) and len(lengths) == len(names) else [None] * len(names)
            counts = dict(zip(names, lengths, strict=True))
            found[split] = names, {name: count for name, count in counts.items() if type(count) is int}
        if own.intersection(chain.from_iterable(names for names, _ in found.values())):
            return found
    return {}


def _read_sizes(folder: Path) -> dict[str, int]:
    """Return the number of samples in each tar according to webdataset's `sizes.json`."""
    path = folder / SIZES
    found = _read_json(path) if path.is_file() else {}
    return {name: n for name, n in found.items() if name.endswith(".tar") and type(n) is int}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error}), but should list the tars: fetch it again") from error
    return found if isinstance(found, dict) else {}
