"""`python train/mirror.py s3://BUCKET/runs/first --to runs/first`: fetch a run that --run.mirror keeps in a bucket.

It fetches the checkpoints that the run folder lacks, and the logs: for TensorBoard, train/curves.py, train/evaluate.py
and train/export.py. The bucket is only read, so the run may be in progress. train/main.py needs no such step.
"""

import argparse
from pathlib import Path

from prep.errors import InputError, print_or_discard, run
from train.config import check_mirror_url


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="train/mirror.py", description=__doc__)
    parser.add_argument("url", metavar="URL", help="s3://BUCKET/PREFIX, as --run.mirror names it")
    parser.add_argument("--to", type=Path, required=True, metavar="DIR", help="run folder, new or fetched earlier")
    return parser.parse_args()


def main() -> None:
    """Fetch; print what the folder holds."""
    arguments = parse_arguments()
    check_mirror_url(arguments.url, "URL")

    from loaders import World  # noqa: PLC0415
    from train.mirror_fetch import fetch_run  # noqa: PLC0415
    from train.mirror_store import RunStore  # noqa: PLC0415
    from train.run_lock import RunLock  # noqa: PLC0415

    # Refuse what holds no run before a folder is made.
    store = RunStore(arguments.url)
    if not store.holds_run():
        raise InputError(f"{store.url} holds no run: give the URL of --run.mirror")
    with RunLock(arguments.to, World()) as lock:
        lock.confirm()
        fetched = fetch_run(store, arguments.to, print_or_discard)
    print(f"{arguments.to}: {len(fetched)} checkpoints of {store.url}, the newest {fetched[0] if fetched else 'none'}")


if __name__ == "__main__":
    run(main, interrupted="run the same command again to continue")
