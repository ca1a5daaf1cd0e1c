"""`python benchmarks/peers.py --source DIR ...`: compare how fast Penstock and other data loaders feed batches.

Three races on augmented images of DIR's first split, repeated to --images: on their original bytes, which Penstock
also reads from restart shards; other readers of our shards, with restart markers and without; and JPEGs of at most 500
pixels per side at quality 90, where Penstock is compared with FFCV, which re-encodes every image. On the CPU, with all
data in memory. One JSON record goes to stdout, progress and a table to stderr.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from feeding.contenders import (
    ORIGINAL,
    OURS,
    PEERS,
    READERS,
    RESTART_SHARDS,
    RESTARTS,
    SHARDS,
    SMALLER,
    Contender,
)
from feeding.job import SPLIT
from race import LEAST_REPETITIONS, check_race_flags, has_module, make_source, read_into_page_cache
from record import describe_default_placement, describe_origin, label_source, print_progress, publish, summarize
from reports.races import OF_ORIGINALS
from stores import count_bytes, write_formats
from windows import Entrant, measure_race

from prep.dataset import Split
from prep.errors import InputError, run

RACES = {"original bytes": ORIGINAL, "readers of restart shards": READERS, "max side 500, quality 90": SMALLER}
IMAGES = 10_000  # 1 GiB of ImageNet in each format, so that an epoch lasts longer than a few seconds
SIZE, RESIZE = 224, 256  # pixels
RATE, UNDISTURBED, RATIO = "images_per_second", "undisturbed_images_per_second", "ours_in_images_per_second"
OTHERS, DISTURBED_CORES = "others_busy_cores", 0.2
METHOD = (
    "each contender is a process that imports everything, opens its data and takes a first batch before the first "
    "window; it lives through all windows, and between them it is stopped together with its child processes",
    "a window: batches are taken without counting for --warmup seconds, then taken, counted and dropped for --seconds",
    "the order of the contenders rotates by one from repetition to repetition",
    "every format is written from the same shards, and read once into the page cache before the first window",
    "--workers are processes besides the main one for all that use torch's DataLoader (torchvision, imagefolder, timm, "
    "webdataset, litdata, mosaicml), threads for penstock, DALI, SPDL, FFCV and libjpeg-turbo",
    "images are uint8 RGB unless `type` names another type: timm offers only normalised float32; each contender "
    "keeps its own memory layout",
    "all resize bilinearly with antialiasing, except spdl-io (FFmpeg's bilinear) and ffcv (OpenCV's area)",
    "libjpeg-turbo is an upper bound, not a loader: it decodes full images and drops them",
    "cpu_seconds_per_1000_images: user and system time of the process and its child processes",
    "memory_bytes: anonymous memory and the share of shared memory, of the same processes, at the window's end; "
    "pages of files are not counted",
    "others_busy_cores: cores kept busy by other processes during the window, the host's included; a window with "
    f"{DISTURBED_CORES} or more does not count for undisturbed_images_per_second, nor for the ratio",
    "first_batch_seconds: once, from opening the data to the first batch, without imports; FFCV compiles in it",
    "bytes_per_image: of all files of the format; FFCV's file holds its own encoding of the same images",
    f"NAME{RESTARTS} reads the same images as NAME from shards with restart markers; {OF_ORIGINALS}: its rate divided "
    "by NAME's, from the same windows as the ratio",
)


Races = dict[str, tuple[Contender, ...]]


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="benchmarks/peers.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add, cores = parser.add_argument, len(os.sched_getaffinity(0))
    add("--source", required=True, metavar="DIR", help="images to repeat: a Hugging Face or an image folder")
    add("--images", type=int, default=IMAGES, metavar="N", help=f"number of images in the data set (default: {IMAGES})")
    add("--batch-size", type=int, default=64, metavar="N", help="images per batch (default: 64)")
    add("--workers", type=int, default=cores, metavar="N", help="processes or threads of each (default: cores)")
    add("--evaluation", action="store_true", help="resize to 256 and crop the centre instead of augmenting")
    add(
        "--repetitions",
        type=int,
        default=LEAST_REPETITIONS,
        metavar="N",
        help="windows of each (least: 5)",
    )
    add("--seconds", type=float, default=20.0, help="length of a window (default: 20)")
    add("--warmup", type=float, default=2.0, metavar="SECONDS", help="before each window (default: 2)")
    add("--race", choices=RACES, help="measure one race (default: all)")
    add("--only", nargs="+", metavar="NAME", help=f"contenders to measure, of {', '.join(list_names())}")
    add("--python", nargs=2, action="append", default=[], metavar=("PEER", "PATH"), help="Python interpreter of a peer")
    add("--work", type=Path, metavar="DIR", help="folder for the data (default: the temporary folder)")
    add("--out", type=Path, metavar="FILE", help="also write the record to this file")
    return parser.parse_args()


def list_names() -> list[str]:
    """Return the names of all contenders, each once."""
    return list(dict.fromkeys(contender.name for race in RACES.values() for contender in race))


def check_arguments(arguments: argparse.Namespace) -> None:
    """Check the values of the flags; raise InputError for the first one that cannot be used."""
    check_race_flags(arguments.repetitions, arguments.out, arguments.work)
    if min(arguments.batch_size, arguments.workers) < 1:
        found = f"{arguments.batch_size} and {arguments.workers}"
        raise InputError(f"--batch-size and --workers must be at least 1, got {found}")
    if arguments.images < arguments.batch_size * arguments.workers:
        least = arguments.batch_size * arguments.workers
        raise InputError(f"--images must be at least {least}, one batch per worker, got {arguments.images}")
    if arguments.seconds <= 0 or arguments.warmup < 0:
        found = f"{arguments.seconds} and {arguments.warmup}"
        raise InputError(f"--seconds must be greater than 0 and --warmup at least 0, got {found}")
    for given, known in ((arguments.only or [], list_names()), ([peer for peer, _ in arguments.python], list(PEERS))):
        if unknown := set(given).difference(known):
            raise InputError(f"unknown contender {min(unknown)!r}: choose from {', '.join(known)}")


def choose_contenders(arguments: argparse.Namespace) -> tuple[Races, dict[str, str]]:
    """Select the contenders of each race; skip the peers that are not installed.

    Returns:
        The races that have contenders, and for each skipped peer the reason.

    Raises:
        InputError: no contender is left.
    """
    only, pythons, skipped = arguments.only or list_names(), dict(arguments.python), {}
    wanted = [arguments.race] if arguments.race else RACES
    asked = {name: [each for each in RACES[name] if each.name in only] for name in wanted}
    for name in dict.fromkeys(each.peer for race in asked.values() for each in race if each.peer):
        module, install = PEERS[name].module, PEERS[name].install
        if not has_module(pythons.get(name, sys.executable), module):
            advice = f"{install}, in a separate environment, and pass --python {name} PATH"
            skipped[name] = f"{module} is not installed: {advice}"
    races = {name: tuple(each for each in race if each.peer not in skipped) for name, race in asked.items()}
    if not any(races.values()):
        raise InputError("; ".join(skipped.values()))
    return {name: race for name, race in races.items() if race}, skipped


def prepare_data(arguments: argparse.Namespace, races: Races, work: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Write the images in every format that a contender reads, and read all files into the page cache.

    Returns:
        Facts about the images, and for each format that could not be written the reason.

    Raises:
        InputError: the source cannot be used.
    """
    readers = [contender for race in races.values() for contender in race]
    name = make_source(arguments.source, arguments.images, work / "source")["name"]
    formats = ", ".join(dict.fromkeys(each.data for each in readers))
    print_progress(f"writing {arguments.images:,} images of {name} as {formats}")
    failed = write_formats(readers, dict(arguments.python), work / "source", work, arguments.workers)
    read_into_page_cache(work)
    manifest = Split(work / SHARDS, SPLIT).manifest
    facts: dict[str, Any] = {"name": name, "num_images": manifest.num_images, "image_bytes": manifest.size_bytes}
    if any(each.data == RESTART_SHARDS for each in readers):
        from spans import count_epoch  # noqa: PLC0415  (torch)

        facts["restarts"] = count_epoch(work / RESTART_SHARDS, SPLIT, SIZE)
    return facts, failed


