"""The staging benchmark: its server serves a dataset over TLS, and programs that copy other files are refused."""

import importlib
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.datasets import tree

from prep.errors import InputError

pytest.importorskip("obstore", reason="needs obstore")


@pytest.fixture
def staging() -> Any:
    if shutil.which("openssl") is None:
        pytest.skip("needs the command openssl")
    return importlib.import_module("staging")


def test_both_of_ours_copy_the_dataset(staging: Any, digits: Path, tmp_path: Path) -> None:
    sizes, out = staging.measure_files(digits), tmp_path / "out"
    stage = ("s3://imagenet", "--to", str(out))
    with staging.serve(digits, tmp_path) as environment:
        for command in ((staging.STAGE,), ("-c", staging.FETCH_ONLY)):
            program = staging.Program("ours", "", (sys.executable, *command, *stage))
            run = staging.copy_once(program, out, environment, sizes)
            assert 0 < run["cpu_seconds"] < 60
            content = tree(out)
            indexes = {name for name in tree(digits) if name.endswith(".idx")}
            assert {name: data for name, data in tree(digits).items() if name in content} == content
            assert tree(digits).keys() - content.keys() == (indexes if "-c" in command else set())
        nothing = staging.Program("nothing", "", (sys.executable, "-c", ""))
        with pytest.raises(staging.FailedError, match="is missing or has another size"):
            staging.copy_once(nothing, out, environment, sizes)
        failing = staging.Program("failing", "", (sys.executable, "-c", "raise SystemExit('no way')"))
        with pytest.raises(staging.FailedError, match="no way"):
            staging.copy_once(failing, out, environment, sizes)


def test_the_record_has_who_copied_who_failed_and_who_could_not_be_installed(
    staging: Any, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def list_programs(tools: Path, out: Path) -> tuple[list[Any], dict[str, str]]:
        copy = f"import shutil; shutil.copytree({str(digits)!r}, {str(out)!r}, dirs_exist_ok=True)"
        commands = {staging.OURS: copy, staging.S5CMD: copy, staging.AWS: "raise SystemExit('no way')"}
        programs = [staging.Program(name, "", (sys.executable, "-c", code)) for name, code in commands.items()]
        return programs, {staging.S3FS: "s3fs cannot be installed: no network"}

    monkeypatch.setattr(staging, "list_programs", list_programs)
    out = tmp_path / "staging.json"
    staging.measure_staging(staging.Stage(digits, work=tmp_path, out=out))
    record = json.loads(out.read_text())
    assert record["what"] == "staging" and record["dataset"]["files"] == len(tree(digits))
    assert record["failed"] == {staging.AWS: "no way"} and record["skipped"].keys() == {staging.S3FS}
    ours = record["programs"][staging.OURS]
    assert ours["cpu_compared_with"].keys() == {staging.S5CMD} and len(ours["cpu_seconds_per_gb"]["repetitions"]) == 5
    printed = capsys.readouterr()
    assert staging.S5CMD in printed.out and f"5 of 5, {staging.OURS}: " in printed.err


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"repetitions": 4}, "--repetitions must be at least 5, got 4"),
        ({"dataset": Path("nowhere")}, "expected a dataset that prep/shard.py wrote, got nowhere"),
        ({"work": Path("nowhere")}, "--work: nowhere is not a folder"),
        ({"out": Path("nowhere/out.json")}, "nowhere does not exist"),
    ],
)
def test_options_that_cannot_be_used(staging: Any, digits: Path, changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        staging.measure_staging(staging.Stage(**({"dataset": digits} | changes)))


def test_ratios_are_run_by_run(staging: Any) -> None:
    programs = [staging.Program(name, "", ()) for name in (staging.OURS, staging.S3FS)]
    costs = {staging.OURS: (1.0, 3.0, 2.0), staging.S3FS: (2.0, 4.0, 8.0)}
    runs = {name: [{"seconds": 2.0, "cpu_seconds": cpu} for cpu in each] for name, each in costs.items()}
    described = staging.describe_programs(programs, runs, 2_000_000_000)
    assert described[staging.OURS]["cpu_seconds_per_gb"]["repetitions"] == [0.5, 1.5, 1.0]
    assert described[staging.OURS]["cpu_compared_with"][staging.S3FS]["repetitions"] == [0.5, 0.75, 0.25]
    assert described[staging.S3FS]["megabytes_per_second"]["median"] == 1000
