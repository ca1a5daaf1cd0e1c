"""`cost.py`: hours and dollars of a recipe on EC2, its refusals, and the committed record, table and prices."""

import hashlib
import importlib
import json
import shlex
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers import recorded
from helpers.commands import CHECKOUT, run_command
from hypothesis import given
from hypothesis import strategies as st

from prep.errors import InputError
from train.recipe import RECIPES

SCRIPT = CHECKOUT / "benchmarks" / "cost.py"
MACHINES = CHECKOUT / "cloud" / "machines.json"
TRAIN, VALIDATION = 1_281_167, 50_000
PRICES, RECLAIMS, RATES = st.floats(0.1, 100.0), st.integers(0, 20), st.floats(100.0, 1e5)
NAMES, SIZES = st.sampled_from(["seed_113", "fast_24", "quick_24", "quick_60"]), st.integers(64, 288)


def part(name: str) -> Any:
    return importlib.import_module(name)


@pytest.fixture(scope="module", autouse=True)
def imported() -> None:
    """Import everything before hypothesis measures how long an example takes."""
    part("cost")


def machine(**changes: Any) -> Any:
    """A machine with a network of 1.25 GB/s and disks that read 2 and write 1 GB/s."""
    made = part("ec2").Machine(
        name="g0.xlarge",
        gpu="T0",
        gpus=1,
        vcpus=4,
        memory_gib=16,
        network_gbit=10,
        network_burst_gbit=20,
        disk_gb=1000,
        disk_read_iops=2e9 / 4096,
        disk_write_iops=1e9 / 4096,
        on_demand=2.0,
        spot=1.0,
        spot_is_typical=False,
    )
    return replace(made, **changes)


def stored(kilobytes: float = 100.0) -> Any:
    return part("ec2").Stored("original", 1000 * kilobytes, {88: 1e-3, 224: 2e-3})


def decoding(vcpu: float = 500.0) -> Any:
    """A vCPU that decodes `vcpu` images/s at 224 pixels and twice as many at 88."""
    return part("ec2").Decoding({"original": stored()}, vcpu, engines=20_000.0)


def speed(rate: float = 1000.0, **changes: Any) -> Any:
    made = part("ec2").Speed("T0", {224: rate}, "resnet50", "publication", "somebody", has_loader=True)
    return replace(made, **changes)


def case(name: str = "quick_24", **changes: Any) -> Any:
    made = part("cost").Case(RECIPES[name](), machine(), stored(), speed(), network_cost=1.0)
    return replace(made, **changes)


def estimate(of: Any, vcpu: float = 500.0, **assumed: Any) -> Any:
    module = part("cost")
    return module.estimate_cost(of, decoding(vcpu), module.Assumptions(**assumed))


# The arithmetic.


def test_a_run_computed_by_hand() -> None:
    """113 epochs at 224 pixels, 800 images/s: the step's 1,000 for a network that takes 1.25 times as long."""
    found = estimate(case("seed_113", network_cost=1.25), boot_minutes=3, environment_minutes=4, lost_epochs=0.5)
    epoch = TRAIN / 800
    assert sum(each.seconds for each in found.training) == pytest.approx(113 * epoch)
    assert found.evaluation.seconds == pytest.approx(113 * VALIDATION / 1200)  # two of the three passes of a step
    assert found.staging == pytest.approx((TRAIN + VALIDATION) * 1e5 / 1e9)  # the disks take 1 GB/s
    assert found.start == pytest.approx(7 * 60 + found.staging)
    assert found.reclaim == pytest.approx(found.start + epoch / 2)
    running = 113 * epoch + 113 * VALIDATION / 1200
    assert found.seconds(2) == pytest.approx(running + 3 * found.start + epoch)
    assert found.dollars(1.5, 2) == pytest.approx(found.seconds(2) / 3600 * 1.5)
    assert found.need_bytes == pytest.approx(800 * 1e5) and found.need_vcpus == pytest.approx(800 / 500)


