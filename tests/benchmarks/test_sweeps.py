"""The sweeps: each thread count and stored size is measured on real shards, and its figures follow from its windows."""

import importlib
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.commands import CHECKOUT, run_command

from prep.dataset import Split
from prep.errors import InputError

BENCHMARKS = CHECKOUT / "benchmarks"
SCRIPT = BENCHMARKS / "sweeps.py"
NUM_IMAGES, BATCH_SIZE = 40, 8


def test_every_thread_count_and_size_is_measured(
    digits_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweeps = importlib.import_module("sweeps")
    sizes = ["--images", str(NUM_IMAGES), "--batch-size", str(BATCH_SIZE), "--threads", "1", "2"]
    times = ["--seconds", "0.1", "--warmup", "0", "--size", "32"]
    monkeypatch.setattr(sys, "argv", ["sweeps.py", "--source", str(digits_source), *sizes, *times])
    arguments = sweeps.parse_arguments()
    sweeps.check_arguments(arguments)
    arguments.repetitions = 2
    facts = sweeps.prepare_stores(arguments, tmp_path)
    points = sweeps.build_points(arguments, NUM_IMAGES, tmp_path)
    figures = sweeps.measure_points(arguments, points)
    record = json.loads(json.dumps(sweeps.build_record(arguments, facts, figures, tmp_path)))
    assert record["what"] == "sweeps" and record["dataset"]["label"] == "not ImageNet"
    assert (record["placement"]["placement"], record["placement"]["decode"]) == ("cpu", "roi")
    assert [each["num_threads"] for each in record["threads"]] == [1, 2]
    assert [each["name"] for each in record["sizes"]] == list(sweeps.STORES)
    assert (
        points["original", 1].job["workers"] == 1
        and record["transform"] == "random resized crop to 32, horizontal flip"
    )
    assert {point.job["size"] for point in points.values()} == {32}
    for each in [*record["threads"], *record["sizes"]]:
        check_spread(each["images_per_second"], 2)
    options = [Split(tmp_path / each["name"], "train").manifest.options for each in record["sizes"]]
    assert [(each.max_side, each.short_side) for each in options if each] == [(None, None), (500, None), (None, 256)]
    assert all(each["bytes_per_image"] > 300 for each in record["sizes"])
    check_reported(record)
    assert "2 threads" in sweeps.format_record(record) and "bytes per image" in sweeps.format_record(record)


def check_reported(record: dict[str, Any]) -> None:
    """RESULTS.md and the pictures have each point."""
    format_median = importlib.import_module("reports.words").format_median
    lines = list(importlib.import_module("reports.rates").describe_sweeps(record))
    rate_of = importlib.import_module("reports.races").rate_of
    threads, sizes = importlib.import_module("drawing.shown").show_sweeps(record)
    for each in [*record["threads"], *record["sizes"]]:
        rate = rate_of(each)
        assert any(f"| {format_median(rate)} (" in line for line in lines)
        assert rate["median"] in [point.median for point in (*threads.marks, *sizes.marks)]


def check_spread(rates: dict[str, Any], num_windows: int) -> None:
    values = rates["repetitions"]
    assert len(values) == num_windows and min(values) > 0
    assert (rates["median"], rates["min"], rates["max"]) == (statistics.median(values), min(values), max(values))


@pytest.mark.parametrize(
    ("cores", "threads"), [(1, [1, 2]), (2, [1, 2, 3, 4]), (6, [1, 2, 4, 6, 9, 12]), (16, [1, 2, 4, 8, 16, 24, 32])]
)
def test_threads_go_a_bit_beyond_the_cores(cores: int, threads: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    assert importlib.import_module("sweeps").choose_threads(cores) == threads


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--repetitions", "4"], "--repetitions must be at least 5, got 4"),
        (["--threads", "2", "0"], "threads"),
        (["--size", "0"], "--size and --threads must be at least 1, got 64, 0 and 1"),
        (["--images", "63"], "--images must be at least 64, one batch, got 63"),
        (["--seconds", "0"], "seconds"),
        (["--out", "no/such/folder/file.json"], "no/such/folder"),
    ],
)
def test_unusable_flags_are_refused(arguments: list[str], named: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sweeps = importlib.import_module("sweeps")
    monkeypatch.setattr(sys, "argv", ["sweeps.py", "--source", "nowhere", *arguments])
    with pytest.raises(InputError, match=named):
        sweeps.check_arguments(sweeps.parse_arguments())


def test_a_missing_source_is_one_line() -> None:
    done = run_command(SCRIPT, "--source", "nowhere/at all")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1 and "nowhere" in done.stderr
