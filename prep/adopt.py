"""`python prep/adopt.py TARS… --out DIR`: WebDataset tars that already exist -> a split that trains, without a copy.

Give the tars of one split, such as imagenet1k-train-*.tar of timm/imagenet-1k-wds. They are read once and linked to
from DIR/SPLIT, so leave them where they are; where they have moved, run it again with where they are now. Images that
would have to be written anew (PNG, CMYK, damaged) and samples without a label are left out of the sample index.
"""

import argparse
import os
import re
import time
from pathlib import Path

from prep.adoption import adopt_split, find_tars, read_class_names
from prep.command import positive_count, run, warn
from prep.dataset import read_manifest
from prep.pools import local_pool
from prep.report import describe_leaks, describe_rejects, summarize
from prep.store import LocalStore


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="prep/adopt.py", description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("tars", nargs="+", metavar="TARS", help="tars of one split, or a folder: its *.tar, sorted by name")
    add("--out", required=True, type=_folder, metavar="DIR", help="where the split's folder goes")
    add("--split", type=_split, default="train", metavar="SPLIT", help="the split's name")
    add("--class-names", type=Path, metavar="FILE", help="class names, one a line, for the labels as text")
    add("--no-decode-check", action="store_true", help="do not decode each image once in full")
    add("--workers", type=positive_count, default=len(os.sched_getaffinity(0)), metavar="N", help="processes")
    return parser.parse_args(arguments)


def _folder(text: str) -> Path:
    if "://" in text:
        raise argparse.ArgumentTypeError(f"{text} is no folder of this machine, where alone tars can be linked to")
    return Path(text)


def _split(text: str) -> str:
    if not re.fullmatch(r"\w[\w.-]*", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no name of a folder")
    return text


def main() -> None:
    """Adopt one split; images that had to be left out are told, not fatal."""
    arguments = parse_arguments()
    started = time.monotonic()
    out = LocalStore(arguments.out)
    store = out.child(arguments.split)
    names = read_class_names(arguments.class_names) if arguments.class_names else None
    jobs = find_tars(arguments.tars, store, not arguments.no_decode_check)
    if adopt_split(jobs, arguments.split, names, out, local_pool(arguments.workers)):
        print(f"{store} is adopted from these tars already:")
    print(summarize(read_manifest(store.folder), store, time.monotonic() - started))
    warn(describe_rejects(store))
    warn(describe_leaks(out))


if __name__ == "__main__":
    run(main)