def test_each_part_binds_at_its_rate() -> None:
    """At 88 pixels the step does 1,000 × (224 / 88)^1.66 = 4,714 images/s, 4 vCPUs at 250 decode 2,000 of them."""
    first = estimate(case()).training[0]
    assert (first.phase.size, first.bottleneck) == (88, "decode") and first.figures.model == pytest.approx(
        4714, rel=1e-3
    )
    assert estimate(case(), vcpu=250.0).training[0].figures.train == pytest.approx(2000)
    slow = replace(machine(), disk_read_iops=1e8 / 4096)
    disk = estimate(case(machine=slow)).training[0]
    assert disk.bottleneck == "storage" and disk.figures.train == pytest.approx(1000)
    memory = estimate(case(machine=replace(slow, memory_gib=256))).training[0]
    assert memory.bottleneck == "decode", "shards that fit in memory are not read from the disk again"


@given(NAMES, RATES, RATES, st.floats(1e6, 1e10), st.floats(10.0, 200.0))
def test_the_part_that_binds_is_the_slowest(name: str, step: float, vcpu: float, disk: float, size: float) -> None:
    of = case(name, machine=machine(disk_read_iops=disk / 4096, memory_gib=1), speed=speed(step), stored=stored(size))
    for each in estimate(of, vcpu).training:
        bounds = {"storage": disk / (1000 * size), "decode": each.figures.decode, "model": each.figures.model}
        assert bounds[each.bottleneck] == pytest.approx(min(bounds.values()))
        assert each.figures.train == pytest.approx(min(bounds.values()))


@given(PRICES, PRICES, RECLAIMS)
def test_dollars_are_linear_in_the_price(price: float, factor: float, reclaims: int) -> None:
    found = estimate(case())
    assert found.dollars(price * factor, reclaims) == pytest.approx(factor * found.dollars(price, reclaims))


@given(PRICES, RECLAIMS, NAMES)
def test_spot_at_the_same_price_is_on_demand_and_the_reclaims(price: float, reclaims: int, name: str) -> None:
    found = estimate(case(name))
    added = found.dollars(price, reclaims) - found.dollars(price)
    assert added == pytest.approx(reclaims * found.reclaim / 3600 * price, abs=1e-9 * price)
    assert found.dollars(price, reclaims + 1) > found.dollars(price, reclaims)


@given(NAMES, st.floats(0.5, 20.0), st.booleans())
def test_training_while_shards_arrive_is_never_later_than_after_them(name: str, gigabits: float, burst: bool) -> None:
    of = case(name, machine=machine(network_gbit=gigabits, network_burst_gbit=2 * gigabits))
    staged, through = (estimate(of, start=start, burst=burst) for start in ("staged", "read-through"))
    gained = staged.seconds(0) - through.seconds(0)
    assert 0 <= gained <= staged.staging + 1e-6
    assert staged.staging >= estimate(of, burst=True).staging


@given(NAMES, st.floats(20.0, 150.0), st.floats(1.0, 2.0))
def test_smaller_files_never_cost_more(name: str, size: float, factor: float) -> None:
    large, small = (estimate(case(name, stored=stored(each))) for each in (size * factor, size))
    assert small.seconds(1) <= large.seconds(1) * (1 + 1e-12)


@given(st.dictionaries(SIZES, RATES, min_size=1, max_size=4), SIZES)
def test_rates_are_the_known_ones_and_follow_the_exponent_beyond(known: dict[int, float], size: int) -> None:
    rate_at = replace(speed(), by_size=known).at
    for each, rate in known.items():
        assert rate_at(each) == pytest.approx(rate)
    low, high = min(known), max(known)
    if size > high:
        assert rate_at(size) == pytest.approx(known[high] * (high / size) ** 1.66)
    elif size >= low:
        rates = sorted(known.values())
        assert rates[0] * (1 - 1e-9) <= rate_at(size) <= rates[-1] * (1 + 1e-9)


def test_ffcvs_run_comes_out_as_ffcv_published_it(record: dict[str, Any]) -> None:
    """21.7 minutes of training and validation on a p4d.24xlarge. The rates are from its 160 and 192 pixels."""
    (row,) = rows_of(record, "fast_24", "p4d.24xlarge", "original")
    assert 60 * (row["training_hours"] + row["evaluation_hours"]) == pytest.approx(21.7, rel=0.1)


# Rates: records and publications.


