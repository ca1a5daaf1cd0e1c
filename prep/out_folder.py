"""Check --out before anything is written: it is outside of the source, it can be written, and the data fits."""

import os
from itertools import islice
from pathlib import Path

from prep.dataset import Options
from prep.errors import InputError
from prep.images import UnusableImageError, as_jpeg
from prep.prepare import list_jobs
from prep.progress import format_size
from prep.source import Source
from prep.store import Store

OVERHEAD_BYTES = 2000  # per image: two tar headers, padding, the label's block, and its row in both indexes
SEGMENTS_BYTES = 1500  # per image, with restarts: its part of SHARD.seg
IMAGES_SAMPLED = 32  # to estimate by how much images shrink


# The folder.


def check_out(source: str, out: str) -> None:
    """Check a user's --out before anything is listed or written.

    Raises:
        InputError: it is the source's folder, is inside of it, or contains it, also through links; or nothing can be
            written there.
    """
    if "://" in out:
        return
    folder = Path(out)
    _check_writable(folder)
    source_folder = Path(source)
    if source_folder.is_dir():
        _check_separate(source_folder, folder)


def _check_writable(folder: Path) -> None:
    """Check that the folder, or the deepest existing one above it, is a folder that can be written to."""
    existing = folder.absolute()
    while not os.path.lexists(existing) and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir():
        what = "is a broken link" if existing.is_symlink() and not existing.exists() else "is not a folder"
        raise InputError(f"{existing} {what}, so --out {folder} cannot be created: choose another --out")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise InputError(
            f"{existing} cannot be written (a read-only file system, or another owner): choose another --out, or "
            f"change its permissions (ls -ld {existing})"
        )


def _check_separate(source: Path, out: Path) -> None:
    """Compare the folders by identity, not by path: links and mounts give one folder several paths."""
    source_ids, out_ids = _list_identities(source), _list_identities(out)
    same = source_ids[0] == out_ids[0]
    if same or source_ids[0] in out_ids:
        where = "is the source itself" if same else f"is inside the source {source}"
        raise InputError(f"--out {out} {where}, and would be read as part of it: choose a folder outside of it")
    if out_ids[0] in source_ids:
        other = f"{out.resolve()}-shards"
        raise InputError(f"the source {source} is inside --out {out}: choose a separate --out, such as {other}")


def _list_identities(folder: Path) -> list[tuple[int, int] | None]:
    """Return device and inode of a folder and of each one above it; None for those that do not exist yet."""
    found: list[tuple[int, int] | None] = []
    resolved = folder.resolve()
    for path in (resolved, *resolved.parents):
        status = path.stat() if path.exists() else None
        found.append((status.st_dev, status.st_ino) if status else None)
    return found


# The space.


def check_space(source: Source, splits: list[str], out: Store, options: Options) -> None:
    """Check that the missing shards of some splits fit on the disk.

    Raises:
        InputError: they do not.
    """
    free = out.free_bytes()
    if free is None:
        return
    needed = sum(_estimate_missing_bytes(source, split, out.child(split), options) for split in splits)
    if needed > free and _shrinks(options):
        needed *= _measure_shrinking(source, splits[0], options)
    if needed > free:
        smaller = "" if _shrinks(options) else ", or make the images smaller (--max-side 500 --quality 90)"
        raise InputError(
            f"{out} has {format_size(free)} free, about {format_size(needed)} are needed: "
            f"free some, choose another --out{smaller}"
        )


def _shrinks(options: Options) -> bool:
    return bool(options.max_side or options.short_side or options.quality)


def _estimate_missing_bytes(source: Source, split: str, store: Store, options: Options) -> float:
    jobs = list_jobs(source, split, store, options)
    missing = sum(job.num_rows for job in jobs if store.size(job.name) is None)
    overhead = OVERHEAD_BYTES + SEGMENTS_BYTES * options.restarts
    return missing * (source.size_bytes[split] / source.num_rows[split] + overhead)


def _measure_shrinking(source: Source, split: str, options: Options) -> float:
    """Return stored bytes divided by source bytes, measured on the first images."""
    before = after = 1
    for item in islice(source.rows(split, 0, min(IMAGES_SAMPLED, source.num_rows[split])), IMAGES_SAMPLED):
        try:
            after += len(as_jpeg(item.data, options).data)
            before += len(item.data)
        except UnusableImageError:
            continue
    return after / before
