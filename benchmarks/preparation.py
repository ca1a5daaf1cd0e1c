"""`python benchmarks/preparation.py --source DIR ...`: compare how fast images become shards.

Races on the images of DIR's first split, repeated to --images. First the original bytes are written, compared with
webdataset, LitData, MosaicML and a plain copy. Then, on --smaller-images images: the decode check, and images resized
to be smaller in two ways, compared with a pool of Pillow processes. One JSON record goes to stdout, progress and a
table to stderr.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

from race import LEAST_REPETITIONS, Contender, Race, check_race_flags, make_source, run_race, split_missing
from record import describe_origin, label_source, print_progress, publish, summarize

from prep.errors import InputError, run

IMAGES, SMALLER_IMAGES = 20_000, 8_000  # 2 GiB of ImageNet, and fewer for the races that decode, which are slower
OURS, RESTARTS = "penstock", "penstock-restarts"
ORIGINAL, CHECKED = "original bytes", "original bytes, checked"
SIDES = {"max side 500": ("max_side", 500), "short side 256": ("short_side", 256)}  # races of smaller images
RACES = (ORIGINAL, CHECKED, *SIDES)
SYNCED = "fsync of every file before it gets its name, and of the folder afterwards"
METHOD = (
    "each contender has two processes, except ShardWriter and the copy, which have one",
    "each run is a separate process that has imported everything and opened the source before it starts",
    "seconds count from the first image that any of its processes reads, so that the start of worker processes "
    "is left out for all; call_seconds include it for those that start them in their call: penstock and LitData",
    "before each run: an empty output folder, the source read once into the page cache, os.sync()",
    "durable: including an os.sync() of the complete machine after each run, also for contenders that sync themselves",
    "the order rotates by one from repetition to repetition; the images of every run are counted in its output",
    "MB are 1e6 bytes of the source's encoded images; for the copy, of the source's files",
    "cpu_seconds are those of all processes, each from its first image on",
)


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="benchmarks/preparation.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--source", required=True, metavar="DIR", help="images to repeat: a Hugging Face or an image folder")
    add("--images", type=int, default=IMAGES, metavar="N", help=f"images for the original bytes (default: {IMAGES})")
    add(
        "--smaller-images",
        type=int,
        default=SMALLER_IMAGES,
        metavar="N",
        help=f"decoded (default: {SMALLER_IMAGES})",
    )
    add("--race", choices=RACES, help="run one race (default: all)")
    add("--repetitions", type=int, default=LEAST_REPETITIONS, help="runs per contender, at least 5 (default: 5)")
    add("--litdata-python", default=sys.executable, metavar="PATH", help="interpreter that has litdata")
    add("--mosaic-python", default=sys.executable, metavar="PATH", help="interpreter that has mosaicml-streaming")
    add("--work", type=Path, metavar="DIR", help="folder on the disk to measure (default: the temporary folder)")
    add("--out", type=Path, metavar="FILE", help="also write the record to this file")
    return parser.parse_args()


def check_arguments(arguments: argparse.Namespace) -> None:
    """Check the values of the flags; raise InputError for the first one that cannot be used."""
    check_race_flags(arguments.repetitions, arguments.out, arguments.work)
    if min(arguments.images, arguments.smaller_images) < 1:
        found = f"{arguments.images} and {arguments.smaller_images}"
        raise InputError(f"--images and --smaller-images must be at least 1, got {found}")


def list_original(arguments: argparse.Namespace) -> tuple[Contender, ...]:
    """Return the contenders that write the original bytes."""
    return (
        Contender(OURS, "images not decoded", "ours:penstock", options={"decode_check": False}, durability=SYNCED),
        Contender("webdataset", "ShardWriter", "writers:shard_writer"),
        Contender(
            "litdata",
            "optimize, chunks of 64 MB",
            "peers:litdata",
            "counts:litdata",
            python=arguments.litdata_python,
            module="litdata",
            install="pip install litdata, in a separate environment, and pass --litdata-python",
        ),
        Contender(
            "mosaicml",
            "MDSWriter, one folder per process, merge_index",
            "peers:mosaic",
            "counts:mosaic",
            python=arguments.mosaic_python,
            module="streaming",
            install="pip install mosaicml-streaming, in a separate environment, and pass --mosaic-python",
        ),
        Contender("copy", "the source's files", "peers:copy", "counts:parquet", durability="fsync of every file"),
    )


def list_smaller(side: str, pixels: int) -> tuple[Contender, ...]:
    """Return the contenders that make images smaller, at quality 90.

    Args:
        side: "max_side" or "short_side".
        pixels: the length of that side.
    """
    options = {side: pixels, "quality": 90}
    return (
        Contender(OURS, "decoded, resized, encoded", "ours:penstock", options=options, durability=SYNCED),
        Contender("pillow", "a pool of two, the parent process reads and writes", "writers:pillow", options=options),
    )


def plan_races(arguments: argparse.Namespace, work: Path) -> tuple[list[Race], dict[str, str]]:
    """Write the sources of the races; return the races, and for each skipped contender the reason."""
    names, races, skipped = [arguments.race] if arguments.race else RACES, [], {}
    if ORIGINAL in names:
        facts = make_source(arguments.source, arguments.images, work / "source")
        original, skipped = split_missing(list_original(arguments))
        races.append(Race(ORIGINAL, work / "source", facts, original))
    contenders = {CHECKED: list_checked()} | {name: list_smaller(*side) for name, side in SIDES.items()}
    if chosen := {name: each for name, each in contenders.items() if name in names}:
        few = make_source(arguments.source, arguments.smaller_images, work / "smaller")
        races += [Race(name, work / "smaller", few, each) for name, each in chosen.items()]
    return races, skipped


def list_checked() -> tuple[Contender, ...]:
    """Return our two contenders that check each image by decoding: no peer checks, and none writes restart markers."""
    return (
        Contender(OURS, "each image decoded once in full", "ours:penstock", durability=SYNCED),
        Contender(
            RESTARTS,
            "--restarts: transcoded, decoded before and after",
            "ours:penstock",
            options={"restarts": True},
            durability=SYNCED,
        ),
    )


def run_races(races: list[Race], repetitions: int, work: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Run all races; return the figures of each, and for each contender that failed the reason."""
    results, failures = {}, {}
    for race in races:
        contenders, failed = run_race(race, repetitions, work, print_progress)
        failures |= {f"{race.name}: {name}": reason for name, reason in failed.items()}
        add_ratios(contenders)
        results[race.name] = {**race.facts, "contenders": contenders}
    return results, failures


