"""A prepared split as a source: webdataset walks its tars, and decodes nothing.

Tars are opened here and handed over as files, because webdataset would run a name that begins with `pipe:`; its
decoders, which unpickle, are not used; and images are counted, because it ends a truncated tar without a word.
"""

import json
import tarfile
from collections.abc import Container, Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any

import pyarrow as pa

from prep.errors import InputError
from serve.source import Encoded, Source

MANIFEST, SAMPLES = "manifest.json", "samples.arrow"
IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp")
Labels = dict[int, dict[str, int]]  # by position of the shard, then by key


def open_split(folder: Path) -> Source:
    """A split that `prep/shard.py` wrote, or `prep/adopt.py` adopted.

    Raises:
        InputError: its manifest is damaged.
    """
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_bytes())
        shards = [(_plain_name(shard["name"]), int(shard["num_images"])) for shard in manifest["shards"]]
        class_names = tuple(map(str, manifest["class_names"]))
        num_images, name = int(manifest["num_images"]), f"{manifest['split']} of {manifest['source']['name']}"
        labels = None if manifest["options"] else _read_labels(folder / SAMPLES)
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is damaged ({error!r}): prepare the data anew") from error

    def read(wanted: Container[int]) -> Iterator[Encoded]:
        first = 0
        for number, (shard, num_in_shard) in enumerate(shards):
            known = None if labels is None else labels.get(number, {})
            for each in _read_shard(folder / shard, first, num_in_shard, known):
                if not 0 <= each.label < len(class_names):
                    raise InputError(
                        f"{each.key} in {shard} has label {each.label}, which {path} does not name: prepare it anew"
                    )
                if each.row in wanted:
                    yield each
            first += num_in_shard

    return Source(name, class_names, num_images, read)


def _read_labels(path: Path) -> Labels:
    """An adopted split's labels by shard and key, from its index: its tars have other members as well."""
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
    from webdataset.tariterators import group_by_keys, tar_file_iterator  # noqa: PLC0415 - for prepared splits alone

    row = first
    try:
        with path.open("rb") as file:
            members: Any = ({**member, "__url__": path.name} for member in tar_file_iterator(file))  # pyright: ignore[reportArgumentType]
            for sample in group_by_keys(members):
                key, image = sample["__key__"], _find_image(sample)
                if image is None or (key not in labels if labels is not None else "cls" not in sample):
                    continue
                yield Encoded(row, key, int(sample["cls"]) if labels is None else labels[key], image)
                row += 1
    except (OSError, ValueError, EOFError, tarfile.TarError) as error:
        raise InputError(f"{path} cannot be read ({error}): copy or prepare it anew") from error
    if row - first != num_images:
        raise InputError(f"{path} holds {row - first:,} of {num_images:,} images: copy or prepare it anew")


def _find_image(sample: Mapping[str, Any]) -> bytes | None:
    """The first member that is an image, by its extension's last part (`img.jpg`)."""
    return next((data for name, data in sample.items() if name.rpartition(".")[2] in IMAGE_SUFFIXES), None)
