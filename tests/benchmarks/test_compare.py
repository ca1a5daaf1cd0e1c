"""The race of the loaders, and the sweeps: every reader feeds; missing and failing ones are named."""

import importlib
import json
import os
import statistics
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers.commands import CHECKOUT, run_command
from helpers.restarts import needs_transcoder
from PIL import Image

from prep.dataset import Split
from prep.errors import InputError

SCRIPT = CHECKOUT / "benchmarks" / "compare.py"
NUM_IMAGES, BATCH_SIZE, WORKERS = 60, 8, 1
HERE = ["penstock", "dali-reader", "torchvision-v2", "imagefolder-pillow", "timm", "webdataset-v2", "libjpeg-turbo"]
ABSENT = {"litdata-v2": "litdata", "spdl-io": "spdl", "ffcv": "ffcv"}
LIBRARIES = {
    "litdata-v2": "litdata",
    "mosaicml-v2": "mosaicml",
    "spdl-io": "spdl",
    "spdl-v2": "spdl",
    "ffcv": "ffcv",
}
FAILING = """
import os, threading, time
from pathlib import Path
class Batch(list):
    dtype = "torch.uint8"
    shape = (1,)
    def __getitem__(self, place):
        return self
def fails(job):
    yield None
    yield Batch([1])
    Path(job.data).write_text(str(os.getpid()))
    threading.Thread(target=time.sleep, args=(1000,)).start()
    raise ValueError("the reason")
def feeds(job):
    yield None
    yield Batch([1])
    while True:
        status = Path("/proc", Path(job.data).read_text(), "stat")
        if status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z":
            raise RuntimeError("the reader that failed still runs")
        yield Batch([1])
"""


@pytest.fixture
def compare(benchmarks_in_path: None) -> Any:
    """The command's module."""
    return importlib.import_module("compare")


@pytest.fixture
def options(compare: Any, digits_source: Path) -> Any:
    """Options that make the races quick, with fewer repetitions than users may ask for."""
    few = {"images": NUM_IMAGES, "batch_size": BATCH_SIZE, "workers": WORKERS, "repetitions": 2}
    return compare.Compare(source=str(digits_source), seconds=0.2, warmup=0.1, **few)


def check_figures(each: dict[str, Any], name: str) -> None:
    for figure in ("images_per_second", "cpu_seconds_per_1000_images", "memory_bytes"):
        check_spread(each[figure])
    assert each["others_busy_cores"]["min"] >= 0
    assert each["first_batch_seconds"] > 0 and each["bytes_per_image"] > 0 and each["versions"]["python"]
    if name != "libjpeg-turbo":
        assert each["batch"][0] == BATCH_SIZE and sorted(each["batch"][1:]) == [3, 224, 224]
    assert each["type"] == ("float32" if name == "timm" else "uint8")


def check_spread(summary: dict[str, Any]) -> None:
    values = summary["repetitions"]
    assert len(values) == 2 and min(values) > 0
    assert (summary["median"], summary["min"], summary["max"]) == (statistics.median(values), min(values), max(values))


def test_installed_readers_feed_and_missing_libraries_are_named(compare: Any, options: Any, tmp_path: Path) -> None:
    options = replace(options, only=(*HERE, *ABSENT))
    races, skipped = compare.choose_readers(options)
    original, readers, smaller = compare.READING_RACES
    assert [each.name for each in races[original]] == HERE
    assert [each.name for each in races[readers]] == ["dali-reader", "webdataset-v2"]
    assert [each.name for each in races[smaller]] == ["penstock", "dali-reader"]
    assert set(skipped) == set(ABSENT.values()) and all("pip install" in reason for reason in skipped.values())

    # Race all that are here on the original bytes, and ours on smaller images.
    races = {original: races[original], smaller: races[smaller][:1]}
    facts, unwritten = compare.write_images(options, races, tmp_path)
    assert unwritten == {} and facts["num_images"] == NUM_IMAGES and facts["label"] == "not ImageNet"
    results, failed = compare.run_races(options, races, facts["num_images"], unwritten, tmp_path)
    record = compare.build_record(options, facts, results, {"skipped": skipped, "failed": failed})
    record = json.loads(json.dumps(record))
    make_tables = importlib.import_module("reports.kinds").make_tables
    format_spread = importlib.import_module("reports.records").format_spread
    assert record["failed"] == {} and list(record["races"][original]) == HERE
    for race in record["races"].values():
        for name, each in race.items():
            check_figures(each, name)
    data = [record["races"][race]["penstock"]["data"] for race in (original, smaller)]
    assert data == ["shards", "smaller-shards"]
    assert (record["placement"]["placement"], record["placement"]["decode"]) == ("cpu", "roi")
    # The record is printed.
    tables = make_tables(record)
    first = next(table for table in tables if table.title == "Original bytes")
    rates = {row[0]: row[list(first.header).index("images/s")] for row in first.rows}
    assert set(rates) == set(HERE)
    assert rates["timm"] == format_spread(record["races"][original]["timm"]["images_per_second"])
    notes = [note for table in tables for note in table.notes]
    assert {f"skipped: {name}: {reason}" for name, reason in skipped.items()} <= set(notes)

    others = compare.build_record(options, facts, {original: {"timm": results[original]["timm"]}}, {})
    assert others["placement"] is None


