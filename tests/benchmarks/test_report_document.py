"""RESULTS.md: each kind of record in its section, with all that a reader needs to believe its figures."""

import importlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import recorded
from helpers.commands import CHECKOUT

from prep.errors import InputError

BENCHMARKS = CHECKOUT / "benchmarks"


@pytest.fixture
def write(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], str]:
    """RESULTS.md of a folder of records."""
    document, records = (importlib.import_module(f"reports.{name}") for name in ("documents", "records"))
    return lambda folder: document.write_document(records.read_records(folder))


def row_of(text: str, *cells: str) -> str:
    """The one line of a table that begins with a cell and has the others."""
    found = [line for line in text.splitlines() if line.startswith(f"| {cells[0]} |") and all(c in line for c in cells)]
    assert len(found) == 1, (cells, found)
    return found[0]


def test_every_peer_stands_there_with_all_its_figures(write: Callable[[Path], str]) -> None:
    text, record = write(recorded.RECORDS), recorded.read("peers.json")
    section = text.split("### peers.json")[1].split("\n### ")[0]
    for race in record["races"].values():
        for name, each in race.items():
            rate = each["images_per_second"]
            spread = f"{rate['median']:,.0f} ({rate['min']:,.0f} to {rate['max']:,.0f})"
            row = row_of(section, name, spread, f"{each['ours_in_images_per_second']:.2f} ×")
            for figure in (f"{each['bytes_per_image']:,.0f}", f"{each['memory_bytes']['median'] / 1e6:,.0f}"):
                assert f"| {figure} |" in row
            assert f"| {each['cpu_seconds_per_1000_images']['median']:.2f} |" in row
            versions = ", ".join(f"{package} {version}" for package, version in each["versions"].items())
            row_of(section, name, f"| {each['what']} |", f"| {each['data']} |", versions)
    for line in (*record["method"], record["command"], record["commit"], record["date"]):
        assert line in text


def test_preparation_and_start_up_stand_there(write: Callable[[Path], str]) -> None:
    text = write(recorded.RECORDS)
    for name in ("preparation.json", "preparation-two-hashes.json"):
        section = text.split(f"### {name}")[1].split("\n### ")[0]
        for race in recorded.read(name)["races"].values():
            for contender, each in race["contenders"].items():
                rate = each["images_per_second"]
                row_of(section, contender, f"{rate['median']:,.0f} ({rate['min']:,.0f} to {rate['max']:,.0f})")
    for moment, each in recorded.read("startup.json")["moments"].items():
        row_of(text, moment, f"{each['first_batch_seconds']['median']:.2f} (")
    for name, each in recorded.read("startup.json")["bucket"]["starts"].items():
        spread = importlib.import_module("reports.records").format_spread
        row_of(text, name, spread(each["opened_seconds"]), spread(each["first_batch_seconds"]))


def test_the_apps_answer_stands_there(write: Callable[[Path], str]) -> None:
    section = write(recorded.RECORDS).split("### serving.json")[1].split("\n### ")[0]
    whole = recorded.read("serving.json")["whole_seconds"]
    row_of(section, "whole", f"{whole['median']:.2f} ({whole['min']:.2f} to {whole['max']:.2f})")
    assert "a photograph of 4,000 × 3,000 pixels" in section


def test_each_other_kind_has_its_section(write: Callable[[Path], str], tmp_path: Path) -> None:
    kinds = (recorded.throughput, recorded.sweeps, recorded.certificates, recorded.proof, recorded.settings)
    for kind in kinds:
        recorded.write(tmp_path, f"{kind.__name__}.json", kind())
    text = write(tmp_path)
    assert "Records of other kinds" not in text and "On a GPU" not in text and "Feeding" not in text
    row_of(
        text, "read cold", "| 512 (500 to 520) |", "| 1,024 (1,000 to 1,040) |", "| 71.0 (70.0 to 72.0) |", "| 0.25 |"
    )
    row_of(text, "train", "| 20.0 | 2.00 | 100 | 5.00 | 110 | 6.00 |")
    assert "* Decoding binds training." in text and "* smaller files: 1,234 images/s" in text
    row_of(text, "4", "1,290 (1,270 to 1,320)")
    row_of(text, "max side 500", "| 54,000 | 2,000 (1,980 to 2,030) |")
    row_of(text, "classes in a batch", "| FAIL | 2 classes | all | 0: counted |")
    row_of(text, "one-thread", "two threads", "| 1.90 × | 2.00 × | -5% |")
    row_of(text, "step 1", "num_threads 3 instead of 0", "| 1.200 (1.100 to 1.300) | 3 | faster |")
    row_of(text, "step 2", "decode full instead of roi", "cannot run here: no such decoder")
    assert text.count("* command: `python benchmarks/some.py`") == len(kinds)
    for picture in ("throughput.png", "sweeps-threads.png", "sweeps-sizes.png"):
        assert text.count(f"](../docs/pictures/{picture})") == 1