def run_races(
    arguments: argparse.Namespace, races: Races, facts: dict[str, Any], unwritten: dict[str, str], work: Path
) -> tuple[dict[str, Any], dict[str, str]]:
    """Run all races; return the figures of each, and for each contender that failed the reason."""
    results, failures = {}, {}
    for name, race in races.items():
        # A contender whose format could not be written does not start; it is listed as failed below.
        entrants = tuple(
            build_entrant(arguments, contender, facts["num_images"], work)
            for contender in race
            if contender.data not in unwritten
        )
        contenders, failed = measure_race(name, entrants, arguments.repetitions, print_progress)
        failed |= {each.name: unwritten[each.data] for each in race if each.data in unwritten}
        failures |= {f"{name}: {contender}": reason for contender, reason in failed.items()}
        for each in contenders.values():
            each["bytes_per_image"] = count_bytes(work / each["data"]) / facts["num_images"]
        add_ratios(contenders)
        results[name] = contenders
    return results, failures


def build_entrant(arguments: argparse.Namespace, contender: Contender, num_images: int, work: Path) -> Entrant:
    """Return a contender with its interpreter and its job."""
    job = {
        "entry": contender.entry,
        "data": str(work / contender.data),
        "evaluates": arguments.evaluation,
        "size": SIZE,
        "resize": RESIZE,
        "batch_size": arguments.batch_size,
        "workers": arguments.workers,
        "num_images": num_images,
        "warmup": arguments.warmup,
        "seconds": arguments.seconds,
        "packages": contender.packages,
        "options": contender.options,
    }
    return Entrant(contender, dict(arguments.python).get(contender.peer, sys.executable), job)