@needs_transcoder
def test_timm_reads_restart_shards(compare: Any, options: Any, tmp_path: Path) -> None:
    name = "timm-wds-restarts"
    options = replace(options, race="readers of restart shards", only=(name, "penstock"))
    races, _ = compare.choose_readers(options)
    facts, unwritten = compare.write_images(options, races, tmp_path)
    assert unwritten == {} and facts["restarts"]["spliced_share"] == 1
    results, failed = compare.run_races(options, races, facts["num_images"], unwritten, tmp_path)
    (race,) = results.values()
    assert failed == {} and list(race) == [name] and race[name]["data"] == "restart-shards"


def test_a_failing_reader_is_named_and_the_others_continue(compare: Any, options: Any, tmp_path: Path) -> None:
    options = replace(options, evaluation=True)
    ours, bound = (readers := compare.READING_RACES["original bytes"])[0], readers[-1]
    dies = replace(bound, name="dies", function="missing")
    breaks = replace(ours, name="breaks", data="nothing")
    cannot = replace(bound, name="cannot", data="beton")  # this interpreter has no FFCV, which writes it
    _, unwritten = compare.write_images(options, {"race": [bound, ours, cannot]}, tmp_path)
    assert list(unwritten) == ["beton"]
    race = {"race": [dies, bound, breaks, ours, cannot]}
    results, failed = compare.run_races(options, race, NUM_IMAGES, unwritten, tmp_path)
    assert list(results["race"]) == ["libjpeg-turbo", "penstock"]
    assert "missing" in failed["race: dies"] and "nothing" in failed["race: breaks"]
    assert failed["race: cannot"].startswith("beton could not be written") and "ffcv" in failed["race: cannot"]
    assert not any("\n" in reason for reason in failed.values())


