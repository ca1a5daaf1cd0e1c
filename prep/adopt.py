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

from prep.adoption import Adoption, adopt_split, read_class_names
from prep.dataset import read_manifest
from prep.errors import positive_count, run, warn
from prep.pools import local_pool
from prep.report import describe_leaks, describe_rejects, summarize
from prep.store import LocalStore
from prep.tar_sample import Fields
from prep.tar_sets import describe_contradiction, find_tars


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="prep/adopt.py", description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("tars", nargs="+", metavar="TARS", help="tars of one split, or a folder: its *.tar, sorted by name")
    add("--out", required=True, type=_folder, metavar="DIR", help="where the split's folder goes")
    split_help = "the split's name; in a folder with tars of several splits, which of them (default: train)"
    add("--split", type=_split, default=argparse.SUPPRESS, metavar="SPLIT", help=split_help)
    add("--class-names", type=Path, metavar="FILE", help="class names, one a line, for the labels as text")
    ext_help = "of members with several images or labels: what follows the first dot of the names, as jpg or seg.png"
    add("--image-ext", type=_extension, metavar="EXT", help=f"the image {ext_help}")
    add("--label-ext", type=_extension, metavar="EXT", help="the same for the label, as cls or fine.cls")
    add("--label-key", metavar="KEY", help="of JSON members: which key holds the label, as label or meta.class_id")
    add("--allow-missing", action="store_true", help="go on though parts of the set are not there")
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


def _extension(text: str) -> str:
    if not text.strip(".") or "/" in text:
        raise argparse.ArgumentTypeError(f"expected the end of a name, such as seg.png, got {text!r}")
    return text.lower().removeprefix(".")


def main() -> None:
    """Adopt one split; images that had to be left out are told, not fatal."""
    arguments = parse_arguments()
    started = time.monotonic()
    out = LocalStore(arguments.out)
    adoption = Adoption(
        find_tars(arguments.tars, getattr(arguments, "split", None)),
        read_class_names(arguments.class_names) if arguments.class_names else None,
        not arguments.no_decode_check,
        arguments.allow_missing,
        Fields(arguments.image_ext, arguments.label_ext, arguments.label_key),
    )
    warn(describe_contradiction(adoption.tars))
    store = out.child(adoption.tars.split)
    if adopt_split(adoption, out, local_pool(arguments.workers)):
        print(f"{store} is adopted from these tars already:")
    print(summarize(read_manifest(store.folder), store, time.monotonic() - started))
    warn(describe_rejects(store))
    warn(describe_leaks(out))


if __name__ == "__main__":
    run(main, interrupted="run the same command again to continue")
