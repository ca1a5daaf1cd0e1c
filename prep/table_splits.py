"""Names of splits: what a source calls them, what they are prepared as, and which one a file's path names.

Pure functions of names. Files are assigned as Hugging Face `datasets` assigns them in a folder without a dataset card,
in any case of letters; where its rules would merge splits, or drop a file that names one, an error says so instead.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from prep.errors import InputError

# The words of `datasets` (data_files.py, SPLIT_KEYWORDS), which must stand between characters of SEPARATORS.
KEYWORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
SEPARATORS = r"[-._ 0-9]"
SHARDED = re.compile(r"data/(?P<split>\w+(\.\w+)*)-\d{5}-of-\d{5}[^/]*")  # what `push_to_hub` writes
SYNONYMS = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}
# A word of a name such as testset or ImageNetVal, which names a split for people but not for `datasets`.
WORDS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")
LOOKS_LIKE_SPLIT = re.compile(r"(train|valid|validation|val|test|dev|eval)(s|set|data|imgs?|images?|split|part)?")
MOST_NAMED = 3


@dataclass(frozen=True)
class SplitNames:
    """What each split of a source is prepared as."""

    prepared: dict[str, str]  # name at the source -> split
    problems: dict[str, str] = field(default_factory=dict)  # split -> why it must be chosen first
    alternatives: dict[str, list[str]] = field(default_factory=dict)  # split -> others that it could be

    def recorded_map(self, split: str) -> dict[str, str]:
        """Return what the manifest keeps: {name at the source: split} where the name does not say it all."""
        return {
            name: split
            for name, prepared in self.prepared.items()
            if prepared == split and (name != split or canonical_split(name) != name)
        }


@dataclass(frozen=True)
class Assignment:
    """Which files make which split, by their names alone."""

    files: dict[str, tuple[str, ...]]  # split -> paths, sorted
    passed_over: tuple[str, ...] = ()  # paths in no split
    configs: tuple[str, ...] = ()  # folders that hold the same splits, if there are several
    config: str | None = None


def canonical_split(name: str) -> str:
    """Return the documented name for a split called val, valid, dev, Train and so on; other names unchanged."""
    return SYNONYMS.get(name.lower(), name)


def name_splits(source: str, names: Sequence[str], split_map: Iterable[tuple[str, str]]) -> SplitNames:
    """Decide what each split of a source is prepared as.

    `split_map` decides first. Of the rest, a name of SYNONYMS becomes the documented name unless that is taken.

    Raises:
        InputError: `split_map` names a split that is not there, or one twice.
    """
    chosen: dict[str, str] = {}
    for name, split in split_map:
        if name not in names:
            raise InputError(f"{source} has no split {name} for --split-map {split}={name}: it has {', '.join(names)}")
        if name in chosen or split in chosen.values():
            raise InputError(f"--split-map names {name} or {split} twice: give each split one name")
        chosen[name] = split
    rest = [name for name in names if name not in chosen]
    prepared, problems = dict(chosen), {}
    for name in rest:
        split = canonical_split(name)
        rivals = [other for other in rest if canonical_split(other) == split]
        is_taken = split in chosen.values() or split in rest
        if name in chosen.values():
            continue  # the user gave this name to another split, and none to this one
        prepared[name] = split if len(rivals) == 1 and not is_taken else name
        if len(rivals) > 1 and not is_taken:
            problems[name] = (
                f"{source} has splits {', '.join(rivals)}, each of which could be {split}: "
                f"choose with --split-map {split}={rivals[0]}, or leave them out with --splits"
            )
    alternatives = {
        split: [other for other in names if other != name and canonical_split(other) == split]
        for name, split in prepared.items()
    }
    ordered = {name: prepared[name] for name in names if name in prepared}
    return SplitNames(ordered, problems, {split: others for split, others in alternatives.items() if others})


def assign_files(paths: Sequence[str], config: str | None = None) -> Assignment:
    """Assign files (paths below the source, "/" between folders) to splits by their names.

    In this order: `data/SPLIT-00000-of-00001…`; a folder whose name holds a word of KEYWORDS; a file whose name does;
    else all are train. `config` chooses one of several folders that hold the same splits.

    Raises:
        InputError: a name fits several splits, or files of several splits or folders would be merged.
    """
    paths = sorted(paths)
    sharded = {path: match["split"] for path in paths if (match := SHARDED.fullmatch(path))}
    by_folder = {path: found for path in paths if (found := _words_in_folders(path))}
    by_name = {path: found for path in paths if (found := _words_in(PurePosixPath(path).name))}
    if sharded:
        found, roots = sharded, dict.fromkeys(sharded, "data")
        advice = "move the others out of data/ to where it is, or move it away"
    elif by_folder:
        for path, words in by_folder.items():
            _the_only_split({path: words | by_name.get(path, set())})
        found = _the_only_split(by_folder)
        roots = {path: _root_above_split(path) for path in found}
        advice = "move it into a folder {split}, or away"
    elif by_name:
        found = _the_only_split(by_name)
        roots = {path: _folder(path) for path in found}
        advice = "rename it, as {split}-{name}, or move it away"
    else:
        found, roots = dict.fromkeys(paths, "train"), {path: _folder(path) for path in paths}
        advice = ""
        _check_plain_names(paths)
    left = [path for path in paths if path not in found]
    _check_left(left, next(iter(found), ""), advice)
    return _choose_root(found, roots, left, config)


def name_some(names: Sequence[str]) -> str:
    """Return the first few of some names, and how many more there are."""
    more = f" and {len(names) - MOST_NAMED:,} more" if len(names) > MOST_NAMED else ""
    return f"{', '.join(names[:MOST_NAMED])}{more}"


def _words_in(text: str) -> set[str]:
    """The keywords that stand in a name between separators or its ends."""
    words = (word for words in KEYWORDS.values() for word in words)
    return {word for word in words if re.search(rf"(^|{SEPARATORS}){word}($|{SEPARATORS})", text, re.IGNORECASE)}


def _splits_in(text: str) -> set[str]:
    return {split for split, words in KEYWORDS.items() if _words_in(text).intersection(words)}


def _words_in_folders(path: str) -> set[str]:
    return set().union(*map(_words_in, PurePosixPath(path).parent.parts))


def _the_only_split(words: dict[str, set[str]]) -> dict[str, str]:
    """The split that the words of each path name.

    Raises:
        InputError: a path names several, or one split goes by several words, such as val and dev, and would be merged.
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


