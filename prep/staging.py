"""Copy a prepared dataset from a bucket to a folder: what the bucket has, what is missing here, and the index files.

While a split is copied, its manifest is in `SPLIT/.staging`; the sample index and the ledger are complete before the
first shard. A shard has its name only when it is whole and verified, and the files next to it are there. Last of all
the manifest gets its name, and `.staging` is removed: then the folder holds byte for byte what prep wrote.
`prep/transfer.py` fetches the shards.
"""

import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from prep.card import README
from prep.dataset import LEDGER, MANIFEST, SAMPLES, STAGING_FOLDER, WORK_FOLDER, Manifest, Shard, parse_manifest
from prep.dataset_card import is_users_readme
from prep.errors import InputError, list_some, one_line, warn
from prep.files import replace_file, sha256_of, sync_folder, unfinished_name, write_whole
from prep.finalize import DATASET_FILES, TIMM_INFO, finalize_dataset, timm_info
from prep.ledger import LEAKS
from prep.remote import Remote, RemoteError
from prep.segments import segments_name
from prep.store import LocalStore
from prep.tar import index_name

SOURCE = "source.json"  # in STAGING_FOLDER: {"url": where the split is fetched from}
RANGE_BYTES = 16 << 20  # of one request
INDEX_CONNECTIONS = 8  # for the sample index, 110 MB for ImageNet
ATTEMPTS = 3  # to fetch something that does not match its digest
MOST_FOLDERS = 50  # of a prefix in which splits are looked for
BLOCK_BYTES = 4096  # a file takes whole blocks of the disk
LAST_SPLITS = ("validation", "val", "valid", "test")  # training needs them last


@dataclass(frozen=True)
class RemoteSplit:
    """A prepared split in a bucket; `content` is its manifest's bytes."""

    name: str
    manifest: Manifest
    content: bytes


# What the bucket has.


def find_splits(remote: Remote, wanted: Sequence[str] = ()) -> list[RemoteSplit]:
    """Return the prepared splits of a dataset in a bucket, validation last.

    Args:
        wanted: their names; empty for all.

    Raises:
        InputError: it has none, or not those; a manifest is damaged, or of another format version.
    """
    names = remote.folders()
    if MANIFEST in names or not names:
        raise InputError(_explain_no_split(remote, names))
    folders = [name.rstrip("/") for name in names if name.endswith("/") and not name.startswith(".")]
    chosen = [name for name in folders if name in wanted] if wanted else folders[:MOST_FOLDERS]
    found = {name: read_remote_manifest(remote, name) for name in chosen}
    splits = {name: split for name, split in found.items() if split}
    if absent := [name for name in wanted if name not in splits]:
        others = [name for name in folders if name not in wanted]
        raise InputError(f"{remote} has no prepared split {absent[0]}: it has {list_some(others) or 'nothing else'}")
    if not splits:
        raise InputError(_explain_no_split(remote, names))
    if unfinished := [name for name in found if name not in splits]:
        warn(f"{remote} has no {MANIFEST} in {list_some(unfinished)}: left out")
    return sorted(splits.values(), key=lambda split: (split.name in LAST_SPLITS, split.name))


def _explain_no_split(remote: Remote, names: list[str]) -> str:
    """Return the error for a prefix without a manifest: what is there, or what is next to it."""
    if MANIFEST in names:
        parent, _, name = remote.url.rpartition("/")
        return f"{remote} is one split: give the folder above it, {parent} --split {name}"
    if f"{WORK_FOLDER}/" in names:
        return f"{remote} is not finished: run the same prep/shard.py command again"
    if names:
        return f"{remote} holds no prepared split, no folder in it has a {MANIFEST}: it has {list_some(names)}"
    parent = remote.url.rpartition("/")[0]
    try:
        siblings = Remote(parent, remote.patience).folders() if remote.prefix else []
    except (InputError, RemoteError):  # the policy may not allow it
        siblings = []
    return f"{remote} holds nothing: {f'{parent} has {list_some(siblings)}' if siblings else 'check the prefix'}"


def read_remote_manifest(remote: Remote, split: str) -> RemoteSplit | None:
    """Return a split of a dataset in a bucket; None if it has no manifest.

    Raises:
        InputError: the manifest is damaged, or of another format version.
    """
    name = f"{split}/{MANIFEST}"
    content = remote.read(name)
    if content is None:
        return None
    manifest = parse_manifest(content, f"{remote}/{name}")
    if manifest.to_json().encode() != content:
        raise InputError(f"{remote}/{name} does not match its own digest: {repair_command(remote)}")
    if foreign := [shard.name for shard in manifest.shards if not re.fullmatch(r"[^./][^/]*\.tar", shard.name)]:
        raise InputError(f"{remote}/{name} names a shard {one_line(foreign[0])!r}, which prep/shard.py never does")
    return RemoteSplit(split, manifest, content)