def test_a_process_that_does_not_answer_is_ended(
    compare: Any, options: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    race = importlib.import_module("race")
    monkeypatch.setattr(race, "LONGEST_START", 0.01)
    bound = compare.READING_RACES["original bytes"][-1]
    entrant = race.Entrant(bound, compare.build_job(options, bound, tmp_path, WORKERS, NUM_IMAGES))
    results, failed = race.race_readers("race", [entrant], 1)
    assert results == {} and failed == {"libjpeg-turbo": "no answer within 0 s"}


def test_ratios_are_of_medians_of_undisturbed_windows(compare: Any) -> None:
    race, name_all = importlib.import_module("race"), ("penstock", "other", "unlucky")
    rates = {"penstock": [100.0, 300.0, 200.0], "other": [50.0, 100.0, 400.0], "unlucky": [1.0, 2.0, 3.0]}
    others = {"penstock": [0.5, 0.0, 0.1], "other": [0.0, 0.19, 0.2], "unlucky": [1.0, 1.0, 0.3]}
    figures = {}
    for name in name_all:
        windows = [
            {"images_per_second": rate, "others_busy_cores": num_cores}
            for rate, num_cores in zip(rates[name], others[name], strict=True)
        ]
        figures[name] = race.describe_windows(compare.PENSTOCK, {}, windows)
    compare.add_ratios(figures)
    assert figures["penstock"]["undisturbed_images_per_second"]["repetitions"] == [300.0, 200.0]
    assert figures["other"]["ours_in_images_per_second"] == pytest.approx(250 / 75)
    assert figures["penstock"]["ours_in_images_per_second"] == 1
    figures |= {f"{name}-restarts": figures["penstock"].copy() for name in ("other", "unlucky")}
    compare.add_ratios(figures)
    assert figures["other-restarts"]["times_its_rate_on_originals"] == pytest.approx(250 / 75)
    assert not any("times_its_rate_on_originals" in figures[name] for name in (*rates, "unlucky-restarts"))
    assert "ours_in_images_per_second" not in figures["unlucky"]


def test_the_order_rotates_without_those_that_failed() -> None:
    race = importlib.import_module("race")
    taken: list[str] = []

    def measure(name: str) -> dict[str, int]:
        taken.append(name)
        if taken == ["a", "b", "c", "b"]:
            raise race.FailedError("no more")
        return {"turn": len(taken)}

    turns = race.Turns("race", failed={"d": "did not start"})
    turns.take(["a", "b", "c", "d"], 3, measure, "{turn}")
    assert taken == ["a", "b", "c", "b", "c", "a", "c", "a"]
    assert turns.runs == {"a": [{"turn": 1}, {"turn": 6}, {"turn": 8}], "c": [{"turn": 3}, {"turn": 5}, {"turn": 7}]}
    assert turns.failed == {"d": "did not start", "b": "no more"}


@pytest.mark.parametrize("name", LIBRARIES)
def test_a_library_feeds_from_its_own_format(name: str, compare: Any, options: Any, tmp_path: Path) -> None:
    library = LIBRARIES[name]
    python = os.environ.get(f"PENSTOCK_{library.upper()}_PYTHON")
    if not python:
        pytest.skip(f"needs an interpreter that has {library} (set PENSTOCK_{library.upper()}_PYTHON)")
    options = replace(options, only=(name,), python=((library, python),))
    races, skipped = compare.choose_readers(options)
    facts, unwritten = compare.write_images(options, races, tmp_path)
    results, failed = compare.run_races(options, races, facts["num_images"], unwritten, tmp_path)
    assert (skipped, unwritten, failed) == ({}, {}, {})
    (race,) = results.values()
    assert race[name]["batch"][0] == BATCH_SIZE and race[name]["type"] == "uint8"


def test_every_thread_count_and_stored_size_is_measured(compare: Any, digits_source: Path, tmp_path: Path) -> None:
    few = {"images": 40, "batch_size": BATCH_SIZE, "threads": (1, 2), "size": 32, "repetitions": 2}
    options = compare.Sweep(source=str(digits_source), seconds=0.1, warmup=0.0, **few)
    record = json.loads(json.dumps(compare.sweep_loader(options, tmp_path)))
    assert record["what"] == "sweeps" and record["dataset"]["label"] == "not ImageNet"
    assert (record["placement"]["placement"], record["placement"]["decode"]) == ("cpu", "roi")
    assert [each["num_threads"] for each in record["threads"]] == [1, 2]
    assert [each["name"] for each in record["sizes"]] == list(compare.STORES)
    assert record["transform"] == "random resized crop to 32, horizontal flip"
    for each in [*record["threads"], *record["sizes"]]:
        check_spread(each["images_per_second"])
    stored = [Split(tmp_path / each["name"], "train").manifest.options for each in record["sizes"]]
    assert [(each.max_side, each.short_side) for each in stored if each] == [(None, None), (500, None), (None, 256)]
    assert all(each["bytes_per_image"] > 300 for each in record["sizes"])

    # The record is printed and drawn.
    reports = importlib.import_module("reports.records")
    tables = importlib.import_module("reports.kinds").make_tables(record)
    rates = [
        row[list(table.header).index("images/s")]
        for table in tables
        if "images/s" in table.header
        for row in table.rows
    ]
    points = [*record["threads"], *record["sizes"]]
    assert rates == [reports.format_spread(each["images_per_second"]) for each in points]
    plots, out = importlib.import_module("reports.plots"), tmp_path / "record.json"
    out.write_text(json.dumps(record))
    written = reports.read_record(out, tmp_path)
    for number, picture in enumerate(plots.list_pictures(written)):
        plots.save_picture(picture, tmp_path / f"{number}.png", written)
        assert (tmp_path / f"{number}.png").stat().st_size > 10_000


def test_images_that_were_rejected_do_not_count(compare: Any, options: Any, tmp_path: Path) -> None:
    """One image is damaged, and one is a PNG, which the preparation encodes as a JPEG."""
    folder = tmp_path / "images" / "a"
    folder.mkdir(parents=True)
    pixels = Image.effect_noise((64, 64), 100).convert("RGB")
    for number in range(3):
        pixels.save(folder / f"{number}.jpg")
    pixels.save(folder / "3.png")
    (folder / "4.jpg").write_bytes((folder / "0.jpg").read_bytes()[:200])
    bound = compare.READING_RACES["original bytes"][-1]
    work = tmp_path / "work"
    work.mkdir()
    options = replace(options, source=str(tmp_path / "images"), images=10, batch_size=2, only=(bound.name,))
    facts, _ = compare.write_images(options, {"race": [bound]}, work)
    files = list((work / bound.data).rglob("*.jpg"))
    assert (facts["num_images"], len(files)) == (8, 8)
    assert facts["image_bytes"] == sum(file.stat().st_size for file in files)
    results, _ = compare.run_races(options, {"race": [bound]}, facts["num_images"], {}, work)
    assert results["race"][bound.name]["bytes_per_image"] == pytest.approx(facts["image_bytes"] / 8)
    assert compare.build_job(options, bound, work, WORKERS, facts["num_images"]).num_images == 8


def test_a_reader_that_fails_in_a_window_has_gone(
    compare: Any, options: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its thread would use the CPU in the windows of the others."""
    (tmp_path / "failing_peer.py").write_text(FAILING)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(CHECKOUT)]))
    race, left = importlib.import_module("race"), tmp_path / "pid"
    bound = compare.READING_RACES["original bytes"][-1]
    job = replace(compare.build_job(options, bound, left, WORKERS, NUM_IMAGES), warmup=0.0)
    entrants = [
        race.Entrant(replace(bound, name=name), replace(job, entry=f"failing_peer:{name}"))
        for name in ("fails", "feeds")
    ]
    figures, failed = race.race_readers("race", entrants, 2)
    assert list(figures) == ["feeds"] and failed == {"fails": "ValueError: the reason"}
    # `feeds` yields batches only as long as `fails` has no process: each of its two windows proves it.
    assert len(figures["feeds"]["images_per_second"]["repetitions"]) == 2


def test_one_sweep_can_be_asked_for(
    compare: Any, digits_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs: dict[tuple[str, int], int] = {}  # sizes by store and threads

    def race(title: str, entrants: list[Any], repetitions: int) -> tuple[dict[str, Any], dict[str, str]]:
        jobs.update({(Path(each.job.data).name, each.job.workers): each.job.size for each in entrants})
        assert len({each.reader.name for each in entrants}) == len(entrants)
        return {each.reader.name: {"images_per_second": title} for each in entrants}, {}

    monkeypatch.setattr(compare, "race_readers", race)
    options = compare.Sweep(source=str(digits_source), images=20, sweep=("threads",), threads=(1, 3), size=48)
    record = compare.sweep_loader(options, tmp_path)
    assert [each["num_threads"] for each in record["threads"]] == [1, 3] and record["sizes"] == []
    assert jobs == {("original", 1): 48, ("original", 3): 48}
    # Each point once: the original bytes with one thread per core belong to both sweeps.
    jobs.clear()
    monkeypatch.setattr(compare, "NUM_CORES", 3)
    work = tmp_path / "both"
    work.mkdir()
    record = compare.sweep_loader(replace(options, sweep=("threads", "size")), work)
    smaller = [(name, 3) for name in compare.STORES if name != "original"]
    assert list(jobs) == [("original", 1), ("original", 3), *smaller]
    assert [each["num_threads"] for each in record["threads"]] == [1, 3]
    assert [each["name"] for each in record["sizes"]] == list(compare.STORES)


@pytest.mark.parametrize(
    ("cores", "threads"), [(1, (1, 2)), (2, (1, 2, 3, 4)), (6, (1, 2, 4, 6, 9, 12)), (16, (1, 2, 4, 8, 16, 24, 32))]
)
def test_threads_go_a_bit_beyond_the_cores(cores: int, threads: tuple[int, ...], compare: Any) -> None:
    assert compare.choose_threads(cores) == threads


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--repetitions", "4"], "--repetitions must be at least 5, got 4"),
        (["--only", "missing"], "--only: unknown name 'missing': choose from penstock"),
        (["--race", "unknown"], "--race: unknown name 'unknown': choose from original bytes"),
        (["--python", "torch", "python"], "--python: unknown name 'torch': choose from litdata"),
        (["--only", "ffcv", "--python", "ffcv", "nowhere"], "pip install"),
        (["--only", "ffcv", "--race", "original bytes"], "none of its contenders is in --only"),
        (["--seconds", "0"], "seconds"),
        (["--only"], "--only needs at least one value"),
        (["--sweep", "--threads"], "--threads needs at least one value"),
        (["--only", "timm-wds", "--race", "original bytes"], "--race original bytes: none of its contenders is in"),
        (
            ["--workers", "9", "--images", "60", "--batch-size", "8"],
            "--images must be at least 72, one batch per worker",
        ),
        (["--work", "nowhere/at all"], "--work"),
        (["--sweep", "size", "--size", "0"], "--size must be at least 1, got 0"),
        (["--sweep", "threads", "--threads", "2", "0"], "--threads must be at least 1, got 0"),
        (["--sweep", "--images", "63"], "--images must be at least 64, one batch, got 63"),
        (["--sweep", "--out", "no/such/folder/file.json"], "no/such/folder"),
        (["--sweep", "--only", "penstock"], "unknown flag --only"),
    ],
)
def test_unusable_flags_are_refused(
    words: list[str], named: str, compare: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["compare.py", "--source", "nowhere", *words])
    with pytest.raises(InputError, match=named) as caught:
        parsed = compare.parse_command()
        compare.choose_readers(parsed)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("words", [["--only", "libjpeg-turbo"], ["--sweep", "size"]])
def test_a_source_that_cannot_be_used_is_one_line(words: list[str]) -> None:
    done = run_command(SCRIPT, "--source", "nowhere/at all", *words)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[-1].startswith("error: ") and "nowhere" in done.stderr
    assert done.stderr.count("\n") == 1