def test_tunings_rounds_are_told_with_their_searches(write: Callable[[Path], str], tmp_path: Path) -> None:
    recorded.write(tmp_path, "tuning.json", recorded.tuning())
    text = write(tmp_path)
    row_of(text, "round 1", "| 0.990 (0.980 to 1.000) | the defaults |")
    row_of(text, "from num_threads 1", "| 1.200 (1.100 to 1.300) | faster |")
    row_of(text, "step 2", "cannot run here: no such decoder")
    assert "must end faster: passed." in text and "measured twice: 0.990 (0.970 to 1.010)" in text


def test_placements_stand_there_and_older_records_have_none(write: Callable[[Path], str], tmp_path: Path) -> None:
    on_cpu = {"placement": "cpu", "reason": "this process has 16 cores, at least 6", "decode": "roi"}
    on_gpu = {"placement": "gpu", "reason": "as asked for", "decode": "full", "hw_decoder_load": 0.99}
    certified = recorded.certificates()
    certified["loaders"]["penstock"] = certified["loaders"].pop("webdataset") | {"placement": on_gpu}
    kinds = {
        "throughput": recorded.throughput() | {"placement": on_gpu},
        "sweeps": recorded.sweeps() | {"placement": on_cpu},
        "proof": recorded.proof() | {"placement": on_cpu},
        "settings": recorded.settings() | {"starts_with": on_cpu},
        "tuning": recorded.tuning() | {"starts_with": on_gpu},
        "certificates": certified,
        "peers": recorded.read("peers.json") | {"placement": None},  # where ours did not take part
    }
    for name, record in kinds.items():
        recorded.write(tmp_path, f"{name}.json", record)
    text = write(tmp_path)
    cpu = "images decoded on the CPU (roi; this process has 16 cores, at least 6)"
    gpu = "images decoded on the GPU (full, hardware decoder load 0.99; as asked for)"
    assert text.count(cpu) == 3 and text.count(gpu) == 3
    assert text.count(f"\n* {cpu}\n") == 2 and text.count(f"\n* {gpu}\n") == 1
    assert f"the search began with {cpu}." in text and f"the search began with {gpu}." in text
    assert f"; {gpu})**\n" in text  # next to the certified loader


def test_records_of_before_there_were_placements_are_told(write: Callable[[Path], str], tmp_path: Path) -> None:
    kinds = (recorded.throughput, recorded.certificates, recorded.settings, recorded.tuning)
    for kind in kinds:
        recorded.write(tmp_path, f"{kind.__name__}.json", kind())
    text = write(tmp_path)
    assert text.count("\n### ") == len(kinds) and "images decoded on" not in text


def test_one_machines_records_stand_together_the_newest_first(write: Callable[[Path], str], tmp_path: Path) -> None:
    other = {"hardware": {"cpu": "A CPU", "cores": 16, "gpu": "Some GPU"}}
    for name, more in {"a": {"date": "2026-01-01"}, "b": other, "c": {"date": "2026-02-02"}}.items():
        recorded.write(tmp_path, f"{name}.json", recorded.throughput() | more)
    headings = [line for line in write(tmp_path).splitlines() if line.startswith("### ")]
    assert [line[4] for line in headings] == ["b", "c", "a"]
    assert "on A CPU, 16 cores, Some GPU" in headings[0]


