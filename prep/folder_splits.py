"""Which folders of an image source are its splits, and which its classes, decided by where the images are.

Two layouts are documented: SPLIT/CLASS/IMAGE, with splits named train, validation (val, valid) and test, and
CLASS/IMAGE for a lone train split. Images may also lie deeper in a class folder, where it is clear which folders are
the classes. Anything that could be read in another way is refused, with the flag or the folder that settles it.
`--split-map` says which folders are splits; a split that it names is taken as it is.
"""

import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from prep.errors import InputError
from prep.flat_images import describe_flat, find_label_table
from prep.folder_names import SPLIT_FOLDERS, guess_split, is_generic, is_split_name
from prep.folder_tree import Folder, is_dangling

AS_CLASSES = "--split-map train=."  # the whole folder is the split train
MOST_NAMED = 5
MOST_MAPPED = 12  # folders in a --split-map that is suggested
MAX_DEPTH = 3  # how far below a source its splits are looked for, to say where they are

Pairs = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Splits:
    """Each split's folders of class folders; what was passed over or holds no image, a line each."""

    folders: dict[str, tuple[Folder, ...]]
    passed_over: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    is_chosen: bool = False  # by --split-map

    def map_names(self, split: str) -> dict[str, str]:
        """{folder: split} for the manifest: all where --split-map was given, else what is not named like its split."""
        named = {folder.name or ".": each for each, folders in self.folders.items() for folder in folders}
        if self.is_chosen:
            return named
        return {name: each for name, each in named.items() if each == split and name not in (split, ".")}


class _UnclearError(Exception):
    """Folders that can be read in several ways; `explain` looks for a way out, which takes trying other readings."""

    def __init__(self, explain: Callable[[], str]) -> None:
        super().__init__()
        self.explain = explain


def find_splits(root: Folder, split_map: Pairs) -> Splits:
    """Return the splits of a source.

    Raises:
        InputError: it can be read in several ways, or --split-map names what is not there.
    """
    try:
        return _follow(root, split_map) if split_map else _decide(root)
    except _UnclearError as error:
        raise InputError(error.explain()) from None


def _decide(root: Folder) -> Splits:
    """The splits where --split-map says nothing."""
    check_loose(root)
    holders = root.holders
    names = {name for name in holders if is_split_name(name)}
    if not names or _is_class_among_others(holders, names):
        _check_classes(root, [root])
        return Splits({"train": (root,)})
    return _find_documented(root, holders)


def _find_documented(root: Folder, holders: Mapping[str, Folder]) -> Splits:
    """The splits by their documented names; nothing else beside them may hold images, but unlabelled test images."""
    passed_over: list[str] = []
    chosen: dict[str, Folder] = {}
    others: list[str] = []
    for name in sorted(holders, key=lambda name: (name not in SPLIT_FOLDERS, name)):
        folder = holders[name]
        link = next((known for known in chosen.values() if folder.identity == known.identity), None)
        if link and SPLIT_FOLDERS.get(name, "") in ("", SPLIT_FOLDERS[link.base]):
            passed_over.append(f"{name} is the same folder as {link.base}")
        elif folder.is_flat and guess_split(name) == "test" and any(not each.is_flat for each in holders.values()):
            passed_over.append(f"{name} holds images in no class folder, so they have no labels")
        elif not _has_own_image(folder):
            passed_over.append(f"{name} was written by one of Penstock's commands")
        elif name in SPLIT_FOLDERS:
            chosen[name] = folder
        else:
            others.append(name)
    if others or not chosen or any(folder.is_flat for folder in chosen.values()):
        raise _UnclearError(partial(_explain_candidates, root, holders))
    splits: dict[str, tuple[Folder, ...]] = {}
    for name, folder in chosen.items():
        if SPLIT_FOLDERS[name] in splits:
            raise _UnclearError(partial(_explain_twice, root, chosen, SPLIT_FOLDERS[name]))
        splits[SPLIT_FOLDERS[name]] = (folder,)
    _check_apart(root, splits)
    _check_classes(root, [folder for (folder,) in splits.values()])
    empty = [name for name in root.shown if name in SPLIT_FOLDERS and name != "test" and name not in holders]
    for name, folder in root.shown.items():
        if folder.fault and name not in SPLIT_FOLDERS:
            passed_over.append(f"{name} cannot be listed ({folder.fault})")
    return Splits(splits, tuple(passed_over), tuple(describe_empty(root.shown[name]) for name in empty))


