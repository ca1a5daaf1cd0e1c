"""README and RESULTS.md agree with the records, and every difference is found."""

import importlib
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers import recorded
from helpers.commands import CHECKOUT, run_command

from prep.errors import InputError

BENCHMARKS = CHECKOUT / "benchmarks"
SCRIPT = BENCHMARKS / "results.py"
README = (CHECKOUT / "README.md").read_text()


@pytest.fixture
def reports(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`reports(name)`: a module of benchmarks/reports."""
    return lambda name: importlib.import_module(f"reports.{name}")


@pytest.fixture
def copied(tmp_path: Path) -> list[str]:
    """The records, README, RESULTS.md and pictures, copied; the options that name the copies."""
    shutil.copytree(recorded.RECORDS, tmp_path / "records")
    shutil.copytree(CHECKOUT / "docs" / "pictures", tmp_path / "pictures")
    for path in (CHECKOUT / "README.md", BENCHMARKS / "RESULTS.md"):
        shutil.copy(path, tmp_path / path.name)
    names = {"records": "records", "readme": "README.md", "out": "RESULTS.md", "pictures": "pictures"}
    return [word for option, name in names.items() for word in (f"--{option}", str(tmp_path / name))]


def run(reports: Any, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    """The command, in this process."""
    reports("document")  # which makes the folder importable
    monkeypatch.setattr(sys, "argv", ["results.py", *arguments])
    importlib.import_module("results").main()


def quote(reports: Any, name: str) -> str:
    """Return the committed README's text between the two ends of a marker."""
    found = {match[1]: match[2] for match in reports("quoted").MARKED.finditer(README)}
    return found[name]


def test_readme_and_results_are_as_the_records_have_them(reports: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    run(reports, monkeypatch, "--check")


def test_a_difference_is_one_line_and_an_exit_status(copied: list[str], tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(README.replace("<!--prepared-->", "<!--prepared-->9"))
    done = run_command(SCRIPT, *copied, "--check")
    assert (done.returncode, done.stdout) == (1, "") and done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: README.md is out of date: line ")


def test_a_record_taken_again_is_missed_and_then_told(
    reports: Any, copied: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = recorded.read("preparation.json")
    ours = record["races"]["original bytes, checked"]["contenders"]["penstock"]
    ours["images_per_second"] |= {"median": 2468.0}
    recorded.write(tmp_path / "records", "preparation.json", record)
    with pytest.raises(InputError, match=r"README\.md is out of date: line \d+ has .*1,302.*2,468"):
        run(reports, monkeypatch, *copied, "--check")
    run(reports, monkeypatch, *copied)
    assert "2,468<!--/prepared--> images/s" in (tmp_path / "README.md").read_text()
    assert "9 minutes" in (tmp_path / "README.md").read_text()  # 1,331,167 / 2,468 / 60
    assert "| 2,468 (" in (tmp_path / "RESULTS.md").read_text()
    run(reports, monkeypatch, *copied, "--check")


def test_a_results_file_that_was_changed_by_hand_is_missed(
    reports: Any, copied: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "RESULTS.md"
    path.write_text(path.read_text().replace("| 1,365 (", "| 1,565 ("))
    with pytest.raises(InputError, match=r"RESULTS\.md is out of date: line \d+ has .*1,565.*1,365"):
        run(reports, monkeypatch, *copied, "--check")
    path.unlink()
    with pytest.raises(InputError, match=r"RESULTS\.md is out of date: line 1 has nothing"):
        run(reports, monkeypatch, *copied, "--check")


def test_readmes_figures_follow_from_the_records(reports: Any) -> None:
    peers, prepared = recorded.read("peers.json"), recorded.read("preparation.json")["races"]
    table = quote(reports, "peers")
    for name, each in peers["races"]["original bytes"].items():
        row = f"| {each['images_per_second']['median']:,.0f} | "
        row += f"{each['ours_in_images_per_second']:.2f} × |" if name != "penstock" else " |"
        assert sum(row in line for line in table.splitlines()) == 1, name
    assert "docs/pictures/peers.png" in table
    checked = prepared["original bytes, checked"]["contenders"]["penstock"]
    assert quote(reports, "prepared") == f"{8000 / checked['seconds']['median']:,.0f}"
    smaller = prepared["max side 500"]["contenders"]["penstock"]["output_bytes"]
    assert quote(reports, "prepared-smaller") == f"{100 * smaller / checked['output_bytes']:.0f}%"
    writers = prepared["original bytes"]["contenders"]
    ours = writers["penstock"]["images_per_second"]["repetitions"]
    theirs = writers["webdataset"]["images_per_second"]["repetitions"]
    ratio = sorted(mine / other for mine, other in zip(ours, theirs, strict=True))[2]
    assert quote(reports, "prepared-writers").startswith(f"{ratio:.1f} × webdataset's ShardWriter")
    moments = recorded.read("startup.json")["moments"]
    slowest = max(each["first_batch_seconds"]["median"] for each in moments.values())
    assert quote(reports, "startup") == f"{slowest:.1f} s"


def test_every_value_can_be_written_and_readme_has_all(reports: Any) -> None:
    quoted, records = reports("quoted"), reports("reading").read_records(recorded.RECORDS)
    committed = {name for name, (files, _) in quoted.QUOTES.items() if files in records or not isinstance(files, str)}
    assert {name for name in quoted.QUOTES if not name.startswith("restarts")} <= committed
    for name in committed:
        assert quote(reports, name) == quoted.write_quote(name, records)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("It does <!--prepared-->1", "does not enclose"),
        ("It does <!--prepared-->1<!--/startup-->", "does not enclose"),
        ("It does <!--prepraed-->1<!--/prepraed-->", "unknown figure 'prepraed'"),
        ("It does\n  <!--prepared-->1<!--/prepared--> images/s", "begins a line"),
    ],
)
def test_a_marker_that_cannot_be_followed_is_refused(reports: Any, text: str, complaint: str) -> None:
    records = reports("reading").read_records(recorded.RECORDS)
    with pytest.raises(InputError, match=complaint):
        reports("quoted").write_quotes(text, records)


def test_a_marker_without_its_record_is_refused(reports: Any) -> None:
    records = reports("reading").read_records(recorded.RECORDS)
    del records["startup.json"]
    with pytest.raises(InputError, match=r"startup\.json"):
        reports("quoted").write_quotes(README, records)


@pytest.mark.parametrize(
    ("paragraph", "is_founded"),
    [
        ("Ours does 54,321 images/s.", False),
        ("Ours does 54,321\nimages/s.", False),
        ("Ours does 1,365 images/s.", True),  # as records/peers.json has it
        ("An A10G does 940 images/s.", False),
        ("MLPerf's\nA10G does 940 images/s.", True),
        ("MLPerf measures.\n\nAn A10G does 940 images/s.", False),
        ("Ours does <!--prepared-->54,321<!--/prepared--> images/s.", True),  # the records replace it
    ],
)
def test_a_rate_without_a_measurement_is_found(reports: Any, paragraph: str, is_founded: bool) -> None:
    records = reports("reading").read_records(recorded.RECORDS)
    complaints = list(reports("quoted").find_unfounded(f"{README}\n\n{paragraph}\n\nEnd.", records))
    assert (complaints == []) == is_founded
    assert all("images/s" in complaint for complaint in complaints)


def test_a_picture_of_another_record_is_found(
    reports: Any, copied: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "records" / "peers.json"
    path.write_text(json.dumps(json.loads(path.read_text())))  # the same figures in another file
    with pytest.raises(InputError, match=r"peers\.png is out of date, peers\.json was changed"):
        run(reports, monkeypatch, *copied, "--check")
