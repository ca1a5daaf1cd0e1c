"""Compare how fast Penstock and other data loaders feed batches.

Three races on augmented images of --source's first split, repeated to --images: on their original bytes, which Penstock
also reads from restart shards; other readers of our shards, with restart markers and without; and JPEGs of at most 500
pixels per side at quality 90, where Penstock is compared with FFCV, which re-encodes every image. On the CPU, with all
data in memory.

With `--sweep`, Penstock alone is measured: its original bytes with each number of threads, and three stored sizes with
one thread per core; `python benchmarks/compare.py --sweep --help` lists its flags.
"""

import shutil
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from machine import count_bytes, read_into_page_cache
from options import (
    LEAST_REPETITIONS,
    NUM_CORES,
    check_folder,
    check_known,
    check_least,
    check_outputs,
    check_positive,
    check_repetitions,
    parse_options,
)
from peers.formats import make_source, prepare_shards, write_formats
from peers.job import SPLIT, Job
from peers.registry import LIBRARIES, OURS, PENSTOCK, READING_RACES, RESTART_SHARDS, RESTARTS, SHARDS, Reader
from race import DISTURBED_CORES, OTHERS, RATE, UNDISTURBED, Entrant, find_missing, race_readers
from record import describe_default_placement, describe_origin, label_source, print_progress
from reports.kinds import publish
from reports.rates import OF_ORIGINALS

from prep.dataset import read_manifest
from prep.errors import InputError, run

SCRIPT = "benchmarks/compare.py"
SIZE, RESIZE = 224, 256  # pixels
RATIO = "ours_in_images_per_second"
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
ORIGINAL = "original"
STORES = {  # of a sweep: options of prep/shard.py, by the name of the folder that they write
    ORIGINAL: [],
    "max side 500, quality 90": ["--max-side", "500", "--quality", "90"],
    "short side 256, quality 90": ["--short-side", "256", "--quality", "90"],
}
SWEEP_METHOD = (
    "each point is a process with the loader's defaults except for its threads; it lives through all windows, and is "
    "stopped between them",
    "a window: batches are taken without counting for --warmup seconds, then taken, counted and dropped for --seconds",
    "the order of the points rotates by one from repetition to repetition",
    "all data is read once into the page cache before the first window",
    "others_busy_cores: cores kept busy by other processes during the window, the host's included; windows with "
    f"{DISTURBED_CORES} or more do not count for undisturbed_images_per_second",
    "bytes_per_image: of all files of the prepared split",
)
NAMES = tuple(dict.fromkeys(reader.name for race in READING_RACES.values() for reader in race))
Races = dict[str, list[Reader]]


