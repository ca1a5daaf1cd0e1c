"""The readers of the format that must keep working: webdataset, DALI's, timm's and datasets, on prepared digits."""

import gc
import io
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from helpers.datasets import prepare_folder
from helpers.hostile import photo
from helpers.restarts import needs_transcoder
from PIL import Image
from timm.data.dataset_factory import create_dataset
from webdataset.compat import WebDataset

from prep.dataset import Options, Split

DALI_BATCH = 64

# webdataset leaves closing its tars to the garbage collector, which says so.
pytestmark = [
    pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:Exception ignored in. <_io.FileIO:pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(autouse=True)
def _collect_garbage() -> Iterator[None]:
    """Let those warnings come in this module, where they are known."""
    yield
    gc.collect()


@pytest.fixture(scope="module")
def source_rows(digits_source: Path) -> list[tuple[bytes, int]]:
    """The source, read by pyarrow alone: (JPEG, label) of each training image, in the source's order."""
    table = pq.read_table(digits_source / "data" / "train-00000-of-00001.parquet")
    return [(row["image"]["bytes"], row["label"]) for row in table.to_pylist()]


def test_webdataset_reads_every_image_and_label_in_order(digits: Path, source_rows: list[tuple[bytes, int]]) -> None:
    urls = [str(path) for path in sorted((digits / "train").glob("*.tar"))]
    samples = list(WebDataset(urls, shardshuffle=False))
    assert [(sample["jpg"], int(sample["cls"])) for sample in samples] == source_rows
    assert [sample["__key__"] for sample in samples] == Split(digits, "train").samples.column("key").to_pylist()


def test_dali_reads_every_image_and_label_in_order_by_our_index(
    digits: Path, source_rows: list[tuple[bytes, int]]
) -> None:
    assert list(_read_with_dali(digits / "train")) == source_rows


def _read_with_dali(folder: Path) -> Iterator[tuple[bytes, int]]:
    from nvidia.dali import fn  # noqa: PLC0415 - a second that only this test needs to wait
    from nvidia.dali.pipeline import Pipeline  # noqa: PLC0415

    tars = sorted(folder.glob("*.tar"))
    pipe = Pipeline(batch_size=DALI_BATCH, num_threads=2)
    with pipe:
        outputs: Any = fn.readers.webdataset(
            paths=[str(path) for path in tars],
            index_paths=[str(path.with_suffix(".idx")) for path in tars],
            ext=["jpg", "cls"],
            pad_last_batch=True,
            missing_component_behavior="error",
            name="reader",
        )
        pipe.set_outputs(*outputs)
    pipe.build()
    remaining: Any = pipe.epoch_size("reader")
    while remaining > 0:
        jpegs, labels = pipe.run()
        for i in range(min(DALI_BATCH, remaining)):  # the rest is padding
            yield np.asarray(jpegs[i]).tobytes(), int(np.asarray(labels[i]).tobytes())
        remaining -= DALI_BATCH


def test_timm_reads_every_image_and_label_in_order(digits: Path, source_rows: list[tuple[bytes, int]]) -> None:
    dataset: Any = create_dataset("wds/", root=str(digits), split="train", is_training=False)
    samples = list(dataset)
    assert len(dataset) == len(samples) == len(source_rows)
    for (image, label), (jpeg, expected_label) in zip(samples, source_rows, strict=True):
        assert label == expected_label
        with Image.open(io.BytesIO(jpeg)) as expected:
            assert np.array_equal(np.asarray(image), np.asarray(expected.convert("RGB")))


# With restarts: other bytes, the same pixels.

Pixels = list[tuple[np.ndarray, int]]
PHOTOS = 12


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The same photographs as shards without and with restarts."""
    folder = tmp_path_factory.mktemp("photos")
    for number in range(PHOTOS):
        image = photo(("china.jpg", "flower.jpg")[number % 2], 200 + 10 * number)
        path = folder / "source" / "train" / str(number % 3) / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.convert("L" if number == 5 else "RGB").save(path, subsampling=number % 3, progressive=number == 7)
    outs = folder / "plain", folder / "restarts"
    for out in outs:
        prepare_folder(folder / "source", "train", out, Options(images_per_shard=5, restarts=out.name == "restarts"))
    return outs


def _decode(jpegs: Iterable[tuple[bytes, int]]) -> Pixels:
    return [(np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB")), label) for jpeg, label in jpegs]


def _by_webdataset(root: Path) -> Pixels:
    urls = [str(path) for path in sorted((root / "train").glob("*.tar"))]
    return _decode((sample["jpg"], int(sample["cls"])) for sample in WebDataset(urls, shardshuffle=False))


def _by_dali(root: Path) -> Pixels:
    return _decode(_read_with_dali(root / "train"))


def _by_timm(root: Path) -> Pixels:
    dataset: Any = create_dataset("wds/", root=str(root), split="train", is_training=False)
    return [(np.asarray(image), label) for image, label in dataset]


def _by_datasets(root: Path) -> Pixels:
    import datasets  # noqa: PLC0415 - a second and a half

    rows: Any = datasets.load_dataset(str(root), cache_dir=str(root.parent / f"cache-{root.name}"), split="train")
    return [(np.asarray(row["jpg"].convert("RGB")), int(row["cls"])) for row in rows]


@needs_transcoder
@pytest.mark.parametrize("read", [_by_webdataset, _by_dali, _by_timm, _by_datasets])
def test_every_reader_sees_the_same_pixels_with_restarts(
    read: Callable[[Path], Pixels], photos: tuple[Path, Path]
) -> None:
    plain, restarts = (read(root) for root in photos)
    assert len(plain) == len(restarts) == PHOTOS
    for (pixels, label), (other_pixels, other_label) in zip(plain, restarts, strict=True):
        assert label == other_label
        assert np.array_equal(pixels, other_pixels)


@needs_transcoder
def test_the_photographs_with_restarts_have_other_bytes(photos: tuple[Path, Path]) -> None:
    digests = [Split(root, "train").samples.column("sha256").to_pylist() for root in photos]
    assert sum(one == other for one, other in zip(*digests, strict=True)) == 1  # the progressive one
    assert Split(photos[1], "train").manifest.has_segments


def test_timm_info_names_the_splits_with_their_shards_and_counts(digits: Path) -> None:
    splits = json.loads((digits / "_info.json").read_text())["splits"]
    assert splits == {
        "train": {
            "name": "train",
            "num_samples": 1437,
            "filenames": [f"train/train-{number:06d}.tar" for number in range(5)],
            "shard_lengths": [300, 300, 300, 300, 237],
        },
        "validation": {
            "name": "validation",
            "num_samples": 360,
            "filenames": [f"validation/validation-{number:06d}.tar" for number in range(2)],
            "shard_lengths": [300, 60],
        },
    }


def test_the_index_is_byte_for_byte_what_dali_itself_would_write(digits: Path, tmp_path: Path) -> None:
    from wds2idx import IndexCreator  # noqa: PLC0415 - comes with DALI

    tars = sorted(digits.glob("*/*.tar"))
    assert len(tars) == 7
    for tar in tars:
        theirs = tmp_path / f"{tar.stem}.idx"
        with IndexCreator(str(tar), str(theirs), verbose=False) as creator:
            creator.create_index()
        assert tar.with_suffix(".idx").read_bytes() == theirs.read_bytes()
