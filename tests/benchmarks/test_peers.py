"""The race of the loaders: every installed contender feeds; missing and failing ones are named."""

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

from prep.errors import InputError

BENCHMARKS = CHECKOUT / "benchmarks"
SCRIPT = BENCHMARKS / "peers.py"
NUM_IMAGES, BATCH_SIZE, WORKERS = 60, 8, 1
HERE = ["penstock", "dali-reader", "torchvision-v2", "imagefolder-pillow", "timm", "webdataset-v2", "libjpeg-turbo"]
ABSENT = {"litdata-v2": "litdata", "spdl-io": "spdl", "ffcv": "ffcv"}
INTERPRETERS = {
    "litdata-v2": "litdata",
    "mosaicml-v2": "mosaicml",
    "spdl-io": "spdl",
    "spdl-v2": "spdl",
    "ffcv": "ffcv",
}


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, digits_source: Path) -> Any:
    """The command's module, with arguments that make it quick."""
    sizes = ["--images", str(NUM_IMAGES), "--batch-size", str(BATCH_SIZE), "--workers", str(WORKERS)]
    times = ["--seconds", "0.2", "--warmup", "0.1"]
    monkeypatch.setattr(sys, "argv", ["peers.py", "--source", str(digits_source), *sizes, *times])
    return importlib.import_module("peers")


def parse(command: Any, *more: str) -> Any:
    """The arguments, with fewer repetitions than users may ask for."""
    sys.argv += more
    arguments = command.parse_arguments()
    command.check_arguments(arguments)
    arguments.repetitions = 2
    return arguments


def check_figures(each: dict[str, Any], name: str) -> None:
    for figure in ("images_per_second", "cpu_seconds_per_1000_images", "memory_bytes"):
        values = each[figure]
        assert len(values["repetitions"]) == 2 and values["min"] > 0
        assert values["median"] == statistics.median(values["repetitions"])
    assert each["others_busy_cores"]["min"] >= 0
    assert each["first_batch_seconds"] > 0 and each["bytes_per_image"] > 0 and each["versions"]["python"]
    if name != "libjpeg-turbo":
        assert each["batch"][0] == BATCH_SIZE and sorted(each["batch"][1:]) == [3, 224, 224]
    assert each["type"] == ("float32" if name == "timm" else "uint8")


def test_installed_contenders_feed_and_missing_peers_are_named(command: Any, tmp_path: Path) -> None:
    arguments = parse(command, "--only", *HERE, *ABSENT)
    races, skipped = command.choose_contenders(arguments)
    original, readers, smaller = command.RACES
    assert [each.name for each in races[original]] == HERE
    assert [each.name for each in races[readers]] == ["dali-reader", "webdataset-v2"]
    assert [each.name for each in races[smaller]] == ["penstock", "dali-reader"]
    del races[readers]
    assert set(skipped) == set(ABSENT.values()) and all("pip install" in reason for reason in skipped.values())
    races[smaller] = races[smaller][:1]
    facts, unwritten = command.prepare_data(arguments, races, tmp_path)
    assert unwritten == {} and facts["num_images"] == NUM_IMAGES
    results, failed = command.run_races(arguments, races, facts, unwritten, tmp_path)
    record = command.build_record(arguments, facts, results, {"skipped": skipped, "failed": failed})
    record = json.loads(json.dumps(record))
    assert record["failed"] == {} and list(record["races"][original]) == HERE
    for race in record["races"].values():
        for name, each in race.items():
            check_figures(each, name)
    data = [record["races"][race]["penstock"]["data"] for race in (original, smaller)]
    assert data == ["shards", "smaller-shards"]
    assert record["dataset"]["label"] == "not ImageNet"
    assert (record["placement"]["placement"], record["placement"]["decode"]) == ("cpu", "roi")
    others = command.build_record(arguments, facts, {original: {"timm": results[original]["timm"]}}, {})
    assert others["placement"] is None
    table = command.format_record(record)
    assert "skipped: ffcv: ffcv is not installed" in table and "webdataset-v2" in table


@needs_transcoder
def test_timm_reads_restart_shards(command: Any, tmp_path: Path) -> None:
    name = "timm-wds-restarts"
    arguments = parse(command, "--race", "readers of restart shards", "--only", name, "penstock")
    races, _ = command.choose_contenders(arguments)
    facts, unwritten = command.prepare_data(arguments, races, tmp_path)
    assert unwritten == {} and facts["restarts"]["spliced_share"] == 1
    results, failed = command.run_races(arguments, races, facts, unwritten, tmp_path)
    (race,) = results.values()
    assert failed == {} and list(race) == [name] and race[name]["data"] == "restart-shards"


