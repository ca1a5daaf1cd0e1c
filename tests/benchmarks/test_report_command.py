"""README and RESULTS.md agree with the records, and every difference is found."""

import importlib
import io
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers import recorded
from helpers.commands import CHECKOUT, run_command

from prep.errors import InputError

BENCHMARKS = CHECKOUT / "benchmarks"
SCRIPT = BENCHMARKS / "report.py"
README = (CHECKOUT / "README.md").read_text()


def part(name: str) -> Any:
    """A module of benchmarks/."""
    return importlib.import_module(name)


@pytest.fixture
def records() -> Any:
    """The committed records."""
    return part("reports.records").read_records(recorded.RECORDS)


@pytest.fixture
def copied(tmp_path: Path) -> list[str]:
    """The records, README, RESULTS.md and pictures, copied; the options that name the copies."""
    shutil.copytree(recorded.RECORDS, tmp_path / "records")
    shutil.copytree(CHECKOUT / "docs" / "pictures", tmp_path / "pictures")
    for path in (CHECKOUT / "README.md", BENCHMARKS / "RESULTS.md"):
        shutil.copy(path, tmp_path / path.name)
    names = {"records": "records", "readme": "README.md", "out": "RESULTS.md", "pictures": "pictures"}
    return [word for option, name in names.items() for word in (f"--{option}", str(tmp_path / name))]


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    """The command, in this process."""
    monkeypatch.setattr(sys, "argv", ["report.py", *arguments])
    part("report").main()


def quotes_of(text: str) -> dict[str, str]:
    """Return the texts between the two ends of all markers."""
    return dict(part("reports.documents").MARKED.findall(text))


def quote(name: str) -> str:
    """Return the committed README's text between the two ends of a marker."""
    return quotes_of(README)[name]


def test_readme_and_results_are_as_the_records_have_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch, "--check")
    assert capsys.readouterr() == ("", "README.md: up to date\nRESULTS.md: up to date\n")


