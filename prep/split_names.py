"""Names of splits: which names are documented, which only look like a split, and what each split is prepared as.

Everything here is a pure function of names. `prep/folder_splits.py` and `prep/split_files.py` apply it to folders and
to files.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from prep.errors import InputError

# Documented names of folders, and the split that each is prepared as.
SPLIT_FOLDERS = {
    "train": "train",
    "validation": "validation",
    "val": "validation",
    "valid": "validation",
    "test": "test",
}
# Names of splits in Hugging Face datasets, in any case, and the documented name of each.
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


def _words_of(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Words in folder names, in any case and next to other words, and the split that is probably meant.
SPLIT_WORDS = {
    **dict.fromkeys(_words_of("train training trn trainset trainingset traindata trainval"), "train"),
    **dict.fromkeys(_words_of("val vals valid validation validate validating valset validset valdata"), "validation"),
    **dict.fromkeys(_words_of("validationset dev devel devset eval evaluation evalset holdout minival"), "validation"),
    **dict.fromkeys(_words_of("test testing tests tst testset testdata"), "test"),
}
# Words that may be next to them in the name of a split: train_images, test-set, ILSVRC2012_img_val. Any other word
# makes it the name of a class: bullet_train.
FILLERS = _words_of(
    "set sets data dataset image images img imgs picture pictures pic pics photo photos jpeg jpegs jpg png split splits"
    " folder folders dir part parts piece pieces shard chunk subset sample samples full small mini tiny big large clean"
    " raw orig original final new old extra ilsvrc imagenet cls loc clsloc my the labeled labelled cropped resized"
    " unpacked out all copy backup"
)
# Names of folders that hold a dataset's images of any class, such as YOLO's and Pascal VOC's.
GENERIC = _words_of(
    "image images img imgs jpegimages jpeg jpegs jpg jpgs png pngs photo photos picture pictures pic pics data dataset"
    " all files frames rgb raw depth mask masks label labels annotation annotations segmentationclass"
    " segmentationobject gt groundtruth thumbnails thumbs"
)


# Names of folders


def _words(name: str) -> list[str]:
    """Return the words of a name in lower case: imagenetTrain_2 has imagenet and train."""
    return re.findall(r"[^\W\d_]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).casefold())


def guess_split(name: str) -> str | None:
    """Return the split that a folder may be because of a word in its name, or None if it has no such word."""
    return next((SPLIT_WORDS[word] for word in _words(name) if word in SPLIT_WORDS), None)


def is_split_name(name: str) -> bool:
    """Check whether a name means only a split, such as train.X1, Training_Set and val2017, but not bullet_train."""
    words = _words(name)
    return guess_split(name) is not None and all(
        word in SPLIT_WORDS or word in FILLERS or len(word) == 1 for word in words
    )


def is_generic(name: str) -> bool:
    """Check whether a folder's name means only that it holds images, of any class."""
    return "".join(_words(name)) in GENERIC


# Names of splits


@dataclass(frozen=True)
class SplitNames:
    """The split that each split of a source is prepared as."""

    prepared: dict[str, str]  # name at the source -> split
    problems: dict[str, str] = field(default_factory=dict)  # split -> why the user has to choose first
    alternatives: dict[str, list[str]] = field(default_factory=dict)  # split -> others that it could have been

    def recorded_map(self, split: str) -> dict[str, str]:
        """Return {name at the source: split} for the manifest, without names that are documented ones already."""
        return {
            name: split
            for name, prepared in self.prepared.items()
            if prepared == split and (name != split or canonical_split(name) != name)
        }


def canonical_split(name: str) -> str:
    """Return the documented name for a split called val, valid, dev, Train and so on; other names unchanged."""
    return SYNONYMS.get(name.lower(), name)


def name_splits(source: str, names: Sequence[str], split_map: Iterable[tuple[str, str]]) -> SplitNames:
    """Decide what each split of a source is prepared as.

    `split_map` decides first. Among the other splits, a name of SYNONYMS becomes the documented name if that is free.

    Raises:
        InputError: a split of `split_map` does not exist or occurs twice.
    """
    # The splits that the user named.
    chosen: dict[str, str] = {}
    for name, split in split_map:
        if name not in names:
            raise InputError(f"{source} has no split {name} for --split-map {split}={name}: it has {', '.join(names)}")
        if name in chosen or split in chosen.values():
            raise InputError(f"--split-map names {name} or {split} twice: give each split one name")
        chosen[name] = split

    # The others. Two names for the same documented split, such as val and dev, are a problem of both.
    rest = [name for name in names if name not in chosen]
    prepared, problems = dict(chosen), {}
    for name in rest:
        split = canonical_split(name)
        rivals = [other for other in rest if canonical_split(other) == split]
        is_taken = split in chosen.values() or split in rest
        if name in chosen.values():
            continue  # the user gave this name to another split, and no name to this one
        prepared[name] = split if len(rivals) == 1 and not is_taken else name
        if len(rivals) > 1 and not is_taken:
            problems[name] = (
                f"{source} has splits {', '.join(rivals)}, each of which could be {split}: "
                f"choose with --split-map {split}={rivals[0]}, or leave them out with --splits"
            )

    # What the manifest mentions besides: other splits with the same documented name.
    alternatives = {
        split: [other for other in names if other != name and canonical_split(other) == split]
        for name, split in prepared.items()
    }
    ordered = {name: prepared[name] for name in names if name in prepared}
    return SplitNames(ordered, problems, {split: others for split, others in alternatives.items() if others})