def test_a_failing_contender_is_named_and_the_others_continue(command: Any, tmp_path: Path) -> None:
    arguments = parse(command, "--evaluation", "--only", "libjpeg-turbo", "penstock")
    bound, ours = command.ORIGINAL[-1], command.ORIGINAL[0]
    dies = replace(bound, name="dies", entry="turbo:missing")
    breaks = replace(ours, name="breaks", data="nothing")
    cannot = replace(bound, name="cannot", data="no-format")
    races = {"race": (dies, bound, breaks, ours, cannot)}
    facts, unwritten = command.prepare_data(arguments, {"race": (bound, ours, cannot)}, tmp_path)
    assert list(unwritten) == ["no-format"]
    results, failed = command.run_races(arguments, races, facts, unwritten, tmp_path)
    assert list(results["race"]) == ["libjpeg-turbo", "penstock"]
    assert "missing" in failed["race: dies"] and "nothing" in failed["race: breaks"]
    assert failed["race: cannot"].startswith("no-format could not be written")
    assert not any("\n" in reason for reason in failed.values())


def test_a_process_that_does_not_answer_is_ended(command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    windows = importlib.import_module("windows")
    monkeypatch.setattr(windows, "LONGEST_START", 0.01)
    entrant = command.build_entrant(parse(command), command.ORIGINAL[-1], NUM_IMAGES, tmp_path)
    results, failed = windows.measure_race("race", (entrant,), 1, print)
    assert results == {} and failed == {"libjpeg-turbo": "no answer within 0 s"}


def test_ratios_are_of_medians_of_undisturbed_windows(command: Any) -> None:
    summarize = importlib.import_module("record").summarize
    rates = {"penstock": [100.0, 300.0, 200.0], "other": [50.0, 100.0, 400.0], "unlucky": [1.0, 2.0, 3.0]}
    others = {"penstock": [0.5, 0.0, 0.1], "other": [0.0, 0.19, 0.2], "unlucky": [1.0, 1.0, 0.3]}
    contenders = {
        name: {"images_per_second": summarize(rates[name]), "others_busy_cores": summarize(others[name])}
        for name in rates
    }
    command.add_ratios(contenders)
    assert contenders["penstock"]["undisturbed_images_per_second"]["repetitions"] == [300.0, 200.0]
    assert contenders["other"]["ours_in_images_per_second"] == pytest.approx(250 / 75)
    assert contenders["penstock"]["ours_in_images_per_second"] == 1
    contenders |= {f"{name}-restarts": contenders["penstock"].copy() for name in ("other", "unlucky")}
    command.add_ratios(contenders)
    assert contenders["other-restarts"]["times_its_rate_on_originals"] == pytest.approx(250 / 75)
    assert not any("times_its_rate_on_originals" in contenders[name] for name in (*rates, "unlucky-restarts"))
    assert "ours_in_images_per_second" not in contenders["unlucky"]


def test_the_order_rotates(command: Any, tmp_path: Path) -> None:
    arguments = parse(command)
    entrants = tuple(command.build_entrant(arguments, each, NUM_IMAGES, tmp_path) for each in command.SMALLER[:3])
    turns = [entrant.name for _, entrant in importlib.import_module("windows").rotate_order(entrants, 3)]
    a, b, c = (entrant.name for entrant in entrants)
    assert turns == [a, b, c, b, c, a, c, a, b]


@pytest.mark.parametrize("name", INTERPRETERS)
def test_a_peer_feeds_from_its_own_format(name: str, command: Any, tmp_path: Path) -> None:
    peer = INTERPRETERS[name]
    python = os.environ.get(f"PENSTOCK_{peer.upper()}_PYTHON")
    if not python:
        pytest.skip(f"needs an interpreter that has {peer} (set PENSTOCK_{peer.upper()}_PYTHON)")
    arguments = parse(command, "--only", name, "--python", peer, python)
    races, skipped = command.choose_contenders(arguments)
    facts, unwritten = command.prepare_data(arguments, races, tmp_path)
    results, failed = command.run_races(arguments, races, facts, unwritten, tmp_path)
    assert (skipped, unwritten, failed) == ({}, {}, {})
    (race,) = results.values()
    assert race[name]["batch"][0] == BATCH_SIZE and race[name]["type"] == "uint8"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--repetitions", "4"], "--repetitions must be at least 5, got 4"),
        (["--only", "missing"], "unknown contender 'missing': choose from penstock"),
        (["--python", "torch", "python"], "unknown contender 'torch': choose from litdata"),
        (["--only", "ffcv", "--python", "ffcv", "nowhere"], "pip install"),
        (["--seconds", "0"], "seconds"),
        (["--workers", "9"], "--images must be at least 72, one batch per worker, got 60"),
        (["--work", "nowhere/at all"], "--work"),
    ],
)
def test_unusable_flags_are_refused(arguments: list[str], named: str, command: Any) -> None:
    sys.argv += arguments
    with pytest.raises(InputError, match=named) as caught:
        parsed = command.parse_arguments()
        command.check_arguments(parsed)
        command.choose_contenders(parsed)
    assert "\n" not in str(caught.value)


def test_a_source_that_cannot_be_used_is_one_line() -> None:
    done = run_command(SCRIPT, "--source", "nowhere/at all", "--only", "libjpeg-turbo")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1 and "nowhere" in done.stderr
