"""Images whose labels are not in the names of folders: what to say of them, and where their labels may be instead."""

import csv
import json
import shlex
from pathlib import Path

from prep.folder_tree import Folder

# What Hugging Face's imagefolder reads: a table whose column file_name names images next to it.
TABLES = ("metadata.csv", "metadata.jsonl")
LABEL_COLUMNS = ("label", "labels", "class", "category", "target", "fine_label")
LISTS = frozenset([".csv", ".tsv", ".txt", ".json", ".jsonl"])
MOST_LISTS = 3


def describe_flat(folder: Folder, images: list[str]) -> str:
    """One line for a folder that holds images and no class folders: they have no labels."""
    if table := find_label_table(folder):
        return table
    lists = sorted(name for name in folder.files if Path(name).suffix.lower() in LISTS)[:MOST_LISTS]
    hint = f" as {' or '.join(lists)} may say" if lists else ""
    first = images[0] if images else "a hidden image"
    return (
        f"{folder.path} holds images in no class folder ({first}), so they have no labels: "
        f"move each into the folder of its class (CLASS/IMAGE.jpg){hint}"
    )


def find_label_table(folder: Folder) -> str:
    """One line on how to read a folder whose images a table of Hugging Face's imagefolder describes, else empty."""
    for place in (folder, *folder.shown.values()):
        for name in TABLES:
            columns = _read_columns(place.path / name) if name in place.files else []
            if "file_name" in columns:
                return _explain_table(folder.path, place.path / name, columns)
    return ""


def _explain_table(folder: Path, table: Path, columns: list[str]) -> str:
    start = f"{table} describes the images by the columns {', '.join(columns)}"
    label = next((name for name in LABEL_COLUMNS if name in columns), None)
    if label is None:
        return f"{start}, none of which is called label: sort the images into class folders (CLASS/IMAGE.jpg)"
    saved = folder.absolute().with_name(f"{folder.absolute().name}-saved")
    code = (
        f"import datasets; datasets.load_dataset('imagefolder', data_dir={str(folder)!r})"
        f".class_encode_column({label!r}).save_to_disk({str(saved)!r})"
    )
    return f"{start}: run python -c {shlex.quote(code)} and give --source {shlex.quote(str(saved))}"


def _read_columns(path: Path) -> list[str]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            if path.suffix == ".csv":
                return next(csv.reader(file), [])
            first = json.loads(file.readline() or "{}")
            return list(first) if isinstance(first, dict) else []
    except (OSError, ValueError, csv.Error):
        return []