def repair_command(remote: Remote) -> str:
    """Return how to repair what is damaged in a bucket."""
    return f"repair it with `python prep/verify.py {remote} --repair --source SRC`, then run this again"


# What is here.


def fetch_index(remote: Remote, split_name: str, folder: Path) -> Manifest:
    """Fetch a split's manifest, sample index and ledger, unless they are here; shards may still be missing.

    Args:
        remote: the dataset.
        folder: of the dataset on this machine.

    Raises:
        InputError: the bucket has no such split, or the folder holds another one.
        OSError: the disk failed.
    """
    (split,) = find_splits(remote, [split_name])
    check_folder(split, remote, folder)
    write_index(split, remote, folder)
    return split.manifest


def check_folder(
    split: RemoteSplit, remote: Remote, folder: Path, advice: str = "choose another --to, or delete it"
) -> None:
    """Check that a split's folder on this machine is absent, empty, or holds this split.

    Raises:
        InputError: it holds something else; the line ends with the advice.
    """
    target = folder / split.name
    for path in (target / STAGING_FOLDER / MANIFEST, target / MANIFEST):
        if _read(path) not in (None, split.content):
            raise InputError(f"{path} is of another dataset than {remote}/{split.name}: {advice}")
    is_ours = any((target / name).exists() for name in (MANIFEST, STAGING_FOLDER))
    if not is_ours and target.is_dir() and (names := sorted(os.listdir(target))):
        raise InputError(f"{target} holds files that prep/stage.py did not fetch ({list_some(names)}): {advice}")


def write_index(split: RemoteSplit, remote: Remote, folder: Path) -> None:
    """Write the sample index and the ledger of a split, and its manifest in STAGING_FOLDER, unless they are here."""
    target = folder / split.name
    staging = target / STAGING_FOLDER
    is_complete = (target / MANIFEST).is_file()
    if not is_complete:
        staging.mkdir(parents=True, exist_ok=True)
        write_whole(staging / SOURCE, json.dumps({"url": remote.url}).encode(), unique=True)

    # Two processes may do this at the same time: they write the same bytes.
    digests = {SAMPLES: split.manifest.samples_sha256, LEDGER: split.manifest.ledger_sha256}
    missing = {name: digest for name, digest in digests.items() if not matches(target / name, digest)}
    sizes = remote.list(split.name) if missing else {}
    for name, digest in missing.items():
        path = f"{split.name}/{name}"
        write_whole(target / name, fetch_matching(remote, path, sizes.get(path), digest), unique=True)
    if not is_complete:
        write_whole(staging / MANIFEST, split.content, unique=True)


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:  # another process may have given it its final name meanwhile
        return None


def matches(path: Path, digest: str) -> bool:
    """Return True if a file is there and has a SHA-256."""
    content = _read(path)
    return content is not None and sha256_of(content) == digest


def fetch_matching(remote: Remote, name: str, size: int | None, digest: str) -> bytes:
    """Return an object's bytes, which must have a digest.

    Raises:
        InputError: it is missing, or does not match three times.
    """
    if size is None:
        raise InputError(f"{remote}/{name} is missing: {repair_command(remote)}")
    for _ in range(ATTEMPTS):
        content = _read_by_ranges(remote, name, size)
        if sha256_of(content) == digest:
            return content
    raise InputError(f"{remote}/{name} does not match its manifest, fetched {ATTEMPTS} times: {repair_command(remote)}")


def _read_by_ranges(remote: Remote, name: str, size: int) -> bytes:
    content = bytearray(size)
    view = memoryview(content)

    def read_part(start: int, stop: int) -> None:
        remote.read_range(name, start, stop, view[start:stop])

    remote.read_in_parts(read_part, size, RANGE_BYTES, INDEX_CONNECTIONS)
    return bytes(content)


# What is missing here.


def is_whole(split: RemoteSplit, folder: Path) -> bool:
    """Return True if a split is complete on this machine, judged by the sizes of its tars, see `list_missing`."""
    target = folder / split.name
    is_final = (target / MANIFEST).is_file() and not (target / STAGING_FOLDER).exists()
    return is_final and not list_missing(split, folder)


