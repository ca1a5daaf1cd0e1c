"""Random folders that may be splits, classes or neither: a run reads each image as it was meant, or stops.

A dataset is drawn first (each image with its split and class), then written in a layout that may hide both. Whatever
is read with status 0 must be the dataset that was drawn. `PENSTOCK_SOAK_LAYOUTS` sets the number of layouts.
"""

import os
import re
import shlex
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from prep.errors import InputError
from prep.resolve import open_source
from prep.source import Reading, Source

NUM_LAYOUTS = int(os.environ.get("PENSTOCK_SOAK_LAYOUTS", "400"))
ARBITRARY = NUM_LAYOUTS > 400  # else the same layouts each time


def _encode_table() -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"features": [1.0, 2.0]}), sink)
    return sink.getvalue().to_pybytes()


PARQUET = _encode_table()  # without images
FAST = next((folder for folder in ("/dev/shm",) if os.access(folder, os.W_OK)), None)  # thousands of small files

CLASSES = ["cat", "dog", "n01440764", "bird 1", "a[1]*", "Zoë", "car.old", "0", "bullet_train"]
ODD_CLASSES = ["train", "Test", "val", "images"]
DOCUMENTED = {"train": ["train"], "validation": ["val", "valid", "validation"], "test": ["test"]}
LOOKALIKES = {
    "train": ["Train", "TRAIN", "training", "train.X1", "train_1", "imagenet-train", "train_images", "TrainSet", "trn"],
    "validation": ["Val", "Validation", "val.X", "dev", "eval", "val2017", "ILSVRC2012_img_val", "valid_set", "VALID"],
    "test": ["Test", "testing", "test_images", "test.X1", "TEST"],
}
# The places of a class's images in its folder.
DEPTHS = ["direct", "direct", "images", "mixed", "parts"]
# Files next to the images that are not images of the dataset.
STRAYS = [
    "README.md",
    ".DS_Store",
    "Thumbs.db",
    "features.parquet",
    "backup.tar",
    "labels.csv",
    "__MACOSX/train/cat/._1.jpg",
    ".git/objects/picture.jpg",
    ".ipynb_checkpoints/1-checkpoint.jpg",
    "@eaDir/1.jpg/thumb.jpg",
    "empty/",
    "notes/readme.txt",
    "shards/train/manifest.json",
    "runs/demo/curves.png",
    "pictures/logo.png",
    "extra/cat/1.jpg",
    "Train/dog/1.jpg",
    "test/1.jpg",
    "val/1.jpg",
]


PLACES = ["top", "root", "split", "class"]
SOURCE = r"below the source: give (--source (?:'[^']*'|[^\s,]+))"


@dataclass(frozen=True)
class Layout:
    """A dataset {split: {class: number of images}} and how it is laid out in folders."""

    splits: dict[str, dict[str, int]]
    folders: dict[str, list[str]]  # split -> the folders that its classes are spread over; [""] for a lone train split
    depths: list[str]
    wrappers: list[str] = field(default_factory=list)  # folders around it all
    strays: list[tuple[str, str]] = field(default_factory=list)  # (where: top, root, split or class; what)
    is_transposed: bool = False  # CLASS/SPLIT/IMAGE

    def write(self, top: Path) -> dict[bytes, tuple[str, str]]:
        """Write the images, each with other bytes; return {content: (split, class)}."""
        meaning: dict[bytes, tuple[str, str]] = {}
        root = top.joinpath(*self.wrappers)
        for split, classes in self.splits.items():
            for number, (name, num_images) in enumerate(sorted(classes.items())):
                folder = self.folders[split][number % len(self.folders[split])]
                for image in range(num_images):
                    inner = self._inner(number, image)
                    parts = (name, folder) if self.is_transposed else (folder, name)
                    content = f"{split}/{name}/{image}".encode()
                    meaning[content] = (split, name)
                    _write(root.joinpath(*parts, inner, f"{image}.jpg"), content)
        for where, what in self.strays:
            split = root / next(iter(self.folders.values()))[0]
            first = min(next(iter(self.splits.values())))
            place = {"top": top, "root": root, "split": split, "class": split / first}[where]
            if not (place / what).exists() and not (what.endswith("/") and (place / what.rstrip("/")).exists()):
                _write(place / what, PARQUET if what.endswith(".parquet") else b"stray")
        return meaning

    def _inner(self, class_number: int, image: int) -> str:
        depth = self.depths[class_number % len(self.depths)]
        choices = {"direct": [""], "images": ["images"], "mixed": ["", "more/deep"], "parts": ["left", "right"]}[depth]
        return choices[image % len(choices)]


