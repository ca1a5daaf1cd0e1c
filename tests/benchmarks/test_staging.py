"""The staging benchmark: its server serves a dataset over TLS, and programs that copy other files are refused."""

import importlib
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.commands import CHECKOUT
from helpers.datasets import tree

pytest.importorskip("obstore", reason="needs obstore")


@pytest.fixture
def staging(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(CHECKOUT / "benchmarks"))
    if shutil.which("openssl") is None:
        pytest.skip("needs the command openssl")
    return importlib.import_module("staging")


def test_both_of_ours_copy_the_dataset(staging: Any, digits: Path, tmp_path: Path) -> None:
    sizes, out = staging.measure_files(digits), tmp_path / "out"
    stage = ("s3://imagenet", "--to", str(out))
    with staging.serve(digits, tmp_path) as environment:
        for command in (CHECKOUT / "prep" / "stage.py", staging.FETCH_ONLY):
            program = staging.Program("ours", "", (sys.executable, str(command), *stage))
            run = staging.copy_once(program, out, environment, sizes)
            assert 0 < run["cpu_seconds"] < 60
            content = tree(out)
            indexes = {name for name in tree(digits) if name.endswith(".idx")}
            assert {name: data for name, data in tree(digits).items() if name in content} == content
            assert tree(digits).keys() - content.keys() == (set() if command != staging.FETCH_ONLY else indexes)
        nothing = staging.Program("nothing", "", (sys.executable, "-c", ""))
        with pytest.raises(staging.FailedError, match="is missing or has another size"):
            staging.copy_once(nothing, out, environment, sizes)
        failing = staging.Program("failing", "", (sys.executable, "-c", "raise SystemExit('no way')"))
        with pytest.raises(staging.FailedError, match="no way"):
            staging.copy_once(failing, out, environment, sizes)


def test_ratios_are_run_by_run(staging: Any) -> None:
    programs = [staging.Program(name, "", ()) for name in (staging.OURS, staging.S3FS)]
    costs = {staging.OURS: (1.0, 3.0, 2.0), staging.S3FS: (2.0, 4.0, 8.0)}
    runs = {name: [{"seconds": 2.0, "cpu_seconds": cpu} for cpu in each] for name, each in costs.items()}
    described = staging.describe_programs(programs, runs, 2_000_000_000)
    assert described[staging.OURS]["cpu_seconds_per_gb"]["repetitions"] == [0.5, 1.5, 1.0]
    assert described[staging.OURS]["cpu_compared_with"][staging.S3FS]["repetitions"] == [0.5, 0.75, 0.25]
    assert described[staging.S3FS]["megabytes_per_second"]["median"] == 1000
