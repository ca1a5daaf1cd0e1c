"""`python benchmarks/peers.py --source DIR …`: how fast loaders feed augmented batches, Penstock beside its peers.

Two races on the images of DIR's first split, repeated to --images: their original bytes; and JPEGs of at most 500
pixels a side at quality 90, where FFCV, which encodes every image anew, is held against ours. On the CPU, all data
in memory. One JSON record goes to stdout, progress and a table to stderr.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from feeding.contenders import ORIGINAL, OURS, PEERS, SHARDS, SMALLER, Contender
from feeding.job import SPLIT
from race import LEAST_REPETITIONS, check_places, has_module, make_source, read_all
from record import describe_default_placement, describe_origin, label_source, publish, say, summarize
from stores import measure_bytes, write_stores
from windows import Entrant, hold

from prep.dataset import Split
from prep.errors import InputError, run

RACES = {"original bytes": ORIGINAL, "max side 500, quality 90": SMALLER}
IMAGES = 10_000  # 1 GiB of ImageNet in each format: nobody's epoch is over in a few seconds
SIZE, RESIZE = 224, 256  # pixels
RATE, UNDISTURBED, RATIO = "images_per_second", "undisturbed_images_per_second", "ours_in_images_per_second"
OTHERS, DISTURBED_CORES = "others_busy_cores", 0.2
METHOD = (
    "each contender is a process that imports everything, opens its data and takes a first batch before the first "
    "window; it stays for all windows, and is stopped between them with all that it started",
    "a window: for --warmup seconds batches are taken and not counted, then for --seconds taken, counted and dropped",
    "the order turns by one from repetition to repetition",
    "every format is written from the same shards, and read once into the page cache before the first window",
    "--workers are processes beside the main one for all that use torch's DataLoader (torchvision, imagefolder, timm, "
    "webdataset, litdata, mosaicml), threads for penstock, DALI, SPDL, FFCV and libjpeg-turbo",
    "images are uint8 RGB where `type` does not say otherwise: timm has no way but normalised float32; the memory "
    "layout is each contender's own",
    "all resize bilinearly with antialiasing but for spdl-io, FFmpeg's bilinear, and ffcv, OpenCV's area",
    "libjpeg-turbo is a bound, no loader: it decodes whole images and does nothing with them",
    "cpu_seconds_per_1000_images: user and system time of the process and all that it started",
    "memory_bytes: anonymous memory and the share of shared memory, of the same processes, at the window's end; "
    "pages of files are not counted",
    "others_busy_cores: processors that anyone else kept busy meanwhile, the host included; where they were "
    f"{DISTURBED_CORES} or more, a window does not count for undisturbed_images_per_second, nor for the ratio",
    "first_batch_seconds: from opening the data to the first batch, once, imports left out; FFCV compiles in it",
    "bytes_per_image: of all files of the format; FFCV's file holds its own encoding of the same images",
)


Races = dict[str, tuple[Contender, ...]]


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="benchmarks/peers.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add, cores = parser.add_argument, len(os.sched_getaffinity(0))
    add("--source", required=True, metavar="DIR", help="images to repeat: a Hugging Face or an image folder")
    add("--images", type=int, default=IMAGES, metavar="N", help=f"default: {IMAGES}")
    add("--batch-size", type=int, default=64, metavar="N", help="default: 64")
    add("--workers", type=int, default=cores, metavar="N", help="processes or threads of each (default: the cores)")
    add("--evaluation", action="store_true", help="resize to 256 and crop the centre, instead of augmenting")
    add("--repetitions", type=int, default=LEAST_REPETITIONS, metavar="N", help="windows of each (default, least: 5)")
    add("--seconds", type=float, default=20.0, help="a window (default: 20)")
    add("--warmup", type=float, default=2.0, metavar="SECONDS", help="before each window (default: 2)")
    add("--only", nargs="+", metavar="NAME", help=f"some of {', '.join(list_names())}")
    add("--python", nargs=2, action="append", default=[], metavar=("PEER", "PATH"), help="a peer's interpreter")
    add("--work", type=Path, metavar="DIR", help="folder for the data (default: the system's temporary one)")
    add("--out", type=Path, metavar="FILE", help="write the record here too")
    return parser.parse_args()


def list_names() -> list[str]:
    """All contenders, each once."""
    return list(dict.fromkeys(contender.name for race in RACES.values() for contender in race))


def check(arguments: argparse.Namespace) -> None:
    """Raises InputError for values that cannot be measured with."""
    check_places(arguments.repetitions, arguments.out, arguments.work)
    if min(arguments.batch_size, arguments.workers) < 1:
        raise InputError("batch size and workers must be 1 or more")
    if arguments.images < arguments.batch_size * arguments.workers:
        raise InputError(f"{arguments.images} images are not a batch for each worker: take more")
    if arguments.seconds <= 0 or arguments.warmup < 0:
        raise InputError("seconds must be more than 0 and warmup not less")
    for given, known in ((arguments.only or [], list_names()), ([peer for peer, _ in arguments.python], list(PEERS))):
        if unknown := set(given).difference(known):
            raise InputError(f"there is no {min(unknown)}: choose from {', '.join(known)}")


def choose(arguments: argparse.Namespace) -> tuple[Races, dict[str, str]]:
    """The contenders of each race, those asked for; why some peers are skipped.

    Raises:
        InputError: nobody is left.
    """
    only, pythons, skipped = arguments.only or list_names(), dict(arguments.python), {}
    asked = {name: [each for each in race if each.name in only] for name, race in RACES.items()}
    for name in dict.fromkeys(each.peer for race in asked.values() for each in race if each.peer):
        module, install = PEERS[name].module, PEERS[name].install
        if not has_module(pythons.get(name, sys.executable), module):
            skipped[name] = f"{module} is not there: {install}, in an environment of its own; give --python {name} PATH"
    races = {name: tuple(each for each in race if each.peer not in skipped) for name, race in asked.items()}
    if not any(races.values()):
        raise InputError("; ".join(skipped.values()))
    return {name: race for name, race in races.items() if race}, skipped


def prepare(arguments: argparse.Namespace, races: Races, work: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """The images in every format that is read, all of them in memory; facts about them, and what could not be written.

    Raises:
        InputError: the source cannot be used.
    """
    readers = [contender for race in races.values() for contender in race]
    name = make_source(arguments.source, arguments.images, work / "source")["name"]
    say(f"{arguments.images:,} images of {name} become {', '.join(dict.fromkeys(each.data for each in readers))}")
    failed = write_stores(readers, dict(arguments.python), work / "source", work, arguments.workers)
    read_all(work)
    manifest = Split(work / SHARDS, SPLIT).manifest
    return {"name": name, "num_images": manifest.num_images, "image_bytes": manifest.size_bytes}, failed


def measure(
    arguments: argparse.Namespace, races: Races, facts: dict[str, Any], unwritten: dict[str, str], work: Path
) -> tuple[dict[str, Any], dict[str, str]]:
    """Every race's figures; why some contenders failed."""
    results, failures = {}, {}
    for name, race in races.items():
        entrants = tuple(
            build_entrant(arguments, contender, facts["num_images"], work)
            for contender in race
            if contender.data not in unwritten
        )
        contenders, failed = hold(name, entrants, arguments.repetitions, say)
        failed |= {each.name: unwritten[each.data] for each in race if each.data in unwritten}
        failures |= {f"{name}: {who}": reason for who, reason in failed.items()}
        for each in contenders.values():
            each["bytes_per_image"] = measure_bytes(work / each["data"]) / facts["num_images"]
        add_ratios(contenders)
        results[name] = contenders
    return results, failures


