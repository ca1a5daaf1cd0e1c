"""The dataset on disk: the format that `prep` writes and `loaders` read.

Each split has a folder with WebDataset tars, DALI's index next to each (`.idx`), `samples.arrow` (one row per image),
`ledger.jsonl` and `manifest.json`. The manifest is written last: a split that has one is complete.
"""

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from prep.errors import InputError
from prep.files import sha256_of
from prep.segments import segments_name

FORMAT_VERSION = 2
FORMAT_WITH_SEGMENTS = 3  # each shard has a SHARD.seg; otherwise as format 2
MANIFEST, SAMPLES, LEDGER = "manifest.json", "samples.arrow", "ledger.jsonl"
WORK_FOLDER = ".prep"  # in a split's folder while it is being written; removed when it is complete
STAGING_FOLDER = ".staging"  # the same while `prep/stage.py` fetches it; holds the manifest until all shards are there
UNFINISHED = {
    WORK_FOLDER: "its preparation was interrupted: run the same prep/shard.py (or prep/adopt.py) command again",
    STAGING_FOLDER: "not all of its shards are here yet: wait for prep/stage.py, or run the same command again",
}
REJECTED = "rejected"  # the only event of the ledger that leaves an image out

SAMPLE_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("shard", pa.int32(), nullable=False),  # position in the manifest's list of shards
        pa.field("offset", pa.int64(), nullable=False),  # of the JPEG's first byte in its tar
        pa.field("size", pa.int64(), nullable=False),  # of the JPEG, in bytes
        pa.field("label", pa.int32(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),  # pixels as stored, EXIF orientation ignored
        pa.field("height", pa.int32(), nullable=False),
        pa.field("sha256", pa.binary(32), nullable=False),  # of the JPEG
    ]
)


@dataclass(frozen=True)
class Options:
    """Options that change the bytes of a prepared split."""

    images_per_shard: int = 2000
    limit: int | None = None
    decode_check: bool = True
    max_side: int | None = None  # pixels of the longer side at most
    short_side: int | None = None  # pixels of the shorter side at most
    quality: int | None = None  # of JPEGs that are re-encoded because that makes them smaller
    restarts: bool = False  # transcode JPEGs so that they have segments: prep/segments.py


@dataclass(frozen=True)
class Origin:
    """The source of a split; `revision` is a commit, or a digest of the source's listing."""

    name: str
    revision: str


@dataclass(frozen=True)
class Shard:
    """One tar of a split."""

    name: str
    num_images: int
    size_bytes: int
    composite_sha256: str  # of the tar with the data of each file in it replaced by its own SHA-256
    segments_sha256: str = ""  # of its SHARD.seg; empty in format 2, which has none


