"""`python benchmarks/sweeps.py --source DIR --out FILE`: measure the loader's images/s by threads and by stored size.

The images of DIR's first split, repeated to --images, are prepared three times: with their original bytes, with at most
500 pixels per side, and with 256 pixels on the short side. The originals are decoded with each number of threads, all
three with one thread per core. On the CPU, with all data in memory, in alternating windows. One JSON record goes to
stdout.
"""

import argparse
import os
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from feeding.contenders import PENSTOCK
from peers import DISTURBED_CORES, OTHERS, RATE, SIZE, add_undisturbed, build_entrant
from race import LEAST_REPETITIONS, check_race_flags, make_source, read_into_page_cache
from record import describe_default_placement, describe_origin, label_source, print_progress, publish
from stores import count_bytes, prepare_shards
from windows import Entrant, measure_race

from prep.errors import InputError, run

ORIGINAL = "original"
STORES = {  # options of prep/shard.py, by the name of the folder that they write
    ORIGINAL: [],
    "max side 500, quality 90": ["--max-side", "500", "--quality", "90"],
    "short side 256, quality 90": ["--short-side", "256", "--quality", "90"],
}
IMAGES = 3000
METHOD = (
    "each point is a process with the loader's defaults except for its threads; it lives through all windows, and is "
    "stopped between them",
    "a window: batches are taken without counting for --warmup seconds, then taken, counted and dropped for --seconds",
    "the order of the points rotates by one from repetition to repetition",
    "all data is read once into the page cache before the first window",
    "others_busy_cores: cores kept busy by other processes during the window, the host's included; windows with "
    f"{DISTURBED_CORES} or more do not count for undisturbed_images_per_second",
    "bytes_per_image: of all files of the prepared split",
)
Points = dict[tuple[str, int], Entrant]  # by store and number of threads


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="benchmarks/sweeps.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add, cores = parser.add_argument, len(os.sched_getaffinity(0))
    add("--source", required=True, metavar="DIR", help="images to repeat: a Hugging Face or an image folder")
    add("--images", type=int, default=IMAGES, metavar="N", help=f"number of images (default: {IMAGES})")
    add("--threads", type=int, nargs="+", default=choose_threads(cores), metavar="N", help="default: up to 2 per core")
    add("--batch-size", type=int, default=64, metavar="N", help="images per batch (default: 64)")
    add("--size", type=int, default=SIZE, metavar="PIXELS", help=f"side of the square output (default: {SIZE})")
    add("--repetitions", type=int, default=LEAST_REPETITIONS, metavar="N", help="windows of each (least: 5)")
    add("--seconds", type=float, default=5.0, help="length of a window (default: 5)")
    add("--warmup", type=float, default=1.0, metavar="SECONDS", help="before each window (default: 1)")
    add("--work", type=Path, metavar="DIR", help="folder for the data (default: the temporary folder)")
    add("--out", type=Path, metavar="FILE", help="also write the record to this file")
    return parser.parse_args()