def add_ratios(contenders: dict[str, Any]) -> None:
    """Add ratios from the medians of undisturbed windows.

    They are Penstock's rate divided by each contender's, and for each reader of restart shards its rate divided by its
    rate on the originals.
    """
    for each in contenders.values():
        add_undisturbed(each)
    ours = contenders.get(OURS, {})
    for name, each in contenders.items():
        originals = contenders.get(name.removesuffix(RESTARTS), {}) if name.endswith(RESTARTS) else {}
        if UNDISTURBED in ours and UNDISTURBED in each:
            each[RATIO] = ours[UNDISTURBED]["median"] / each[UNDISTURBED]["median"]
        if UNDISTURBED in originals and UNDISTURBED in each:
            each[OF_ORIGINALS] = each[UNDISTURBED]["median"] / originals[UNDISTURBED]["median"]


def add_undisturbed(each: dict[str, Any]) -> None:
    """Add the summary of the windows in which other processes kept few cores busy, if there are any."""
    windows = zip(each[RATE]["repetitions"], each[OTHERS]["repetitions"], strict=True)
    if quiet := [rate for rate, num_cores in windows if num_cores < DISTURBED_CORES]:
        each[UNDISTURBED] = summarize(quiet)


def build_record(
    arguments: argparse.Namespace, facts: dict[str, Any], races: dict[str, Any], unable: dict[str, dict[str, str]]
) -> dict[str, Any]:
    """Return the record: the figures, and all that is needed to read and to repeat them.

    Args:
        unable: the reasons of "skipped" and "failed" contenders.
    """
    # The placement is that of our loader; without it the record has none.
    has_ours = any(name.startswith(OURS) for contenders in races.values() for name in contenders)
    augment = f"random resized crop to {SIZE}, horizontal flip"
    return {
        "what": "feeding",
        "dataset": {**facts, "label": label_source(facts["name"])},
        "transform": f"resize to {RESIZE}, centre crop of {SIZE}" if arguments.evaluation else augment,
        "batch_size": arguments.batch_size,
        "workers": arguments.workers,
        "seconds": arguments.seconds,
        "warmup": arguments.warmup,
        "device": "cpu",
        "placement": describe_default_placement() if has_ours else None,  # where and how our loader decodes
        "method": METHOD,
        "races": races,
        **unable,
        **describe_origin("benchmarks/peers.py"),
    }


def format_record(record: dict[str, Any]) -> str:
    """Return the record as a table for the terminal; "speedup" is Penstock's rate divided by the contender's."""
    data = record["dataset"]
    lines = [f"{data['num_images']:,} images of {data['name']} [{data['label']}], {record['transform']}"]
    for name, contenders in record["races"].items():
        lines.append(
            f"{name:<24}{'images/s':>8}{'min to max':>16}{'speedup':>9}{'of originals':>14}{'CPU s/1000':>12}{'MB':>7}"
        )
        lines[-1] += f"{'first s':>9}{'bytes/image':>13}  type"
        lines += [format_row(contender, each) for contender, each in contenders.items()]
    for kind in ("skipped", "failed"):
        lines += [f"{kind}: {name}: {reason}" for name, reason in record[kind].items()]
    return "\n".join(lines)


def format_row(name: str, each: dict[str, Any]) -> str:
    """Return a contender's line of the table."""
    rate = each.get(UNDISTURBED, each[RATE])
    spread = f"{rate['min']:,.0f} to {rate['max']:,.0f}"
    ratio, of_originals = (f"{each[key]:.2f} x" if key in each else "-" for key in (RATIO, OF_ORIGINALS))
    cpu_seconds, memory_bytes = each["cpu_seconds_per_1000_images"]["median"], each["memory_bytes"]["median"]
    return (
        f"  {name:<22}{rate['median']:>8,.0f}{spread:>16}{ratio:>9}{of_originals:>14}"
        f"{cpu_seconds:>12.2f}{memory_bytes / 1e6:>7,.0f}{each['first_batch_seconds']:>9.2f}"
        f"{each['bytes_per_image']:>13,.0f}  {each['type']}"
    )


def main() -> None:
    """Write the images in all formats, run the races, publish the record."""
    arguments = parse_arguments()
    check_arguments(arguments)
    races, skipped = choose_contenders(arguments)
    with tempfile.TemporaryDirectory(prefix="penstock-", dir=arguments.work) as temporary:
        facts, unwritten = prepare_data(arguments, races, Path(temporary))
        results, failed = run_races(arguments, races, facts, unwritten, Path(temporary))
    record = build_record(arguments, facts, results, {"skipped": skipped, "failed": failed})
    publish(record, arguments.out)
    print_progress(format_record(record))


if __name__ == "__main__":
    run(main)