def list_missing(split: RemoteSplit, folder: Path) -> list[Shard]:
    """Return the shards that are not on this machine.

    A shard is here if its tar has its name and its size, and if the files next to it exist, of any size.
    """
    return [shard for shard in split.manifest.shards if not _is_here(shard, folder / split.name)]


def _is_here(shard: Shard, target: Path) -> bool:
    names = list_names_next_to(shard)
    return _size(target / shard.name) == shard.size_bytes and all((target / name).is_file() for name in names)


def list_names_next_to(shard: Shard) -> list[str]:
    """Return the names of the files that belong to a shard's tar."""
    return [index_name(shard.name), *([segments_name(shard.name)] if shard.segments_sha256 else [])]


def measure_missing_bytes(split: RemoteSplit, there: Mapping[str, int], folder: Path) -> int:
    """Return the room on the disk that the files of a split need that will be fetched or written.

    Args:
        there: the sizes of the split's objects in the bucket, by name.
    """
    sizes = {f"{split.name}/{shard.name}": shard.size_bytes for shard in split.manifest.shards}
    others = {name for shard in split.manifest.shards for name in list_names_next_to(shard)}
    others = {f"{split.name}/{name}" for name in (*others, SAMPLES, LEDGER, MANIFEST)}
    sizes |= {name: size for name, size in there.items() if name in others}
    # A tar is fetched again, and its index is written again, if only a file next to it is missing.
    again = {
        f"{split.name}/{name}" for shard in list_missing(split, folder) for name in (shard.name, index_name(shard.name))
    }
    missing = [size for name, size in sizes.items() if name in again or _size(folder / name) != size]
    return sum(-(-size // BLOCK_BYTES) * BLOCK_BYTES for size in missing)


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


def read_order(path: Path) -> list[str]:
    """Return the names in a file of SPLIT/SHARD names, one per line."""
    return path.read_text(errors="replace").split()


def remove_partial(split: RemoteSplit, folder: Path) -> None:
    """Remove the unfinished files that killed processes left; the caller holds the dataset's lock."""
    target = folder / split.name
    paths = [path for parent in (target, target / STAGING_FOLDER) if parent.is_dir() for path in parent.iterdir()]
    paths = [path for path in paths if unfinished_name(path.name)]
    paths += [path for path in folder.iterdir() if unfinished_name(path.name) in DATASET_FILES]
    for path in paths:
        path.unlink(missing_ok=True)


def reopen_split(split: RemoteSplit, folder: Path) -> None:
    """Take back the manifest's name if shards of a complete split are missing."""
    target = folder / split.name
    if (target / MANIFEST).is_file() and list_missing(split, folder):
        (target / STAGING_FOLDER).mkdir(exist_ok=True)
        replace_file(target / MANIFEST, target / STAGING_FOLDER / MANIFEST)


def finish_split(target: Path) -> None:
    """Give the manifest its name in a split's folder, durably, and remove STAGING_FOLDER; all shards are here."""
    staging = target / STAGING_FOLDER
    if (staging / MANIFEST).is_file():
        sync_folder(target)  # the shards' names before the manifest's
        replace_file(staging / MANIFEST, target / MANIFEST)
    sync_folder(target)
    shutil.rmtree(staging, ignore_errors=True)


# The files next to the splits.


def write_dataset_files(remote: Remote, folder: Path) -> None:
    """Write the files next to the splits: those of the bucket, if all of its splits are here and no other is.

    Otherwise they are written from the manifests that are here, as prep/shard.py does, so that no other split is named.

    Raises:
        InputError: a sample index here is damaged.
    """
    here: dict[str, Manifest] = {}
    for path in sorted(folder.iterdir()):
        if not path.name.startswith(".") and path.is_dir() and (content := _read(path / MANIFEST)) is not None:
            here[path.name] = parse_manifest(content, str(path / MANIFEST))
    if _read(folder / TIMM_INFO) == timm_info(here) and (folder / LEAKS).is_file():
        return
    (folder / LEAKS).unlink(missing_ok=True)  # it is written last, and says that the others are there
    there = remote.folders()  # a policy may forbid to ask for what does not exist
    if TIMM_INFO not in there or remote.read(TIMM_INFO) != timm_info(here):
        finalize_dataset(LocalStore(folder))
        return
    for name in DATASET_FILES:
        if name not in there or (name == README and is_users_readme(_read(folder / name))):
            continue
        content = remote.read(name)
        if content is not None:
            write_whole(folder / name, content, unique=True)