def _folder(path: str) -> str:
    return str(PurePosixPath(path).parent)


def _root_above_split(path: str) -> str:
    parts = PurePosixPath(path).parent.parts
    depth = next(i for i, part in enumerate(parts) if _splits_in(part))
    return str(PurePosixPath(*parts[:depth]))


def _looks_like(path: str) -> set[str]:
    """The splits that a path names for people, by its words."""
    words = [word.lower() for word in WORDS.findall(path.rsplit(".", 1)[0])]
    found = [match[1] for word in words if (match := LOOKS_LIKE_SPLIT.fullmatch(word))]
    return {"test" if word == "eval" else canonical_split(word) for word in found} | _splits_in(path)


def _check_plain_names(paths: Sequence[str]) -> None:
    """Raises InputError where files that name no split by the rules name one for people: all would be train."""
    looks = {path: _looks_like(path) for path in paths}
    named = [path for path, splits in looks.items() if splits]
    if any(splits != {"train"} for splits in looks.values()) and named:
        raise InputError(
            f"{named[0]} looks like a split by its name, but is none by the rules of `datasets`: "
            f"rename it, as {'-'.join(sorted(looks[named[0]]))}-{PurePosixPath(named[0]).name}"
        )


def _check_left(left: Sequence[str], example: str, advice: str) -> None:
    """Raises InputError where a file that is in no split by the rules names one for people."""
    for path in left:
        if splits := _looks_like(path):
            split = "-".join(sorted(splits))
            raise InputError(
                f"{path} names the split {split}, but not as {example} does: "
                + advice.format(split=split, name=PurePosixPath(path).name)
            )


def _choose_root(found: dict[str, str], roots: dict[str, str], left: list[str], config: str | None) -> Assignment:
    """Files of one folder, where several hold the same split: these may be configurations, or parts of one."""
    by_split: dict[str, set[str]] = {}
    for path, split in found.items():
        by_split.setdefault(split, set()).add(roots[path])
    configs = sorted(set(roots.values())) if any(len(folders) > 1 for folders in by_split.values()) else []
    if configs and config is None:
        raise InputError(
            f"holds the same split in the folders {name_some(configs)}: choose one with --config "
            f"{configs[0]}, or move the files into one folder if they are parts of one dataset"
        )
    chosen = {path: split for path, split in found.items() if not configs or roots[path] == config}
    files: dict[str, tuple[str, ...]] = {}
    for split in sorted(set(chosen.values()), key=lambda name: (_rank(name), name)):
        files[split] = tuple(path for path, of in chosen.items() if of == split)
    return Assignment(files, tuple(left), tuple(configs), config if configs else None)


def _rank(split: str) -> int:
    canonical = canonical_split(split)
    return list(KEYWORDS).index(canonical) if canonical in KEYWORDS else len(KEYWORDS)
