"""`python prep/verify.py DIR`: check a prepared dataset byte for byte; report each fault and how to repair it.

DIR is a folder of splits, the folder of one split, or either of them in an object store. The exit status is 0 if
everything is complete, 1 if not.
"""

import argparse
import os
import time

from prep.checks import check_dataset, find_layout
from prep.errors import one_line, positive_count, print_lines, run
from prep.faults import Report
from prep.pools import local_pool
from prep.repair import Repair


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="prep/verify.py", description=__doc__)
    add = parser.add_argument
    add("directory", metavar="DIR", help="what prep/shard.py wrote: a folder or s3://bucket/prefix")
    add("--decode", type=_num_decoded, default=100, metavar="N|all", help="images per split to decode in full (100)")
    add("--workers", type=positive_count, default=len(os.sched_getaffinity(0)), metavar="N", help="processes")
    add("--repair", action="store_true", help="write damaged files again")
    add("--source", metavar="SRC", help="what it was prepared from, for --repair (default: its hub id)")
    return parser.parse_args(arguments)


def _num_decoded(text: str) -> int | None:
    if text != "all" and not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be a number or all, got {text}")
    return None if text == "all" else int(text)


def main(arguments: list[str] | None = None) -> int:
    """Verify, repair if --repair is given, and verify what was repaired; return the exit status."""
    # Verify.
    options = parse_arguments(arguments)
    started = time.monotonic()
    layout, pool = find_layout(options.directory), local_pool(options.workers)
    report = check_dataset(layout, options.decode, pool)
    for line in [*(fault.line for fault in report.faults), *(f"note: {note}" for note in report.notes)]:
        print_lines(line)

    # Repair, then check the repaired shards again, and all other files.
    left = report
    if options.repair and (report.faults or report.lacks_card):
        repair = Repair(layout, options.source, pool)
        repair.repair_faults(report.faults)
        left = check_dataset(layout, options.decode, pool, repair.list_rewritten(report.faults))
        lines = [*repair.complaints, *(fault.line for fault in left.faults)]
        for line in lines if left.faults or left.lacks_card else []:
            print(f"not repaired: {one_line(line)}")

    print_lines(f"{layout}: {_summarize(report, time.monotonic() - started, len(left.faults))}")
    return 1 if left.faults else 0


def _summarize(report: Report, seconds: float, num_left: int) -> str:
    num_faults = len(report.faults)
    repaired = f", {num_faults - num_left:,} repaired" if num_left < num_faults else ""
    verdict = f"{num_faults:,} fault{'s' * (num_faults > 1)}{repaired}" if num_faults else "complete"
    return (
        f"{verdict}; {report.num_images:,} images in {report.num_shards:,} shards of {report.num_splits:,} splits, "
        f"{report.size_bytes / 1e6:,.1f} MB, {report.num_decoded:,} decoded ({seconds:,.1f} s)"
    )


if __name__ == "__main__":
    run(main, interrupted="nothing is damaged, run the same command again")
