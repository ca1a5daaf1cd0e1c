"""Which source a user's `--source` means."""

import os
import re
from pathlib import Path

from prep.dataset import InputError
from prep.image_folder import open_image_folder
from prep.imagenet_layouts import find_kaggle, is_tiny_imagenet, open_kaggle, open_tiny_imagenet
from prep.saved_dataset import is_saved_dataset, open_saved_dataset
from prep.source import Reading, Source

HUB_ID = r"\w[\w.-]*(/[\w.-]+)?"


def open_source(source: str, wanted: Reading | None = None) -> Source:
    """Open a folder of images or of a saved dataset, or a dataset on the Hugging Face hub.

    Args:
        wanted: how to read it, where more than one reading is possible.

    Raises:
        InputError: nothing of the kind is there, or it cannot be reached or used.
    """
    path, wanted = Path(source), wanted or Reading()
    if path.is_dir():
        return _open_folder(path, wanted)
    if path.exists():
        raise InputError(f"{source} is a file: --source takes a folder or a hub id such as ILSVRC/imagenet-1k")
    if not re.fullmatch(HUB_ID, source):
        raise InputError(f"{source} does not exist: --source takes a folder or a hub id such as ILSVRC/imagenet-1k")
    return _open_dataset(source, wanted)


def _open_folder(folder: Path, wanted: Reading) -> Source:
    """What a folder holds: what names itself by a file of its own first, any tree of folders last."""
    if is_saved_dataset(folder):
        return open_saved_dataset(folder, wanted)
    if is_tiny_imagenet(folder):
        return open_tiny_imagenet(folder)
    if cls_loc := find_kaggle(folder):
        return open_kaggle(cls_loc)
    if _holds_parquet(folder):
        return _open_dataset(str(folder.resolve()), wanted)
    return open_image_folder(folder, wanted)


def _holds_parquet(folder: Path) -> bool:
    return any(name.endswith(".parquet") for _, _, names in os.walk(folder) for name in names)


def _open_dataset(source: str, wanted: Reading) -> Source:
    from prep.hugging_face import open_dataset  # noqa: PLC0415 (`datasets` takes 1.5 s to import)

    return open_dataset(source, wanted)