def choose_threads(cores: int) -> tuple[int, ...]:
    """Return the thread counts to measure: powers of 2 up to the cores, and 1, 1.5 and 2 times the cores."""
    doublings = {2**i for i in range(cores.bit_length()) if 2**i <= cores}
    return tuple(sorted(doublings | {cores, -(-3 * cores // 2), 2 * cores}))


@dataclass(frozen=True, kw_only=True)
class Windows:
    """Options of both: the images, and the windows in which their readers are measured."""

    source: str  # images to repeat: a Hugging Face or an image folder
    # number of images in the data set; 10,000 of ImageNet have 1 GiB in each format, so that an epoch takes seconds
    images: int = 10_000
    batch_size: int = 64  # images per batch
    repetitions: int = LEAST_REPETITIONS  # windows of each, at least 5
    seconds: float = 20.0  # length of a window
    warmup: float = 2.0  # seconds before each window, in which images do not count
    work: Path | None = None  # folder for the data; None: the temporary folder
    out: Path | None = None  # write the record to this file

    def check(self) -> None:
        """Raise InputError for the first value that cannot be used."""
        check_repetitions(self.repetitions)
        check_outputs(self.out)
        check_folder("--work", self.work)
        check_least(1, batch_size=self.batch_size)
        check_positive(seconds=self.seconds)
        check_least(0, warmup=self.warmup)


@dataclass(frozen=True, kw_only=True)
class Compare(Windows):
    """Options of the races."""

    workers: int = NUM_CORES  # processes or threads of each
    evaluation: bool = False  # resize to 256 and crop the centre instead of augmenting
    # measure one race: "original bytes", "readers of restart shards" or "max side 500, quality 90"; None: all
    race: str | None = None
    only: tuple[str, ...] = NAMES  # contenders to measure
    # library and its Python interpreter, for example `--python ffcv /opt/ffcv/bin/python`; may be repeated
    python: Annotated[tuple[tuple[str, str], ...], tyro.conf.UseAppendAction] = ()

    def check(self) -> None:
        """Raise InputError for the first value that cannot be used."""
        super().check()
        check_least(1, workers=self.workers)
        if self.images < (least := self.batch_size * self.workers):
            raise InputError(f"--images must be at least {least}, one batch per worker, got {self.images}")
        check_known("--race", [self.race] if self.race else [], READING_RACES)
        check_known("--only", self.only, NAMES)
        separate = [name for name, library in LIBRARIES.items() if library.module]
        check_known("--python", [name for name, _ in self.python], separate)


@dataclass(frozen=True, kw_only=True)
class Sweep(Windows):
    """Options of the sweeps of Penstock's loader."""

    # what to vary: the number of decoding threads, the stored size, or both
    sweep: tuple[Literal["threads", "size"], ...] = ("threads", "size")
    images: int = 3000  # number of images in the data set
    threads: tuple[int, ...] = choose_threads(NUM_CORES)  # numbers of threads, up to 2 per core
    size: int = SIZE  # side of the square output, in pixels
    seconds: float = 5.0  # length of a window
    warmup: float = 1.0  # seconds before each window, in which images do not count

    def check(self) -> None:
        """Raise InputError for the first value that cannot be used."""
        super().check()
        check_least(1, size=self.size, threads=min(self.threads, default=0))
        if self.images < self.batch_size:
            raise InputError(f"--images must be at least {self.batch_size}, one batch, got {self.images}")


def build_job(options: Windows, reader: Reader, data: Path, workers: int, num_images: int, size: int = SIZE) -> Job:
    """Return the work of a reader; `num_images` are those in `data`."""
    return Job(
        entry=reader.entry,
        data=str(data),
        evaluates=isinstance(options, Compare) and options.evaluation,
        size=size,
        resize=RESIZE,
        batch_size=options.batch_size,
        workers=workers,
        num_images=num_images,
        warmup=options.warmup,
        seconds=options.seconds,
        packages=list(LIBRARIES[reader.library].packages),
        options=reader.options,
    )


# The races.


def choose_readers(options: Compare) -> tuple[Races, dict[str, str]]:
    """Select the readers of each race; skip the libraries that are not installed.

    Returns:
        The races that have readers, and for each skipped library the reason.

    Raises:
        InputError: no reader is left.
    """
    asked = {
        name: [reader for reader in race if reader.name in options.only]
        for name, race in READING_RACES.items()
        if options.race in (None, name)
    }
    flags = {name: f"--python {name} PATH" for name in LIBRARIES}
    skipped = find_missing([each for race in asked.values() for each in race], dict(options.python), flags)
    races = {name: [each for each in race if each.library not in skipped] for name, race in asked.items()}
    if not any(races.values()):
        race = f"--race {options.race}: " if options.race else ""
        raise InputError("; ".join(skipped.values()) or f"{race}none of its contenders is in --only")
    return {name: race for name, race in races.items() if race}, skipped


def write_images(options: Compare, races: Races, work: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Write the images in every format that a reader needs, and read all files into the page cache.

    Returns:
        Facts about the images, and for each format that could not be written the reason.

    Raises:
        InputError: the source cannot be used.
    """
    readers = [reader for race in races.values() for reader in race]
    name = make_source(options.source, options.images, work / "source")["name"]
    formats = ", ".join(dict.fromkeys(each.data for each in readers))
    print_progress(f"writing {options.images:,} images of {name} as {formats}")
    unwritten = write_formats(readers, dict(options.python), work / "source", work, options.workers)
    read_into_page_cache(work)
    # Count the prepared images: preparation rejects damaged ones, and encodes again what is not an RGB JPEG.
    manifest = read_manifest(work / SHARDS / SPLIT)
    facts: dict[str, Any] = {"name": name, "num_images": manifest.num_images, "image_bytes": manifest.size_bytes}
    if any(each.data == RESTART_SHARDS for each in readers):
        from peers.penstock_peer import count_epoch  # noqa: PLC0415  (torch)

        facts["restarts"] = count_epoch(work / RESTART_SHARDS, SPLIT, SIZE)
    return facts | {"label": label_source(name)}, unwritten


def run_races(
    options: Compare, races: Races, num_images: int, unwritten: dict[str, str], work: Path
) -> tuple[dict[str, Any], dict[str, str]]:
    """Run all races; return the figures of each, and for each contender that failed the reason."""
    results, failures, pythons = {}, {}, dict(options.python)
    for title, race in races.items():
        # A reader whose format could not be written does not start.
        failed = {each.name: unwritten[each.data] for each in race if each.data in unwritten}
        entrants = [
            Entrant(
                each,
                build_job(options, each, work / each.data, options.workers, num_images),
                pythons.get(each.library, sys.executable),
            )
            for each in race
            if each.name not in failed
        ]
        figures, dropped = race_readers(title, entrants, options.repetitions)
        failures |= {f"{title}: {name}": reason for name, reason in (dropped | failed).items()}
        for each in figures.values():
            each["bytes_per_image"] = count_bytes(work / each["data"]) / num_images
        add_ratios(figures)
        results[title] = figures
    return results, failures


def add_ratios(figures: dict[str, Any]) -> None:
    """Add ratios from the medians of undisturbed windows.

    They are Penstock's rate divided by each reader's, and for each reader of restart shards its rate divided by its
    rate on the originals.
    """
    rates = {name: each[UNDISTURBED]["median"] for name, each in figures.items() if UNDISTURBED in each}
    for name, rate in rates.items():
        if OURS in rates:
            figures[name][RATIO] = rates[OURS] / rate
        original = name.removesuffix(RESTARTS)
        if original != name and original in rates:
            figures[name][OF_ORIGINALS] = rate / rates[original]


def build_record(
    options: Compare, facts: dict[str, Any], races: dict[str, Any], unable: dict[str, dict[str, str]]
) -> dict[str, Any]:
    """Return the record: the figures, and all that is needed to read and to repeat them.

    Args:
        unable: the reasons of "skipped" libraries and "failed" contenders.
    """
    # The placement is that of our loader; without it the record has none.
    has_ours = any(name.startswith(OURS) for figures in races.values() for name in figures)
    augment = f"random resized crop to {SIZE}, horizontal flip"
    return {
        "what": "feeding",
        "dataset": facts,
        "transform": f"resize to {RESIZE}, centre crop of {SIZE}" if options.evaluation else augment,
        "batch_size": options.batch_size,
        "workers": options.workers,
        "seconds": options.seconds,
        "warmup": options.warmup,
        "device": "cpu",
        "placement": describe_default_placement() if has_ours else None,  # where and how our loader decodes
        "method": METHOD,
        "races": races,
        **unable,
        **describe_origin(SCRIPT),
    }


def compare_readers(options: Compare, work: Path) -> dict[str, Any]:
    """Write the images in all formats, run the races, return the record."""
    races, skipped = choose_readers(options)
    facts, unwritten = write_images(options, races, work)
    results, failed = run_races(options, races, facts["num_images"], unwritten, work)
    return build_record(options, facts, results, {"skipped": skipped, "failed": failed})


# The sweeps.


def sweep_loader(options: Sweep, work: Path) -> dict[str, Any]:
    """Prepare the images in every stored size, measure every point, return the record.

    Raises:
        InputError: the source cannot be used, or a point cannot be measured.
    """
    wanted = options.sweep or ("threads", "size")
    threads = list(dict.fromkeys(options.threads)) if "threads" in wanted else []
    sizes = list(STORES) if "size" in wanted else []
    # Each point once: the original bytes with one thread per core belong to both sweeps.
    points = dict.fromkeys([(ORIGINAL, each) for each in threads] + [(name, NUM_CORES) for name in sizes])

    # Prepare the stores. The source would only take space in the page cache afterwards.
    source = make_source(options.source, options.images, work / "source")
    for name in dict.fromkeys(store for store, _ in points):
        print_progress(f"preparing {options.images:,} images of {source['name']}: {name}")
        prepare_shards(work / "source", work / name, [*STORES[name], "--workers", str(NUM_CORES)])
    shutil.rmtree(work / "source")
    read_into_page_cache(work)
    num_images = {path.name: read_manifest(path / SPLIT).num_images for path in work.iterdir()}

    # Measure the points.
    entrants = []
    for store, num_threads in points:
        reader = replace(PENSTOCK, name=f"{store}, {num_threads} threads", data=store)
        job = build_job(options, reader, work / store, num_threads, num_images[store], options.size)
        entrants.append(Entrant(reader, job))
    figures, failed = race_readers("sweeps", entrants, options.repetitions)
    for name, reason in failed.items():
        raise InputError(f"the loader failed with {name}: {reason}")

    kept = (RATE, "cpu_seconds_per_1000_images", "memory_bytes", OTHERS, UNDISTURBED)
    found = {
        point: {name: each[name] for name in kept if name in each}
        for point, each in zip(points, figures.values(), strict=True)
    }
    return {
        "what": "sweeps",
        "dataset": {"name": source["name"], "num_images": num_images[ORIGINAL], "label": label_source(source["name"])},
        "transform": f"random resized crop to {options.size}, horizontal flip",
        "batch_size": options.batch_size,
        "seconds": options.seconds,
        "warmup": options.warmup,
        "device": "cpu",
        "placement": describe_default_placement(),
        "method": SWEEP_METHOD,
        "threads": [{"num_threads": each, **found[ORIGINAL, each]} for each in threads],
        "sizes": [
            {"name": name, "bytes_per_image": count_bytes(work / name) / num_images[name], **found[name, NUM_CORES]}
            for name in sizes
        ],
        "sizes_num_threads": NUM_CORES,
        **describe_origin(SCRIPT),
    }


def parse_command() -> Compare | Sweep:
    """Parse the command line; raise InputError for the first value that cannot be used."""
    kind = Sweep if any(word.partition("=")[0] == "--sweep" for word in sys.argv) else Compare
    options = parse_options(kind, SCRIPT, __doc__, may_be_bare=("--sweep",))
    options.check()
    return options


def main() -> None:
    """Measure in a temporary folder, publish the record."""
    options = parse_command()
    with tempfile.TemporaryDirectory(prefix="penstock-", dir=options.work) as temporary:
        work = Path(temporary)
        record = sweep_loader(options, work) if isinstance(options, Sweep) else compare_readers(options, work)
    publish(record, options.out)


if __name__ == "__main__":
    run(main)
