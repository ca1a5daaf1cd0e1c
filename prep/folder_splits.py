"""Decide which folders of an image source are its splits and which are its classes, by where the images are.

Two layouts are documented: SPLIT/CLASS/IMAGE with splits named train, validation (or val, valid) and test, and
CLASS/IMAGE for a single train split. Images may also be deeper in a class folder if it is clear which folders are the
classes. A source that could be read in several ways is refused, with the flag or the folder that decides it.
`--split-map` says which folders are splits; the folders that it names are not questioned.
"""

import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from prep.errors import InputError
from prep.folder_tree import Folder, check_loose, describe_empty, describe_flat, find_label_table
from prep.split_names import SPLIT_FOLDERS, guess_split, is_generic, is_split_name

AS_CLASSES = "--split-map train=."  # the source folder itself is the split train
MOST_NAMED = 5
MOST_MAPPED = 12  # folders in a --split-map that is suggested
MAX_DEPTH = 3  # levels below a source at which errors look for its splits

Pairs = tuple[tuple[str, str], ...]  # (folder, split) of --split-map


@dataclass(frozen=True)
class Splits:
    """The splits of an image folder, and findings for the manifest; each finding is one line of text."""

    folders: dict[str, tuple[Folder, ...]]  # split -> its folders of class folders
    passed_over: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()  # folders without images
    is_chosen: bool = False  # by --split-map

    def map_names(self, split: str) -> dict[str, str]:
        """Return {folder: split} for the manifest: all with --split-map, else those not named like their split."""
        named = {folder.name or ".": each for each, folders in self.folders.items() for folder in folders}
        if self.is_chosen:
            return named
        return {name: each for name, each in named.items() if each == split and name not in (split, ".")}


class _UnclearError(Exception):
    """Folders that can be read in several ways.

    `explain` returns the error's line. It is called only if the error reaches the user, because it searches for flags
    that decide the question, by trying other readings.
    """

    def __init__(self, explain: Callable[[], str]) -> None:
        super().__init__()
        self.explain = explain


def find_splits(root: Folder, split_map: Pairs) -> Splits:
    """Return the splits of a source.

    Raises:
        InputError: it can be read in several ways, or a folder of --split-map does not exist.
    """
    try:
        return _apply_split_map(root, split_map) if split_map else _decide(root)
    except _UnclearError as error:
        raise InputError(error.explain()) from None


def _decide(root: Folder) -> Splits:
    """Return the splits of a source without --split-map."""
    check_loose(root)
    holders = root.holders
    names = {name for name in holders if is_split_name(name)}
    if not names or _is_class_among_others(holders, names):
        _check_classes(root, [root])
        return Splits({"train": (root,)})
    return _find_documented(root, holders)


def _find_documented(root: Folder, holders: Mapping[str, Folder]) -> Splits:
    """Return the splits by their documented names; other folders may hold unlabelled test images only.

    Raises:
        _UnclearError: other folders may be splits or classes, or two folders are the same split.
        InputError: the images of a folder are not in class folders.
    """
    # Choose the folders with documented names. Pass over links to them, unlabelled test images and our own output.
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

    # Each split must have one folder, without images of another split and with folders that are clearly classes.
    splits: dict[str, tuple[Folder, ...]] = {}
    for name, folder in chosen.items():
        if SPLIT_FOLDERS[name] in splits:
            raise _UnclearError(partial(_explain_twice, root, chosen, SPLIT_FOLDERS[name]))
        splits[SPLIT_FOLDERS[name]] = (folder,)
    _check_apart(root, splits)
    _check_classes(root, [folder for (folder,) in splits.values()])

    # Folders of splits without images, and folders that may hold images but cannot be listed.
    empty = [name for name in root.shown if name in SPLIT_FOLDERS and name != "test" and name not in holders]
    for name, folder in root.shown.items():
        if folder.fault and name not in SPLIT_FOLDERS:
            passed_over.append(f"{name} cannot be listed ({folder.fault})")
    return Splits(splits, tuple(passed_over), tuple(describe_empty(root.shown[name]) for name in empty))


def _has_own_image(folder: Folder) -> bool:
    """Check whether a folder holds an image outside of folders that a Penstock command wrote."""
    if folder.is_output:
        return False
    return folder.has_image or any(_has_own_image(child) for child in folder.folders.values())


def _is_class_among_others(holders: Mapping[str, Folder], names: set[str]) -> bool:
    """Check whether the only folder named like a split is a class "train": it and the others hold images directly."""
    is_train = [name.casefold() for name in names] == ["train"]
    return is_train and len(holders) > 1 and all(folder.is_flat for folder in holders.values())


