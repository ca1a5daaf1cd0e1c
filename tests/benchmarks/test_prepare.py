"""The preparation benchmark: every writer writes every image; missing and failing ones are named."""

import hashlib
import importlib
import json
import os
import statistics
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from helpers.commands import CHECKOUT, run_command

from prep.errors import InputError

SCRIPT = CHECKOUT / "benchmarks" / "prepare.py"
NUM_IMAGES, NUM_SMALLER = 250, 20
HERE = {"penstock", "webdataset", "copy"}
READERS = {
    "litdata": "from litdata import StreamingDataset as S; rows = S(out)",
    "mosaicml": "import streaming; rows = ((r['jpeg'], r['cls']) for r in streaming.LocalDataset(out))",
}


@pytest.fixture
def prepare(benchmarks_in_path: None) -> Any:
    """The command's module."""
    return importlib.import_module("prepare")


@pytest.fixture
def options(prepare: Any, digits_source: Path) -> Any:
    """Options that make the races quick and leave them without LitData and MosaicML."""
    few = {"images": NUM_IMAGES, "smaller_images": NUM_SMALLER, "repetitions": 1}
    return prepare.Write(source=str(digits_source), litdata_python="nowhere", mosaic_python="nowhere", **few)


def check_figures(each: dict[str, Any], num_images: int) -> None:
    rates = each["images_per_second"]
    assert rates["median"] == statistics.median(rates["repetitions"])
    assert rates["repetitions"] == [num_images / seconds for seconds in each["seconds"]["repetitions"]]
    assert 0 < each["durable_images_per_second"]["median"] < rates["median"]
    assert each["seconds"]["median"] <= each["call_seconds"]["median"]
    assert each["output_bytes"] > 0
    assert each["cpu_seconds"]["median"] > 0 or each["what"] == "the source's files"  # too few for the kernel's clock
    assert each["durability"] and each["versions"]["python"]
    assert each["ours_in_images_per_second"]["median"] > 0


