"""`python prep/stage.py s3://bucket/imagenet --to DIR`: copy a prepared dataset from a bucket to this machine.

Every shard is verified before it gets its name, and the folder is byte for byte what prep/shard.py wrote. Run the
command again to continue where it stopped. The exit status is 0 if everything is there, 1 if not.
"""

import argparse
import os
import shutil
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from prep.errors import HelpFormatter, InputError, list_some, one_line, positive_count, print_lines, run
from prep.files import hold_lock
from prep.progress import ByteMeter, describe_rate, format_duration, format_size
from prep.remote import PATIENCE_SECONDS, Patience, Remote
from prep.staging import (
    RemoteSplit,
    check_folder,
    find_splits,
    finish_split,
    is_whole,
    list_missing,
    measure_missing_bytes,
    read_order,
    remove_partial,
    reopen_split,
    repair_command,
    write_dataset_files,
    write_index,
)
from prep.transfer import Fetch, Transfer, make_fetch

CONNECTIONS = 64


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="prep/stage.py", description=__doc__, formatter_class=HelpFormatter)
    add = parser.add_argument
    add("url", metavar="URL", help="a dataset that prep/shard.py wrote: s3://bucket/prefix")
    add("--to", required=True, type=Path, metavar="DIR", help="folder on this machine")
    add("--split", nargs="+", action="extend", default=[], metavar="SPLIT", help="only these splits (default: all)")
    add(
        "--connections",
        type=positive_count,
        default=CONNECTIONS,
        metavar="N",
        help="requests at the same time, each of up to 16 MB in memory: 160 for a network of 100 Gbit/s",
    )
    add("--order", type=Path, metavar="FILE", help="SPLIT/SHARD names, one per line, that are fetched first")
    add("--wait", action="store_true", help="wait while another process writes the folder")
    add(
        "--patience",
        type=positive_count,
        default=int(PATIENCE_SECONDS),
        metavar="SECONDS",
        help="how long to wait while S3 does not answer",
    )
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Stage the dataset."""
    # What the bucket has, and the order of shards; nothing is written yet.
    options = parse_arguments(arguments)
    first = read_order(options.order) if options.order else []
    if options.to.exists() and not options.to.is_dir():
        raise InputError(f"--to {options.to} is a file: choose a folder")
    remote = Remote(options.url, Patience(options.patience))
    splits = find_splits(remote, options.split)
    for split in splits:
        check_folder(split, remote, options.to)

    # One process at a time.
    options.to.mkdir(parents=True, exist_ok=True)
    try:
        with hold_lock(options.to, options.wait):
            line = stage(remote, splits, first, options)
    except BlockingIOError:
        raise InputError(f"{options.to} is being written by another process: wait for it, or give --wait") from None

    # The files next to the splits come with the last one.
    write_dataset_files(remote, options.to)
    print_lines(line)


def stage(remote: Remote, splits: Sequence[RemoteSplit], first: list[str], options: argparse.Namespace) -> str:
    """Fetch what is missing of some splits; return a summary of one line.

    Raises:
        InputError: the disk lacks room, or a shard does not match its manifest.
    """
    # What is missing, and whether there is room for it.
    folder: Path = options.to
    for split in splits:
        check_folder(split, remote, folder)  # another process may have changed it before the lock was free
        remove_partial(split, folder)
        reopen_split(split, folder)
    whole = f"{folder} is whole ({', '.join(split.name for split in splits)})"
    splits = [split for split in splits if not is_whole(split, folder)]
    if not splits:
        return f"{whole}: nothing to fetch"
    there = {name: size for split in splits for name, size in remote.list(split.name).items()}
    fetches = [
        make_fetch(shard, folder / split.name, there) for split in splits for shard in list_missing(split, folder)
    ]
    needed = sum(measure_missing_bytes(split, there, folder) for split in splits)
    free = shutil.disk_usage(folder).free
    missing = f"{format_size(needed)} in {len(fetches):,} shards"
    if needed > free:
        raise InputError(
            f"{folder} has {format_size(free)} free, {missing} are missing: free some, or choose another --to"
        )
    print_lines(f"{remote}: {missing} are missing in {folder}")
    sys.stdout.flush()

    # The index files of all splits, then the shards.
    started = time.monotonic()
    for split in splits:
        write_index(split, remote, folder)
        if not list_missing(split, folder):
            finish_split(folder / split.name)
    size_bytes = sum(fetch.size_bytes for fetch in fetches)
    with ByteMeter("stage", size_bytes) as meter, Transfer(remote, options.connections, meter) as transfer:
        wrong = fetch_shards(transfer, _sort_shards(fetches, first))
    if wrong:
        raise InputError(f"{list_some(wrong)}: {repair_command(remote)}")
    seconds = time.monotonic() - started
    return f"{whole}: {missing} fetched in {format_duration(seconds)}, {describe_rate(size_bytes, seconds)}"


def fetch_shards(transfer: Transfer, fetches: list[Fetch]) -> list[str]:
    """Fetch shards, and finish each split with its last one; return what is wrong with those that were given up."""
    wrong, num_missing = [], Counter(fetch.folder for fetch in fetches)
    for fetch in transfer.fetch_all(fetches):
        if fetch.wrong:
            wrong.append(fetch.wrong)
            continue
        num_missing[fetch.folder] -= 1
        if not num_missing[fetch.folder]:
            finish_split(fetch.folder)
    return wrong


def _sort_shards(fetches: list[Fetch], first: list[str]) -> list[Fetch]:
    """Return the shards that are to be fetched, those of the list `first` in its order, then the others."""
    places = {name: place for place, name in enumerate(first)}
    return sorted(fetches, key=lambda fetch: places.get(fetch.name, len(places)))


def leave(end: SystemExit) -> NoReturn:
    """End at once: threads that wait for an answer of S3 cannot be interrupted, and Python would wait for them."""
    if isinstance(end.code, str):
        print(one_line(end.code), file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1 if isinstance(end.code, str) else end.code or 0)


if __name__ == "__main__":
    try:
        run(main, interrupted="run the same command again to continue")
    except SystemExit as end:
        if threading.active_count() > 1:
            leave(end)
        raise
