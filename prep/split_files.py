"""Decide which parquet files of a dataset make which split: by the dataset card if it has one, else by file names.

Files are assigned by name as Hugging Face `datasets` assigns them in a folder without a dataset card, but in any case.
If its rules would merge splits, or drop a file that looks like a split by its name, this raises an error instead.
"""

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import Any

from fsspec.utils import glob_translate

from prep.card import DEFAULT, README, Card, Configuration, Info
from prep.errors import InputError, list_some
from prep.listing import Listing, absent_splits, partial_exports, unfinished_downloads
from prep.split_names import canonical_split

# The hub keeps a parquet form of datasets that are stored in another format.
CONVERTED = "hf download {} --repo-type dataset --revision refs/convert/parquet --local-dir DIR"

# The words of `datasets` (data_files.py, SPLIT_KEYWORDS); they count between characters of SEPARATORS only.
KEYWORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
SEPARATORS = r"[-._ 0-9]"
SHARDED = re.compile(r"data/(?P<split>\w+(\.\w+)*)-\d{5}-of-\d{5}[^/]*")  # `push_to_hub` writes these names
# Words of names such as testset and ImageNetVal, which are a split for people but not for `datasets`.
WORDS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")
LOOKS_LIKE_SPLIT = re.compile(r"(train|valid|validation|val|test|dev|eval)(s|set|data|imgs?|images?|split|part)?")


@dataclass(frozen=True)
class SplitFiles:
    """The files of each split, by the source's name for it, and findings; each finding is one line of text."""

    files: dict[str, tuple[str, ...]]  # split -> paths
    info: Info
    config: str | None = None  # the chosen configuration, if there are several
    passed_over: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()  # parts that are absent from the dataset as a whole
    lacking: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # split -> parts that are absent from it
    notes: tuple[str, ...] = ()
    license: Mapping[str, Any] = field(default_factory=dict)  # as the dataset card declares it


@dataclass(frozen=True)
class Assignment:
    """The files of each split, by their names alone."""

    files: dict[str, tuple[str, ...]]  # split -> paths, sorted
    passed_over: tuple[str, ...] = ()  # paths in no split
    configs: tuple[str, ...] = ()  # folders that hold the same splits, if there are several
    config: str | None = None


def choose_files(listing: Listing, card: Card, config: str | None) -> SplitFiles:
    """Choose a configuration and assign its files to splits.

    Args:
        config: the configuration that the user named, if any.

    Raises:
        InputError: there is no parquet file, or it is unclear which configuration or split is meant.
    """
    paths = [path for path in listing.paths if path.lower().endswith(".parquet")]
    _check_has_parquet(listing, paths)
    try:
        if card.configurations:
            found = _assign_by_card(paths, card, _choose_config(card, config))
        else:
            found = _assign_by_names(paths, card, config)
    except InputError as error:
        raise InputError(f"{listing.source}: {error}") from error
    chosen = [path for files in found.files.values() for path in files]
    missing = [*found.missing, *absent_splits(found.files, found.info.num_rows, README)]
    missing += [*unfinished_downloads(listing.paths), *partial_exports(chosen)]
    return replace(found, missing=tuple(dict.fromkeys(missing)), license=card.license)


def _check_has_parquet(listing: Listing, paths: Sequence[str]) -> None:
    """Raise InputError if there are no parquet files, with what to do about the files that there are."""
    if paths:
        return
    unfinished = unfinished_downloads(listing.paths)
    if unfinished:
        raise InputError(f"{listing.source} has no parquet file, and {list_some(unfinished, 3)}: finish it")
    found = list_some([path for path in listing.paths if path != README], 3) or "nothing"
    if listing.commit is None:
        raise InputError(f"{listing.source} has no parquet file, it has {found}: convert it")
    scripts = [path for path in listing.paths if path == f"{listing.source.split('/')[-1]}.py"]
    what = f"is a loading script ({scripts[0]})" if scripts else f"has no parquet file, it has {found}"
    raise InputError(
        f"{listing.source} {what}: get the hub's parquet form with "
        f"`{CONVERTED.format(listing.source)}`, then --source DIR"
    )


# By the dataset card


def _choose_config(card: Card, wanted: str | None) -> str:
    """Return the wanted configuration, else the only or the default one."""
    names = list(card.configurations)
    if wanted is not None:
        if wanted in names:
            return wanted
        raise InputError(_explain_unknown_config(wanted, names))
    if len(names) == 1:
        return names[0]
    if card.default is None:
        raise InputError(f"it has the configurations {list_some(names, 3)}: choose one with --config {names[0]}")
    return card.default


def _explain_unknown_config(wanted: str | None, names: Sequence[str]) -> str:
    near = difflib.get_close_matches(wanted or "", names, 1)
    meant = f"; did you mean '{near[0]}'?" if near else ""
    return f"unknown configuration '{wanted}', it has {list_some(names, 3)}{meant}"