def _has_own_image(folder: Folder) -> bool:
    """Whether an image lies in a folder and in none that one of our own commands wrote."""
    if folder.is_output:
        return False
    return folder.has_image or any(_has_own_image(child) for child in folder.folders.values())


def _is_class_among_others(holders: Mapping[str, Folder], names: set[str]) -> bool:
    """Whether the one folder named like a split is a class called train: it and its neighbours hold images directly."""
    is_train = [name.casefold() for name in names] == ["train"]
    return is_train and len(holders) > 1 and all(folder.is_flat for folder in holders.values())


def _is_class_of_all(folders: list[Folder], name: str) -> bool:
    """Whether several splits have a class of a name, with its images directly in it."""
    return len(folders) > 1 and all(name in each.holders and each.holders[name].is_flat for each in folders)


# What --split-map says


def _follow(root: Folder, split_map: Pairs) -> Splits:
    """The splits that --split-map names, and of the documented names those that it leaves free."""
    splits: dict[str, tuple[Folder, ...]] = {}
    for name, split in dict.fromkeys(split_map):
        splits[split] = (*splits.get(split, ()), _find_named(root, name))
    _check_apart(root, splits)
    passed_over = []
    for folder in _leftovers(root, [folder for folders in splits.values() for folder in folders]):
        split = SPLIT_FOLDERS.get(folder.name)
        complaint = _find_complaint(root, folder, splits) if split and split not in splits else "is not in --split-map"
        if split and not complaint:
            splits[split] = (folder,)
        else:
            passed_over.append(f"{folder.name} {complaint}")
    return Splits(splits, tuple(passed_over), is_chosen=True)


def _find_named(root: Folder, name: str) -> Folder:
    folder = root.find_child(name)
    if folder is None or not folder.holds_image:
        found = ", ".join(root.holders) or "none"
        what = "holds no image" if folder else "is no folder"
        raise InputError(f"{root.path / name}, which --split-map names, {what}: folders with images are {found}")
    check_loose(folder)
    return folder


def _check_apart(root: Folder, splits: Mapping[str, Iterable[Folder]]) -> None:
    """Raises InputError where a folder of a split is, or lies in, another: its images would be taken twice."""
    owners: dict[tuple[int, int], Folder] = {}
    chosen = [folder for folders in splits.values() for folder in folders]
    for folder in chosen:
        if other := owners.get(folder.identity):
            pairs = _pairs(splits, [each for each in chosen if each is not folder])
            raise InputError(
                f"{folder.path} and {other.path} are the same folder: read it as one split, {_as_flag(pairs)}"
            )
        owners[folder.identity] = folder
    for folder in chosen:
        inside = [owners[each.identity] for each in folder.walk() if each is not folder and each.identity in owners]
        if inside:
            raise InputError(f"{inside[0].path} lies in {folder.path}: have --split-map name folders beside each other")


def _pairs(splits: Mapping[str, Iterable[Folder]], kept: list[Folder]) -> Pairs:
    named = [(folder, split) for split, folders in splits.items() for folder in folders]
    return tuple((folder.name or ".", split) for folder, split in named if any(folder is each for each in kept))


def _leftovers(folder: Folder, chosen: list[Folder]) -> Iterator[Folder]:
    """Folders with images that no split takes in."""
    if any(folder is each for each in chosen):
        return
    for child in folder.holders.values():
        if any(each.name.startswith(f"{child.name}/") for each in chosen):
            yield from _leftovers(child, chosen)
        elif not any(child is each for each in chosen):
            yield child