def test_every_writer_writes_every_image_and_missing_peers_are_named(
    prepare: Any, options: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert list(prepare.WRITING_RACES) == [
        "original bytes",
        "original bytes, checked",
        "max side 500",
        "short side 256",
    ]
    monkeypatch.delitem(prepare.WRITING_RACES, "original bytes, checked")
    monkeypatch.delitem(prepare.WRITING_RACES, "short side 256")
    results, unable = prepare.run_races(options, tmp_path)  # fails contenders that write more or fewer images
    record = json.loads(json.dumps(prepare.build_record(results, unable, tmp_path)))
    assert record["failed"] == {}
    assert set(record["skipped"]) == {"litdata", "mosaicml"}
    assert all("pip install" in reason for reason in record["skipped"].values())
    assert record["skipped"]["mosaicml"].endswith("pass --mosaic-python")
    for name, race in record["races"].items():
        assert race["num_images"] == (NUM_IMAGES if name == "original bytes" else NUM_SMALLER)
        assert set(race["contenders"]) == (HERE if name == "original bytes" else {"penstock", "pillow"})
        for each in race["contenders"].values():
            check_figures(each, race["num_images"])
    # The record is printed.
    tables = importlib.import_module("reports.kinds").make_tables(record)
    race = next(table for table in tables if table.title.startswith("Original bytes ("))
    rates = {row[0]: row[list(race.header).index("images/s")] for row in race.rows}
    format_spread = importlib.import_module("reports.records").format_spread
    measured = record["races"]["original bytes"]["contenders"]
    assert rates == {name: format_spread(measured[name]["images_per_second"]) for name in HERE}
    notes = {note for table in tables for note in table.notes}
    assert {f"skipped: {name}: {reason}" for name, reason in record["skipped"].items()} <= notes
    assert record["dataset"]["label"] == "not ImageNet" and record["hardware"]["filesystem"]
    assert not (tmp_path / "run").exists()


def test_all_sources_are_written_before_the_first_race(
    prepare: Any, options: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill_disk(source: str, num_images: int, out: Path) -> dict[str, Any]:
        if num_images == NUM_SMALLER:
            raise InputError("the disk is full")
        return {"num_images": num_images}

    monkeypatch.setattr(prepare, "make_source", fill_disk)
    monkeypatch.setattr(prepare, "race_writers", lambda *_: pytest.fail("the results of this race would be lost"))
    with pytest.raises(InputError, match="the disk is full"):
        prepare.run_races(options, tmp_path)


def test_a_source_that_takes_too_long_is_not_called_unusable(
    prepare: Any, options: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.import_module("peers.formats"), "LONGEST_WRITE", 0.0)
    with pytest.raises(InputError, match=r"could not be written to .*no answer within 0 s"):
        prepare.make_source(options.source, NUM_SMALLER, tmp_path / "source")


def test_shard_writer_opens_in_its_call(prepare: Any, options: Any, tmp_path: Path) -> None:
    """As other writers do: opening is measured."""
    prepare.make_source(options.source, NUM_SMALLER, tmp_path / "source")
    peer = importlib.import_module("peers.webdataset_peer")
    stages = peer.write_with_shard_writer({"source": str(tmp_path / "source"), "out": str(tmp_path / "out")})
    next(stages)
    assert not (tmp_path / "out").exists()


def test_a_failing_writer_is_named_and_the_others_continue(
    prepare: Any, options: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    race, writers = importlib.import_module("race"), prepare.WRITING_RACES["original bytes"]
    source = race.Source(tmp_path / "source", prepare.make_source(options.source, NUM_SMALLER, tmp_path / "source"))
    copy = writers[-1]
    # A source with one file more than its facts say: whoever copies all of it writes too many images.
    few = race.Source(source.folder, source.facts | {"num_images": NUM_SMALLER - 1})
    broken = replace(copy, name="broken", function="missing")
    chosen = [(each, sys.executable) for each in (broken, copy)]
    figures, failed = race.race_writers("copies", source, chosen, 2, tmp_path)
    assert list(figures) == ["copy"] and len(figures["copy"]["seconds"]["repetitions"]) == 2
    assert "missing" in failed["broken"] and "\n" not in failed["broken"]
    megabytes = source.facts["source_bytes"] / 1e6
    rates, seconds = (figures["copy"][name]["repetitions"] for name in ("megabytes_per_second", "seconds"))
    assert rates == pytest.approx([megabytes / each for each in seconds])
    figures, failed = race.race_writers("copies", few, chosen[1:], 1, tmp_path)
    assert (figures, failed) == ({}, {"copy": f"wrote {NUM_SMALLER} of {NUM_SMALLER - 1} images"})


@pytest.mark.parametrize("name", READERS)
def test_a_peers_output_is_read_back_by_the_peer(
    name: str, prepare: Any, options: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = os.environ.get(f"PENSTOCK_{name.upper()}_PYTHON")
    if not python:
        pytest.skip(f"needs an interpreter that has {name} (set PENSTOCK_{name.upper()}_PYTHON)")
    race = importlib.import_module("race")
    facts = prepare.make_source(options.source, 1100, tmp_path / "source")  # two files
    monkeypatch.setattr(race.shutil, "rmtree", lambda *_, **__: None)  # keep the output
    writer = next(each for each in prepare.WRITING_RACES["original bytes"] if each.name == name)
    figures = race.run_writer(writer, python, race.Source(tmp_path / "source", facts), tmp_path)
    assert figures["num_images"] == 1100
    code = f"import sys, hashlib; out = sys.argv[1]; {READERS[name]}\n"
    code += "print(*sorted(f'{int(label)}-{hashlib.sha256(data).hexdigest()}' for data, label in rows))"
    out = str(tmp_path / "run" / "out")
    read = subprocess.run([python, "-c", code, out], capture_output=True, text=True, check=True)
    rows = pq.read_table(tmp_path / "source" / "data").to_pylist()
    wanted = sorted(f"{row['label']}-{hashlib.sha256(row['image']['bytes']).hexdigest()}" for row in rows)
    assert read.stdout.splitlines()[-1].split() == wanted


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"repetitions": 4}, "--repetitions must be at least 5, got 4"),
        ({"repetitions": 5, "smaller_images": 0}, "--smaller-images must be at least 1, got 0"),
        ({"repetitions": 5, "race": "unknown"}, "--race: unknown name 'unknown': choose from original bytes"),
        ({"repetitions": 5, "work": Path("nowhere/at all")}, "--work"),
    ],
)
def test_unusable_flags_are_refused(change: dict[str, Any], named: str, options: Any) -> None:
    with pytest.raises(InputError, match=named):
        replace(options, **change).check()


@pytest.mark.parametrize("words", [["--source", "nowhere/at all"], ["write", "--source", "nowhere/at all"]])
def test_a_refusal_is_one_line(words: list[str]) -> None:
    done = run_command(SCRIPT, *words)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1 and "nowhere" in done.stderr
