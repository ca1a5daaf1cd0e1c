"""`python prep/shard.py`: convert a Hugging Face dataset or a folder of images to checked WebDataset shards.

Without arguments it converts ImageNet-1k from the hub to data/imagenet. Run it again to continue where it stopped.
"""

import argparse
import os
import re
import time
from typing import Any

from prep.dataset import Options
from prep.dataset_card import describe_kept_readme
from prep.errors import HelpFormatter, InputError, positive_count, print_lines, run, warn
from prep.image_folder import ImageFolder
from prep.ledger import describe_leaks, describe_rejects, summarize
from prep.out_folder import check_out, check_space
from prep.pools import Pool, local_pool, ray_pool
from prep.prepare import check_folder, prepare_split
from prep.resolve import open_source
from prep.restarts import find_transcoder
from prep.source import Reading, Source
from prep.store import open_store


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="prep/shard.py", description=__doc__, formatter_class=HelpFormatter)
    add = parser.add_argument
    # What to read, and what to write.
    add("--source", default="ILSVRC/imagenet-1k", metavar="SRC", help="hub id, Hugging Face folder or image folder")
    add("--out", default="data/imagenet", metavar="DIR", help="where to write: a folder or s3://bucket/prefix")
    add(
        "--splits", nargs="+", action="extend", metavar="SPLIT", help="the splits to prepare (default: all except test)"
    )
    # How to read the source.
    add("--config", metavar="NAME", help="configuration of a Hugging Face dataset that has several")
    add("--image-column", metavar="COLUMN", help="column of the images, if a table has several")
    add("--label-column", metavar="COLUMN", help="column of the labels, if a table has several")
    add(
        "--split-map",
        nargs="+",
        action="extend",
        type=_split_pair,
        default=[],
        metavar="SPLIT=NAME",
        help="prepare the source's split NAME (of an image folder: the folder of that name) as the split SPLIT, "
        "for example train=training",
    )
    add("--allow-missing", action="store_true", help="continue although parts that the source lists are missing")
    # Workers.
    add("--workers", type=positive_count, default=len(os.sched_getaffinity(0)), metavar="N", help="processes")
    add("--ray", metavar="ADDRESS", help="write on a Ray cluster: auto, or its address")
    add(
        "--images-per-shard",
        type=positive_count,
        default=Options.images_per_shard,
        metavar="N",
        help="images in a shard",
    )
    add("--limit", type=positive_count, metavar="N", help="only the first N images of each split")
    add("--max-side", type=positive_count, metavar="PIXELS", help="shrink larger images to this longer side")
    add(
        "--short-side",
        type=positive_count,
        metavar="PIXELS",
        help="shrink larger images to this shorter side",
    )
    add("--quality", type=_quality, metavar="Q", help="re-encode with this JPEG quality if that saves bytes")
    add(
        "--restarts",
        action="store_true",
        help="give each JPEG restart markers, without loss, so that training reads parts of it (about 5 times as long)",
    )
    add("--no-decode-check", action="store_true", help="do not decode each image in full to check it")
    add("--strict", action="store_true", help="stop at the first shard with a damaged image")
    return parser.parse_args(arguments)


def _quality(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 100:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 to 100, got {text}")
    return int(text)


def _split_pair(text: str) -> tuple[str, str]:
    """Parse train=training to (name at the source, name of the split)."""
    split, equals, name = text.partition("=")
    if not equals or not name or not re.fullmatch(r"\w[\w.-]*", split):
        raise argparse.ArgumentTypeError(f"expected SPLIT=NAME such as train=training, got {text!r}")
    return name, split


def build_reading(arguments: argparse.Namespace) -> Reading:
    """Return the choices about how to read the source."""
    return Reading(
        arguments.config,
        arguments.image_column,
        arguments.label_column,
        tuple(arguments.split_map),
        arguments.allow_missing,
    )


def main() -> None:
    """Prepare the splits; images that cannot be used are reported, and are an error only with --strict."""
    arguments = parse_arguments()
    options = Options(
        arguments.images_per_shard,
        arguments.limit,
        not arguments.no_decode_check,
        arguments.max_side,
        arguments.short_side,
        arguments.quality,
        arguments.restarts,
    )
    if options.restarts:
        find_transcoder()

    # Open the source, choose the splits, and find every reason to stop before anything is written.
    check_out(arguments.source, arguments.out)
    source, out = open_source(arguments.source, build_reading(arguments)), open_store(arguments.out)
    splits = _choose_splits(source, arguments.source, arguments.splits)
    for note in source.notes if isinstance(source, ImageFolder) else ():
        warn(note)
    for split in splits:
        check_folder(source, split, out.child(split), options)
        source.check_split(split)
    check_space(source, splits, out, options)

    # Write the splits.
    pool = _choose_pool(arguments)
    for split in splits:
        started = time.monotonic()
        manifest = prepare_split(source, split, out, options, pool, strict=arguments.strict)
        print_lines(summarize(manifest, out.child(split), time.monotonic() - started))
        warn(describe_rejects(out.child(split)))
    warn(describe_leaks(out))
    warn(describe_kept_readme(out))


def _choose_pool(arguments: argparse.Namespace) -> Pool[Any]:
    return local_pool(arguments.workers) if arguments.ray is None else ray_pool(arguments.ray)


def _choose_splits(source: Source, name: str, wanted: list[str] | None) -> list[str]:
    """Return the splits that the user wants, or all except test.

    Raises:
        InputError: the source has no images in one of them, or in any split.
    """
    available = [split for split, num_rows in source.num_rows.items() if num_rows]
    splits = wanted or [split for split in available if split != "test"]  # ImageNet's test split has no labels
    for split in splits:
        if split not in available:
            passed_over = "; ".join(source.reading(available[0]).get("passed_over", ()) if available else ())
            more = f" (passed over: {passed_over})" if passed_over else ""
            raise InputError(f"{name} has no images in a split {split}: it has {', '.join(available) or 'none'}{more}")
    if not available:
        raise InputError(f"{name} holds no images: nothing to prepare")
    if not splits:
        raise InputError(f"{name} has only the split test, which is left out by default: give --splits test")
    if not wanted and "test" in available:
        print_lines(f"split test left out: give --splits {' '.join(available)} to prepare it too")
    return splits


if __name__ == "__main__":
    run(main, interrupted="run the same command again to continue")