def _assign_by_card(paths: Sequence[str], card: Card, name: str) -> SplitFiles:
    """Return the files that the card declares for one configuration."""
    configuration = card.configurations[name]
    info = card.info(name)
    others = [f"configuration {other}" for other in card.configurations if other != name]
    config = name if others else None

    # The card has a folder at most, no patterns: the names of the files in it decide.
    if configuration.patterns is None:
        assignment = _assign_below(paths, configuration.folder)
        if assignment.files == {}:
            raise InputError(f"configuration {name} of {README} has no parquet file in {configuration.folder}")
        return SplitFiles(assignment.files, info, config, (*others, *_describe_left(assignment.passed_over)))

    # The card has glob patterns for each split.
    files = {
        split: tuple(path for path in paths if any(_matches(pattern, path) for pattern in patterns))
        for split, patterns in _absolute_patterns(configuration).items()
    }
    missing = [f"the split {split}, declared in {README}" for split in files if not files[split] and split != "test"]
    files = {split: found for split, found in files.items() if found}
    if not files:
        raise InputError(f"no parquet file is where {README} says that configuration {name} is")

    # Files that no configuration names, unless a configuration takes files from a folder by their names.
    named = {
        path
        for other in card.configurations.values()
        for patterns in _absolute_patterns(other).values()
        for path in paths
        if any(_matches(pattern, path) for pattern in patterns)
    }
    has_folders = any(each.patterns is None for each in card.configurations.values())
    left = [] if has_folders else [path for path in paths if path not in named]
    return SplitFiles(files, info, config, (*others, *_describe_left(left)), tuple(missing))


def _assign_below(paths: Sequence[str], folder: str) -> Assignment:
    """Assign the files below a folder by their names in it."""
    prefix = f"{folder}/" if folder else ""
    below = [path.removeprefix(prefix) for path in paths if path.startswith(prefix)]
    found = assign_files(below) if below else Assignment({})
    files = {split: tuple(prefix + path for path in files) for split, files in found.files.items()}
    return Assignment(files, tuple(prefix + path for path in found.passed_over))


def _absolute_patterns(configuration: Configuration) -> dict[str, list[str]]:
    """Return the patterns of a configuration, from the dataset's root."""
    prefix = f"{configuration.folder}/" if configuration.folder else ""
    return {
        split: [prefix + pattern for pattern in patterns] for split, patterns in (configuration.patterns or {}).items()
    }


def _matches(pattern: str, path: str) -> bool:
    try:
        return re.match(glob_translate(pattern), path) is not None
    except ValueError as error:
        raise InputError(f"{README} names files by {pattern!r}: {error}") from error


# By file names


def _assign_by_names(paths: Sequence[str], card: Card, config: str | None) -> SplitFiles:
    """Assign the files by their names; several folders with the same splits are configurations to choose from."""
    assignment = assign_files(paths, config)
    if not assignment.configs and config not in (None, DEFAULT, *card.infos):
        raise InputError(f"it has only one configuration: leave out --config {config}")
    if assignment.configs and config not in assignment.configs:
        raise InputError(_explain_unknown_config(config, assignment.configs))
    described = list(card.infos) if len(card.infos) > 1 and DEFAULT not in card.infos else []
    configs = assignment.configs or described
    if described and config is None:
        raise InputError(
            f"{README} describes the configurations {list_some(described, 3)}: choose one with --config {described[0]}"
        )
    others = [f"configuration {other}" for other in configs if other != config]
    passed_over = (*others, *_describe_left(assignment.passed_over))
    info = card.info(config if assignment.configs or config in card.infos else None)
    return SplitFiles(assignment.files, info, config if configs else None, passed_over)


def _describe_left(paths: Sequence[str]) -> list[str]:
    """Return a line for the manifest on files that are in no split; no line if there are none."""
    return [f"file{'s' if paths[1:] else ''} {list_some(paths, 3)}, which no split's name fits"] if paths else []


def assign_files(paths: Sequence[str], config: str | None = None) -> Assignment:
    """Assign files (paths below the source, with "/" between folders) to splits by their names.

    The first rule that fits any file applies to all: `data/SPLIT-00000-of-00001...`; a folder with a word of KEYWORDS
    in its name; a file with such a word; else all files are train.

    Args:
        config: the one to choose among several folders that hold the same splits.

    Raises:
        InputError: a name fits several splits, or files of several splits or folders would be merged.
    """
    paths = sorted(paths)
    sharded = {path: match["split"] for path in paths if (match := SHARDED.fullmatch(path))}
    by_folder = {path: found for path in paths if (found := _words_in_folders(path))}
    by_name = {path: found for path in paths if (found := _words_in(PurePosixPath(path).name))}

    # Each rule finds the files with a split, and for each file the folder that contains all splits of its dataset.
    if sharded:
        found, roots = sharded, dict.fromkeys(sharded, "data")
        advice = "move the others out of data/ to where it is, or move it away"
    elif by_folder:
        for path, words in by_folder.items():
            _find_only_split({path: words | by_name.get(path, set())})
        found = _find_only_split(by_folder)
        roots = {path: _root_above_split(path) for path in found}
        advice = "move it into a folder {split}, or away"
    elif by_name:
        found = _find_only_split(by_name)
        roots = {path: _folder_of(path) for path in found}
        advice = "rename it, for example to {split}-{name}, or move it away"
    else:
        found, roots = dict.fromkeys(paths, "train"), {path: _folder_of(path) for path in paths}
        advice = ""
        _check_plain_names(paths)

    left = [path for path in paths if path not in found]
    _check_left(left, next(iter(found), ""), advice)
    return _choose_root(found, roots, left, config)


