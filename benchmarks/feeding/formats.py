"""`python formats.py FORMAT SHARDS OUT WORKERS`: write the images of prepared shards in a peer's own format.

Runs under the interpreter of the peer that reads the format, so it uses the standard library and the peer only: the
shards are read as plain tars. All formats hold the same bytes, except FFCV's, which re-encodes every image.
"""

import io
import os
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

MAX_SIDE, QUALITY = 500, 90  # of FFCV's images, the same as of the shards that it is compared with


class Sample(NamedTuple):
    """One image of a shard."""

    key: str
    jpeg: bytes
    label: int


class Decoded:
    """The images of some shards as an indexed dataset of Pillow images and labels."""

    def __init__(self, shards: list[str]) -> None:
        self.samples = [sample for path in shards for sample in read_shard(path)]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        from PIL import Image  # noqa: PLC0415

        sample = self.samples[index]
        return Image.open(io.BytesIO(sample.jpeg)).convert("RGB"), sample.label


def read_shard(path: str) -> Iterator[Sample]:
    """Yield the samples of one tar: KEY.jpg, then KEY.cls."""
    with tarfile.open(path) as tar:
        members = iter(tar)
        for image, label in zip(members, members, strict=True):
            yield Sample(image.name.removesuffix(".jpg"), _read(tar, image), int(_read(tar, label)))


def _read(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    assert file
    return file.read()


def write_folder(shards: list[str], out: Path, workers: int) -> None:
    """Write CLASS/KEY.jpg, as torchvision's ImageFolder and timm read it."""
    for path in shards:
        for sample in read_shard(path):
            file = out / f"{sample.label:04d}" / f"{sample.key}.jpg"
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(sample.jpeg)


def write_litdata(shards: list[str], out: Path, workers: int) -> None:
    """Write LitData's chunks of 64 MB, as its documentation does."""
    from litdata import optimize  # noqa: PLC0415 # pyright: ignore[reportMissingImports]

    optimize(_as_dictionaries, shards, str(out), chunk_bytes="64MB", num_workers=workers, verbose=False)


def _as_dictionaries(path: str) -> Iterator[dict[str, Any]]:
    for sample in read_shard(path):
        yield {"jpeg": sample.jpeg, "label": sample.label}


def write_mds(shards: list[str], out: Path, workers: int) -> None:
    """Write MosaicML's shards."""
    from streaming import MDSWriter  # noqa: PLC0415 # pyright: ignore[reportMissingImports]

    with MDSWriter(out=str(out), columns={"jpeg": "bytes", "label": "int"}) as writer:
        for path in shards:
            for sample in _as_dictionaries(path):
                writer.write(sample)


def write_beton(shards: list[str], out: Path, workers: int) -> None:
    """Write FFCV's file; every image is decoded and encoded again."""
    from ffcv.fields import IntField, RGBImageField  # noqa: PLC0415 # pyright: ignore[reportMissingImports]
    from ffcv.writer import DatasetWriter  # noqa: PLC0415 # pyright: ignore[reportMissingImports]

    image = RGBImageField(write_mode="jpg", max_resolution=MAX_SIDE, jpeg_quality=QUALITY)
    writer = DatasetWriter(str(out / "images.beton"), {"image": image, "label": IntField()}, num_workers=workers)
    writer.from_indexed_dataset(Decoded(shards))


FORMATS = {"folder": write_folder, "litdata": write_litdata, "mds": write_mds, "beton": write_beton}

if __name__ == "__main__":
    os.dup2(2, 1)  # what the peers print goes to standard error
    FORMATS[sys.argv[1]](sorted(map(str, Path(sys.argv[2]).glob("*.tar"))), Path(sys.argv[3]), int(sys.argv[4]))