def _is_class_of_all(folders: list[Folder], name: str) -> bool:
    """Check whether there are several splits and each has a class of this name, with its images directly in it."""
    return len(folders) > 1 and all(name in each.holders and each.holders[name].is_flat for each in folders)


# With --split-map


def _apply_split_map(root: Folder, split_map: Pairs) -> Splits:
    """Return the splits that --split-map names, and splits with documented names that it does not name."""
    splits: dict[str, tuple[Folder, ...]] = {}
    for name, split in dict.fromkeys(split_map):
        splits[split] = (*splits.get(split, ()), _find_named(root, name))
    _check_apart(root, splits)

    # A folder with a documented name becomes a split if it can be read without a question.
    passed_over = []
    for folder in _find_leftovers(root, [folder for folders in splits.values() for folder in folders]):
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
        what = "holds no image" if folder else "is not a folder"
        raise InputError(f"{root.path / name}, which --split-map names, {what}: folders with images are {found}")
    check_loose(folder)
    return folder


def _check_apart(root: Folder, splits: Mapping[str, Iterable[Folder]]) -> None:
    """Check that no folder of a split is the same as, or inside of, another: its images would be read twice.

    Raises:
        InputError: one is.
    """
    owners: dict[tuple[int, int], Folder] = {}
    chosen = [folder for folders in splits.values() for folder in folders]
    for folder in chosen:
        if other := owners.get(folder.identity):
            pairs = _list_pairs(splits, [each for each in chosen if each is not folder])
            raise InputError(
                f"{folder.path} and {other.path} are the same folder: read it as one split, {_as_flag(pairs)}"
            )
        owners[folder.identity] = folder
    for folder in chosen:
        inside = [owners[each.identity] for each in folder.walk() if each is not folder and each.identity in owners]
        if inside:
            raise InputError(
                f"{inside[0].path} is inside {folder.path}: "
                "the folders that --split-map names must not contain each other"
            )


def _list_pairs(splits: Mapping[str, Iterable[Folder]], kept: list[Folder]) -> Pairs:
    named = [(folder, split) for split, folders in splits.items() for folder in folders]
    return tuple((folder.name or ".", split) for folder, split in named if any(folder is each for each in kept))


def _find_leftovers(folder: Folder, chosen: list[Folder]) -> Iterator[Folder]:
    """Yield the topmost folders with images that are not part of any split."""
    if any(folder is each for each in chosen):
        return
    for child in folder.holders.values():
        if any(each.name.startswith(f"{child.name}/") for each in chosen):
            yield from _find_leftovers(child, chosen)
        elif not any(child is each for each in chosen):
            yield child


def _find_complaint(root: Folder, folder: Folder, splits: Mapping[str, tuple[Folder, ...]]) -> str:
    """Return why a folder with a documented name cannot be a split besides those chosen; empty if it can."""
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
    """Return the split that a folder's documented name means; train for the source itself."""
    return SPLIT_FOLDERS.get(folder.base, "train") if folder.name else "train"


# Checks that the classes are clear


def _check_classes(root: Folder, folders: list[Folder]) -> None:
    """Check that the folders in these splits can only be classes.

    Raises:
        InputError: they may be splits, contain splits, or contain the classes; or a table next to them has the labels.
    """
    # The flag that makes these folders classes, for errors; it needs no test split, which is left out by default.
    classes = [holder for folder in folders for holder in folder.holders.values()]
    meant = [folder for folder in folders if _split_of(folder) != "test"] or folders
    classes_flag = _as_flag(tuple((folder.name or ".", _split_of(folder)) for folder in meant))

    # No image outside of a class, no table of labels, no folder that is named like a split.
    for folder in folders:
        check_loose(folder)
        if table := find_label_table(folder):
            raise InputError(f"{table}, or give {classes_flag} if the folders are the classes")
        names = {name for name in folder.holders if is_split_name(name) and not _is_class_of_all(folders, name)}
        if names and not _is_class_among_others(folder.holders, names):
            inner = [folder.holders[name] for name in sorted(names)]
            raise _UnclearError(partial(_explain_nested, root, inner, classes_flag))

    # No folder named like a split deeper in a class either.
    nested = [each for each in classes for each in each.walk() if each.holds_image and is_split_name(each.base)]
    nested = sorted(
        (each for each in nested if not any(each is holder for holder in classes)), key=lambda each: each.name
    )
    if nested:
        raise _UnclearError(partial(_explain_nested, root, nested, classes_flag))

    # The classes must not be a level deeper, nor have names such as `images`.
    _check_depth(root, folders, classes_flag)
    if all(is_generic(each.base) for each in classes):
        raise InputError(
            f"{_join(each.path for each in classes)} hold images, but their names are not those of classes: "
            f"sort the images into class folders (CLASS/IMAGE.jpg), or give {classes_flag} if they are classes"
        )