@dataclass(frozen=True)
class Manifest:
    """The facts of one split. It holds no date, path or worker count, so equal inputs give equal bytes."""

    split: str
    source: Origin
    options: Options | None  # None: the tars were written by other software and adopted unchanged
    class_names: tuple[str, ...]
    num_images: int
    size_bytes: int  # of the images as stored
    source_size_bytes: int  # of the same images in the source
    findings: dict[str, int]  # the ledger's entries, counted by event
    ledger_sha256: str
    samples_sha256: str
    shards: tuple[Shard, ...]
    reading: dict[str, Any] = field(default_factory=dict)  # how the source was read: `prep.source.Source.reading`
    format_version: int = FORMAT_VERSION

    @property
    def num_rejected(self) -> int:
        """Number of images of the source that were left out; the ledger says why."""
        return self.findings.get(REJECTED, 0)

    @property
    def has_segments(self) -> bool:
        """Whether each shard has a file of segments, SHARD.seg."""
        return all(shard.segments_sha256 for shard in self.shards)

    def to_json(self) -> str:
        """Return the file's text, with a digest of the rest of it; the digests of all other files are in it too.

        Keys that are newer than format 2 are left out where they are empty, so that an older manifest is written as it
        was.
        """
        fields = {name: value for name, value in dataclasses.asdict(self).items() if name != "reading" or value}
        newer = [(fields["options"], "restarts"), *((shard, "segments_sha256") for shard in fields["shards"])]
        for part, name in newer:
            if part and not part[name]:
                del part[name]
        digest = sha256_of(json.dumps(fields, sort_keys=True).encode())
        return json.dumps({**fields, "manifest_sha256": digest}, indent=1, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Manifest":
        fields: dict[str, Any] = json.loads(text)
        fields.pop("manifest_sha256", None)  # `prep/verify.py` compares it
        fields["source"] = Origin(**fields["source"])
        fields["options"] = Options(**fields["options"]) if fields["options"] else None
        fields["class_names"] = tuple(fields["class_names"])
        fields["shards"] = tuple(Shard(**shard) for shard in fields["shards"])
        return cls(**fields)


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of a split's folder.

    Raises:
        InputError: the folder has none, or it is damaged or of another format version.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise InputError(f"{path} does not exist: {_explain_missing_split(folder)}")
    return parse_manifest(path.read_bytes(), str(path))


def _explain_missing_split(folder: Path) -> str:
    """Return advice for a split's folder without a manifest, from what is in it and around it."""
    root, name = folder.parent, folder.name
    for work, advice in UNFINISHED.items():
        if (folder / work).is_dir():
            return advice
    if _is_split(root):
        return f"{root} is one split, not a folder of splits: give the folder above it, {root.absolute().parent}"
    if folder.is_dir() and any(folder.iterdir()):
        return _explain_other_folder(folder)
    if splits := [child.name for child in _child_folders(root) if _is_split(child)]:
        return _name_other_splits(root, name, splits)
    if deeper := [child for child in _child_folders(root) if any(map(_is_split, _child_folders(child)))]:
        return f"the splits are a folder deeper: give {' or '.join(map(str, deeper))} instead of {root}"
    return f"prepare the data with `python prep/shard.py --source SRC --out {root}`"


def _explain_other_folder(folder: Path) -> str:
    """Return advice for a folder with unprepared images, or with a split that lost its manifest."""
    root, inside = folder.parent, _child_folders(folder)
    if inside and not any(folder.glob("*.tar")):
        return (
            f"{root} is not prepared yet ({folder.name} has folders such as {inside[0].name}): run "
            f"`python prep/shard.py --source {root} --out {root}-shards`, then give {root}-shards"
        )
    return f"delete {folder} and prepare it again with `python prep/shard.py --source SRC --out {root}`"


def _name_other_splits(root: Path, name: str, splits: list[str]) -> str:
    """Return which splits a dataset has, and the flags that choose one of them."""
    listed = f"the split{'s' * (len(splits) > 1)} {', '.join(splits)}"
    if name == "train":
        others = [split for split in splits if split not in ("validation", "val", "valid", "test")]
        option = "--data.train"
    else:
        others = sorted((split for split in splits if split != "train"), key=lambda split: split == "test")
        option = "--data.validation"
    if not others:
        command = f"python prep/shard.py --source SRC --out {root} --splits {name}"
        return f"{root} has only {listed}: prepare {name} too, with `{command}`"
    flags = f"{option} {others[0]} to train/main.py, --split {others[0]} to train/evaluate.py"
    return f"{root} has {listed}: give {flags}, or prepare {name} too"


def _is_split(folder: Path) -> bool:
    return (folder / MANIFEST).is_file() and (folder / SAMPLES).is_file()


def _child_folders(folder: Path) -> list[Path]:
    """Return the folders in a folder that are not hidden, sorted; none if it is missing or cannot be listed."""
    try:
        return sorted(child for child in folder.iterdir() if child.is_dir() and not child.name.startswith("."))
    except OSError:
        return []


def parse_manifest(content: bytes, name: str) -> Manifest:
    """Return the manifest in a file's bytes; `name` is used in the error.

    Raises:
        InputError: it is damaged or of another format version.
    """
    try:
        text = content.decode()
        version = json.loads(text).get("format_version")
        if version in (FORMAT_VERSION, FORMAT_WITH_SEGMENTS):
            return Manifest.from_json(text)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{name} is damaged ({error}): delete its folder and prepare it again") from error
    raise InputError(
        f"{name} has format {version}, this version of Penstock reads formats {FORMAT_VERSION} and "
        f"{FORMAT_WITH_SEGMENTS}: prepare it again"
    )


class Split:
    """One prepared split with its sample index in memory. Columns are numpy views without a copy."""

    def __init__(self, root: str | os.PathLike[str], name: str) -> None:
        self.folder = Path(root) / name
        self.manifest = read_manifest(self.folder)
        self._check_shards()
        self.samples = self._read_samples()

    def __len__(self) -> int:
        return self.manifest.num_images

    @property
    def place(self) -> str:
        """The folder, or the URL of a split in a bucket, for messages."""
        return str(self.folder)

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.manifest.class_names

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the manifest, which itself holds the digests of the index and of every shard."""
        return sha256_of(self.manifest.to_json().encode())

    @cached_property
    def shard_paths(self) -> list[Path]:
        return [self.folder / shard.name for shard in self.manifest.shards]

    def name_shard(self, shard: int) -> str:
        """Return the path of a shard, or its URL in a bucket, for messages."""
        return str(self.shard_paths[shard])

    def segments_path(self, shard: int) -> Path:
        """Return the path of a shard's SHARD.seg, which exists if `manifest.has_segments`."""
        return self.folder / segments_name(self.manifest.shards[shard].name)

    def column(self, name: str) -> np.ndarray:
        """Return an integer column of the sample index, one value per image."""
        chunk = self.samples.column(name).chunk(0)  # its own to_numpy would import pandas, which takes a second
        assert chunk.offset == 0
        return np.frombuffer(chunk.buffers()[1], np.dtype(str(chunk.type)), len(chunk))

    def keys(self, rows: Sequence[int] | np.ndarray) -> list[str]:
        """Return the keys of some rows of the sample index."""
        return self.samples.column("key").take(pa.array(rows, pa.int64())).to_pylist()

    def sha256_of_rows(self, rows: Sequence[int] | np.ndarray) -> list[bytes]:
        """Return the SHA-256 of the JPEGs of some rows of the sample index, 32 bytes each."""
        return self.samples.column("sha256").take(pa.array(rows, pa.int64())).to_pylist()

    def rows_of(self, keys: Sequence[str]) -> list[int]:
        """Return the rows of some keys.

        Raises:
            InputError: a key is not in the split.
        """
        all_keys = self.samples.column("key").combine_chunks()
        rows = pc.call_function("index_in", [pa.array(keys, pa.string())], pc.SetLookupOptions(all_keys))
        if rows.null_count:
            raise InputError(f"{self.place} has no image {keys[rows.to_pylist().index(None)]}")
        return rows.to_pylist()

    def _check_shards(self) -> None:
        for shard in self.manifest.shards:
            path = self.folder / shard.name
            size_bytes = path.stat().st_size if path.is_file() else None
            if size_bytes != shard.size_bytes:
                found = "is missing" if size_bytes is None else f"has {size_bytes:,} bytes, not {shard.size_bytes:,}"
                raise InputError(f"{path} {found}: `python prep/verify.py {self.folder}` says how to repair it")

    def _read_samples(self) -> pa.Table:
        path = self.folder / SAMPLES
        if not path.is_file():
            raise InputError(f"{path} is missing: {_advise_deletion(self.folder)}")
        # Not a map: a mapped file that shrinks ends the process with a bus error.
        return parse_samples(path.read_bytes(), self.manifest, self.folder)


def parse_samples(content: bytes, manifest: Manifest, folder: Path) -> pa.Table:
    """Return the sample index in a file's bytes; `folder` is the split's, for errors.

    Raises:
        InputError: it is not the index of this manifest.
    """
    if sha256_of(content) != manifest.samples_sha256:
        raise InputError(f"{folder / SAMPLES} does not match its manifest: {_advise_deletion(folder)}")
    table = pa.ipc.open_file(pa.py_buffer(content)).read_all()
    if table.num_rows != manifest.num_images:
        raise InputError(
            f"{folder / MANIFEST} is damaged, it counts {manifest.num_images:,} images: {_advise_deletion(folder)}"
        )
    assert table.schema.equals(SAMPLE_SCHEMA)
    return table


def _advise_deletion(folder: Path) -> str:
    return f"delete {folder} and run prep/shard.py again"


def encode_samples(columns: Mapping[str, Sequence[Any]]) -> bytes:
    """Return the sample index as one Arrow IPC record batch, so that its columns can be used without a copy."""
    table = pa.table(columns, schema=SAMPLE_SCHEMA).combine_chunks()
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, SAMPLE_SCHEMA) as writer:
        writer.write_table(table, max_chunksize=max(1, table.num_rows))
    return sink.getvalue().to_pybytes()