def test_a_record_of_this_very_machine_gives_its_training(tmp_path: Path, run: Callable[..., dict[str, Any]]) -> None:
    """Of throughput.py --recipe on a g5.12xlarge: rates of training are taken, elsewhere those of the step."""
    phases = [
        {"measured_size": size, "stages": {name: {"total": recorded.summary(rate)} for name, rate in each.items()}}
        for size, each in {88: {"model": 8000.0, "train": 6000.0}, 176: {"model": 4000.0, "train": 3900.0}}.items()
    ]
    content = recorded.ORIGIN | {
        "what": "throughput of a recipe",
        "device": "cuda",
        "num_processes": 4,
        "model": "resnet50",
        "phases": phases,
        "dataset": {"mean_bytes": 110_000},
        "hardware": {"cpu": "AMD EPYC 7R32", "cores": 48, "gpu": "NVIDIA A10G, driver 580.1, 22 GiB"},
    }
    path = recorded.write(tmp_path, "mine.json", content)
    record = run("--machine", "g5.12xlarge", "g5.48xlarge", "p4d", "--record", path)
    same, other, p4d = record["rows"]
    assert same["rate"]["kind"] == "record" and same["rate"]["origin"] == "mine.json"
    assert "training measured on this machine at 88, 176 px" in same["rate"]["derived"]
    assert other["rate"]["images_per_second_and_gpu"]["88"] == 2000 and "measured" not in other["rate"]["derived"]
    assert p4d["rate"]["kind"] == "publication" and "ffcv" in p4d["rate"]["origin"]
    assert hashlib.sha256(path.read_bytes()).hexdigest() == record["computed_from"]["mine.json"]
    assert same["training_hours"] > phases_hours(same, 6000.0)  # 88 pixels are the fastest


def phases_hours(row: dict[str, Any], rate: float) -> float:
    return RECIPES[row["recipe"]]().epochs * TRAIN / rate / 3600


def test_a_record_of_one_size_gives_the_step_of_one_gpu(tmp_path: Path) -> None:
    """Of throughput.py on two GPUs; without the stage of the model there is nothing to take."""
    stages = {"model": {"total": recorded.summary(1900.0, 2000.0, 2100.0)}}
    content = recorded.throughput() | {"device": "cuda", "model": "resnet50d", "num_processes": 2, "size": 192}
    content |= {"hardware": {"cpu": "", "cores": 8, "gpu": "NVIDIA L4"}, "dataset": {"mean_bytes": 1e5}}
    records, speeds = part("reports.records"), part("ec2")
    path = recorded.write(tmp_path, "one.json", content | {"stages": stages})
    found = speeds.read_speed(records.read_record(path, tmp_path))
    assert (found.by_size, found.network, found.origin) == ({192: 1000.0}, "resnet50d", "one.json")
    assert not found.shape.train
    recorded.write(tmp_path, "one.json", content | {"stages": {}})
    with pytest.raises(InputError, match="has no rate of resnet50 or resnet50d"):
        speeds.read_speed(records.read_record(path, tmp_path))


