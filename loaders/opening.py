"""Open the splits of a dataset: in a folder, or in a bucket through a cache on this machine.

    train, validation = open_splits("s3://bucket/imagenet", ["train", "validation"], "/nvme/imagenet", world)

The first process of a machine that comes here fetches the indexes into the cache; shards may still be missing. A split
that is complete in the cache is opened as any other folder.
"""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from loaders.config import NO_CACHE, parse_root
from loaders.filler import Filler
from loaders.through import BucketSplit
from loaders.world import World, make_machine_error
from prep.dataset import MANIFEST, SAMPLES, STAGING_FOLDER, Split
from prep.errors import InputError
from prep.files import hold_lock, sha256_of
from prep.remote import Remote
from prep.staging import (
    RemoteSplit,
    check_folder,
    fetch_matching,
    find_splits,
    is_whole,
    measure_missing_bytes,
    write_index,
)

USE = "a folder on a local disk (--data.cache /nvme/imagenet, or cache= for `build`)"


def open_splits(
    root: str | os.PathLike[str], names: Sequence[str], cache: str | os.PathLike[str] | None, world: World
) -> list[Split]:
    """Open some splits of one dataset.

    Args:
        root: a folder, or s3://BUCKET/PREFIX.
        cache: for a bucket: the folder to which its shards are fetched, or `none`. Empty or None for a folder.

    Raises:
        InputError: the dataset does not exist, or the cache cannot be used for it.
    """
    # A folder.
    root = parse_root(root)
    if isinstance(root, Path):
        if cache:
            raise InputError(f"a cache is for a dataset in a bucket, and {root} is a folder: leave out {cache}")
        return [Split(root, name) for name in names]

    # A bucket.
    if not cache:
        raise InputError(f"{root} is in a bucket, which needs a cache: give {USE}, or none")
    try:
        remote = Remote(root)
        found = {split.name: split for split in find_splits(remote, names)}
        splits = [found[name] for name in names]
        if str(cache) == NO_CACHE:
            return [_open_uncached(remote, split, world) for split in splits]
        return _open_cached(remote, splits, Path(cache).absolute(), world)
    except OSError as error:
        line = f"the cache {cache} cannot be used ({error.strerror}): give {USE}"
    except InputError as error:
        line = str(error)
    raise make_machine_error(line, world)


def _open_cached(remote: Remote, splits: list[RemoteSplit], cache: Path, world: World) -> list[Split]:
    # What is complete needs no bucket any more.
    for split in splits:
        check_folder(split, remote, cache, f"give {USE}, or delete it")
    missing = [split for split in splits if not is_whole(split, cache)]

    # The other indexes: the processes of this machine come here at about the same time, and one of them fetches each.
    contents = {split.name: _fetch_samples(remote, split, cache) for split in missing}

    # One process fetches the shards, when reading begins.
    filler = None
    if missing and world.local_rank == 0:
        _check_room(remote, missing, cache)
        filler = Filler(remote.url, cache, [split.name for split in missing])
    return [
        BucketSplit(remote.url, cache, split, contents[split.name], filler, warns=world.local_rank == 0)
        if split.name in contents
        else Split(cache, split.name)
        for split in splits
    ]


def _fetch_samples(remote: Remote, split: RemoteSplit, cache: Path) -> bytes:
    """Return the sample index of a split, from the cache; fetch it, and what belongs to it, if it is not there."""
    folder = cache / split.name
    if content := _read_samples(split, folder):
        return content
    folder.mkdir(parents=True, exist_ok=True)
    with hold_lock(folder, wait=True):
        write_index(split, remote, cache)
    return (folder / SAMPLES).read_bytes()


def _read_samples(split: RemoteSplit, folder: Path) -> bytes | None:
    """Return the sample index in a split's folder; None if the index files are not there, or not whole."""
    # The manifest comes last. It moves from the one place to the other when the last shard has come.
    is_there = any(path.is_file() for path in (folder / STAGING_FOLDER / MANIFEST, folder / MANIFEST))
    try:
        content = (folder / SAMPLES).read_bytes()
    except FileNotFoundError:
        return None
    return content if is_there and sha256_of(content) == split.manifest.samples_sha256 else None


def _open_uncached(remote: Remote, split: RemoteSplit, world: World) -> BucketSplit:
    """Open a split of which nothing is kept on this machine; the index is in memory."""
    path = f"{split.name}/{SAMPLES}"
    content = fetch_matching(remote, path, remote.list(split.name).get(path), split.manifest.samples_sha256)
    return BucketSplit(remote.url, None, split, content, warns=world.local_rank == 0)


def _check_room(remote: Remote, splits: list[RemoteSplit], cache: Path) -> None:
    """Check that the disk has room for the shards that are missing.

    Raises:
        InputError: it has not.
    """
    needed = sum(measure_missing_bytes(split, remote.list(split.name), cache) for split in splits)
    free = shutil.disk_usage(cache).free
    if needed > free:
        raise InputError(
            f"the cache {cache} lacks {needed / 1e9:,.1f} GB, and its disk has {free / 1e9:,.1f} GB free: "
            f"give {USE}, or none to read everything from the bucket"
        )
