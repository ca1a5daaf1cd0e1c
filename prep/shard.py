"""`python prep/shard.py`: a Hugging Face dataset or a folder of images -> WebDataset shards that can be trusted.

With no arguments: ImageNet-1k from the hub to data/imagenet. Run it again to go on where it stopped.
"""

import argparse
import os
import re
import time
from typing import Any

from prep.dataset import Options
from prep.errors import InputError, positive_count, print_lines, run, warn
from prep.image_folder import ImageFolder
from prep.out_folder import check_out
from prep.pools import Pool, local_pool
from prep.prepare import check_folder, prepare_split
from prep.report import describe_leaks, describe_rejects, summarize
from prep.resolve import open_source
from prep.source import Reading, Source
from prep.space import check_space
from prep.store import open_store


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="prep/shard.py", description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--source", default="ILSVRC/imagenet-1k", metavar="SRC", help="hub id, Hugging Face folder or image folder")
    add("--out", default="data/imagenet", metavar="DIR", help="where the shards go: a folder or s3://bucket/prefix")
    add("--splits", nargs="+", action="extend", metavar="SPLIT", help="which splits (default: all but test)")
    add("--config", metavar="NAME", help="which configuration of a Hugging Face dataset that has several")
    add("--image-column", metavar="COLUMN", help="where a table has several columns of images")
    add("--label-column", metavar="COLUMN", help="where a table has several columns of labels")
    add(
        "--split-map",
        nargs="+",
        action="extend",
        type=_split_pair,
        default=[],
        metavar="SPLIT=NAME",
        help="as train=training: "
        "prepare what the source calls training (for image folders: the folder of that name) as the split train",
    )
    add("--allow-missing", action="store_true", help="go on though the source says that parts of it are not there")
    add("--workers", type=positive_count, default=len(os.sched_getaffinity(0)), metavar="N", help="processes")
    add("--ray", metavar="ADDRESS", help="write on a Ray cluster instead: auto, or its address")
    add("--images-per-shard", type=positive_count, default=Options.images_per_shard, metavar="N", help=" ")
    add("--limit", type=positive_count, metavar="N", help="only the first N images of each split")
    add("--max-side", type=positive_count, metavar="PIXELS", help="scale images down to this longer side")
    add("--short-side", type=positive_count, metavar="PIXELS", help="scale images down to this shorter side")
    add("--quality", type=_quality, metavar="Q", help="encode anew with this JPEG quality where it saves bytes")
    add("--no-decode-check", action="store_true", help="do not decode each image once in full")
    add("--strict", action="store_true", help="stop at the first shard with a damaged image")
    return parser.parse_args(arguments)


def _quality(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 100:
        raise argparse.ArgumentTypeError(f"{text} is no quality from 1 to 100")
    return int(text)


def _split_pair(text: str) -> tuple[str, str]:
    """Parse train=training to (name at the source, name of the split)."""
    split, equals, name = text.partition("=")
    if not equals or not name or not re.fullmatch(r"\w[\w.-]*", split):
        raise argparse.ArgumentTypeError(f"expected SPLIT=NAME such as train=training, got {text!r}")
    return name, split


def read_wishes(arguments: argparse.Namespace) -> Reading:
    return Reading(
        arguments.config,
        arguments.image_column,
        arguments.label_column,
        tuple(arguments.split_map),
        arguments.allow_missing,
    )


def main() -> None:
    """Prepare every split asked for; images that had to be left out are told, not fatal, but for --strict."""
    arguments = parse_arguments()
    options = Options(
        arguments.images_per_shard,
        arguments.limit,
        not arguments.no_decode_check,
        arguments.max_side,
        arguments.short_side,
        arguments.quality,
    )
    check_out(arguments.source, arguments.out)
    source, out = open_source(arguments.source, read_wishes(arguments)), open_store(arguments.out)
    splits = _choose_splits(source, arguments.source, arguments.splits)
    for note in source.notes if isinstance(source, ImageFolder) else ():
        warn(note)
    for split in splits:
        check_folder(source, split, out.child(split), options)
        source.check(split)
    check_space(source, splits, out, options)
    pool = _choose_pool(arguments)
    for split in splits:
        started = time.monotonic()
        manifest = prepare_split(source, split, out, options, pool, strict=arguments.strict)
        print_lines(summarize(manifest, out.child(split), time.monotonic() - started))
        warn(describe_rejects(out.child(split)))
    warn(describe_leaks(out))


def _choose_pool(arguments: argparse.Namespace) -> Pool[Any]:
    if arguments.ray is None:
        return local_pool(arguments.workers)
    from prep.ray_pool import ray_pool  # noqa: PLC0415 - an extra

    return ray_pool(arguments.ray)


def _choose_splits(source: Source, name: str, wanted: list[str] | None) -> list[str]:
    available = [split for split, num_rows in source.num_rows.items() if num_rows]
    splits = wanted or [split for split in available if split != "test"]  # ImageNet's has no labels
    for split in splits:
        if split not in available:
            passed_over = "; ".join(source.reading(available[0]).get("passed_over", ()) if available else ())
            more = f" (passed over: {passed_over})" if passed_over else ""
            raise InputError(f"{name} has no images in a split {split}: it has {', '.join(available) or 'none'}{more}")
    if not available:
        raise InputError(f"{name} holds no images: nothing to prepare")
    if not splits:
        raise InputError(f"{name} has the split test alone, which is left out by default: give --splits test")
    if not wanted and "test" in available:
        print_lines(f"split test left out: give --splits {' '.join(available)} to prepare it too")
    return splits


if __name__ == "__main__":
    run(main, interrupted="run the same command again to continue")
