"""Tars for tests, written by Python's tarfile or by webdataset, images to put in them, and adopting them."""

import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from PIL import Image
from webdataset.writer import ShardWriter

from prep.adoption import Adoption, adopt_split
from prep.dataset import Split
from prep.store import LocalStore
from prep.tar_sets import find_tars

Members = Iterable[tuple[str, bytes]]


def tar_bytes(members: Members, tar_format: int = tarfile.USTAR_FORMAT) -> bytes:
    """A tar; a name with a slash at its end is a folder."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w", format=tar_format) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name.rstrip("/"))
            info.size, info.type = len(data), tarfile.DIRTYPE if name.endswith("/") else tarfile.REGTYPE
            tar.addfile(info, io.BytesIO(data))
    return archive.getvalue()


def write_tar(path: Path, members: Members, tar_format: int = tarfile.USTAR_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(tar_bytes(members, tar_format))
    return path


def write_shards(folder: Path, samples: Iterable[dict[str, Any]], per_shard: int) -> list[Path]:
    """Write some samples with webdataset.ShardWriter."""
    folder.mkdir(parents=True, exist_ok=True)
    with ShardWriter(f"{folder}/part-%02d.tar", maxcount=per_shard, verbose=0) as writer:
        for sample in samples:
            writer.write(sample)
    return sorted(folder.glob("part-*.tar"))


def encode_image(mode: str = "L", format_name: str = "JPEG", side: int = 16, grey: int = 100) -> bytes:
    encoded = io.BytesIO()
    Image.new(mode, (side, side), (grey,) * len(Image.new(mode, (1, 1)).getbands())).save(encoded, format_name)
    return encoded.getvalue()


def one_by_one(function: Callable[[Any], Any], jobs: list[Any]) -> Iterator[tuple[Any, Any]]:
    """A pool without processes."""
    for job in jobs:
        yield job, function(job)


def adopt(out: Path, *given: object, split: str | None = None, names: tuple[str, ...] | None = None) -> Split:
    adoption = Adoption(find_tars([str(path) for path in given], split), names)
    adopt_split(adoption, LocalStore(out), one_by_one)
    return Split(out, adoption.tars.split)


def ledger(split: Split) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (split.folder / "ledger.jsonl").read_text().splitlines()]


def images(*labels: int, start: int = 0) -> list[tuple[str, bytes]]:
    """Members of a tar: a JPEG and a label for each of some labels."""
    named = [(f"{start + i}", label) for i, label in enumerate(labels)]
    return [m for key, label in named for m in ((f"{key}.jpg", encode_image()), (f"{key}.cls", str(label).encode()))]


def state(*paths: Path) -> list[tuple[bytes, int]]:
    return [(path.read_bytes(), path.stat().st_mtime_ns) for path in paths]


def composite_sha256(content: bytes) -> str:
    """The digest in manifests: of a tar with the data of each member replaced by its own SHA-256."""
    digest, end = hashlib.sha256(), 0
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        for member in filter(tarfile.TarInfo.isreg, tar):
            digest.update(content[end : member.offset_data])
            end = member.offset_data + member.size
            digest.update(hashlib.sha256(content[member.offset_data : end]).digest())
    digest.update(content[end:])
    return digest.hexdigest()
