"""Read a split of shards as a `Source`: webdataset iterates over the tars that preparation wrote, and decodes nothing.

An adopted split's images are read from where its index says they are.

Tars are opened here and passed to webdataset as file objects, because it would execute a name that begins with
`pipe:`. Its decoders, which unpickle, are not used. Images are counted, because it ends at the end of a truncated tar
without an error.
"""

import json
import tarfile
from collections.abc import Container, Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any, NamedTuple

from prep.errors import InputError
from serve.pictures import Encoded, Source

MANIFEST, SAMPLES = "manifest.json", "samples.arrow"
IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp")


class Place(NamedTuple):
    """Where an image of an adopted split is in its tar, in bytes, and its label."""

    key: str
    offset: int
    size: int
    label: int


Index = dict[int, list[Place]]  # by position of the shard


def open_split(folder: Path) -> Source:
    """Open a split that `prep/shard.py` wrote or `prep/adopt.py` adopted.

    Raises:
        InputError: the manifest is damaged; while reading also: a shard is damaged, or an image has an unknown label.
    """
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_bytes())
        shards = [(_plain_name(shard["name"]), int(shard["num_images"])) for shard in manifest["shards"]]
        class_names = tuple(map(str, manifest["class_names"]))
        num_images, name = int(manifest["num_images"]), f"{manifest['split']} of {manifest['source']['name']}"
        # An adopted split has no options: its labels, and which member is the image, are in the index alone.
        index = None if manifest["options"] else _read_index(folder / SAMPLES)
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is damaged ({error!r}): prepare the data again") from error

    def read(wanted: Container[int]) -> Iterator[Encoded]:
        first = 0
        for number, (shard, num_in_shard) in enumerate(shards):
            known = None if index is None else index.get(number, [])
            for each in _read_shard(folder / shard, first, num_in_shard, known):
                if not 0 <= each.label < len(class_names):
                    raise InputError(
                        f"{each.key} in {shard} has label {each.label}, which {path} does not name: "
                        "prepare the data again"
                    )
                if each.row in wanted:
                    yield each
            first += num_in_shard

    return Source(name, class_names, num_images, read)


def _read_index(path: Path) -> Index:
    """Return an adopted split's images by shard, from its index: its tars have other members and images as well."""
    import pyarrow as pa  # noqa: PLC0415 - only adopted splits need it

    with pa.memory_map(str(path)) as file:
        table = pa.ipc.open_file(file).read_all()
        columns = (table[name].to_pylist() for name in ("shard", "key", "offset", "size", "label"))
        index: Index = {}
        for shard, *place in zip(*columns, strict=True):
            index.setdefault(shard, []).append(Place(*place))
        return index


def _plain_name(name: str) -> str:
    if PurePath(name).name != name:
        raise ValueError(f"shard {name} is not in its folder")
    return name


def _read_indexed(path: Path, first: int, places: Sequence[Place]) -> Iterator[Encoded]:
    """Yield the images of one tar, from where its index says they are; `first` is the row of the first one."""
    with path.open("rb") as file:
        for row, place in enumerate(places, first):
            file.seek(place.offset)
            content = file.read(place.size)
            if len(content) != place.size:
                raise EOFError(f"it ends inside of {place.key}")
            yield Encoded(row, place.key, place.label, content)


def _read_samples(path: Path, first: int) -> Iterator[Encoded]:
    """Yield the images of one tar whose samples are an image and a .cls member each."""
    from webdataset.tariterators import group_by_keys, tar_file_iterator  # noqa: PLC0415 - only prepared splits need it

    row = first
    with path.open("rb") as file:
        members: Any = ({**member, "__url__": path.name} for member in tar_file_iterator(file))  # pyright: ignore[reportArgumentType]
        for sample in group_by_keys(members):
            image = _find_image(sample)
            # Skip samples that are not a labelled image, as preparation did.
            if image is not None and "cls" in sample:
                yield Encoded(row, sample["__key__"], int(sample["cls"]), image)
                row += 1


def _read_shard(path: Path, first: int, num_images: int, places: Sequence[Place] | None) -> Iterator[Encoded]:
    """Yield the images of one tar.

    Args:
        first: row of the shard's first image.
        num_images: the number of images according to the manifest.
        places: of an adopted split; None: each sample has its label in a .cls member.
    """
    num_read = 0
    try:
        for each in _read_samples(path, first) if places is None else _read_indexed(path, first, places):
            yield each
            num_read += 1
    except (OSError, ValueError, EOFError, tarfile.TarError) as error:
        raise InputError(f"{path} cannot be read ({error}): copy or prepare it again") from error
    if num_read != num_images:
        raise InputError(f"{path} holds {num_read:,} of {num_images:,} images: copy or prepare it again")


def _find_image(sample: Mapping[str, Any]) -> bytes | None:
    """Return the first member that is an image, by the last part of its extension (`img.jpg`)."""
    return next((data for name, data in sample.items() if name.rpartition(".")[2] in IMAGE_SUFFIXES), None)
