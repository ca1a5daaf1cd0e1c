"""Names of folders: which of them are splits by their documented name, and which only look like splits."""

import re

SPLIT_FOLDERS = {
    "train": "train",
    "validation": "validation",
    "val": "validation",
    "valid": "validation",
    "test": "test",
}


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Words that name a split, in any case and with anything around them, and the split that is probably meant.
SPLIT_WORDS = {
    **dict.fromkeys(_names("train training trn trainset trainingset traindata trainval"), "train"),
    **dict.fromkeys(_names("val vals valid validation validate validating valset validset valdata"), "validation"),
    **dict.fromkeys(_names("validationset dev devel devset eval evaluation evalset holdout minival"), "validation"),
    **dict.fromkeys(_names("test testing tests tst testset testdata"), "test"),
}
# Words that may stand next to them without making the name that of a class: train_images, test-set, ILSVRC2012_img_val.
FILLERS = _names(
    "set sets data dataset image images img imgs picture pictures pic pics photo photos jpeg jpegs jpg png split splits"
    " folder folders dir part parts piece pieces shard chunk subset sample samples full small mini tiny big large clean"
    " raw orig original final new old extra ilsvrc imagenet cls loc clsloc my the labeled labelled cropped resized"
    " unpacked out all copy backup"
)
# Folders that hold a dataset's images whatever they show, such as YOLO's and Pascal VOC's.
GENERIC = _names(
    "image images img imgs jpegimages jpeg jpegs jpg jpgs png pngs photo photos picture pictures pic pics data dataset"
    " all files frames rgb raw depth mask masks label labels annotation annotations segmentationclass"
    " segmentationobject gt groundtruth thumbnails thumbs"
)


def _words(name: str) -> list[str]:
    """The words of a name in lower case: imagenetTrain_2 has imagenet and train."""
    return re.findall(r"[^\W\d_]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).casefold())


def guess_split(name: str) -> str | None:
    """The split that a folder of this name may be, if any word of the name is one of a split's."""
    return next((SPLIT_WORDS[word] for word in _words(name) if word in SPLIT_WORDS), None)


def is_split_name(name: str) -> bool:
    """Whether a name says nothing but that the folder is a split: train.X1, Training_Set, val2017; not bullet_train."""
    words = _words(name)
    return guess_split(name) is not None and all(
        word in SPLIT_WORDS or word in FILLERS or len(word) == 1 for word in words
    )


def is_generic(name: str) -> bool:
    """Whether a name says of a folder that it holds images, and not which."""
    return "".join(_words(name)) in GENERIC