def _words_in(text: str) -> set[str]:
    """Return the keywords that are in a name between separators or its ends."""
    words = (word for words in KEYWORDS.values() for word in words)
    return {word for word in words if re.search(rf"(^|{SEPARATORS}){word}($|{SEPARATORS})", text, re.IGNORECASE)}


def _splits_in(text: str) -> set[str]:
    return {split for split, words in KEYWORDS.items() if _words_in(text).intersection(words)}


def _words_in_folders(path: str) -> set[str]:
    return set().union(*map(_words_in, PurePosixPath(path).parent.parts))


def _find_only_split(words: dict[str, set[str]]) -> dict[str, str]:
    """Return the split that the words of each path name.

    Raises:
        InputError: a path names several, or two paths name one split by different words, such as val and dev.
    """
    found: dict[str, str] = {}
    first: dict[str, tuple[str, set[str]]] = {}
    for path, named in words.items():
        splits = {split for split, keywords in KEYWORDS.items() if named.intersection(keywords)}
        if len(splits) > 1:
            raise InputError(f"{path} names the splits {' and '.join(sorted(splits))}: rename it to name one of them")
        split = found[path] = next(iter(splits))
        other, others = first.setdefault(split, (path, named))
        if not named & others:
            raise InputError(f"{other} and {path} both are the split {split} by their names: move one of them away")
    return found


def _folder_of(path: str) -> str:
    return str(PurePosixPath(path).parent)


def _root_above_split(path: str) -> str:
    """Return the folder that contains the first folder of a path that is named like a split."""
    parts = PurePosixPath(path).parent.parts
    depth = next(i for i, part in enumerate(parts) if _splits_in(part))
    return str(PurePosixPath(*parts[:depth]))


def _looks_like(path: str) -> set[str]:
    """Return the splits that a path seems to name, by the words in it."""
    words = [word.lower() for word in WORDS.findall(path.rsplit(".", 1)[0])]
    found = [match[1] for word in words if (match := LOOKS_LIKE_SPLIT.fullmatch(word))]
    return {"test" if word == "eval" else canonical_split(word) for word in found} | _splits_in(path)


def _check_plain_names(paths: Sequence[str]) -> None:
    """Check that no file which the rules make train looks like another split.

    Raises:
        InputError: a file does.
    """
    looks = {path: _looks_like(path) for path in paths}
    named = [path for path, splits in looks.items() if splits]
    if any(splits != {"train"} for splits in looks.values()) and named:
        raise InputError(
            f"{named[0]} looks like a split by its name, but is not one by the rules of `datasets`: "
            f"rename it, for example to {'-'.join(sorted(looks[named[0]]))}-{PurePosixPath(named[0]).name}"
        )


def _check_left(left: Sequence[str], example: str, advice: str) -> None:
    """Check that no file which the rules leave out looks like a split.

    Raises:
        InputError: a file does.
    """
    for path in left:
        if splits := _looks_like(path):
            split = "-".join(sorted(splits))
            raise InputError(
                f"{path} names the split {split}, but not in the way that {example} does: "
                + advice.format(split=split, name=PurePosixPath(path).name)
            )


def _choose_root(found: dict[str, str], roots: dict[str, str], left: list[str], config: str | None) -> Assignment:
    """Return the files of one folder if several hold the same split, which may be configurations or parts of one."""
    by_split: dict[str, set[str]] = {}
    for path, split in found.items():
        by_split.setdefault(split, set()).add(roots[path])
    configs = sorted(set(roots.values())) if any(len(folders) > 1 for folders in by_split.values()) else []
    if configs and config is None:
        raise InputError(
            f"holds the same split in the folders {list_some(configs, 3)}: choose one with --config "
            f"{configs[0]}, or move the files into one folder if they are parts of one dataset"
        )
    chosen = {path: split for path, split in found.items() if not configs or roots[path] == config}
    files: dict[str, tuple[str, ...]] = {}
    for split in sorted(set(chosen.values()), key=lambda name: (_rank(name), name)):
        files[split] = tuple(path for path, of in chosen.items() if of == split)
    return Assignment(files, tuple(left), tuple(configs), config if configs else None)


def _rank(split: str) -> int:
    """Return a split's place in the order train, validation, test, others."""
    canonical = canonical_split(split)
    return list(KEYWORDS).index(canonical) if canonical in KEYWORDS else len(KEYWORDS)