def test_a_record_without_a_field_is_of_another_version(run: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    content = recorded.read("h200/gpu-model.json")
    del content["hardware"]
    path = recorded.write(tmp_path, "old.json", content)
    with pytest.raises(InputError, match=r"old\.json was written by another version .*KeyError 'hardware'"):
        run("--record", path)


def test_rates_of_mxnet_are_not_taken_for_pytorchs(run: Callable[..., dict[str, Any]]) -> None:
    whole, less = (run("--machine", "g5.xlarge", "--pytorch-share", share)["rows"][0] for share in (1, 0.5))
    assert whole["rate"]["images_per_second_and_gpu"]["176"] == pytest.approx(937 * (224 / 176) ** 1.66)
    assert less["rate"]["images_per_second_and_gpu"]["176"] == pytest.approx(937 / 2 * (224 / 176) ** 1.66)
    assert "× 0.5 for PyTorch" in less["rate"]["origin"] and "MXNet 937 at 224 px" in less["rate"]["origin"]
    assert "exponent 1.66" in less["rate"]["derived"], "a derived rate is called derived"


def test_gpus_are_found_by_their_words() -> None:
    match = part("ec2").match_gpu
    gpus = ["A100", "A10G", "H100", "L4", "L40S"]
    described = {
        "NVIDIA L40S, driver 580": "L40S",
        "NVIDIA A100-SXM4-40GB": "A100",
        "NVIDIA L4": "L4",
        "NVIDIA A10": None,
    }
    assert {text: match(text, gpus) for text in described} == described


# The command.


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Run the command in this process; return the record that it writes."""

    def run_here(*words: object) -> dict[str, Any]:
        monkeypatch.setattr(sys, "argv", ["cost.py", *map(str, words), "--out", str(tmp_path / "out.json")])
        part("cost").main()
        return json.loads((tmp_path / "out.json").read_text())

    return run_here


def test_prices_and_reclaims_of_the_flags(run: Callable[..., dict[str, Any]]) -> None:
    (usual,) = run("--machine", "g6e.4xlarge")["rows"]
    words = ("--machine", "g6e.4xlarge", "--price", f"g6e.4xlarge={2 * usual['on_demand']['dollars_per_hour']}")
    (dearer,) = run(*words, "--reclaims", 3)["rows"]
    assert dearer["on_demand"]["dollars"] == pytest.approx(2 * usual["on_demand"]["dollars"])
    assert dearer["spot"]["is_typical"] and dearer["spot"]["dollars_per_hour"] == pytest.approx(
        2 * usual["spot"]["dollars_per_hour"]
    )
    assert dearer["spot"]["hours"] == pytest.approx(usual["on_demand"]["hours"] + 3 * usual["reclaim_hours"])
    (equal,) = run(*words, "--spot-price", "g6e.4xlarge=6", "--reclaims", 0)["rows"]
    assert not equal["spot"]["is_typical"] and equal["spot"]["hours"] == equal["on_demand"]["hours"]


def test_the_command_prints_tables_and_writes_a_record_and_draws(tmp_path: Path) -> None:
    out, picture = tmp_path / "cost.json", tmp_path / "cost.png"
    done = run_command(SCRIPT, "--machine", "g6e", "p4d.24xlarge", "--spot", "--out", out, "--picture", picture)
    assert (done.returncode, done.stderr) == (0, "")
    assert picture.read_bytes().startswith(b"\x89PNG") and b"Record-SHA256" in picture.read_bytes()
    title, header, first, *_ = done.stdout.splitlines()
    cheapest = min(json.loads(out.read_text())["rows"], key=lambda row: row["spot"]["dollars"])
    assert title.startswith("quick_24, 24 epochs") and "spot" in header and "on demand" not in header
    assert first.startswith(f"{cheapest['machine']} ") and f", {cheapest['spot']['dollars']:.2f} $" in first
    assert "Computed, not measured." in done.stdout


def test_the_tables_have_every_machine_once_per_recipe_the_cheapest_first(record: dict[str, Any]) -> None:
    tables = part("reports.recipes").tables_of_cost(record)
    costs, parts, *_, rates, says, origin = tables
    recipe = next(iter(record["recipes"]))
    rows = sorted(
        (row for row in record["rows"] if row["recipe"] == recipe), key=lambda row: row["on_demand"]["dollars"]
    )
    assert len(tables) == 2 * len(record["recipes"]) + 3 and costs.title.startswith(f"{recipe}, ")
    assert [(row[0], row[1]) for row in costs.rows] == [(row["machine"], row["stored"]) for row in rows]
    assert [row[:2] for row in costs.rows] == [row[:2] for row in parts.rows]
    assert all(
        f", {row['on_demand']['dollars']:,.2f} $" in cells[2] for row, cells in zip(rows, costs.rows, strict=True)
    )
    assert {words.partition(":")[0] for _, words in rates.rows} == {"record", "publication"}
    assert set(record["says"]) <= set(says.notes) and origin.detail and any("sha256" in note for note in origin.notes)


BAD = {
    "unknown machine": (("--machine", "g7.xlarge"), r"--machine: unknown name 'g7\.xlarge': choose from g5.*p5en"),
    "unknown recipe": (("--recipe", "quick_25"), r"unknown recipe quick_25: choose from seed_113, .*quick_60"),
    "recipe without accuracy": (
        ("--recipe", "demo"),
        "unknown recipe demo, which has no published accuracy on ImageNet: choose",
    ),
    "unknown form": (("--stored", "300"), "--stored: unknown name '300': choose from original, 500, 256"),
    "price of an unknown machine": (("--price", "g9=1"), r"--price: unknown name 'g9': choose from g5\.xlarge"),
    "both offers": (("--spot", "--on-demand"), "--on-demand and --spot exclude each other: give one"),
    "infinite time": (("--environment-minutes", "inf"), "--environment-minutes must be finite and at least 0, got inf"),
    "negative price": (("--price", "g5.xlarge=-2"), r"--price must be NAME=DOLLARS.*got g5\.xlarge=-2"),
    "unknown flag": (("--machin", "g6"), "unknown flag --machin; did you mean --machine"),
    "price without a number": (("--price", "g5.xlarge"), r"--price must be NAME=DOLLARS.*got g5\.xlarge"),
    "price in other digits": (("--price", "g5.xlarge=²"), r"--price must be NAME=DOLLARS.*got g5\.xlarge=²"),
    "price beyond numbers": (("--price", f"g5.xlarge={'9' * 400}"), r"--price must be NAME=DOLLARS"),
    "no machine": (("--machine", "--spot"), "--machine needs at least one value"),
    "no recipe": (("--recipe", "--spot"), "--recipe needs at least one value"),
    "stray word": (("--spot", "5"), r"unexpected word 5 \("),
    "price of nothing": (("--spot-price", "g5.xlarge=0"), r"--spot-price must be NAME=DOLLARS.*got g5\.xlarge=0"),
    "negative reclaims": (("--reclaims", "-1"), "--reclaims must be at least 0, got -1"),
    "time that is none": (("--boot-minutes", "nan"), "--boot-minutes must be finite and at least 0, got nan"),
    "share": (("--pytorch-share", "1.5"), r"--pytorch-share must be more than 0 and at most 1, got 1\.5"),
    "record of a CPU": (("--record", recorded.RECORDS / "throughput.json"), "was not measured on a GPU"),
    "record of another kind": (("--record", recorded.RECORDS / "peers.json"), "has no training step"),
    "no such record": (("--record", "nowhere.json"), "does not exist"),
    "no such machines": (("--machines", "nowhere.json"), "does not exist: give a file like"),
}


@pytest.mark.parametrize(("words", "complaint"), BAD.values(), ids=BAD)
def test_bad_input_is_one_line_and_writes_nothing(
    run: Callable[..., dict[str, Any]], tmp_path: Path, words: tuple[object, ...], complaint: str
) -> None:
    with pytest.raises(InputError, match=complaint) as raised:
        run(*words)
    assert "\n" not in str(raised.value) and not (tmp_path / "out.json").exists()


def test_an_unknown_machine_ends_the_command_with_one_line() -> None:
    done = run_command(SCRIPT, "--machine", "g7")
    assert done.returncode == 1 and done.stdout == "" and done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: --machine: unknown name 'g7': choose from ")


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda content: content.pop("gpus"), "KeyError 'gpus'"),
        (lambda content: content["machines"]["g5.xlarge"].update(vcpus=0), r"vcpus of g5\.xlarge must be more than 0"),
        (lambda content: content["machines"]["g5.xlarge"].pop("on_demand"), "KeyError 'on_demand'"),
        (
            lambda content: content["machines"]["g5.xlarge"].update(disk_gb=100),
            "has 100 GB of disk, the shards need 149",
        ),
        (lambda content: content["gpus"].update(A10G=[]), "no rate is published for A10G: give a record"),
    ],
)
def test_machines_that_cannot_be_used_are_refused(
    run: Callable[..., dict[str, Any]], tmp_path: Path, change: Callable[[Any], Any], complaint: str
) -> None:
    content = json.loads(MACHINES.read_text())
    change(content)
    path = recorded.write(tmp_path, "machines.json", content)
    with pytest.raises(InputError, match=complaint):
        run("--machine", "g5.xlarge", "--machines", path)


def test_a_picture_needs_its_record(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "argv", ["cost.py", "--picture", str(tmp_path / "cost.png")])
    with pytest.raises(InputError, match="--picture needs --out FILE"):
        part("cost").main()


def test_a_record_of_a_gpu_that_no_machine_has_is_refused(run: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    content = recorded.read("h200/gpu-model.json")
    content["hardware"]["gpu"] = "NVIDIA T4, driver 580"
    path = recorded.write(tmp_path, "t4.json", content)
    with pytest.raises(
        InputError, match="was measured on NVIDIA T4, driver 580, which no machine has: they have A100, A10G"
    ):
        run("--record", path)


# What is committed.


@pytest.fixture(scope="module")
def record() -> dict[str, Any]:
    return recorded.read("cost.json")


def rows_of(record: dict[str, Any], recipe: str, name: str, form: str) -> list[dict[str, Any]]:
    return [row for row in record["rows"] if (row["recipe"], row["machine"], row["stored"]) == (recipe, name, form)]


def test_the_committed_record_is_what_the_command_computes(
    record: dict[str, Any], run: Callable[..., dict[str, Any]]
) -> None:
    """To write it again: run the command in its field `command`, then report.py."""
    for name, digest in record["computed_from"].items():
        assert hashlib.sha256((CHECKOUT / name).read_bytes()).hexdigest() == digest, f"{name} has changed"
    words = shlex.split(record["command"])[2:]
    assert words[-2:] == ["--out", "benchmarks/records/cost.json"]
    again = run(*words[:-2])
    differing = ("command", "commit", "date")
    expected, found = ({k: v for k, v in each.items() if k not in differing} for each in (record, again))
    assert found.keys() == expected.keys()
    assert flatten(found) == pytest.approx(flatten(expected))


def flatten(value: Any, path: str = "") -> dict[str, Any]:
    """Return every value of a record by its path."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found = {key: each for name, inner in pairs for key, each in flatten(inner, f"{path}/{name}").items()}
    return found or {path: value}


def test_readmes_table_has_the_records_figures(record: dict[str, Any]) -> None:
    table = dict(part("reports.documents").MARKED.findall((CHECKOUT / "README.md").read_text()))["cost"]
    shown = part("reports.recipes").SHOWN_MACHINES
    assert table.count("\n| g") + table.count("\n| p") == len(shown)
    for name in shown:
        (line,) = [line for line in table.splitlines() if line.startswith(f"| {name}, ")]
        for form in ("original", "500", "256"):
            (row,) = rows_of(record, "quick_24", name, form)
            assert f"{row['on_demand']['dollars']:,.2f}; {row['spot']['dollars']:,.2f} |" in line
        assert ("| record of one H200: " in line) == (row["rate"]["kind"] == "record")
        assert ("| published: " in line) == (row["rate"]["kind"] == "publication")
    assert f"Computed on {record['date'][:10]} from `cloud/machines.json`" in table
    assert set(record["machines"]) >= set(shown)


def test_every_price_has_a_date_and_a_source_and_is_the_other_pages(record: dict[str, Any]) -> None:
    content = json.loads(MACHINES.read_text())
    named = {field for names in content["sources"] for field in names.split(", ")}
    fields = {field for each in content["machines"].values() for field in each} - {"gpu", "gpus"}
    assert fields <= named and all(each.keys() == {"date", "hand", "source"} for each in content["sources"].values())
    assert all(rate["source"] for rates in content["gpus"].values() for rate in rates)
    recipes = part("reports.recipes")
    assert content["machines"]["p4d.24xlarge"]["on_demand"] == pytest.approx(recipes.P4D, abs=0.005)
    assert content["machines"]["p5.4xlarge"]["on_demand"] == recipes.P5_4XLARGE


def test_the_picture_shows_the_records_dollars(record: dict[str, Any]) -> None:
    ax = part("reports.plots").draw_cost(record, "dollars").axes[0]
    ends = [patch.get_x() + patch.get_width() for patch in ax.patches][1::2]
    shown = [
        row
        for form in ("original", "500", "256")
        for name in part("reports.recipes").SHOWN_MACHINES
        for row in rows_of(record, "quick_24", name, form)
    ]
    assert ends == pytest.approx([row["on_demand"]["dollars"] for row in shown])
    assert [line.get_xdata()[0] for line in ax.lines] == pytest.approx([row["spot"]["dollars"] for row in shown])
    assert ax.get_xlim()[0] == 0