def test_the_gpu_suites_stages_are_told_together(write: Callable[[Path], str], tmp_path: Path) -> None:
    recorded.write(tmp_path, "h100/rates.json", recorded.suite())
    recorded.write(tmp_path, "startup.json", recorded.read("startup.json"))
    text = write(tmp_path)
    row_of(text, "loader", "| done |", "9,500 images/s (9,000 to 9,900)", "sm 50.0")
    row_of(text, "model-resnet50", "| crashed | SIGSEGV; no word |")
    assert text.count("## On a GPU") == 1 and "Some GPU" in text and "(records/h100/rates.json)" in text


def test_each_command_of_a_record_can_be_found_today(write: Callable[[Path], str]) -> None:
    introduction = write(recorded.RECORDS).partition("| record |")[0]
    commands = {
        name
        for path in recorded.RECORDS.rglob("*.json")
        for name in re.findall(r'"command": "[^"]*?benchmarks/(\w+\.py)', path.read_text())
    }
    assert "peers.py" in commands and "throughput.py" in commands
    missing = {name for name in commands if not (BENCHMARKS / name).exists()}
    assert not {name for name in missing if f"`{name}`" not in introduction}


def test_an_unknown_kind_is_named_with_all_it_says(write: Callable[[Path], str], tmp_path: Path) -> None:
    unknown = recorded.ORIGIN | {
        "what": "tides",
        "seas": [{"name": "north | south", "height": recorded.summary(1, 2, 3)}],
    }
    recorded.write(tmp_path, "tides.json", unknown)
    text = write(tmp_path)
    assert "## Records of other kinds" in text and "### tides.json" in text
    row_of(text, "seas 1, height", "2.00 (1.00 to 3.00)")
    row_of(text, "seas 1, name", "north \\| south")


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("{", "not valid JSON"),
        ("[1]", 'has no field "what"'),
        ('{"figures": 1}', 'has no field "what"'),
        ('{"what": "sweeps"}', "written by another version of the benchmark of sweeps"),
        ('{"what": "gpu suite", "stage": "rates"}', "written by another version of the benchmark of gpu suite"),
    ],
)
def test_what_is_no_record_is_named(write: Callable[[Path], str], tmp_path: Path, content: str, complaint: str) -> None:
    (tmp_path / "broken.json").write_text(content)
    with pytest.raises(InputError, match=rf"broken\.json.*{complaint}"):
        write(tmp_path)


def test_an_empty_folder_is_refused(write: Callable[[Path], str], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no records"):
        write(tmp_path)


def test_the_same_records_give_the_same_text(write: Callable[[Path], Any]) -> None:
    text = write(recorded.RECORDS)
    assert text == write(recorded.RECORDS) and text.endswith("\n") and not text.endswith("\n\n")
    assert "\n\n\n" not in text


def test_a_rate_is_of_the_undisturbed_windows_if_there_are_enough() -> None:
    rate_of = importlib.import_module("reports.records").rate_of
    disturbed = {"median": 700.0, "repetitions": [600.0, 700.0, 800.0, 900.0]}
    for num_quiet, expected in ((0, 700.0), (2, 700.0), (3, 900.0)):
        quiet = {"median": 900.0, "repetitions": [900.0] * num_quiet}
        record = {"images_per_second": disturbed} | ({"undisturbed_images_per_second": quiet} if num_quiet else {})
        assert rate_of(record)["median"] == expected


def test_restart_shards_are_told_with_what_they_save(write: Callable[[Path], str], tmp_path: Path) -> None:
    recorded.write(tmp_path, "restarts.json", recorded.restarts())
    text = write(tmp_path)
    assert "100.0% of the images are spliced. For an epoch's windows, 0.704 of the JPEGs' bytes are read" in text
    assert "of its rate on originals" in text
    row_of(text, "penstock-restarts", "| 1,750", "| 0.80 × | 1.25 × |")


def test_a_record_from_outside_a_checkout_is_printed() -> None:
    records = importlib.import_module("reports.records")
    content = json.loads((records.RECORDS / "startup.json").read_text()) | {"commit": None}
    notes = [note for table in records.origin_tables(content) for note in table.notes]
    assert f"no git checkout; {content['date']}" in notes
