"""`python prep/shard.py`: a Hugging Face dataset or a folder of images -> WebDataset shards that can be trusted.

With no arguments: ImageNet-1k from the hub to data/imagenet. Run it again to go on where it stopped.
"""

import argparse
import json
import os
import sys
import time
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from prep.dataset import LEDGER, InputError, Manifest, Options
from prep.prepare import check_folder, prepare_split
from prep.progress import format_duration
from prep.resolve import open_source
from prep.source import Source

MOST_REJECTS_SHOWN = 5


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="prep/shard.py", description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        "--source", default="ILSVRC/imagenet-1k", metavar="SRC", help="hub id, Hugging Face folder or image folder"
    )
    parser.add_argument("--out", default=Path("data/imagenet"), type=Path, metavar="DIR", help="where the shards go")
    parser.add_argument("--splits", nargs="+", metavar="SPLIT", help="which splits (default: all but test)")
    parser.add_argument("--workers", type=_count, default=len(os.sched_getaffinity(0)), metavar="N", help="processes")
    parser.add_argument("--images-per-shard", type=_count, default=Options.images_per_shard, metavar="N", help=" ")
    parser.add_argument("--limit", type=_count, metavar="N", help="only the first N images of each split")
    parser.add_argument("--no-decode-check", action="store_true", help="do not decode each image once in full")
    return parser.parse_args(arguments)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is no number of 1 or more")
    return int(text)


def main() -> int:
    """Prepare every split asked for; the exit status is 1 where images had to be left out."""
    arguments = parse_arguments()
    options = Options(arguments.images_per_shard, arguments.limit, not arguments.no_decode_check)
    source = open_source(arguments.source)
    splits = _choose_splits(source, arguments.source, arguments.splits)
    for split in splits:
        check_folder(source, split, arguments.out / split, options)
        source.check(split)
    rejected = 0
    for split in splits:
        started = time.monotonic()
        manifest = prepare_split(source, split, arguments.out, options, arguments.workers)
        _report(arguments.out / split, manifest, time.monotonic() - started)
        rejected += manifest.num_rejected
    return 1 if rejected else 0


def _choose_splits(source: Source, name: str, wanted: list[str] | None) -> list[str]:
    available = [split for split, num_rows in source.num_rows.items() if num_rows]
    splits = wanted or [split for split in available if split != "test"]  # ImageNet's has no labels
    for split in splits:
        if split not in available:
            raise InputError(f"{name} has no images in a split {split}: it has {', '.join(available) or 'none'}")
    if not splits:
        raise InputError(f"{name} holds no images: nothing to prepare")
    return splits


def _report(folder: Path, manifest: Manifest, seconds: float) -> None:
    print(
        f"{folder}: {manifest.num_images:,} images of {len(manifest.class_names):,} classes, "
        f"{manifest.size_bytes / 1e6:,.1f} MB in {len(manifest.shards):,} shards ({format_duration(seconds)})"
    )
    entries = [json.loads(line) for line in (folder / LEDGER).read_text().splitlines()]
    if converted := sum(entry["event"] == "converted" for entry in entries):
        print(f"{folder}: {converted:,} images made RGB JPEG, listed in {folder / LEDGER}")
    rejects = [entry for entry in entries if entry["event"] == "rejected"]
    if rejects:
        shown = "; ".join(
            f"{entry['name'] or 'row ' + str(entry['row'])}: {entry['reason']}"
            for entry in rejects[:MOST_REJECTS_SHOWN]
        )
        print(
            f"error: {folder}: {len(rejects):,} images left out ({shown}{'; ...' if len(rejects) > 5 else ''}), "
            f"all listed in {folder / LEDGER}: mend them at the source, delete {folder} and run again",
            file=sys.stderr,
        )


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (InputError, OSError) as error:
        sys.exit(f"error: {error}")
    except BrokenProcessPool:
        sys.exit("error: a worker process was killed (out of memory?): run the same command again to go on")
    except KeyboardInterrupt:
        sys.exit("interrupted: run the same command again to go on")
