"""Example pictures for the app: photographs of classes that the model knows, drawn pictures, or the user's own.

The photographs are in photographs/, with their authors and licences in LICENSES.txt. serve/app/drawings.py draws the
others.
"""

import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path

from PIL import ExifTags, Image

from prep.errors import InputError
from serve.app.drawings import draw_examples
from serve.app.uploads import open_photo

PHOTOGRAPHS, LICENSES = Path(__file__).resolve().parent / "photographs", "LICENSES.txt"
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")
# Photograph -> the classes that it shows: WordNet numbers of ImageNet, and names.
SUBJECTS = {
    "cat.jpg": ("n02123045", "n02123159", "n02124075", "tabby", "tabby cat", "tiger cat", "egyptian cat", "cat"),
    "cup_of_coffee.jpg": ("n07920052", "espresso", "coffee", "cup of coffee"),
    "dog.jpg": ("n02106662", "german shepherd", "german shepherd dog", "dog"),
    "hens.jpg": ("n01514859", "hen", "chicken"),
}


def choose_examples(folder: Path, class_names: Sequence[str] | None = None) -> list[Path]:
    """Write the example pictures for a model into a folder, and return their paths, sorted by name.

    They are the photographs whose subject is one of the classes, with LICENSES.txt. If no photograph fits, they are
    drawn: digits for a model of digits, four objects for any other.

    Args:
        class_names: classes of the model, as names (`hen`, `tabby, tabby cat`) or WordNet numbers; None: unknown.
    """
    known = {word for name in class_names or () for word in _list_words(name)}
    fitting = [name for name, classes in SUBJECTS.items() if known.intersection(classes)]
    if not fitting:
        return sorted(draw_examples(folder, class_names))
    return [Path(shutil.copyfile(PHOTOGRAPHS / name, folder / name)) for name in (*fitting, LICENSES)][:-1]


def _list_words(name: str) -> list[str]:
    """Return the synonyms in a class name: `Tabby, tabby_cat` -> `tabby`, `tabby cat`."""
    return [word.strip().lower().replace("_", " ") for word in name.split(",")]


def list_examples(folder: Path) -> list[Path]:
    """Return the pictures in a folder, sorted by name; hidden files are left out.

    Raises:
        InputError: there are none.
    """
    found = (
        sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and _is_visible_file(path))
        if folder.is_dir()
        else []
    )
    if not found:
        raise InputError(f"{folder} holds no pictures to try: leave --examples out, and some are chosen")
    return found


def _is_visible_file(path: Path) -> bool:
    """Return True for a file whose name does not start with a dot; macOS writes `._photo.jpg` next to `photo.jpg`."""
    return path.is_file() and not path.name.startswith(".")


def copy_examples(source: Path, folder: Path) -> list[Path]:
    """Copy the user's pictures for publication, with their LICENSE files, and return the paths of the copies.

    Raises:
        InputError: a file is not a picture that the app can open, or records where it was taken.
    """
    pictures = list_examples(source)
    for path in pictures:
        try:
            open_photo(path)
        except InputError as error:
            raise InputError(f"--examples: {path}: {error}") from error
        if _has_location(path):
            raise InputError(
                f"--examples: {path} records where it was taken (GPS), which would be published: "
                "remove its EXIF data first"
            )
    licences = [path for path in source.iterdir() if path.stem.lower().startswith("licen") and _is_visible_file(path)]
    for path in {*pictures, *licences}:
        shutil.copyfile(path, folder / path.name)
    return [folder / path.name for path in pictures]


def _has_location(path: Path) -> bool:
    """Return True if a picture's EXIF data have a GPS position."""
    with warnings.catch_warnings(), Image.open(path) as opened:
        warnings.simplefilter("ignore")  # Pillow warns of large sizes and damaged EXIF
        return bool(opened.getexif().get_ifd(ExifTags.IFD.GPSInfo))
