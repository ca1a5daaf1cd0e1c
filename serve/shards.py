"""Read a prepared split as a `Source`: webdataset iterates over its tars, and decodes nothing.

Tars are opened here and passed to webdataset as file objects, because it would execute a name that begins with
`pipe:`. Its decoders, which unpickle, are not used. Images are counted, because it ends at the end of a truncated tar
without an error.
"""

import json
import tarfile
from collections.abc import Container, Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any

from prep.errors import InputError
from serve.pictures import Encoded, Source

MANIFEST, SAMPLES = "manifest.json", "samples.arrow"
IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp")
Labels = dict[int, dict[str, int]]  # by position of the shard, then by key


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
        # An adopted split has no options: its labels are in the index, not in the tars.
        labels = None if manifest["options"] else _read_labels(folder / SAMPLES)
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is damaged ({error!r}): prepare the data again") from error

    def read(wanted: Container[int]) -> Iterator[Encoded]:
        first = 0
        for number, (shard, num_in_shard) in enumerate(shards):
            known = None if labels is None else labels.get(number, {})
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


def _read_labels(path: Path) -> Labels:
    """Return an adopted split's labels by shard and key, from its index; its tars have other members as well."""
    import pyarrow as pa  # noqa: PLC0415 - only adopted splits need it

    with pa.memory_map(str(path)) as file:
        table = pa.ipc.open_file(file).read_all()
        columns = (table[name].to_pylist() for name in ("shard", "key", "label"))
        labels: Labels = {}
        for shard, key, label in zip(*columns, strict=True):
            labels.setdefault(shard, {})[key] = label
        return labels


def _plain_name(name: str) -> str:
    if PurePath(name).name != name:
        raise ValueError(f"shard {name} is not in its folder")
    return name


def _read_shard(path: Path, first: int, num_images: int, labels: Mapping[str, int] | None) -> Iterator[Encoded]:
    """Yield the images of one tar.

    Args:
        first: row of the shard's first image.
        num_images: the number of images according to the manifest.
        labels: labels by key; None: each sample has its label in a .cls member.
    """
    from webdataset.tariterators import group_by_keys, tar_file_iterator  # noqa: PLC0415 - only prepared splits need it

    row = first
    try:
        with path.open("rb") as file:
            members: Any = ({**member, "__url__": path.name} for member in tar_file_iterator(file))  # pyright: ignore[reportArgumentType]
            for sample in group_by_keys(members):
                key, image = sample["__key__"], _find_image(sample)
                # Skip samples that are not a labelled image, as preparation did.
                if image is None or (key not in labels if labels is not None else "cls" not in sample):
                    continue
                yield Encoded(row, key, int(sample["cls"]) if labels is None else labels[key], image)
                row += 1
    except (OSError, ValueError, EOFError, tarfile.TarError) as error:
        raise InputError(f"{path} cannot be read ({error}): copy or prepare it again") from error
    if row - first != num_images:
        raise InputError(f"{path} holds {row - first:,} of {num_images:,} images: copy or prepare it again")


def _find_image(sample: Mapping[str, Any]) -> bytes | None:
    """Return the first member that is an image, by the last part of its extension (`img.jpg`)."""
    return next((data for name, data in sample.items() if name.rpartition(".")[2] in IMAGE_SUFFIXES), None)