def _find_complaint(root: Folder, folder: Folder, splits: Mapping[str, tuple[Folder, ...]]) -> str:
    """Why a folder with a documented name cannot be a split beside those chosen; empty where it can."""
    if folder.is_flat:
        return "holds images in no class folder, so they have no labels"
    try:
        check_loose(folder)
        _check_classes(root, [folder])
        _check_apart(root, {**splits, "": (folder,)})
    except _UnclearError:
        return "is not in --split-map, and it is not clear which folders in it are the classes"
    except InputError as error:
        return f"is not in --split-map, and cannot be read: {relative_to(root, str(error))}"
    return ""


def _split_of(folder: Folder) -> str:
    """The split that a folder is by its documented name; the source itself is train."""
    return SPLIT_FOLDERS.get(folder.base, "train") if folder.name else "train"


# Whether it is clear which folders are the classes


def check_loose(folder: Folder) -> None:
    """Raises InputError where an image lies beside class folders, or what may have been one is a link to nothing."""
    images = folder.find_images()
    if folder.is_flat:
        raise InputError(describe_flat(folder, images))
    for name in images:
        raise InputError(f"{folder.path / name} is in no class folder: move it into one or away")
    for name in sorted(folder.files):
        if not name.startswith(".") and is_dangling(folder.path / name):
            raise InputError(f"{folder.path / name} is a link to nothing: mend it or remove it")
    for name in sorted(folder.loops):
        if not name.startswith("."):
            raise InputError(f"{folder.path / name} is a link to a folder that it lies in: remove it")


def describe_empty(folder: Folder) -> str:
    """A line for the manifest on a folder that should hold images."""
    return f"{folder.name} {f'cannot be listed ({folder.fault})' if folder.fault else 'holds no image'}"


def _check_classes(root: Folder, folders: list[Folder]) -> None:
    """Check that the folders in these splits can only be classes.

    Raises:
        InputError: they may be splits, hold splits, or lie above the classes; or a table beside them has the labels.
    """
    classes = [holder for folder in folders for holder in folder.holders.values()]
    meant = [folder for folder in folders if _split_of(folder) != "test"] or folders  # test needs no flag to be read
    way_out = _as_flag(tuple((folder.name or ".", _split_of(folder)) for folder in meant))
    for folder in folders:
        check_loose(folder)
        if table := find_label_table(folder):
            raise InputError(f"{table}, or if the folders are the classes give {way_out}")
        names = {name for name in folder.holders if is_split_name(name) and not _is_class_of_all(folders, name)}
        if names and not _is_class_among_others(folder.holders, names):
            inner = [folder.holders[name] for name in sorted(names)]
            raise _UnclearError(partial(_explain_nested, root, inner, way_out))
    nested = [each for each in classes for each in each.walk() if each.holds_image and is_split_name(each.base)]
    nested = sorted(
        (each for each in nested if not any(each is holder for holder in classes)), key=lambda each: each.name
    )
    if nested:
        raise _UnclearError(partial(_explain_nested, root, nested, way_out))
    _check_depth(root, folders, way_out)
    if all(is_generic(each.base) for each in classes):
        raise InputError(
            f"{_join(each.path for each in classes)} hold images, but by their names they are no classes: "
            f"sort the images into class folders (CLASS/IMAGE.jpg), or if they are classes give {way_out}"
        )


def _check_depth(root: Folder, folders: list[Folder], way_out: str) -> None:
    """Images directly in a class folder, or one folder deeper by the same name everywhere, show where classes are.

    A folder `pictures` shows nothing: it may be a class, or illustrate a dataset that lies in the folder next to it.
    """
    classes = [holder for folder in folders for holder in folder.holders.values()]
    train = [folder for folder in folders if _split_of(folder) == "train"] or folders
    names = {name for folder in train for name in folder.holders}  # folders of test images say nothing of classes
    known = [each for each in classes if each.base in names]
    if any(_is_plain_class(each) for each in known) or all(each.has_image for each in known):
        return
    chains = {_chain(each) for each in classes}
    if len({each.base for each in classes}) > 1 and len(chains) == 1 and None not in chains:
        return
    raise _UnclearError(partial(_explain_depth, root, folders, way_out))