def build_entrant(arguments: argparse.Namespace, contender: Contender, num_images: int, work: Path) -> Entrant:
    """A contender with its interpreter and its job."""
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
    """How many times as fast ours is as each, by the medians of the windows that nobody else disturbed."""
    for each in contenders.values():
        add_undisturbed(each)
    ours = contenders.get(OURS, {})
    for each in contenders.values():
        if UNDISTURBED in ours and UNDISTURBED in each:
            each[RATIO] = ours[UNDISTURBED]["median"] / each[UNDISTURBED]["median"]


def add_undisturbed(each: dict[str, Any]) -> None:
    """The rate in the windows that nobody else disturbed, where there are any."""
    windows = zip(each[RATE]["repetitions"], each[OTHERS]["repetitions"], strict=True)
    if quiet := [rate for rate, num_cores in windows if num_cores < DISTURBED_CORES]:
        each[UNDISTURBED] = summarize(quiet)


def build_record(
    arguments: argparse.Namespace, facts: dict[str, Any], races: dict[str, Any], unable: dict[str, dict[str, str]]
) -> dict[str, Any]:
    """All that is needed to read the figures and to take them again; `unable` are those skipped and failed."""
    takes_part = any(name.startswith(OURS) for contenders in races.values() for name in contenders)
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
        "placement": describe_default_placement() if takes_part else None,  # of our loader
        "method": METHOD,
        "races": races,
        **unable,
        **describe_origin("benchmarks/peers.py"),
    }


def describe(record: dict[str, Any]) -> str:
    """The record for people."""
    data = record["dataset"]
    lines = [f"{data['num_images']:,} images of {data['name']} [{data['label']}], {record['transform']}"]
    for name, contenders in record["races"].items():
        lines.append(f"{name:<24}{'images/s':>8}{'min to max':>16}{'ours is':>9}{'CPU s/1000':>12}{'MB':>7}")
        lines[-1] += f"{'first s':>9}{'bytes/image':>13}  type"
        lines += [describe_row(contender, each) for contender, each in contenders.items()]
    for kind in ("skipped", "failed"):
        lines += [f"{kind}: {name}: {reason}" for name, reason in record[kind].items()]
    return "\n".join(lines)


def describe_row(name: str, each: dict[str, Any]) -> str:
    """A contender's line of the table."""
    rate = each.get(UNDISTURBED, each[RATE])
    spread = f"{rate['min']:,.0f} to {rate['max']:,.0f}"
    ratio = f"{each[RATIO]:.2f} x" if RATIO in each else "-"
    cpu_seconds, memory_bytes = each["cpu_seconds_per_1000_images"]["median"], each["memory_bytes"]["median"]
    return (
        f"  {name:<22}{rate['median']:>8,.0f}{spread:>16}{ratio:>9}{cpu_seconds:>12.2f}{memory_bytes / 1e6:>7,.0f}"
        f"{each['first_batch_seconds']:>9.2f}{each['bytes_per_image']:>13,.0f}  {each['type']}"
    )


def main() -> None:
    """Write the images in all formats, hold the races, report."""
    arguments = parse_arguments()
    check(arguments)
    races, skipped = choose(arguments)
    with tempfile.TemporaryDirectory(prefix="penstock-", dir=arguments.work) as temporary:
        facts, unwritten = prepare(arguments, races, Path(temporary))
        results, failed = measure(arguments, races, facts, unwritten, Path(temporary))
    record = build_record(arguments, facts, results, {"skipped": skipped, "failed": failed})
    publish(record, arguments.out)
    say(describe(record))


if __name__ == "__main__":
    run(main)
