"""`python benchmarks/preparation.py --source DIR …`: how fast images become shards, against others who write them.

Races on the images of DIR's first split, repeated to --images: the original bytes against webdataset, LitData,
MosaicML and a plain copy; then, of --smaller-images, the decode check, and images made smaller, two ways, against a
Pillow pool. One JSON record goes to stdout, progress and a table to stderr.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

from race import LEAST_REPETITIONS, Contender, Race, check_places, hold, make_source, split_missing
from record import describe_origin, label_source, publish, say, summarize

from prep.errors import InputError, run

IMAGES, SMALLER_IMAGES = 20_000, 8_000  # 2 GiB of ImageNet, and as many as keep the slower races short
OURS = "penstock"
SYNCED = "fsync of every file before it gets its name, and of the folder after"
METHOD = (
    "each contender has two processes, but for ShardWriter and the copy, which have one",
    "each run is a process of its own that has imported everything and opened the source before it starts",
    "seconds count from the first image that any of its processes asks for, so that the start of worker processes "
    "is left out for all; call_seconds count it for those who start them in their call: penstock and LitData",
    "before each run: an empty output folder, the source read once into the page cache, os.sync()",
    "durable: with the os.sync() of the whole machine that follows each run, whoever has synced by himself or not",
    "the order turns by one from repetition to repetition; every run's images are counted in its output",
    "MB are 1e6 bytes of the source's encoded images, for the copy of its files",
    "cpu_seconds are those of all processes, each from its first image on",
)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="benchmarks/preparation.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--source", required=True, metavar="DIR", help="images to repeat: a Hugging Face or an image folder")
    add("--images", type=int, default=IMAGES, metavar="N", help=f"with their original bytes (default: {IMAGES})")
    add("--smaller-images", type=int, default=SMALLER_IMAGES, metavar="N", help=f"decoded (default: {SMALLER_IMAGES})")
    add("--repetitions", type=int, default=LEAST_REPETITIONS, help="default, and least: 5")
    add("--litdata-python", default=sys.executable, metavar="PATH", help="an interpreter that has litdata")
    add("--mosaic-python", default=sys.executable, metavar="PATH", help="one that has mosaicml-streaming")
    add("--work", type=Path, metavar="DIR", help="folder on the disk to measure (default: the system's temporary one)")
    add("--out", type=Path, metavar="FILE", help="write the record here too")
    return parser.parse_args()


def check(arguments: argparse.Namespace) -> None:
    """Raises InputError for values that cannot be measured with."""
    check_places(arguments.repetitions, arguments.out, arguments.work)
    if min(arguments.images, arguments.smaller_images) < 1:
        raise InputError("images and smaller images must be 1 or more")


def list_original(arguments: argparse.Namespace) -> tuple[Contender, ...]:
    """Who writes the original bytes."""
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
            install="pip install litdata, in an environment of its own, and give its --litdata-python",
        ),
        Contender(
            "mosaicml",
            "MDSWriter, a folder a process, merge_index",
            "peers:mosaic",
            "counts:mosaic",
            python=arguments.mosaic_python,
            module="streaming",
            install="pip install mosaicml-streaming, in an environment of its own, and give its --mosaic-python",
        ),
        Contender("copy", "the source's files", "peers:copy", "counts:parquet", durability="fsync of every file"),
    )


def list_smaller(side: str, pixels: int) -> tuple[Contender, ...]:
    """Who makes images smaller, at quality 90; `side` is max_side or short_side."""
    options = {side: pixels, "quality": 90}
    return (
        Contender(OURS, "decoded, resized, encoded", "ours:penstock", options=options, durability=SYNCED),
        Contender("pillow", "a pool of two, their parent reads and writes", "writers:pillow", options=options),
    )


def plan_races(arguments: argparse.Namespace, work: Path) -> tuple[list[Race], dict[str, str]]:
    """The races, their sources made; why some contenders are skipped."""
    facts = make_source(arguments.source, arguments.images, work / "source")
    few = make_source(arguments.source, arguments.smaller_images, work / "smaller")
    original, skipped = split_missing(list_original(arguments))
    checked = Contender(OURS, "each image decoded once in full", "ours:penstock", durability=SYNCED)
    races = [
        Race("original bytes", work / "source", facts, original),
        Race("original bytes, checked", work / "smaller", few, (checked,)),  # no peer does that
    ]
    for side, pixels in (("max_side", 500), ("short_side", 256)):
        name = f"{side.replace('_', ' ')} {pixels}"
        races.append(Race(name, work / "smaller", few, list_smaller(side, pixels)))
    return races, skipped


def measure(races: list[Race], repetitions: int, work: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Every race's figures; why some contenders failed."""
    results, failures = {}, {}
    for race in races:
        contenders, failed = hold(race, repetitions, work, say)
        failures |= {f"{race.name}: {name}": reason for name, reason in failed.items()}
        add_ratios(contenders)
        results[race.name] = {**race.facts, "contenders": contenders}
    return results, failures


def add_ratios(contenders: dict[str, Any]) -> None:
    """How many times as fast ours is as each, repetition by repetition."""
    if not (ours := contenders.get(OURS)):
        return
    for each in contenders.values():
        for name in ("images_per_second", "durable_images_per_second"):
            pairs = zip(ours[name]["repetitions"], each[name]["repetitions"], strict=True)
            each[f"ours_in_{name}"] = summarize([mine / other for mine, other in pairs])


def build_record(
    source: str, races: dict[str, Any], skipped: dict[str, str], failed: dict[str, str], work: Path
) -> dict[str, Any]:
    """All that is needed to read the figures and to take them again."""
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
    """The kind of file system that a folder is on."""
    mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    above = [(len(point), kind) for point, kind in mounts if folder.resolve().is_relative_to(point)]
    return max(above)[1] if above else "unknown"


def describe(record: dict[str, Any]) -> str:
    """The record for people."""
    lines = []
    for name, race in record["races"].items():
        size = f"{race['num_images']:,} images, {race['image_bytes'] / 1e6:,.0f} MB"
        lines.append(f"{name}: {size}; {record['dataset']['name']} [{record['dataset']['label']}]")
        lines.append(
            f"  {'':<18}{'images/s':>9}{'MB/s':>8}{'min to max':>19}{'ours is':>9}{'on disk':>10}{'ours is':>9}"
        )
        lines += [describe_row(contender, each) for contender, each in race["contenders"].items()]
    lines += [f"skipped: {name}: {reason}" for name, reason in record["skipped"].items()]
    lines += [f"failed: {name}: {reason}" for name, reason in record["failed"].items()]
    return "\n".join(lines)


def describe_row(name: str, each: dict[str, Any]) -> str:
    """A contender's line of the table."""
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
    """Make the sources, hold the races, report."""
    arguments = parse_arguments()
    check(arguments)
    with tempfile.TemporaryDirectory(prefix="penstock-", dir=arguments.work) as temporary:
        work = Path(temporary)
        races, skipped = plan_races(arguments, work)
        results, failed = measure(races, arguments.repetitions, work)
        record = build_record(arguments.source, results, skipped, failed, work)
    publish(record, arguments.out)
    say(describe(record))


if __name__ == "__main__":
    run(main)