def _is_plain_class(folder: Folder) -> bool:
    """Whether a folder holds images directly, and not by its name images of any kind."""
    return folder.has_image and not is_generic(folder.base)


def _without_images(folder: Folder) -> list[Folder]:
    """The folders in which images lie only deeper."""
    return [each for each in folder.holders.values() if not each.has_image]


def _chain(folder: Folder) -> tuple[str, ...] | None:
    """The names of the folders from a class to its images, where each holds but the next: ("images",), else None."""
    names: list[str] = []
    while not folder.has_image:
        if len(folder.holders) != 1:
            return None
        ((name, folder),) = folder.holders.items()
        names.append(name)
    return tuple(names)


# What to do about it


def _explain_nested(root: Folder, nested: list[Folder], way_out: str) -> str:
    """Folders named like splits lie below where classes are: the source is probably a folder too high."""
    shown = _join(each.path for each in nested)
    look = f"{shown} {'looks' if len(nested) == 1 else 'look'} like"
    tops = _find_datasets(root)
    if readable := [each for each in tops if _can_be_read(each)]:
        fix = " or ".join(f"--source {shlex.quote(str(each.path))}" for each in readable[:MOST_NAMED])
        return f"{look} splits in a folder below the source: give {fix}, or if these are classes {way_out}"
    if len(tops) == 1 and (pairs := _suggest(root, tops[0].holders)):
        return f"{look} splits below the source: give {_as_flag(pairs)} if they are splits, or if classes {way_out}"
    return f"{look} splits among or below classes: move them out (SPLIT/CLASS/IMAGE.jpg), or if not give {way_out}"


def _explain_depth(root: Folder, folders: list[Folder], way_out: str) -> str:
    """No class folder holds an image itself: the classes may be a folder deeper."""
    deep = [
        folder
        for folder in folders
        if _without_images(folder) and not any(_is_plain_class(each) for each in folder.holders.values())
    ]
    pairs: list[tuple[str, str]] = []
    for folder in [each for each in folders if _split_of(each) != "test"] or folders:
        inner = _without_images(folder) if any(folder is each for each in deep) else [folder]
        pairs += [(each.name, _split_of(folder)) for each in inner]
    classes, deeper = _without_images(deep[0]), tuple(pairs)
    first, fix = classes[0], ""
    if len(classes) == 1 and not folders[0].name and _can_be_read(first):
        fix = f"--source {shlex.quote(str(first.path))} where the folders in it are the classes, or "
    elif len(deeper) <= MOST_MAPPED and _can_follow(root, deeper):
        fix = f"{_as_flag(deeper)} where the folders in them are the classes, or "
    return (
        f"{_join(each.base for each in classes)} in {deep[0].path} hold no image but folders "
        f"({_join(first.holders)}), so it is not clear which are the classes: "
        f"give {fix}{way_out} where {first.base} is a class"
    )


def _find_datasets(folder: Folder, depth: int = 0) -> list[Folder]:
    """The topmost folders below a source in which all folders with images are named like splits."""
    found = []
    for child in folder.holders.values():
        names = [name for name, each in child.holders.items() if is_split_name(name)]
        if names and len(names) == len(child.holders):
            found.append(child)
        elif depth < MAX_DEPTH and not names:
            found += _find_datasets(child, depth + 1)
    return found


