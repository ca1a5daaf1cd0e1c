"""Find the tars that a user means: from paths, folders and patterns to the tars of one split.

Only names, sizes and the files next to the tars are read here; `prep/tar_parts.py` finds the missing parts.
"""

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from glob import escape, glob
from pathlib import Path

from prep.errors import InputError
from prep.tar_parts import find_expected_samples, find_missing, list_info_splits

SPLIT_WORDS = {
    **dict.fromkeys(("train", "training", "trn"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
UNNAMED = ""  # the group of tars whose names do not contain a split
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst", ".tar.lz4")
UNFINISHED = (".part", ".partial", ".incomplete", ".tmp", ".crdownload", ".aria2", ".download")


@dataclass(frozen=True)
class TarSet:
    """The tars of one split, in order."""

    split: str
    paths: tuple[Path, ...]
    num_expected: dict[str, int]  # samples in each tar, by its name, if a file next to the tars says it
    missing: tuple[str, ...] = ()  # one line for each kind of missing part
    passed_over: tuple[str, ...] = ()  # one line for each kind of tar that was not used


def find_tars(given: Sequence[str], split: str | None = None) -> TarSet:
    """Return the tars that a user means, in the order given; a folder stands for its *.tar, sorted.

    Args:
        split: the user's name for the split, None if not given. If the tars are of several splits, it chooses one.

    Raises:
        InputError: a tar is missing, two have the same base name, a folder holds none, or it is not certain which tars
            belong to the split.
    """
    # Choose the tars of one split.
    paths, absent, passed_over = _expand(given)
    folder = Path(given[0]) if len(given) == 1 and Path(given[0]).is_dir() else None
    groups = _group(paths)
    if len(groups) > 1 and (split is None or split in groups or split in SPLIT_WORDS):
        paths = _choose_group(groups, split, folder)
        kept = set(paths)
        for name, others in groups.items():
            if not kept.intersection(others):
                passed_over.append(f"{len(others):,} tars of {_describe_group(name)} ({_list_names(others)})")
    elif len(groups) == 1:
        split = _check_split(next(iter(groups)), split, paths)

    # Check them, and find missing parts.
    split = split or "train"
    _check_files(paths)
    missing = [*absent, *find_missing(paths, split, is_whole_folder=folder is not None)]
    return TarSet(split, tuple(paths), find_expected_samples(paths), tuple(missing), tuple(passed_over))


def describe_contradiction(tars: TarSet) -> str:
    """Return a warning if the tars' names contain another split than the user's; empty if not."""
    named = {name for name in _group(tars.paths) if name != UNNAMED}
    wanted = SPLIT_WORDS.get(tars.split.lower(), tars.split)
    if not named or wanted in named or wanted not in SPLIT_WORDS.values():
        return ""
    return f"{_list_names(tars.paths)}: the names say {', '.join(sorted(named))}, but --split says {tars.split}"


def _expand(given: Sequence[str]) -> tuple[list[Path], list[str], list[str]]:
    """Return the tars, lines about those that are missing, and lines about those that are not used."""
    paths: list[Path] = []
    absent: list[str] = []
    passed_over: list[str] = []
    for text in given:
        path = Path(text)
        if path.is_dir():
            tars, more = _list_folder(path)
            paths += tars
            passed_over += more
        elif path.exists() or not re.search(r"[*?\[{]", text):
            paths.append(path)
        else:
            existing, missing_ones = _expand_pattern(text)
            paths += existing
            absent += [f"{each} of {text}" for each in missing_ones]
    return list(dict.fromkeys(paths)), absent, passed_over


def _expand_pattern(text: str) -> tuple[list[Path], list[Path]]:
    """Return the files of a pattern that the shell did not expand, and those of its ranges that do not exist."""
    from braceexpand import braceexpand  # noqa: PLC0415 - comes with webdataset; few give a pattern

    existing: list[Path] = []
    absent: list[Path] = []
    try:
        names = list(braceexpand(text))
    except ValueError:  # a brace that is not closed
        names = [text]
    for each in names:
        if re.search(r"[*?\[]", each):
            existing += map(Path, sorted(glob(each)))
        else:
            (existing if Path(each).exists() else absent).append(Path(each))
    if not existing:
        raise InputError(f"{text} matches no file: give tars, or a folder of them, on this machine's file systems")
    return existing, absent


def _list_folder(folder: Path) -> tuple[list[Path], list[str]]:
    """Return a folder's *.tar, sorted, and lines about other tars in it.

    Raises:
        InputError: it has none; the message says what it has.
    """
    # List the tars, those in inner folders, and compressed ones.
    names = sorted(os.listdir(folder))
    tars = [folder / name for name in names if name.lower().endswith(".tar") and not name.startswith(".")]
    own = {path.resolve() for path in tars}  # an --out inside this folder has links to them
    inner = {name: glob(f"{escape(str(folder / name))}/*.tar") for name in names if (folder / name).is_dir()}
    inner = {name: sum(Path(each).resolve() not in own for each in found) for name, found in inner.items()}
    inner = {name: count for name, count in inner.items() if count}
    packed = [name for name in names if name.lower().endswith(COMPRESSED)]
    if tars:
        # Use these, and report the others.
        lines = [f"{count:,} tars in {folder / name}" for name, count in inner.items()]
        return tars, lines + ([f"{len(packed):,} compressed tars ({packed[0]}, ...)"] if packed else [])
    # There are none: say what to do instead.
    if inner:
        found = ", ".join(f"{name} ({count:,})" for name, count in inner.items())
        commands = _list_commands([(f"{folder / name}", SPLIT_WORDS.get(name.lower(), name)) for name in inner])
        raise InputError(f"{folder} holds no *.tar, its folders do: {found}: adopt each, {commands}")
    if packed:
        raise InputError(
            f"{folder} holds no *.tar, only {packed[0]}: unpack them to plain .tar files, images are read in place"
        )
    raise InputError(f"{folder} holds no *.tar: give WebDataset tars, or a folder of them")


def _list_commands(pairs: Iterable[tuple[str, str]]) -> str:
    return " and ".join(f"`prep/adopt.py {tars} --split {split} --out DIR`" for tars, split in pairs)


def _group(paths: Iterable[Path]) -> dict[str, list[Path]]:
    """Group tars by split: from an `_info.json` next to them, else from a word in their names."""
    groups: dict[str, list[Path]] = {}
    paths = list(paths)
    info = list_info_splits(paths)
    for path in paths:
        listed = info.get(path.name, "")
        groups.setdefault(SPLIT_WORDS.get(listed.lower(), listed) or _find_word(path), []).append(path)
    named = set(groups) - {UNNAMED}
    if named == {"train"} and UNNAMED in groups:  # the others are more images of train
        return {"train": paths}
    return groups


def _find_word(path: Path) -> str:
    """Return the split from a word in a tar's name, else from its folder's name; UNNAMED if neither has one."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", path.stem).lower()
    words = [re.sub(r"\d+$", "", word) for word in re.split(r"[^a-z0-9]+", spaced)]
    found = [SPLIT_WORDS[word] for word in words if word in SPLIT_WORDS]
    return found[-1] if found else SPLIT_WORDS.get(path.absolute().parent.name.lower(), UNNAMED)


def _choose_group(groups: dict[str, list[Path]], split: str | None, folder: Path | None) -> list[Path]:
    """Return the tars of the split that the user named, from a folder with several.

    Raises:
        InputError: the user named none, the folder has no such split, or the tars were given one by one.
    """
    wanted = SPLIT_WORDS.get(split.lower(), split) if split else None
    if folder is not None and wanted in groups:
        return groups[wanted]
    found = "; ".join(f"{_describe_group(name)}: {len(tars):,} ({_list_names(tars)})" for name, tars in groups.items())
    if folder is None:
        raise InputError(f"tars of {len(groups)} splits are given, {found}: give the tars of one split at a time")
    named = [name for name in groups if name != UNNAMED]
    if len(named) < 2 and split:
        raise InputError(f"{folder} holds tars of {found}; none of {split}: give the tars themselves")
    commands = _list_commands((str(folder), name) for name in named)
    unnamed = "" if len(named) == len(groups) else ", and give the others by their names"
    raise InputError(f"{folder} holds tars of {len(groups)} splits, {found}: adopt each, {commands}{unnamed}")


def _check_split(named: str, split: str | None, paths: Sequence[Path]) -> str | None:
    if split is None and named not in (UNNAMED, "train"):
        raise InputError(
            f"{_list_names(paths)}: the names say {named}; give --split {named}, or --split train to train on them"
        )
    return split


def _describe_group(name: str) -> str:
    return name or "no split in their names"


def _list_names(paths: Sequence[Path]) -> str:
    """Return the names of the first and the last tar."""
    names = [path.name for path in paths]
    return names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}"


def _check_files(paths: Sequence[Path]) -> None:
    """Check that each path is a file named *.tar, is completely fetched, and has a unique base name.

    Raises:
        InputError: one is not.
    """
    first: dict[str, Path] = {}
    names = {folder: set(os.listdir(folder)) for folder in {path.parent for path in paths} if folder.is_dir()}
    for path in paths:
        if not path.is_file():
            lost = "is a broken link" if path.is_symlink() and not path.exists() else "is not a file"
            raise InputError(f"{path} {lost}: give tars, or a folder of them, on this machine's file systems")
        if path.suffix != ".tar":
            raise InputError(f"{path} is not named *.tar: unpack it if it is compressed, else rename it")
        if path.name in first:
            both = f"{first[path.name].absolute()} and {path.absolute()}"
            raise InputError(f"{both} have the same base name: rename one of them")
        for suffix in UNFINISHED:
            if f"{path.name}{suffix}" in names[path.parent]:
                raise InputError(f"{path} is still being fetched, {path.name}{suffix} is next to it: wait for it")
        first[path.name] = path