def choose_threads(cores: int) -> list[int]:
    """Return the thread counts to measure: powers of 2 up to the cores, and 1, 1.5 and 2 times the cores."""
    doublings = {2**i for i in range(cores.bit_length()) if 2**i <= cores}
    return sorted(doublings | {cores, -(-3 * cores // 2), 2 * cores})


def check_arguments(arguments: argparse.Namespace) -> None:
    """Check the values of the flags; raise InputError for the first one that cannot be used."""
    check_race_flags(arguments.repetitions, arguments.out, arguments.work)
    if min(arguments.batch_size, arguments.size, *arguments.threads) < 1:
        found = f"{arguments.batch_size}, {arguments.size} and {min(arguments.threads)}"
        raise InputError(f"--batch-size, --size and --threads must be at least 1, got {found}")
    if arguments.images < arguments.batch_size:
        least = f"{arguments.batch_size}, one batch"
        raise InputError(f"--images must be at least {least}, got {arguments.images}")
    if arguments.seconds <= 0 or arguments.warmup < 0:
        found = f"{arguments.seconds} and {arguments.warmup}"
        raise InputError(f"--seconds must be greater than 0 and --warmup at least 0, got {found}")


def prepare_stores(arguments: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Prepare the images in every size and read them into the page cache; return facts about them.

    Raises:
        InputError: the source cannot be used.
    """
    facts = make_source(arguments.source, arguments.images, work / "source")
    workers = ["--workers", str(len(os.sched_getaffinity(0)))]
    for name, options in STORES.items():
        print_progress(f"preparing {facts['num_images']:,} images of {facts['name']}: {name}")
        prepare_shards(work / "source", work / name, [*options, *workers])
    shutil.rmtree(work / "source")
    read_into_page_cache(work)
    return {"name": facts["name"], "num_images": facts["num_images"], "label": label_source(facts["name"])}


def build_points(arguments: argparse.Namespace, num_images: int, work: Path) -> Points:
    """Return every point to measure, once: the original bytes with one thread per core belong to both sweeps."""
    cores = len(os.sched_getaffinity(0))
    wanted = [(ORIGINAL, num_threads) for num_threads in arguments.threads] + [(name, cores) for name in STORES]
    return {point: build_point(arguments, point, num_images, work) for point in dict.fromkeys(wanted)}


def build_point(arguments: argparse.Namespace, point: tuple[str, int], num_images: int, work: Path) -> Entrant:
    """Return the loader on one store with a number of threads."""
    store, num_threads = point
    contender = replace(PENSTOCK, name=f"{store}, {num_threads} threads", data=store)
    # Add the flags that peers.build_entrant reads and this command does not have.
    asked = argparse.Namespace(**{**vars(arguments), "workers": num_threads, "evaluation": False, "python": []})
    entrant = build_entrant(asked, contender, num_images, work)
    return replace(entrant, job={**entrant.job, "size": arguments.size})


def measure_points(arguments: argparse.Namespace, points: Points) -> dict[tuple[str, int], dict[str, Any]]:
    """Measure every point and return its figures.

    Raises:
        InputError: a point could not be measured.
    """
    figures, failed = measure_race("sweeps", tuple(points.values()), arguments.repetitions, print_progress)
    for name, reason in failed.items():
        raise InputError(f"the loader failed with {name}: {reason}")
    return {point: describe_point(figures[entrant.name]) for point, entrant in points.items()}


def describe_point(each: dict[str, Any]) -> dict[str, Any]:
    """Return the figures of a point for the record, with a summary of its undisturbed windows."""
    kept = {name: each[name] for name in (RATE, "cpu_seconds_per_1000_images", "memory_bytes", OTHERS)}
    add_undisturbed(kept)
    return kept


def build_record(
    arguments: argparse.Namespace, facts: dict[str, Any], figures: dict[tuple[str, int], dict[str, Any]], work: Path
) -> dict[str, Any]:
    """Return the record: the figures, and all that is needed to read and to repeat them. Needs the stores in `work`."""
    cores = len(os.sched_getaffinity(0))
    # One entry per stored size; all were measured with one thread per core.
    sizes = [
        {"name": name, "bytes_per_image": count_bytes(work / name) / facts["num_images"], **figures[name, cores]}
        for name in STORES
    ]
    return {
        "what": "sweeps",
        "dataset": facts,
        "transform": f"random resized crop to {arguments.size}, horizontal flip",
        "batch_size": arguments.batch_size,
        "seconds": arguments.seconds,
        "warmup": arguments.warmup,
        "device": "cpu",
        "placement": describe_default_placement(),
        "method": METHOD,
        "threads": [{"num_threads": n, **figures[ORIGINAL, n]} for n in dict.fromkeys(arguments.threads)],
        "sizes": sizes,
        "sizes_num_threads": cores,
        **describe_origin("benchmarks/sweeps.py"),
    }


def format_record(record: dict[str, Any]) -> str:
    """Return the record as lines for the terminal."""
    points = [(f"{each['num_threads']} threads", each) for each in record["threads"]]
    points += [(f"{each['name']}, {each['bytes_per_image']:,.0f} bytes per image", each) for each in record["sizes"]]
    rates = [(name, each[RATE]) for name, each in points]
    return "\n".join(
        f"{name:<52}{rate['median']:>8,.0f} images/s ({rate['min']:,.0f} to {rate['max']:,.0f})" for name, rate in rates
    )


def main() -> None:
    """Prepare the images, measure all points, publish the record."""
    arguments = parse_arguments()
    check_arguments(arguments)
    with tempfile.TemporaryDirectory(prefix="penstock-", dir=arguments.work) as temporary:
        facts = prepare_stores(arguments, Path(temporary))
        figures = measure_points(arguments, build_points(arguments, facts["num_images"], Path(temporary)))
        record = build_record(arguments, facts, figures, Path(temporary))
    publish(record, arguments.out)
    print_progress(format_record(record))


if __name__ == "__main__":
    run(main)
