"""Compare how fast images become shards, with webdataset, LitData, MosaicML, a pool of Pillow processes and a copy.

`write` (the default): races on the images of --source's first split, repeated to --images. First the original bytes are
written, compared with webdataset, LitData, MosaicML and a plain copy. Then, on --smaller-images images: the decode
check, and images resized to be smaller in two ways, compared with a pool of Pillow processes.
`stage`: what it costs to copy a prepared dataset from S3, compared with other programs (`stage --help`).
"""

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import staging
from machine import describe_filesystem
from options import (
    LEAST_REPETITIONS,
    check_folder,
    check_known,
    check_least,
    check_outputs,
    check_repetitions,
    parse_options,
)
from peers.formats import make_source
from peers.registry import OURS, UNDECODED, WRITING_RACES
from race import RATE, Source, find_missing, race_writers
from record import describe_origin, label_source, summarize
from reports.kinds import publish
from staging import Stage, measure_staging

from prep.errors import run

SCRIPT = "benchmarks/prepare.py"
FLAGS = {"litdata": "--litdata-python", "mosaicml": "--mosaic-python"}
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


@dataclass(frozen=True, kw_only=True)
class Write:
    """Options of the races of writers."""

    source: str  # images to repeat: a Hugging Face or an image folder
    images: int = 20_000  # number of images for the original bytes; 20,000 of ImageNet have 2 GiB
    smaller_images: int = 8_000  # number of images for the races that decode, which are slower
    # run one race: "original bytes", "original bytes, checked", "max side 500" or "short side 256"; None: all
    race: str | None = None
    repetitions: int = LEAST_REPETITIONS  # runs of each, at least 5
    litdata_python: str = sys.executable  # interpreter that has litdata
    mosaic_python: str = sys.executable  # interpreter that has mosaicml-streaming
    work: Path | None = None  # folder on the disk to measure; None: the temporary folder
    out: Path | None = None  # write the record to this file

    def check(self) -> None:
        """Raise InputError for the first value that cannot be used."""
        check_repetitions(self.repetitions)
        check_outputs(self.out)
        check_folder("--work", self.work)
        check_least(1, images=self.images, smaller_images=self.smaller_images)
        check_known("--race", [self.race] if self.race else [], WRITING_RACES)


def run_races(options: Write, work: Path) -> tuple[dict[str, Any], dict[str, dict[str, str]]]:
    """Write the sources and run the races.

    Returns:
        The figures of each race, and the reasons of "skipped" and "failed" writers.

    Raises:
        InputError: the source cannot be used.
    """
    pythons = {"litdata": options.litdata_python, "mosaicml": options.mosaic_python}
    races = {title: writers for title, writers in WRITING_RACES.items() if options.race in (None, title)}
    sources: dict[bool, Source] = {}  # by whether the images are decoded
    results, skipped, failures = {}, {}, {}
    # Write all sources before the first race, so that a full disk loses no results.
    for title in races:
        decodes = title != UNDECODED
        if decodes not in sources:
            folder = work / ("smaller" if decodes else "source")
            num_images = options.smaller_images if decodes else options.images
            sources[decodes] = Source(folder, make_source(options.source, num_images, folder))
    for title, writers in races.items():
        source = sources[title != UNDECODED]
        missing = find_missing(writers, pythons, FLAGS)
        entrants = [
            (each, pythons.get(each.library, sys.executable)) for each in writers if each.library not in missing
        ]
        figures, failed = race_writers(title, source, entrants, options.repetitions, work)
        add_ratios(figures)
        results[title] = {**source.facts, "contenders": figures}
        skipped |= missing
        failures |= {f"{title}: {name}": reason for name, reason in failed.items()}
    return results, {"skipped": skipped, "failed": failures}


def add_ratios(figures: dict[str, Any]) -> None:
    """Add Penstock's rate divided by each writer's, repetition by repetition."""
    if not (ours := figures.get(OURS)):
        return
    for each in figures.values():
        for name in (RATE, f"durable_{RATE}"):
            pairs = zip(ours[name]["repetitions"], each[name]["repetitions"], strict=True)
            each[f"ours_in_{name}"] = summarize([mine / other for mine, other in pairs])


def build_record(races: dict[str, Any], unable: dict[str, dict[str, str]], work: Path) -> dict[str, Any]:
    """Return the record: the figures, and all that is needed to read and to repeat them.

    Args:
        unable: the reasons of "skipped" and "failed" writers.
    """
    name = next(iter(races.values()))["name"]
    origin = describe_origin(SCRIPT)
    return {
        "what": "preparation",
        "dataset": {"name": name, "label": label_source(name)},
        "method": METHOD,
        "races": races,
        **unable,
        **origin,
        "hardware": origin["hardware"] | {"filesystem": describe_filesystem(work)},
    }


def main() -> None:
    """Run what the first word says, publish the record."""
    if sys.argv[1:2] == ["stage"]:
        measure_staging(parse_options(Stage, f"{SCRIPT} stage", staging.__doc__, sys.argv[2:]))
        return
    words = sys.argv[2:] if sys.argv[1:2] == ["write"] else sys.argv[1:]
    options = parse_options(Write, SCRIPT, __doc__, words)
    options.check()
    with tempfile.TemporaryDirectory(prefix="penstock-", dir=options.work) as temporary:
        record = build_record(*run_races(options, Path(temporary)), Path(temporary))
    publish(record, options.out)


if __name__ == "__main__":
    run(main)
