"""The images to measure on: a prepared dataset, or copies of two sample photographs, which the record then names."""

import importlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from record import label_source

from loaders import Split, World
from prep.errors import InputError
from train.dist import broadcast_from_rank0

PREPARE = Path(__file__).resolve().parent.parent.parent / "prep" / "shard.py"
IMAGENET = Path("data/imagenet")
PHOTOS, PHOTOS_NAME, COPIES = ("china.jpg", "flower.jpg"), "two sample photos of scikit-learn, copied", 128


@contextmanager
def open_split(folder: Path | None, world: World) -> Iterator[Split]:
    """Yield the train split to measure on; without a dataset, sample photos that are prepared now and deleted later."""
    folder = find_data(folder)
    if folder is not None:
        yield Split(folder, "train")
        return
    if world.rank != 0:
        # Rank 0 prepares the photos and sends their folder.
        yield Split(broadcast_from_rank0(None, world), "train")
        return
    with tempfile.TemporaryDirectory(prefix="penstock-") as temporary:
        yield Split(broadcast_from_rank0(str(prepare_photos(Path(temporary))), world), "train")


def find_data(folder: Path | None) -> Path | None:
    """Return the requested dataset, or ImageNet in its default folder; None if there is neither."""
    return IMAGENET if folder is None and (IMAGENET / "train" / "manifest.json").exists() else folder


def prepare_photos(folder: Path) -> Path:
    """Prepare copies of scikit-learn's two sample photos with the real command; return the folder of the shards."""
    images = Path(str(importlib.import_module("sklearn.datasets").__file__)).parent / "images"
    source, out = folder / "source", folder / "shards"
    for photo in PHOTOS:
        name = Path(photo).stem
        (source / "train" / name).mkdir(parents=True)
        for number in range(COPIES):
            shutil.copyfile(images / photo, source / "train" / name / f"{name}_{number:03d}.jpg")
    command = [sys.executable, str(PREPARE), "--source", str(source), "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = " ".join(done.stderr.split())[-300:]
        raise InputError(f"the sample photos could not be prepared ({reason}): pass --data DIR to use a dataset")
    return out


def describe_dataset(split: Split, name: str | None = None) -> dict[str, Any]:
    """Return a split's description for a record, with `name` instead of the source's name if it is given."""
    source = split.manifest.source.name
    return {
        "name": name or source,
        "label": label_source(source),
        "num_images": len(split),
        "mean_bytes": round(float(split.column("size").mean())),
    }