def test_only_files_of_changed_records_are_written(
    copied: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = sorted((tmp_path / "pictures").glob("*.png"))
    record = tmp_path / "records" / "peers.json"
    record.write_text(record.read_text() + "\n")  # the same figures in another file
    files = [*pictures, tmp_path / "README.md", tmp_path / "RESULTS.md"]
    for path in files:
        os.utime(path, ns=(0, 0))
    run(monkeypatch, *copied)
    assert [path.name for path in files if path.stat().st_mtime_ns] == ["peers.png"]
    written = capsys.readouterr().err.splitlines()
    assert len(written) == 3 and written[0].endswith("peers.png")
    assert written[1:] == ["README.md: up to date", "RESULTS.md: up to date"]


def test_a_difference_is_one_line_and_an_exit_status(copied: list[str], tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(README.replace("<!--prepared-->", "<!--prepared-->9"))
    done = run_command(SCRIPT, *copied, "--check")
    assert (done.returncode, done.stdout) == (1, "") and done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: README.md is out of date: line ")


def test_a_record_taken_again_is_missed_and_then_told(
    copied: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = recorded.read("preparation.json")
    ours = record["races"]["original bytes, checked"]["contenders"]["penstock"]
    ours["images_per_second"] |= {"median": 2468.0}
    recorded.write(tmp_path / "records", "preparation.json", record)
    with pytest.raises(InputError, match=r"README\.md is out of date: line \d+ has .*1,302.*2,468"):
        run(monkeypatch, *copied, "--check")
    run(monkeypatch, *copied)
    assert "2,468<!--/prepared--> images/s" in (tmp_path / "README.md").read_text()
    assert "9 minutes" in (tmp_path / "README.md").read_text()  # 1,331,167 / 2,468 / 60
    assert "| 2,468 (" in (tmp_path / "RESULTS.md").read_text()
    run(monkeypatch, *copied, "--check")


def test_a_results_file_that_was_changed_by_hand_is_missed(
    copied: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "RESULTS.md"
    path.write_text(path.read_text().replace("| 1,365 (", "| 1,565 ("))
    with pytest.raises(InputError, match=r"RESULTS\.md is out of date: line \d+ has .*1,565.*1,365"):
        run(monkeypatch, *copied, "--check")
    path.unlink()
    with pytest.raises(InputError, match=r"RESULTS\.md is out of date: line 1 has nothing"):
        run(monkeypatch, *copied, "--check")


def test_readmes_figures_follow_from_the_records() -> None:
    peers, prepared = recorded.read("peers.json"), recorded.read("preparation.json")["races"]
    table = quote("peers")
    for name, each in peers["races"]["original bytes"].items():
        row = f"| {each['images_per_second']['median']:,.0f} | "
        row += f"{each['ours_in_images_per_second']:.2f} × |" if name != "penstock" else " |"
        assert sum(row in line for line in table.splitlines()) == 1, name
    assert "docs/pictures/peers.png" in table
    checked = prepared["original bytes, checked"]["contenders"]["penstock"]
    assert quote("prepared") == f"{8000 / checked['seconds']['median']:,.0f}"
    smaller = prepared["max side 500"]["contenders"]["penstock"]["output_bytes"]
    assert quote("prepared-smaller") == f"{100 * smaller / checked['output_bytes']:.0f}%"
    writers = prepared["original bytes"]["contenders"]
    ours = writers["penstock"]["images_per_second"]["repetitions"]
    theirs = writers["webdataset"]["images_per_second"]["repetitions"]
    ratio = sorted(mine / other for mine, other in zip(ours, theirs, strict=True))[2]
    assert quote("prepared-writers").startswith(f"{ratio:.1f} × webdataset's ShardWriter")
    moments = recorded.read("startup.json")["moments"]
    slowest = max(each["first_batch_seconds"]["median"] for each in moments.values())
    assert quote("startup") == f"{slowest:.1f} s"


def test_readme_has_every_value_that_the_records_give(records: Any) -> None:
    documents = part("reports.documents")
    assert quotes_of(README) == {name: documents.write_quote(name, records) for name in documents.QUOTES}
    assert {"recipes", "cost", "gpu", "peers", "prepared", "startup", "verdict-error"} <= documents.QUOTES.keys()


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("It does <!--prepared-->1", "does not enclose"),
        ("It does <!--prepared-->1<!--/startup-->", "does not enclose"),
        ("It does <!--prepraed-->1<!--/prepraed-->", "unknown figure 'prepraed'"),
        ("It does\n  <!--prepared-->1<!--/prepared--> images/s", "begins a line"),
    ],
)
def test_a_marker_that_cannot_be_followed_is_refused(records: Any, text: str, complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        part("reports.documents").write_quotes(text, records)


def test_a_marker_without_its_record_or_its_field_is_refused(records: Any) -> None:
    write_quotes = part("reports.documents").write_quotes
    del records["verdict.json"].content["num_named"], records["startup.json"]
    told = "README.md quotes startup.json, which does not exist: write that record, or remove <!--startup-->"
    with pytest.raises(InputError, match=f"^{told}$"):
        write_quotes("It takes <!--startup-->1<!--/startup-->", records)
    with pytest.raises(
        InputError, match=r"figure 'verdict-named' needs the field 'num_named', which verdict\.json lacks"
    ):
        write_quotes("It names <!--verdict-named-->1<!--/verdict-named-->", records)
    # Other markers, also one of the same record, do not need what is missing.
    others = write_quotes("By <!--verdict-error-->?<!--/verdict-error-->, <!--prepared-->?<!--/prepared-->", records)
    assert quotes_of(others) == {name: quote(name) for name in ("verdict-error", "prepared")}


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
def test_a_rate_without_a_measurement_is_found(records: Any, paragraph: str, is_founded: bool) -> None:
    complaints = list(part("reports.documents").find_unfounded(f"{README}\n\n{paragraph}\n\nEnd.", records))
    assert (complaints == []) == is_founded
    assert all("images/s" in complaint for complaint in complaints)


def test_a_picture_of_another_record_is_found(
    copied: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "records" / "peers.json"
    path.write_text(json.dumps(json.loads(path.read_text())))  # the same figures in another file
    with pytest.raises(InputError, match=r"peers\.png is out of date, peers\.json was changed"):
        run(monkeypatch, *copied, "--check")
    run(monkeypatch, *copied)
    run(monkeypatch, *copied, "--check")
    picture = tmp_path / "pictures" / "peers.png"
    for destroy in (picture.unlink, lambda: picture.write_bytes(b"half a file")):
        destroy()
        with pytest.raises(InputError, match=r"peers\.png does not exist, or is not a picture"):
            run(monkeypatch, *copied, "--check")
        run(monkeypatch, *copied)
        run(monkeypatch, *copied, "--check")


def test_records_are_printed_in_the_terminal_with_their_figures(tmp_path: Path) -> None:
    peers = recorded.read("peers.json")["races"]["original bytes"]
    done = run_command(
        SCRIPT, recorded.RECORDS / "peers.json", recorded.write(tmp_path, "some.json", recorded.tuning())
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    for name, each in peers.items():
        rate = each["images_per_second"]
        spread = f"{rate['median']:,.0f} ({rate['min']:,.0f} to {rate['max']:,.0f})"
        assert sum(line.startswith(name) and spread in line for line in lines) == 1
    assert any(line.startswith("round 1") and "0.990 (0.980 to 1.000)" in line for line in lines)
    assert "cannot run here" not in done.stdout  # the searches are in RESULTS.md


def test_every_figure_is_printed_whole_in_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch, records: Any) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    tables, make_tables = part("tables"), part("reports.kinds").make_tables
    for record in records.values():
        shown = [table.for_terminal() for table in make_tables(record.content) if not table.detail]
        printed = io.StringIO()
        tables.print_tables(shown, printed)
        cells = [row[i] for table in shown for row in (table.header, *table.rows) if row for i in table.kept_columns()]
        wanted = {word for cell in cells for word in cell.split()}
        assert wanted - set(printed.getvalue().split()) == set(), record.name


# Figures of restart shards.


def test_figures_of_restart_shards_can_be_quoted(tmp_path: Path) -> None:
    record = recorded.restarts()
    recorded.write(tmp_path, "restarts.json", record)
    recorded.write(tmp_path, "restarts-readers.json", record)
    prepared = {"penstock-restarts": {"ours_in_images_per_second": recorded.summary(4.9, 5.0, 5.2)}}
    content = recorded.ORIGIN | {"what": "preparation", "races": {"original bytes, checked": {"contenders": prepared}}}
    recorded.write(tmp_path, "restarts-prepared.json", content)
    documents, records = part("reports.documents"), part("reports.records").read_records(tmp_path)
    assert {name: documents.write_quote(name, records) for name in documents.QUOTES if name.startswith("restarts")} == {
        "restarts-gain": "1.25 ×",
        "restarts-lead": "1.75 ×",
        "restarts-read": "70%",
        "restarts-decoded": "52%",
        "restarts-index": "686",
        "restarts-readers": "1.04 ×",
        "restarts-cost": "5.00 ×",
    }
    table = documents.quote_peers(record)
    assert "| Penstock (`dali` on the CPU), restarts | 1,750 | 1.25 × itself on originals |" in table
