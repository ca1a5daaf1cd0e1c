"""`python prep/adopt.py TARS... --out DIR`: use existing WebDataset tars as a split to train on, without a copy.

Give the tars of one split, such as imagenet1k-train-*.tar of timm/imagenet-1k-wds. They are read once, and DIR/SPLIT
gets links to them, so do not move them; if they were moved, run it again with the new paths. Images that would have to
be converted (PNG, CMYK, damaged) and samples without a label are left out of the sample index.
"""

import argparse
import os
import re
import time
from pathlib import Path

from prep.adoption import Adoption, adopt_split, read_class_names
from prep.dataset import read_manifest
from prep.dataset_card import describe_kept_readme
from prep.errors import HelpFormatter, positive_count, run, warn
from prep.ledger import describe_leaks, describe_rejects, summarize
from prep.pools import local_pool
from prep.store import LocalStore
from prep.tar_sample import Fields
from prep.tar_sets import describe_contradiction, find_tars


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="prep/adopt.py", description=__doc__, formatter_class=HelpFormatter)
    add = parser.add_argument
    add("tars", nargs="+", metavar="TARS", help="tars of one split, or a folder: its *.tar, sorted by name")
    add("--out", required=True, type=_folder, metavar="DIR", help="the folder for the split's folder")
    split_help = "the split's name; if the tars of a folder belong to several splits, the one to adopt (default: train)"
    add("--split", type=_split, default=argparse.SUPPRESS, metavar="SPLIT", help=split_help)
    add("--class-names", type=Path, metavar="FILE", help="class names in the order of the labels, one per line")
    ext_help = "if samples have several: what follows the first dot of its name, such as jpg or seg.png"
    add("--image-ext", type=_extension, metavar="EXT", help=f"extension of the image, {ext_help}")
    add("--label-ext", type=_extension, metavar="EXT", help="extension of the label, likewise, such as cls or fine.cls")
    add("--label-key", metavar="KEY", help="key of the label in JSON members, such as label or meta.class_id")
    add("--allow-missing", action="store_true", help="continue although tars of the set are missing")
    add("--no-decode-check", action="store_true", help="do not decode each image in full to check it")
    add("--workers", type=positive_count, default=len(os.sched_getaffinity(0)), metavar="N", help="processes")
    return parser.parse_args(arguments)


def _folder(text: str) -> Path:
    if "://" in text:
        raise argparse.ArgumentTypeError(f"must be a folder of this machine, because tars are linked to, got {text}")
    return Path(text)


def _split(text: str) -> str:
    if not re.fullmatch(r"\w[\w.-]*", text):
        raise argparse.ArgumentTypeError(f"must be a name for a folder, got {text!r}")
    return text


def _extension(text: str) -> str:
    if not text.strip(".") or "/" in text:
        raise argparse.ArgumentTypeError(f"expected the end of a name, such as seg.png, got {text!r}")
    return text.lower().removeprefix(".")


def main() -> None:
    """Adopt one split; images that had to be left out are reported, and are not an error."""
    arguments = parse_arguments()
    started = time.monotonic()

    # Find the tars and what to use of them.
    out = LocalStore(arguments.out)
    adoption = Adoption(
        find_tars(arguments.tars, getattr(arguments, "split", None)),
        read_class_names(arguments.class_names) if arguments.class_names else None,
        not arguments.no_decode_check,
        arguments.allow_missing,
        Fields(arguments.image_ext, arguments.label_ext, arguments.label_key),
    )
    warn(describe_contradiction(adoption.tars))

    # Adopt them, and summarize.
    store = out.child(adoption.tars.split)
    if adopt_split(adoption, out, local_pool(arguments.workers)):
        print(f"{store} was already adopted from these tars:")
    print(summarize(read_manifest(store.folder), store, time.monotonic() - started))
    warn(describe_rejects(store))
    warn(describe_leaks(out))
    warn(describe_kept_readme(out))


if __name__ == "__main__":
    run(main, interrupted="run the same command again to continue")
