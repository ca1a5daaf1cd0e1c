"""The preparation benchmark: every contender writes every image; missing and failing ones are named."""

import hashlib
import importlib
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from helpers.commands import CHECKOUT, run_command

BENCHMARKS = CHECKOUT / "benchmarks"
SCRIPT = BENCHMARKS / "preparation.py"
NUM_IMAGES, NUM_SMALLER = 250, 20
HERE = {"penstock", "webdataset", "copy"}
READERS = {
    "litdata": "from litdata import StreamingDataset as S; rows = S(out)",
    "mosaic": "import streaming; rows = ((r['jpeg'], r['cls']) for r in streaming.LocalDataset(out))",
}


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, digits_source: Path, tmp_path: Path) -> Any:
    """The command's module, with arguments that make it quick and leave it without peers."""
    nowhere = str(tmp_path / "nowhere")
    few = ["--images", str(NUM_IMAGES), "--smaller-images", str(NUM_SMALLER)]
    peers = ["--litdata-python", nowhere, "--mosaic-python", nowhere]
    monkeypatch.setattr(sys, "argv", ["preparation.py", "--source", str(digits_source), *few, *peers])
    return importlib.import_module("preparation")


def check_figures(each: dict[str, Any], num_images: int) -> None:
    rates = each["images_per_second"]
    assert rates["median"] == statistics.median(rates["repetitions"])
    assert rates["repetitions"] == [num_images / seconds for seconds in each["seconds"]["repetitions"]]
    assert 0 < each["durable_images_per_second"]["median"] < rates["median"]
    assert each["seconds"]["median"] <= each["call_seconds"]["median"]
    assert each["cpu_seconds"]["median"] > 0 and each["output_bytes"] > 0
    assert each["durability"] and each["versions"]["python"]


def test_every_contender_writes_every_image_and_missing_peers_are_named(command: Any, tmp_path: Path) -> None:
    races, skipped = command.plan_races(command.parse_arguments(), tmp_path)
    assert [race.name for race in races] == [
        "original bytes",
        "original bytes, checked",
        "max side 500",
        "short side 256",
    ]
    results, failed = command.run_races(
        [races[0], races[2]], 1, tmp_path
    )  # fails contenders that write more or fewer images
    record = json.loads(json.dumps(command.build_record("digits", results, skipped, failed, tmp_path)))
    assert record["failed"] == {}
    assert set(record["skipped"]) == {"litdata", "mosaicml"}
    assert all("pip install" in reason for reason in record["skipped"].values())
    for name, race in record["races"].items():
        assert race["num_images"] == (NUM_IMAGES if name == "original bytes" else NUM_SMALLER)
        assert set(race["contenders"]) == (HERE if name == "original bytes" else {"penstock", "pillow"})
        for each in race["contenders"].values():
            check_figures(each, race["num_images"])
            assert each["ours_in_images_per_second"]["median"] > 0
    assert record["dataset"]["label"] == "not ImageNet" and record["hardware"]["filesystem"]
    table = command.format_record(record)
    assert "skipped: litdata" in table and "webdataset" in table
    assert not (tmp_path / "run").exists()


def test_a_failing_contender_is_named_and_the_others_continue(command: Any, tmp_path: Path) -> None:
    race_module = importlib.import_module("race")
    facts = command.make_source(command.parse_arguments().source, NUM_SMALLER, tmp_path / "source")
    contenders = [("broken", "peers:missing", "counts:parquet"), ("empty", "peers:copy", "counts:tars")]
    contenders.append(("copy", "peers:copy", "counts:parquet"))
    chosen = tuple(race_module.Contender(name, "", entry, counter) for name, entry, counter in contenders)
    figures, failed = race_module.run_race(
        race_module.Race("copies", tmp_path / "source", facts, chosen), 2, tmp_path, print
    )
    assert list(figures) == ["copy"] and len(figures["copy"]["seconds"]["repetitions"]) == 2
    assert failed["empty"] == f"wrote 0 of {NUM_SMALLER} images"
    assert "missing" in failed["broken"] and "\n" not in failed["broken"]


@pytest.mark.parametrize("name", READERS)
def test_a_peers_output_is_read_back_by_the_peer(name: str, command: Any, tmp_path: Path) -> None:
    python = os.environ.get(f"PENSTOCK_{name.upper()}_PYTHON")
    if not python:
        pytest.skip(f"needs an interpreter that has {name} (set PENSTOCK_{name.upper()}_PYTHON)")
    command.make_source(command.parse_arguments().source, 1100, tmp_path / "source")  # two files
    (tmp_path / "marks").mkdir()
    job = {"entry": f"peers:{name}", "counter": f"counts:{name}", "options": {}}
    job |= {"source": str(tmp_path / "source"), "out": str(tmp_path / "out")}
    done = subprocess.run(
        [python, str(BENCHMARKS / "contenders" / "run.py"), json.dumps(job)],
        input="go\n",
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PENSTOCK_BENCHMARK_MARKS": str(tmp_path / "marks"), "TMPDIR": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["num_images"] == 1100
    code = f"import sys, hashlib; out = sys.argv[1]; {READERS[name]}\n"
    code += "print(*sorted(f'{int(label)}-{hashlib.sha256(data).hexdigest()}' for data, label in rows))"
    read = subprocess.run([python, "-c", code, str(tmp_path / "out")], capture_output=True, text=True, check=True)
    rows = pq.read_table(tmp_path / "source" / "data").to_pylist()
    wanted = sorted(f"{row['label']}-{hashlib.sha256(row['image']['bytes']).hexdigest()}" for row in rows)
    assert read.stdout.splitlines()[-1].split() == wanted


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--source", "nowhere/at all"], "nowhere"),
        (["--source", "x", "--repetitions", "4"], "at least 5, got 4"),
    ],
)
def test_a_refusal_is_one_line(arguments: list[str], named: str) -> None:
    done = run_command(SCRIPT, *arguments)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1 and named in done.stderr
