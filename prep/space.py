"""Whether what is to be written fits on the disk, told before the first byte."""

from itertools import islice

from prep.dataset import Options
from prep.errors import InputError
from prep.images import UnusableImageError, as_jpeg
from prep.prepare import list_jobs
from prep.source import Source
from prep.store import Store

OVERHEAD_BYTES = 2000  # an image: two tar headers, padding, the label's block, and its row of both indexes
IMAGES_SAMPLED = 32


def check_space(source: Source, splits: list[str], out: Store, options: Options) -> None:
    """Raises InputError where the splits would not fit beside what is there already."""
    free = out.free_bytes()
    if free is None:
        return
    needed = sum(_missing_bytes(source, split, out.child(split), options) for split in splits)
    if needed > free and _shrinks(options):
        needed *= _sample_ratio(source, splits[0], options)
    if needed > free:
        smaller = "" if _shrinks(options) else ", or make the images smaller (--max-side 500 --quality 90)"
        raise InputError(
            f"{out} has {_readable(free)} free, about {_readable(needed)} are needed: "
            f"free some, choose another --out{smaller}"
        )


def _readable(size_bytes: float) -> str:
    return f"{size_bytes / 1e9:,.1f} GB" if size_bytes >= 1e9 else f"{size_bytes / 1e6:,.1f} MB"


def _shrinks(options: Options) -> bool:
    return bool(options.max_side or options.short_side or options.quality)


def _missing_bytes(source: Source, split: str, store: Store, options: Options) -> float:
    jobs = list_jobs(source, split, store, options)
    missing = sum(job.num_rows for job in jobs if store.size(job.name) is None)
    return missing * (source.size_bytes[split] / source.num_rows[split] + OVERHEAD_BYTES)


def _sample_ratio(source: Source, split: str, options: Options) -> float:
    """Stored bytes by source bytes, of the first images."""
    before = after = 1
    for item in islice(source.rows(split, 0, min(IMAGES_SAMPLED, source.num_rows[split])), IMAGES_SAMPLED):
        try:
            after += len(as_jpeg(item.data, options).data)
            before += len(item.data)
        except UnusableImageError:
            continue
    return after / before