def _write(path: Path, content: bytes) -> None:
    if str(path).endswith("/") or (content == b"stray" and path.name == "empty"):
        path.mkdir(parents=True, exist_ok=True)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    if path.name == "manifest.json":
        (path.parent / "samples.arrow").write_bytes(b"")
    if path.name == "curves.png":
        for name in ("recipe.json", "metrics.jsonl"):
            (path.parent / name).write_bytes(b"")


def _seldom(strategy: st.SearchStrategy[Any], otherwise: object) -> st.SearchStrategy[Any]:
    """Draw a value that seldom differs from the usual one, so that most layouts have one or two oddities."""
    return st.integers(0, 5).flatmap(lambda number: st.just(otherwise) if number else strategy)


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    names = draw(st.lists(st.sampled_from(CLASSES), min_size=1, max_size=3, unique=True))
    names += draw(_seldom(st.sampled_from(ODD_CLASSES).map(lambda name: [name]), []))
    splits = draw(st.sampled_from([["train"], ["train", "validation"], ["train", "validation", "test"]]))
    is_lone = splits == ["train"] and draw(st.booleans())
    folders = {}
    for split in splits:
        known = draw(_seldom(st.just(LOOKALIKES[split]), DOCUMENTED[split]))
        num_pieces = draw(_seldom(st.just(2), 1))
        folders[split] = draw(st.lists(st.sampled_from(known), min_size=1, max_size=num_pieces, unique=True))
    counts = {split: {name: draw(st.integers(1, 3)) for name in names} for split in splits}
    return Layout(
        counts,
        {"train": [""]} if is_lone else folders,
        draw(st.lists(st.sampled_from(DEPTHS), min_size=1, max_size=2)),
        draw(_seldom(st.lists(st.sampled_from(["imagenette2", "data", "train", "ILSVRC"]), max_size=2), [])),
        draw(
            st.lists(st.tuples(st.sampled_from(["top", "root", "split", "class"]), st.sampled_from(STRAYS)), max_size=2)
        ),
        draw(_seldom(st.just(not is_lone), False)),
    )


def _read(source: Source) -> dict[bytes, tuple[str, str]]:
    return {
        bytes(item.data): (split, source.class_names[item.label])
        for split, num_rows in source.num_rows.items()
        for item in source.rows(split, 0, num_rows)
        if not item.fault
    }


def _judge(layout: Layout, meaning: dict[bytes, tuple[str, str]], source: Source) -> None:
    """Check that every image is read as it was drawn, and strays only if they are in a class of their split."""
    found = _read(source)
    read = {content: place for content, place in found.items() if content in meaning}
    assert read.items() <= meaning.items(), layout
    lost = {meaning[content][0] for content in meaning.keys() - read.keys()}
    told = " ".join(line for split in source.num_rows for line in source.reading(split).get("passed_over", ()))
    assert all(split != "train" and any(name in told for name in layout.folders[split]) for split in lost), (lost, told)


@settings(
    max_examples=NUM_LAYOUTS,
    deadline=None,
    derandomize=not ARBITRARY,
    database=None,
    phases=[Phase.explicit, Phase.generate, Phase.shrink],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(layouts())
def test_a_folder_is_read_as_it_is_meant_or_refused_in_one_line(layout: Layout) -> None:
    top = Path(tempfile.mkdtemp(prefix="layout", dir=FAST))
    try:
        meaning = layout.write(top)
        try:
            source = open_source(str(top))
        except InputError as refusal:
            line = str(refusal)
            assert line and "\n" not in line and len(line) < 1500
            _follow_advice(layout, meaning, line, top)
        else:
            _judge(layout, meaning, source)
    finally:
        shutil.rmtree(top)


def _follow_advice(layout: Layout, meaning: dict[bytes, tuple[str, str]], line: str, top: Path) -> None:
    """Follow a refusal's advice for the true meaning of the folders: the dataset is read or refused again."""
    are_odd = set(layout.splits["train"]) <= {"train", "Test", "val", "images"}
    if are_odd or layout.is_transposed or any("/" in what and what.endswith("g") for _, what in layout.strays):
        return  # the advice is for more likely layouts
    if layout.folders == {"train": [""]}:
        pattern = SOURCE if layout.wrappers else r"(--split-map train=\.)"
    else:
        pattern = rf"give (--split-map .+?) if they are splits|{SOURCE}"
    advice = re.search(pattern, line)
    if advice is None:
        return
    flag, *values = shlex.split(next(filter(None, advice.groups())))
    try:
        if flag == "--source":
            source = open_source(values[0])
        else:
            pairs = tuple((name, split) for split, _, name in (value.partition("=") for value in values))
            source = open_source(str(top), Reading(split_map=pairs))
    except InputError as refusal:
        assert "\n" not in str(refusal)
    else:
        _judge(layout, meaning, source)
