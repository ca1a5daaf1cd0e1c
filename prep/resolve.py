"""Which source a user's `--source` means."""

import re
from pathlib import Path

from prep.dataset import InputError
from prep.image_folder import open_image_folder
from prep.source import Source


def open_source(source: str) -> Source:
    """A folder with parquet files, a folder of class folders, or a dataset on the Hugging Face hub.

    Raises:
        InputError: nothing of the kind is there, or it cannot be reached or used.
    """
    folder = Path(source)
    if folder.is_dir() and not next(folder.rglob("*.parquet"), None):
        return open_image_folder(folder)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{source} is a file: --source takes a folder or a hub id such as ILSVRC/imagenet-1k")
    if not folder.exists() and not re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", source):
        raise InputError(f"{source} does not exist: --source takes a folder or a hub id such as ILSVRC/imagenet-1k")
    # Workers import the command anew, and `datasets` alone takes 1.5 s to import.
    from prep.hugging_face import open_dataset  # noqa: PLC0415

    return open_dataset(str(folder.resolve()) if folder.exists() else source)
