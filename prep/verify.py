"""`python prep/verify.py DIR`: whether a prepared dataset is whole, byte for byte; what is not, and how to mend it.

DIR is a folder of splits, one split's folder, or the same in an object store. Status 0: all is whole; 1: it is not.
"""

import argparse
import os
import time

from prep.checks import check, find_layout
from prep.errors import one_line, positive_count, print_lines, run
from prep.faults import Report
from prep.pools import local_pool
from prep.repair import Repair


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="prep/verify.py", description=__doc__)
    add = parser.add_argument
    add("directory", metavar="DIR", help="what prep/shard.py wrote: a folder or s3://bucket/prefix")
    add("--decode", type=_num_decoded, default=100, metavar="N|all", help="images a split to decode in full (100)")
    add("--workers", type=positive_count, default=len(os.sched_getaffinity(0)), metavar="N", help="processes")
    add("--repair", action="store_true", help="write what is damaged anew")
    add("--source", metavar="SRC", help="what it was prepared from, for --repair (default: its hub id)")
    return parser.parse_args(arguments)


def _num_decoded(text: str) -> int | None:
    if text != "all" and not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text} is neither a number nor all")
    return None if text == "all" else int(text)


def main(arguments: list[str] | None = None) -> int:
    """Verify, repair if asked to, and verify what was repaired; the exit status."""
    options = parse_arguments(arguments)
    started = time.monotonic()
    layout, pool = find_layout(options.directory), local_pool(options.workers)
    report = check(layout, options.decode, pool)
    for line in [*(fault.line for fault in report.faults), *(f"note: {note}" for note in report.notes)]:
        print_lines(line)
    faults = report.faults
    if faults and options.repair:
        repair = Repair(layout, options.source, pool)
        repair.run(faults)
        faults = check(layout, options.decode, pool, repair.written(faults)).faults
        for line in [*repair.complaints, *(fault.line for fault in faults)] if faults else []:
            print(f"not mended: {one_line(line)}")
    print_lines(f"{layout}: {_summarize(report, time.monotonic() - started, len(faults))}")
    return 1 if faults else 0


def _summarize(report: Report, seconds: float, num_left: int) -> str:
    num_faults = len(report.faults)
    mended = f", {num_faults - num_left:,} mended" if num_left < num_faults else ""
    verdict = f"{num_faults:,} fault{'s' * (num_faults > 1)}{mended}" if num_faults else "whole"
    return (
        f"{verdict}; {report.num_images:,} images in {report.num_shards:,} shards of {report.num_splits:,} splits, "
        f"{report.size_bytes / 1e6:,.1f} MB, {report.num_decoded:,} decoded ({seconds:,.1f} s)"
    )


if __name__ == "__main__":
    run(main, interrupted="nothing is harmed, run the same command again")
