"""Indexing one tar that is adopted, in a worker: a pure function of its bytes, which are read once and never written.

What cannot be trained on as it lies there is left out of the sample index and listed in the ledger.
"""

import json
import re
from collections.abc import Collection
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from prep.dataset import REJECTED, Options, Shard
from prep.images import StoredImage, UnusableImageError, as_jpeg
from prep.ledger import REPAIRED, entry
from prep.shards import Contents
from prep.store import WORK_FOLDER, LocalStore
from prep.tar import dali_index, index_name
from prep.tar_reader import Component, TarSample, TarStream, read_samples

IMAGES = frozenset(["jpg", "jpeg", "png", "webp", "ppm", "pgm", "pbm", "bmp", "gif", "tif", "tiff", "jp2", "avif"])
LABELS = ("cls", "json")
JSON_LABELS = ("label", "cls")
MAX_LABEL = 999_999  # a larger one is a mistake: names are made up to the largest label


@dataclass(frozen=True)
class TarJob:
    """A tar, by its absolute path, to be indexed for the split's folder `store`."""

    path: Path  # may be a link, as in a cache of the Hugging Face hub, where its name is the one that tells
    size_bytes: int
    modified_ns: int
    decode_check: bool
    store: LocalStore

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def target(self) -> Path:
        return self.path.resolve()

    @property
    def index_name(self) -> str:
        return index_name(self.name)

    @property
    def record_name(self) -> str:
        return f"{WORK_FOLDER}/{self.name}.json"

    @property
    def state(self) -> list[Any]:
        """What a record of the tar is good for."""
        return [str(self.path), self.size_bytes, self.modified_ns, self.decode_check]


def index_tar(job: TarJob) -> int:
    """Write a tar's index for DALI and a record of what it holds, in this order; how many samples it has.

    The rows in the record are the samples' numbers in the tar.

    Raises:
        InputError: the tar is cut off, damaged, compressed or empty.
    """
    contents = Contents()
    with job.path.open("rb") as stream:
        file = TarStream(stream, str(job.path))
        for sample in read_samples(file, _is_wanted):
            _add_sample(contents, sample, job)
    shard = Shard(job.name, len(contents.columns["key"]), file.size_bytes, file.composite_sha256)
    if shard.num_images:
        job.store.write(job.index_name, dali_index(contents.components))
    else:
        job.store.remove(job.index_name)
    num_samples = len(contents.components)
    facts = {"state": job.state, "num_samples": num_samples, **contents.record(shard)}
    job.store.write(job.record_name, json.dumps(facts).encode())
    return num_samples


def read_record(job: TarJob) -> dict[str, Any] | None:
    """What `index_tar` found; None where it has not read the tar as it is now."""
    record = json.loads(job.store.read(job.record_name) or b"{}")
    return record if record.get("state") == job.state else None


def _add_sample(contents: Contents, sample: TarSample, job: TarJob) -> None:
    row, name = len(contents.components), f"{job.name}/{sample.components[0].name}"
    contents.components.append(sample.index_entries())
    try:
        component, label = _find_image(sample), find_label(sample)
        image = _check_image(component, job.decode_check)
    except UnusableImageError as reason:
        contents.ledger.append(entry(row, name, REJECTED, str(reason)))
        return
    contents.ledger += [entry(row, name, event, reason) for event, reason in image.findings]
    contents.source_size_bytes += component.size
    values = (sample.key, component.offset, component.size, label, image.width, image.height)
    values += (component.sha256.hex(), row)
    for column, value in zip(contents.columns.values(), values, strict=True):
        column.append(value)


def _is_wanted(extension: str) -> bool:
    return _last_part(extension) in IMAGES or _last_part(extension) in LABELS


def _last_part(extension: str) -> str:
    return extension.lower().rpartition(".")[2]


def _pick(sample: TarSample, extensions: Collection[str]) -> Component | None:
    """The first component with one of the extensions, else the first whose extension ends in one (`img.jpg`)."""
    whole = (component for component in sample.components if component.extension.lower() in extensions)
    ending = (component for component in sample.components if _last_part(component.extension) in extensions)
    return next(chain(whole, ending), None)


def _find_image(sample: TarSample) -> Component:
    extensions = [component.extension.lower() for component in sample.components]
    if len(set(extensions)) < len(extensions):
        raise UnusableImageError("two members of one name")  # which webdataset refuses as well
    component = _pick(sample, IMAGES)
    if component is None:
        raise UnusableImageError("no image among its members")
    return component


def find_label(sample: TarSample) -> int:
    """The label in a sample's `cls`, an integer in ASCII, else in its `json`, an integer "label" or "cls".

    Raises:
        UnusableImageError: it has none, or one that no class can have.
    """
    text, fields = (_pick(sample, [extension]) for extension in LABELS)
    label = _read_integer(text.data) if text else None
    if label is None and fields:
        label = _read_field(fields.data)
    if label is None:
        raise UnusableImageError("no label: it has neither an integer .cls nor an integer label in .json")
    if not 0 <= label <= MAX_LABEL:
        raise UnusableImageError(f"label {label} is outside 0 to {MAX_LABEL:,}")
    return label


def _read_integer(data: bytes | None) -> int | None:
    found = re.fullmatch(rb"\s*([+-]?[0-9]{1,18})\s*", data or b"")
    return int(found[1]) if found else None


def _read_field(data: bytes | None) -> int | None:
    try:
        fields = json.loads(data or b"")
    except (ValueError, RecursionError):
        return None
    values = [fields.get(name) for name in JSON_LABELS] if isinstance(fields, dict) else []
    return next((value for value in values if type(value) is int), None)


def _check_image(component: Component, decode_check: bool) -> StoredImage:
    assert component.data is not None
    image = as_jpeg(component.data, Options(decode_check=decode_check))
    repairs = [reason for event, reason in image.findings if event == REPAIRED]
    if repairs:
        kind = repairs[0].removesuffix(" made RGB JPEG")
        raise UnusableImageError(
            f"{kind} is no RGB or grey JPEG: prep/shard.py makes one of it, from the original images"
        )
    return image
