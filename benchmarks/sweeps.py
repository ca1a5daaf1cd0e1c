"""`python benchmarks/sweeps.py --source DIR --out FILE`: images/s of the loader against threads and stored size.

The images of DIR's first split, repeated to --images, are prepared three ways: with their original bytes, of at most
500 pixels a side, and of 256 pixels on the short side. The originals are decoded by one thread and more; all three by
as many threads as there are cores. On the CPU, all data in memory, in turns. One JSON record goes to stdout.
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
from race import LEAST_REPETITIONS, check_places, make_source, read_all
from record import describe_default_placement, describe_origin, label_source, publish, say
from stores import measure_bytes, prepare
from windows import Entrant, hold

from prep.errors import InputError, run

ORIGINAL = "original"
STORES = {  # options of prep/shard.py, by the folder that they write
    ORIGINAL: [],
    "max side 500, quality 90": ["--max-side", "500", "--quality", "90"],
    "short side 256, quality 90": ["--short-side", "256", "--quality", "90"],
}
IMAGES = 3000
METHOD = (
    "each point is a process with the loader's defaults but for its threads; it stays for all windows, and is stopped "
    "between them",
    "a window: for --warmup seconds batches are taken and not counted, then for --seconds taken, counted and dropped",
    "the order turns by one from repetition to repetition",
    "all data is read once into the page cache before the first window",
    "others_busy_cores: processors that anyone else kept busy meanwhile, the host included; windows where they were "
    f"{DISTURBED_CORES} or more do not count for undisturbed_images_per_second",
    "bytes_per_image: of all files of the prepared split",
)
Points = dict[tuple[str, int], Entrant]  # by store and number of threads


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="benchmarks/sweeps.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add, cores = parser.add_argument, len(os.sched_getaffinity(0))
    add("--source", required=True, metavar="DIR", help="images to repeat: a Hugging Face or an image folder")
    add("--images", type=int, default=IMAGES, metavar="N", help=f"default: {IMAGES}")
    add("--threads", type=int, nargs="+", default=choose_threads(cores), metavar="N", help="default: up to 2 a core")
    add("--batch-size", type=int, default=64, metavar="N", help="default: 64")
    add("--repetitions", type=int, default=LEAST_REPETITIONS, metavar="N", help="windows of each (default, least: 5)")
    add("--seconds", type=float, default=5.0, help="a window (default: 5)")
    add("--warmup", type=float, default=1.0, metavar="SECONDS", help="before each window (default: 1)")
    add("--work", type=Path, metavar="DIR", help="folder for the data (default: the system's temporary one)")
    add("--out", type=Path, metavar="FILE", help="write the record here too")
    return parser.parse_args()


def choose_threads(cores: int) -> list[int]:
    """One and its doublings up to the cores, the cores themselves, half as many again and twice as many."""
    doublings = {2**i for i in range(cores.bit_length()) if 2**i <= cores}
    return sorted(doublings | {cores, -(-3 * cores // 2), 2 * cores})


def check(arguments: argparse.Namespace) -> None:
    """Raises InputError for values that cannot be measured with."""
    check_places(arguments.repetitions, arguments.out, arguments.work)
    if min(arguments.batch_size, *arguments.threads) < 1:
        raise InputError("batch size and threads must be 1 or more")
    if arguments.images < arguments.batch_size:
        raise InputError(f"{arguments.images} images are not a batch of {arguments.batch_size}: take more")
    if arguments.seconds <= 0 or arguments.warmup < 0:
        raise InputError("seconds must be more than 0 and warmup not less")


def prepare_stores(arguments: argparse.Namespace, work: Path) -> dict[str, Any]:
    """The images in every size, all of them in memory; facts about them.

    Raises:
        InputError: the source cannot be used.
    """
    facts = make_source(arguments.source, arguments.images, work / "source")
    workers = ["--workers", str(len(os.sched_getaffinity(0)))]
    for name, options in STORES.items():
        say(f"{facts['num_images']:,} images of {facts['name']} become {name}")
        prepare(work / "source", work / name, [*options, *workers])
    shutil.rmtree(work / "source")
    read_all(work)
    return {"name": facts["name"], "num_images": facts["num_images"], "label": label_source(facts["name"])}


def build_points(arguments: argparse.Namespace, num_images: int, work: Path) -> Points:
    """Every point that is measured, once: the cores' threads on originals belong to both sweeps."""
    cores = len(os.sched_getaffinity(0))
    wanted = [(ORIGINAL, num_threads) for num_threads in arguments.threads] + [(name, cores) for name in STORES]
    return {point: enter(arguments, point, num_images, work) for point in dict.fromkeys(wanted)}


def enter(arguments: argparse.Namespace, point: tuple[str, int], num_images: int, work: Path) -> Entrant:
    """The loader on one store with a number of threads."""
    store, num_threads = point
    contender = replace(PENSTOCK, name=f"{store}, {num_threads} threads", data=store)
    asked = argparse.Namespace(**{**vars(arguments), "workers": num_threads, "evaluation": False, "python": []})
    return build_entrant(asked, contender, num_images, work)


def measure(arguments: argparse.Namespace, points: Points) -> dict[tuple[str, int], dict[str, Any]]:
    """Every point's figures.

    Raises:
        InputError: one could not be measured.
    """
    figures, failed = hold("sweeps", tuple(points.values()), arguments.repetitions, say)
    for name, reason in failed.items():
        raise InputError(f"the loader fails at {name}: {reason}")
    return {point: describe_point(figures[entrant.name]) for point, entrant in points.items()}


def describe_point(each: dict[str, Any]) -> dict[str, Any]:
    """What the record keeps of a point, with the windows that nobody else disturbed apart."""
    kept = {name: each[name] for name in (RATE, "cpu_seconds_per_1000_images", "memory_bytes", OTHERS)}
    add_undisturbed(kept)
    return kept


def build_record(
    arguments: argparse.Namespace, facts: dict[str, Any], figures: dict[tuple[str, int], dict[str, Any]], work: Path
) -> dict[str, Any]:
    """All that is needed to read the figures and to take them again; while the stores are there."""
    cores = len(os.sched_getaffinity(0))
    sizes = [
        {"name": name, "bytes_per_image": measure_bytes(work / name) / facts["num_images"], **figures[name, cores]}
        for name in STORES
    ]
    return {
        "what": "sweeps",
        "dataset": facts,
        "transform": f"random resized crop to {SIZE}, horizontal flip",
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


def describe(record: dict[str, Any]) -> str:
    """The record for people."""
    points = [(f"{each['num_threads']} threads", each) for each in record["threads"]]
    points += [(f"{each['name']}, {each['bytes_per_image']:,.0f} bytes an image", each) for each in record["sizes"]]
    rates = [(name, each[RATE]) for name, each in points]
    return "\n".join(
        f"{name:<52}{rate['median']:>8,.0f} images/s ({rate['min']:,.0f} to {rate['max']:,.0f})" for name, rate in rates
    )


def main() -> None:
    """Prepare, measure, report."""
    arguments = parse_arguments()
    check(arguments)
    with tempfile.TemporaryDirectory(prefix="penstock-", dir=arguments.work) as temporary:
        facts = prepare_stores(arguments, Path(temporary))
        figures = measure(arguments, build_points(arguments, facts["num_images"], Path(temporary)))
        record = build_record(arguments, facts, figures, Path(temporary))
    publish(record, arguments.out)
    say(describe(record))


if __name__ == "__main__":
    run(main)