def _explain_candidates(root: Folder, holders: Mapping[str, Folder]) -> str:
    """Folders that may be splits or classes: what --split-map makes of them."""
    flat = [folder for name, folder in holders.items() if folder.is_flat and is_split_name(name)]
    pairs, shown = _suggest(root, holders), _join(holders)
    if pairs:
        left_out = [name for name in holders if name not in dict(pairs)]
        leaving = f", which leaves out {_join(left_out)}" if left_out else ""
        unlabelled = f" ({_join(each.base for each in flat)}: images in no class folder)" if flat else ""
        start = f"{root.path} has folders {shown}{unlabelled}, where train and validation (or val) are expected"
        return f"{start}: give {_as_flag(pairs)} if they are splits{leaving}, or {AS_CLASSES} if they are classes"
    if tops := _find_datasets(root):
        nested = [folder for top in tops for name, folder in top.holders.items() if is_split_name(name)]
        return _explain_nested(root, nested, AS_CLASSES)
    if flat:
        labelled = describe_flat(flat[0], flat[0].find_images())
        return f"{labelled}, or if {shown} are classes give {AS_CLASSES}"
    return f"{root.path} has folders {shown}: say which are splits with --split-map, or if all are classes {AS_CLASSES}"


def _suggest(root: Folder, holders: Mapping[str, Folder]) -> Pairs:
    """A --split-map that can be read, where there is one: all pieces of a split, or the first where they overlap."""
    able = [name for name, folder in holders.items() if not folder.is_flat and guess_split(name)][:MOST_MAPPED]
    able.sort(key=lambda name: (name not in SPLIT_FOLDERS, name))
    pieces = tuple((holders[name].name, guess_split(name) or "") for name in able)
    first = {split: name for name, split in reversed(pieces)}
    by_name = {folder.name: folder for folder in holders.values()}
    pairs = pieces if _are_disjoint(by_name, pieces) else tuple((name, split) for split, name in first.items())
    has_classes = any(_has_plain_class(by_name[name]) for name, _ in pairs)
    return pairs if pairs and _can_follow(root, pairs, is_strict=not has_classes) else ()


def _has_plain_class(folder: Folder) -> bool:
    """Whether a folder has a class beyond doubt: with images directly in it, and a name that is of no other use."""
    plain = [name for name, each in folder.holders.items() if each.has_image]
    return any(not is_split_name(name) and not is_generic(name) for name in plain)


def _are_disjoint(holders: Mapping[str, Folder], pairs: Pairs) -> bool:
    """Whether the folders that make one split have no class in common."""
    seen: set[tuple[str, str]] = set()
    for name, split in pairs:
        classes = {(split, each) for each in holders[name].holders}
        if classes & seen:
            return False
        seen |= classes
    return True


def _explain_twice(root: Folder, chosen: Mapping[str, Folder], split: str) -> str:
    """Several folders have documented names of one split."""
    twice = [name for name in chosen if SPLIT_FOLDERS[name] == split]
    rest = tuple((name, SPLIT_FOLDERS[name]) for name in chosen if name not in twice)
    one, both = (*rest, (twice[0], split)), (*rest, *((name, split) for name in twice))
    ways = [_as_flag(pairs) for pairs in (one, both) if _can_follow(root, pairs)]
    named = " and ".join(str(chosen[name].path) for name in twice)
    return f"{named} are both the {split} split: keep one of them, or give {' or '.join(ways)}"


def _can_follow(root: Folder, pairs: Pairs, is_strict: bool = True) -> bool:
    """Whether a --split-map would be read; strictly, whether its classes can be nothing else."""
    try:
        splits = _follow(root, pairs)
        if is_strict:
            _check_classes(root, [folder for folders in splits.folders.values() for folder in folders])
    except (InputError, _UnclearError):
        return False
    return True


def _can_be_read(folder: Folder) -> bool:
    """Whether a folder would be read if it were the source."""
    try:
        return bool(_decide(folder).folders)
    except (InputError, _UnclearError):
        return False


def relative_to(root: Folder, line: str) -> str:
    """A line for the manifest, which holds no absolute path."""
    return line.replace(f"{root.path}/", "")


def _as_flag(pairs: Pairs) -> str:
    return "--split-map " + " ".join(shlex.quote(f"{split}={name}") for name, split in pairs)


def _join(names: Iterable[str | Path]) -> str:
    listed = list(map(str, names))
    more = ", ..." if len(listed) > MOST_NAMED else ""
    return ", ".join(listed[:MOST_NAMED]) + more