def _check_depth(root: Folder, folders: list[Folder], classes_flag: str) -> None:
    """Check that the classes are the folders directly in the splits, and not folders further down.

    Images directly in one of them prove it, and so does the same chain of folders (`images`) in each of them. Images in
    a folder `pictures` do not: it may be a class, or it may illustrate a dataset in the folder next to it.

    Raises:
        _UnclearError: the classes may be deeper.
    """
    classes = [holder for folder in folders for holder in folder.holders.values()]
    train = [folder for folder in folders if _split_of(folder) == "train"] or folders
    names = {name for folder in train for name in folder.holders}  # folders in a test split may not be classes
    known = [each for each in classes if each.base in names]
    if any(_is_plain_class(each) for each in known) or all(each.has_image for each in known):
        return
    chains = {_chain(each) for each in classes}
    if len({each.base for each in classes}) > 1 and len(chains) == 1 and None not in chains:
        return
    raise _UnclearError(partial(_explain_depth, root, folders, classes_flag))


def _is_plain_class(folder: Folder) -> bool:
    """Check whether a folder holds images directly, and has a name that can be a class's."""
    return folder.has_image and not is_generic(folder.base)


def _holders_without_images(folder: Folder) -> list[Folder]:
    """Return the folders in a folder that hold images only further down."""
    return [each for each in folder.holders.values() if not each.has_image]


def _chain(folder: Folder) -> tuple[str, ...] | None:
    """Return the names of the folders from a class to its images, such as ("images",); None if there are several."""
    names: list[str] = []
    while not folder.has_image:
        if len(folder.holders) != 1:
            return None
        ((name, folder),) = folder.holders.items()
        names.append(name)
    return tuple(names)


# Explanations: what can be done about folders that are unclear


def _explain_nested(root: Folder, nested: list[Folder], classes_flag: str) -> str:
    """Explain folders below the classes that are named like splits: the source is probably a folder too high."""
    shown = _join(each.path for each in nested)
    look = f"{shown} {'looks' if len(nested) == 1 else 'look'} like"
    tops = _find_datasets(root)
    if readable := [each for each in tops if _can_be_read(each)]:
        fix = " or ".join(f"--source {shlex.quote(str(each.path))}" for each in readable[:MOST_NAMED])
        return f"{look} splits in a folder below the source: give {fix}, or {classes_flag} if these are classes"
    if len(tops) == 1 and (pairs := _suggest_split_map(root, tops[0].holders)):
        fix = f"{_as_flag(pairs)} if they are splits, or {classes_flag} if they are classes"
        return f"{look} splits below the source: give {fix}"
    fix = f"move them out (SPLIT/CLASS/IMAGE.jpg), or give {classes_flag} if they are classes"
    return f"{look} splits among or below classes: {fix}"


def _explain_depth(root: Folder, folders: list[Folder], classes_flag: str) -> str:
    """Explain class folders that hold no image themselves: the classes may be a folder deeper."""
    # Name the folders that would be splits if the classes were a folder deeper.
    deep = [
        folder
        for folder in folders
        if _holders_without_images(folder) and not any(_is_plain_class(each) for each in folder.holders.values())
    ]
    pairs: list[tuple[str, str]] = []
    for folder in [each for each in folders if _split_of(each) != "test"] or folders:
        inner = _holders_without_images(folder) if any(folder is each for each in deep) else [folder]
        pairs += [(each.name, _split_of(folder)) for each in inner]

    # Suggest this reading if it works: as another source, or with --split-map.
    classes, deeper = _holders_without_images(deep[0]), tuple(pairs)
    first, fix = classes[0], ""
    if len(classes) == 1 and not folders[0].name and _can_be_read(first):
        fix = f"--source {shlex.quote(str(first.path))} if the folders in it are the classes, or "
    elif len(deeper) <= MOST_MAPPED and _can_apply(root, deeper):
        fix = f"{_as_flag(deeper)} if the folders in them are the classes, or "
    return (
        f"{_join(each.base for each in classes)} in {deep[0].path} hold no image, only folders "
        f"({_join(first.holders)}), so it is not clear which are the classes: "
        f"give {fix}{classes_flag} if {first.base} is a class"
    )


def _find_datasets(folder: Folder, depth: int = 0) -> list[Folder]:
    """Return the topmost folders below a source in which all folders with images are named like splits."""
    found = []
    for child in folder.holders.values():
        names = [name for name, each in child.holders.items() if is_split_name(name)]
        if names and len(names) == len(child.holders):
            found.append(child)
        elif depth < MAX_DEPTH and not names:
            found += _find_datasets(child, depth + 1)
    return found