def add_ratios(contenders: dict[str, Any]) -> None:
    """Add Penstock's rate divided by each contender's, repetition by repetition."""
    if not (ours := contenders.get(OURS)):
        return
    for each in contenders.values():
        for name in ("images_per_second", "durable_images_per_second"):
            pairs = zip(ours[name]["repetitions"], each[name]["repetitions"], strict=True)
            each[f"ours_in_{name}"] = summarize([mine / other for mine, other in pairs])


def build_record(
    source: str, races: dict[str, Any], skipped: dict[str, str], failed: dict[str, str], work: Path
) -> dict[str, Any]:
    """Return the record: the figures, and all that is needed to read and to repeat them."""
    name = next(iter(races.values())).get("name", source)
    origin = describe_origin("benchmarks/preparation.py")
    return {
        "what": "preparation",
        "dataset": {"name": name, "label": label_source(name)},
        "method": METHOD,
        "races": races,
        "skipped": skipped,
        "failed": failed,
        **origin,
        "hardware": origin["hardware"] | {"filesystem": describe_filesystem(work)},
    }


def describe_filesystem(folder: Path) -> str:
    """Return the type of the file system that a folder is on, such as "ext4"."""
    # Of all mount points above the folder, the longest path is the one that it is on.
    mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    above = [(len(point), kind) for point, kind in mounts if folder.resolve().is_relative_to(point)]
    return max(above)[1] if above else "unknown"


def format_record(record: dict[str, Any]) -> str:
    """Return the record as tables for the terminal."""
    lines = []
    # "durable" is images/s including os.sync(); "speedup" is Penstock's rate divided by the contender's.
    for name, race in record["races"].items():
        size = f"{race['num_images']:,} images, {race['image_bytes'] / 1e6:,.0f} MB"
        lines.append(f"{name}: {size}; {record['dataset']['name']} [{record['dataset']['label']}]")
        lines.append(
            f"  {'':<18}{'images/s':>9}{'MB/s':>8}{'min to max':>19}{'speedup':>9}{'durable':>10}{'speedup':>9}"
        )
        lines += [format_row(contender, each) for contender, each in race["contenders"].items()]
    lines += [f"skipped: {name}: {reason}" for name, reason in record["skipped"].items()]
    lines += [f"failed: {name}: {reason}" for name, reason in record["failed"].items()]
    return "\n".join(lines)


def format_row(name: str, each: dict[str, Any]) -> str:
    """Return a contender's line of the table."""
    rate, durable = each["images_per_second"], each["durable_images_per_second"]
    spread = f"{rate['min']:,.0f} to {rate['max']:,.0f}"
    ratios = [
        f"{each[key]['median']:.2f} x" if key in each else "-"
        for key in ("ours_in_images_per_second", "ours_in_durable_images_per_second")
    ]
    return (
        f"  {name:<18}{rate['median']:>9,.0f}{each['megabytes_per_second']['median']:>8,.0f}{spread:>19}{ratios[0]:>9}"
        f"{durable['median']:>10,.0f}{ratios[1]:>9}"
    )


def main() -> None:
    """Write the sources, run the races, publish the record."""
    arguments = parse_arguments()
    check_arguments(arguments)
    with tempfile.TemporaryDirectory(prefix="penstock-", dir=arguments.work) as temporary:
        work = Path(temporary)
        races, skipped = plan_races(arguments, work)
        results, failed = run_races(races, arguments.repetitions, work)
        record = build_record(arguments.source, results, skipped, failed, work)
    publish(record, arguments.out)
    print_progress(format_record(record))


if __name__ == "__main__":
    run(main)
