"""Which images are measured on; without a prepared dataset, copies of two photographs, which say that they are that."""

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
from train.dist import from_rank_0

PREPARE = Path(__file__).resolve().parent.parent.parent / "prep" / "shard.py"
IMAGENET = Path("data/imagenet")
PHOTOS, PHOTOS_NAME, COPIES = ("china.jpg", "flower.jpg"), "two sample photos of scikit-learn, copied", 128


@contextmanager
def open_split(folder: Path | None, world: World) -> Iterator[Split]:
    """The train split to measure on; without one, photos prepared for as long as it is needed."""
    folder = find_data(folder)
    if folder is not None:
        yield Split(folder, "train")
        return
    if world.rank != 0:
        yield Split(from_rank_0(None, world), "train")
        return
    with tempfile.TemporaryDirectory(prefix="penstock-") as temporary:
        yield Split(from_rank_0(str(prepare_photos(Path(temporary))), world), "train")


def find_data(folder: Path | None) -> Path | None:
    """The dataset asked for, or ImageNet in its usual place; None: there is none."""
    return IMAGENET if folder is None and (IMAGENET / "train" / "manifest.json").exists() else folder


def prepare_photos(folder: Path) -> Path:
    """Copies of scikit-learn's two sample photos as shards, through the real command."""
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
        raise InputError(f"the sample photos could not be prepared: {' '.join(done.stderr.split())[-300:]}")
    return out


def describe_dataset(split: Split, name: str | None = None) -> dict[str, Any]:
    """What was read; `name` in place of the source's own."""
    source = split.manifest.source.name
    return {
        "name": name or source,
        "label": label_source(source),
        "num_images": len(split),
        "mean_bytes": round(float(split.column("size").mean())),
    }