def _explain_candidates(root: Folder, holders: Mapping[str, Folder]) -> str:
    """Explain folders that may be splits or classes, with the --split-map for either reading."""
    # Some --split-map works.
    flat = [folder for name, folder in holders.items() if folder.is_flat and is_split_name(name)]
    pairs, shown = _suggest_split_map(root, holders), _join(holders)
    if pairs:
        left_out = [name for name in holders if name not in dict(pairs)]
        leaving = f", which leaves out {_join(left_out)}" if left_out else ""
        unlabelled = f" ({_join(each.base for each in flat)}: images not in class folders)" if flat else ""
        start = f"{root.path} has folders {shown}{unlabelled}, expected train and validation (or val)"
        return f"{start}: give {_as_flag(pairs)} if they are splits{leaving}, or {AS_CLASSES} if they are classes"

    # The splits are further down, or their images have no labels.
    if tops := _find_datasets(root):
        nested = [folder for top in tops for name, folder in top.holders.items() if is_split_name(name)]
        return _explain_nested(root, nested, AS_CLASSES)
    if flat:
        labelled = describe_flat(flat[0], flat[0].find_images())
        return f"{labelled}, or give {AS_CLASSES} if {shown} are classes"
    return f"{root.path} has folders {shown}: name the splits with --split-map, or give {AS_CLASSES} if all are classes"


def _suggest_split_map(root: Folder, holders: Mapping[str, Folder]) -> Pairs:
    """Return a --split-map that can be read, or an empty one.

    It has all folders that may be parts of a split, or only the first of each split if they share classes.
    """
    able = [name for name, folder in holders.items() if not folder.is_flat and guess_split(name)][:MOST_MAPPED]
    able.sort(key=lambda name: (name not in SPLIT_FOLDERS, name))
    pieces = tuple((holders[name].name, guess_split(name) or "") for name in able)
    first = {split: name for name, split in reversed(pieces)}
    by_name = {folder.name: folder for folder in holders.values()}
    pairs = pieces if _are_disjoint(by_name, pieces) else tuple((name, split) for split, name in first.items())
    has_classes = any(_has_plain_class(by_name[name]) for name, _ in pairs)
    return pairs if pairs and _can_apply(root, pairs, is_strict=not has_classes) else ()


def _has_plain_class(folder: Folder) -> bool:
    """Check whether a folder in it is certainly a class: it holds images directly and has no other use by its name."""
    plain = [name for name, each in folder.holders.items() if each.has_image]
    return any(not is_split_name(name) and not is_generic(name) for name in plain)


def _are_disjoint(holders: Mapping[str, Folder], pairs: Pairs) -> bool:
    """Check whether the folders that make one split have no class in common."""
    seen: set[tuple[str, str]] = set()
    for name, split in pairs:
        classes = {(split, each) for each in holders[name].holders}
        if classes & seen:
            return False
        seen |= classes
    return True


def _explain_twice(root: Folder, chosen: Mapping[str, Folder], split: str) -> str:
    """Explain several folders with documented names of the same split."""
    twice = [name for name in chosen if SPLIT_FOLDERS[name] == split]
    rest = tuple((name, SPLIT_FOLDERS[name]) for name in chosen if name not in twice)
    one, both = (*rest, (twice[0], split)), (*rest, *((name, split) for name in twice))
    ways = [_as_flag(pairs) for pairs in (one, both) if _can_apply(root, pairs)]
    named = " and ".join(str(chosen[name].path) for name in twice)
    return f"{named} are both the {split} split: keep one of them, or give {' or '.join(ways)}"


def _can_apply(root: Folder, pairs: Pairs, is_strict: bool = True) -> bool:
    """Check whether a --split-map can be read; if strict, also whether its classes are clear."""
    try:
        splits = _apply_split_map(root, pairs)
        if is_strict:
            _check_classes(root, [folder for folders in splits.folders.values() for folder in folders])
    except (InputError, _UnclearError):
        return False
    return True


def _can_be_read(folder: Folder) -> bool:
    """Check whether a folder could be read as the source."""
    try:
        return bool(_decide(folder).folders)
    except (InputError, _UnclearError):
        return False


def relative_to(root: Folder, line: str) -> str:
    """Return a line with paths relative to the source, for the manifest, which has no absolute paths."""
    return line.replace(f"{root.path}/", "")


def _as_flag(pairs: Pairs) -> str:
    return "--split-map " + " ".join(shlex.quote(f"{split}={name}") for name, split in pairs)


def _join(names: Iterable[str | Path]) -> str:
    listed = list(map(str, names))
    more = ", ..." if len(listed) > MOST_NAMED else ""
    return ", ".join(listed[:MOST_NAMED]) + more
