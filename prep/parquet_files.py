"""Which parquet files of a dataset make which split: by its card where it has one, else by the names of the files."""

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fsspec.utils import glob_translate

from prep.card import DEFAULT, README, Card, Configuration, Info
from prep.completeness import absent_splits, partial_exports, unfinished_downloads
from prep.errors import InputError
from prep.listing import Listing
from prep.table_splits import Assignment, assign_files, name_some

# Where the hub keeps a parquet form of datasets that are stored otherwise.
CONVERTED = "hf download {} --repo-type dataset --revision refs/convert/parquet --local-dir DIR"


@dataclass(frozen=True)
class SplitFiles:
    """The files of each split by the source's name, and what was found on the way; each line is for people."""

    files: dict[str, tuple[str, ...]]  # split -> paths
    info: Info
    config: str | None = None  # where there are several
    passed_over: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()  # what concerns no single split
    lacking: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # split -> what it lacks
    notes: tuple[str, ...] = ()


def choose_files(listing: Listing, card: Card, config: str | None) -> SplitFiles:
    """Choose a configuration and assign its files to splits.

    Raises:
        InputError: there is no parquet file, or it is open which configuration or split is meant.
    """
    paths = [path for path in listing.paths if path.lower().endswith(".parquet")]
    _check_any(listing, paths)
    try:
        if card.configurations:
            found = _by_card(paths, card, _choose_config(card, config))
        else:
            found = _by_names(paths, card, config)
    except InputError as error:
        raise InputError(f"{listing.source}: {error}") from error
    chosen = [path for files in found.files.values() for path in files]
    missing = [*found.missing, *absent_splits(found.files, found.info.num_rows, README)]
    missing += [*unfinished_downloads(listing.paths), *partial_exports(chosen)]
    return SplitFiles(found.files, found.info, found.config, found.passed_over, tuple(dict.fromkeys(missing)))


def _check_any(listing: Listing, paths: Sequence[str]) -> None:
    if paths:
        return
    unfinished = unfinished_downloads(listing.paths)
    if unfinished:
        raise InputError(f"{listing.source} has no parquet file, and {name_some(unfinished)}: finish it")
    found = name_some([path for path in listing.paths if path != README]) or "nothing"
    if listing.commit is None:
        raise InputError(f"{listing.source} has no parquet file, it has {found}: convert it")
    scripts = [path for path in listing.paths if path == f"{listing.source.split('/')[-1]}.py"]
    what = f"is a loading script ({scripts[0]})" if scripts else f"has no parquet file, it has {found}"
    raise InputError(
        f"{listing.source} {what}: get the hub's parquet form with "
        f"`{CONVERTED.format(listing.source)}`, then --source DIR"
    )


def _choose_config(card: Card, wanted: str | None) -> str:
    names = list(card.configurations)
    if wanted is not None:
        if wanted in names:
            return wanted
        near = difflib.get_close_matches(wanted, names, 1)
        meant = f"; did you mean {near[0]}?" if near else ""
        raise InputError(f"there is no configuration {wanted}, it has {name_some(names)}{meant}")
    if len(names) == 1:
        return names[0]
    if card.default is None:
        raise InputError(f"it has the configurations {name_some(names)}: choose one with --config {names[0]}")
    return card.default


def _by_card(paths: Sequence[str], card: Card, name: str) -> SplitFiles:
    """The files that the card names for one configuration."""
    configuration = card.configurations[name]
    info = card.info(name)
    others = [f"configuration {other}" for other in card.configurations if other != name]
    config = name if others else None
    if configuration.patterns is None:
        assignment = _assign_below(paths, configuration.folder)
        if assignment.files == {}:
            raise InputError(f"configuration {name} of {README} has no parquet file in {configuration.folder}")
        return SplitFiles(assignment.files, info, config, (*others, *_files_left(assignment.passed_over)))
    files = {
        split: tuple(path for path in paths if any(_matches(pattern, path) for pattern in patterns))
        for split, patterns in _absolute(configuration).items()
    }
    named = {
        path
        for other in card.configurations.values()
        for patterns in _absolute(other).values()
        for path in paths
        if any(_matches(pattern, path) for pattern in patterns)
    }
    missing = [f"the split {split}, declared in {README}" for split in files if not files[split] and split != "test"]
    files = {split: found for split, found in files.items() if found}
    if not files:
        raise InputError(f"no parquet file is where {README} says that configuration {name} is")
    has_folders = any(each.patterns is None for each in card.configurations.values())
    left = [] if has_folders else [path for path in paths if path not in named]
    return SplitFiles(files, info, config, (*others, *_files_left(left)), tuple(missing))


def _assign_below(paths: Sequence[str], folder: str) -> Assignment:
    prefix = f"{folder}/" if folder else ""
    below = [path.removeprefix(prefix) for path in paths if path.startswith(prefix)]
    found = assign_files(below) if below else Assignment({})
    files = {split: tuple(prefix + path for path in files) for split, files in found.files.items()}
    return Assignment(files, tuple(prefix + path for path in found.passed_over))


def _absolute(configuration: Configuration) -> dict[str, list[str]]:
    """The patterns of a configuration, from the dataset's root."""
    prefix = f"{configuration.folder}/" if configuration.folder else ""
    return {
        split: [prefix + pattern for pattern in patterns] for split, patterns in (configuration.patterns or {}).items()
    }


def _matches(pattern: str, path: str) -> bool:
    try:
        return re.match(glob_translate(pattern), path) is not None
    except ValueError as error:
        raise InputError(f"{README} names files by {pattern!r}: {error}") from error


def _by_names(paths: Sequence[str], card: Card, config: str | None) -> SplitFiles:
    """The files by their names; several folders with the same splits are configurations to choose from."""
    assignment = assign_files(paths, config)
    if not assignment.configs and config not in (None, DEFAULT, *card.infos):
        raise InputError(f"it has one configuration only: leave out --config {config}")
    if assignment.configs and config not in assignment.configs:
        near = difflib.get_close_matches(config or "", assignment.configs, 1)
        meant = f"; did you mean {near[0]}?" if near else ""
        raise InputError(f"there is no configuration {config}, it has {name_some(assignment.configs)}{meant}")
    described = list(card.infos) if len(card.infos) > 1 and DEFAULT not in card.infos else []
    configs = assignment.configs or described
    if described and config is None:
        raise InputError(
            f"{README} describes the configurations {name_some(described)}: choose one with --config {described[0]}"
        )
    others = [f"configuration {other}" for other in configs if other != config]
    passed_over = (*others, *_files_left(assignment.passed_over))
    info = card.info(config if assignment.configs or config in card.infos else None)
    return SplitFiles(assignment.files, info, config if configs else None, passed_over)


def _files_left(paths: Sequence[str]) -> list[str]:
    return [f"file{'s' if paths[1:] else ''} {name_some(list(paths))}, which no split's name fits"] if paths else []
