"""The proofs: throttles hold, the verdict is judged rightly, tuning does harm where the rule sees it."""

import importlib
import json
import os
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import recorded
from helpers.commands import CHECKOUT, run_command

from loaders import LoaderConfig, Split, TrainTransform, build_loader
from loaders.tuned import SETTINGS
from prep.errors import InputError

SOAK = "PENSTOCK_SOAK_PROOFS"  # a folder of real photographs to run the complete proofs on
START, TUNED = LoaderConfig(), LoaderConfig(batches_ahead=4)
STARTED = LoaderConfig(placement="cpu", decode="roi")  # what the defaults mean on a CPU


@pytest.fixture
def prove() -> Any:
    return importlib.import_module("prove")


@pytest.fixture
def throttles() -> Any:
    return importlib.import_module("throttles")


def run_here(prove: Any, monkeypatch: pytest.MonkeyPatch, *words: object) -> None:
    monkeypatch.setattr("sys.argv", ["prove.py", *map(str, words)])
    prove.main()


def test_slow_storage_is_as_slow_as_it_says_and_gives_the_same_bytes(throttles: Any, digits: Path) -> None:
    path, real = Split(digits, "train").shard_paths[0], os.preadv
    content = path.read_bytes()[:200_000]
    with throttles.slow_storage(1.0), path.open("rb", buffering=0) as file:
        started, buffer = time.perf_counter(), bytearray(len(content))
        done = 0
        while done < len(buffer):
            done += os.preadv(file.fileno(), [memoryview(buffer)[done : done + 10_000]], done)
        seconds = time.perf_counter() - started
    assert bytes(buffer) == content and os.preadv is real
    assert seconds >= len(content) / 1e6 - throttles.QUEUE_SECONDS


def test_a_loader_reads_from_slow_storage_even_if_its_extension_is_built(
    throttles: Any, digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At 1,000 bytes per second; a sleep takes no time here, so the last one is about as long as all reads together."""
    slept, split = list[float](), Split(digits, "train")
    monkeypatch.setattr(throttles.time, "sleep", slept.append)
    with throttles.slow_storage(1e-3), closing(build_loader(split, TrainTransform(32), 16)._produce(0)) as batches:
        rows = next(batches).batch.rows_B
    assert max(slept) >= split.column("size")[rows].sum() / 1e3 - 1


def test_few_cores_hold_for_what_is_started_under_them_and_no_longer(throttles: Any) -> None:
    before = os.sched_getaffinity(0)
    with throttles.few_cores(1):
        assert len(os.sched_getaffinity(0)) == 1 and importlib.import_module("machine").count_cores() <= 1
    assert os.sched_getaffinity(0) == before


def test_delays_come_before_each_convolution_and_before_batches_of_one_size(
    throttles: Any, digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here a sleep takes no time; it is only counted."""
    slept = list[float]()
    monkeypatch.setattr(throttles.time, "sleep", slept.append)
    convolution, images = torch.nn.Conv2d(3, 4, 3), torch.rand(2, 3, 8, 8)
    expected = convolution(images)
    with throttles.slow_launches(0.5):
        assert torch.equal(convolution(images), expected) and slept.count(0.5) == 1
    convolution(images)
    assert slept.count(0.5) == 1

    # The first batch of a loader of 32 pixels waits, one of 48 pixels does not; the pixels are the same.
    def take(size: int) -> torch.Tensor:
        loader = build_loader(Split(digits, "train"), TrainTransform(size), 16)
        with closing(loader._produce(0)) as batches:
            return next(batches).batch.images_BCHW.clone()

    free = take(32)
    with throttles.slow_loader(32, 0.25):
        assert torch.equal(take(32), free) and slept.count(0.25) == 1
        take(48)
    assert slept.count(0.25) == 1


@pytest.fixture
def data(prove: Any, digits: Path, tmp_path: Path) -> Path:
    """The digits where the proof of the verdict expects its shards."""
    (tmp_path / prove.ORIGINAL).symlink_to(digits)
    return tmp_path


def test_several_processes_measure_under_throttles_and_write_one_record(prove: Any, data: Path) -> None:
    """Each step of 16 images exchanges gradients, which is delayed by 0.2 s."""
    options = prove.Verdict(data, seconds=0.05)
    conditions = prove.Conditions(size=32, batch_size=8, num_processes=2, exchange_seconds=0.2)
    record = prove.run_throughput(conditions, "model", options, data)
    assert (record["num_processes"], record["size"], record["mode"]) == (2, 32, "model")
    assert record["stages"]["model"]["total"]["max"] <= 16 / 0.2
    with pytest.raises(InputError, match=r"^rank [01] of 2: --repetitions must be at least 5, got 1$"):
        prove.run_throughput(conditions, "model", replace(options, repetitions=1), data)


def test_a_process_that_fails_is_named_while_the_others_still_wait_for_it(
    prove: Any, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rank 0 would wait for rank 1 until the limit, whose error would be another one."""
    list_places = prove.list_places

    def misplace(num_processes: int) -> list[dict[str, str]]:
        first, second = list_places(num_processes)
        return [first, second | {"LOCAL_RANK": "5"}]

    monkeypatch.setattr(prove, "list_places", misplace)
    monkeypatch.setattr(prove, "LONGEST_SECONDS", 90)
    conditions = prove.Conditions(size=32, batch_size=8, num_processes=2)
    with pytest.raises(InputError, match=r"^rank 1 of 2: LOCAL_RANK must be less than LOCAL_WORLD_SIZE"):
        prove.run_throughput(conditions, "model", prove.Verdict(data, seconds=0.05), data)


@pytest.mark.skipif("PENSTOCK_SOAK_THROUGHPUT" not in os.environ, reason="measures: needs a quiet machine, a soak")
def test_slow_storage_is_named_and_its_advice_is_followed(prove: Any, data: Path) -> None:
    """Run the real code in separate processes: the digits (600 bytes each) at 0.07 MB/s, 116 images/s."""
    slow = prove.Conditions(size=32, batch_size=8, megabytes_per_second=0.07)
    case = replace(prove.CASES[0], conditions=slow)
    result = prove.run_case(case, prove.Verdict(data, seconds=0.1), data)
    assert result["binds"] == "storage" and result["is_named"]
    lifted = [each for each in result["followed"] if "megabytes_per_second" in each["change"]]
    assert len(lifted) == 1 and lifted[0]["change"]["megabytes_per_second"] > 0.07
    assert lifted[0]["promised_gain"] > 1.03 and lifted[0]["measured_gain"] > 1
    assert lifted[0]["error"] == pytest.approx(lifted[0]["promised_gain"] / lifted[0]["measured_gain"] - 1)


@pytest.mark.parametrize(
    ("binds", "signs", "promised", "expected"),
    [
        ("model", {"communication": True, "launching": False}, 190.0, (True, True)),
        ("model", {"communication": True, "launching": True}, 190.0, (False, True)),  # a sign too many
        ("model", {"communication": False}, 190.0, (False, True)),
        ("decode", {"communication": True}, 190.0, (False, True)),
        ("model", {"communication": True}, 250.0, (True, False)),  # 2.5 times promised, 2 times measured
        ("model", {"communication": True}, None, (True, False)),  # its throttle is not lifted
    ],
)
def test_the_verdict_must_name_the_stage_and_the_sign_and_keep_its_promise(
    prove: Any,
    monkeypatch: pytest.MonkeyPatch,
    binds: str,
    signs: dict[str, bool],
    promised: float | None,
    expected: Any,
) -> None:
    """Training at 100 images/s reaches 200 with the case's advice, and 300 with other advice, which does not count."""
    (case,) = (each for each in prove.CASES if each.name == "slow-exchange")
    advice = [{"what": "smaller", "images_per_second": 900.0, "change": {"size": 16}}]
    advice += [{"what": "more", "images_per_second": promised, "change": {"batch_size": 64}}] if promised else []
    verdict = {"binds": binds, "signs": {name: {"is_found": found} for name, found in signs.items()}}
    verdict |= {"advice": advice, "expected_images_per_second": 110.0}

    def measure(conditions: Any, mode: str, *_: Any) -> dict[str, Any]:
        rate = 100.0 if mode == "all" else 300.0 if conditions.size == 16 else 200.0
        return {"verdict": verdict, "stages": {"train": {"total": {"median": rate}}}, "placement": {}}

    monkeypatch.setattr(prove, "run_throughput", measure)
    found = prove.run_case(case, prove.Verdict(Path()), Path())
    assert (found["is_named"], found["is_kept"]) == expected
    assert found["followed"][0]["error"] == pytest.approx(9 / 3 - 1)


def test_the_slow_resolution_must_be_named_and_no_other(prove: Any) -> None:
    def record(rate: float, *bottlenecks: str) -> dict[str, Any]:
        phases = [
            {
                "measured_size": size,
                "bottleneck": name,
                "stages": {"train": {"total": {"median": rate}}},
                "bounds": {"decode": 100.0, "model": 600.0, "cores": 300.0},
                "num_images": 300 if size == 40 else 100,
            }
            for size, name in zip((40, 48), bottlenecks, strict=True)
        ]
        return {"phases": phases, "total": {"images_per_second": rate}, "placement": {}}

    def judge(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
        return prove.judge_phases(prove.CASES[-1], before, after)

    after = record(190.0, "the model", "the model")
    right = judge(record(100.0, "the loader", "the model"), after)
    assert right["is_named"] and right["is_kept"] and right["binds"] == "the loader at 40 px, the model at 48 px"
    # 300 images at 100 and 100 at 100 images/s take 4 s; without the loader's bound the first ones take a third.
    assert right["followed"][0]["promised_gain"] == pytest.approx(4 / 2)
    assert right["followed"][0]["error"] == pytest.approx(2.0 / 1.9 - 1)
    for wrong in (("the model", "the model"), ("the loader", "the loader"), ("the model", "the loader")):
        assert not judge(record(100.0, *wrong), after)["is_named"]
    # The bounds allow at most twice the rate.
    for rate, is_kept in ((150.0, True), (230.0, True), (260.0, False)):
        assert judge(record(100.0, "the loader", "the model"), record(rate, "", ""))["is_kept"] == is_kept


def test_every_advice_leads_to_conditions_or_is_beyond_this_machine(prove: Any) -> None:
    here = prove.Conditions(num_cores=1)

    def follow(num_cores: int = 2, **change: Any) -> Any:
        return prove.follow_advice(change, here, num_cores)

    assert follow(megabytes_per_second=5.0) == replace(here, megabytes_per_second=5.0)
    assert follow(num_threads=2).num_threads == 2 and follow(size=32).size == 32 and follow(max_side=500).is_smaller
    assert follow(batch_size=128).batch_size == 128
    assert follow(cores=2.0).num_cores is None and follow(cores=2.0, num_cores=4).num_cores == 2
    assert follow(cores=4.0) is None and follow(gpu=2) is None and follow(placement="gpu", decode="full") is None


@pytest.fixture
def judged(prove: Any, digits: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the cases' measurements give, by name: a result for the record, or the error of a worker."""
    results: dict[str, Any] = {}
    more = {"what": "smaller files", "change": {"max_side": 500}, "promised_gain": 3.0, "measured_gain": 2.0}
    promise = more | {"what": "two threads", "change": {"num_threads": 2}, "promised_gain": 1.9, "error": -0.05}
    case = recorded.proof()["cases"]["one-thread"] | {"followed": [more | {"error": 0.5}, promise], "placement": None}
    results |= dict.fromkeys(("slow-storage", "one-thread", "large-model"), case)

    def measure(case: Any, *_: Any) -> dict[str, Any]:
        if isinstance(result := results[case.name], Exception):
            raise result
        return result

    monkeypatch.setattr(prove, "run_case", measure)
    formats = importlib.import_module("peers.formats")
    monkeypatch.setattr(formats, "prepare_shards", lambda _, out, *__: out.symlink_to(digits))
    return results


CHOSEN = ("verdict", "--cases", "slow-storage", "one-thread", "large-model")


@pytest.fixture
def run_chosen(prove: Any, judged: dict[str, Any], digits: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Run the chosen cases as the command does."""
    return lambda: run_here(prove, monkeypatch, *CHOSEN, "--source", digits)


def test_a_case_is_told_with_its_rate_and_gains_and_a_kept_promise_passes(
    judged: dict[str, Any], run_chosen: Callable[[], None], capsys: pytest.CaptureFixture[str]
) -> None:
    assert len(judged) == 3
    run_chosen()
    shown = capsys.readouterr()
    assert (
        "one-thread: bottleneck: decode, 410 images/s; max_side: promised 3.00 x, measured 2.00 x; "
        "num_threads: promised 1.90 x, measured 2.00 x; promise kept (2 of 3 done, "
    ) in shown.err
    lines = [" ".join(line.split()) for line in shown.out.splitlines()]
    assert "one-thread smaller files 3.00 × 2.00 × +50%" in lines  # it does not remove the throttle
    assert "one-thread two threads 1.90 × 2.00 × -5% yes" in lines
    assert "one-thread one thread decode decode 410 (400 to 420) yes" in lines


def test_wrong_bottlenecks_and_broken_promises_are_counted_apart_and_shown(
    judged: dict[str, Any], run_chosen: Callable[[], None], capsys: pytest.CaptureFixture[str]
) -> None:
    judged["slow-storage"] = judged["one-thread"] | {"must_bind": "storage", "is_named": False}
    judged["large-model"] = judged["one-thread"] | {"is_kept": False}
    with pytest.raises(InputError, match=r"^the bottleneck is right in 2 and the promise kept in 2 of 3 cases$"):
        run_chosen()
    shown = capsys.readouterr()
    assert "slow-storage: bottleneck: decode (WRONG: it is storage), 410 images/s" in shown.err
    assert "promise NOT kept (3 of 3 done" in shown.err
    lines = [" ".join(line.split()) for line in shown.out.splitlines()]
    assert "slow-storage one thread storage decode: WRONG 410 (400 to 420) yes" in lines
    assert "large-model one thread decode decode 410 (400 to 420) NO" in lines


def test_a_measurement_that_fails_names_its_case_and_loses_no_other(
    prove: Any, judged: dict[str, Any], digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged["large-model"] = prove.FailedError("rank 0 of 1: no memory")
    out = tmp_path / "proof.json"
    with pytest.raises(prove.FailedError, match=r"^large-model: a measurement failed: rank 0 of 1: no memory$"):
        run_here(prove, monkeypatch, *CHOSEN, "--source", digits, "--out", out)
    record = json.loads(out.read_text())
    assert list(record["cases"]) == ["slow-storage", "one-thread"] and record["num_named"] == 2


@pytest.mark.parametrize(
    ("outcomes", "last", "found"),
    [
        (["slower", "faster"], "faster", r"slower in 1 of 2 rounds .*, and from the bad start the result is: faster"),
        (
            ["faster"],
            "equal within the noise",
            r"slower in 0 of 1 rounds .* is: equal within the noise \(expected: fas",
        ),
    ],
)
def test_harm_of_tuning_is_told_as_such(prove: Any, outcomes: list[str], last: str, found: str) -> None:
    record = {"passed": False, "rounds": [{"outcome": each} for each in outcomes], "bad_start": {"outcome": last}}
    with pytest.raises(InputError, match=found):
        prove.check_proved(record)
    prove.check_proved(record | {"passed": True})


def test_the_help_names_each_case(
    prove: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit):
        run_here(prove, monkeypatch, "verdict", "--help")
    shown = capsys.readouterr().out
    assert all(case.name in shown for case in prove.CASES)


@pytest.mark.parametrize(
    ("module", "kind"),
    [
        *(("prove", each) for each in ("Verdict", "Tuning", "Ingredients")),
        *((each, "Options") for each in ("throughput", "cost", "certify", "report")),
    ],
)
def test_the_help_tells_each_default_once(
    module: str, kind: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """tyro adds "(default: …)" itself; and the record is written to --out alone, not also to it."""
    monkeypatch.setenv("COLUMNS", "200")
    parse_options = importlib.import_module("options").parse_options
    with pytest.raises(SystemExit):
        parse_options(getattr(importlib.import_module(module), kind), module, "", ["--help"])
    shown = capsys.readouterr().out
    assert "--out" in shown and "also write" not in shown
    assert not [line for line in shown.splitlines() if line.count("(default:") > 1]


@pytest.mark.parametrize(
    ("script", "now"), [("ingredients.py", "prove.py ingredients"), ("staging.py", "prepare.py stage")]
)
def test_a_file_that_was_a_command_names_the_command(script: str, now: str) -> None:
    ended = run_command(CHECKOUT / "benchmarks" / script, "--source", "somewhere")
    assert ended.returncode == 1 and f"run `python benchmarks/{now}` with the same flags" in ended.stderr


@pytest.mark.parametrize(
    ("tuned", "ratios", "outcome"),
    [
        (START, [0.9] * 5, "the defaults"),
        (TUNED, [1.02] * 5, "faster"),
        (TUNED, [0.98] * 5, "slower"),
        (TUNED, [0.98, 1.01, 0.98, 0.98, 0.98, 0.98, 0.98, 0.98], "slower"),
        (TUNED, [0.98, 1.02, 0.97, 1.0, 1.01], "equal within the noise"),
        (TUNED, [0.999] * 5, "equal within the noise"),
    ],
)
def test_harm_is_what_the_rule_sees(prove: Any, tuned: LoaderConfig, ratios: list[float], outcome: str) -> None:
    tune = importlib.import_module("tune")
    pairs = tuple((600 * ratio, 600.0) for ratio in ratios)
    assert prove.describe_outcome(tune.Comparison(tuned, START, pairs)) == outcome


@pytest.mark.parametrize(
    ("outcomes", "last", "passed"),
    [
        (["the defaults", "faster", "equal within the noise"], "faster", True),
        (["the defaults", "slower", "faster"], "faster", False),
        (["faster"], "equal within the noise", False),
    ],
)
def test_one_harmful_round_fails_it(prove: Any, outcomes: list[str], last: str, passed: bool) -> None:
    assert prove.is_passed(outcomes, last) == passed


def test_the_record_has_every_round(
    prove: Any, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "tuning.json"
    sizes = ["--rounds", "1", "--minutes", "0.01", "--seconds", "0.05", "--batch-size", "8", "--size", "24"]
    is_failed = False
    try:
        run_here(prove, monkeypatch, "tuning", "--data", digits, "--device", "cpu", "--out", out, *sizes)
    except InputError as error:  # windows this short are noisy; the record says whether it passed
        is_failed = str(error).startswith("tuning is slower in ")
    record = json.loads(out.read_text())
    assert is_failed == (not record["passed"]) and "round 1" in capsys.readouterr().out
    assert (record["starts_with"]["placement"], record["starts_with"]["decode"]) == ("cpu", "roi")
    (first,), last = record["rounds"], record["bad_start"]
    assert first["settings"]["placement"] == "cpu"
    is_as_it_began = first["settings"] == {name: getattr(STARTED, name) for name in SETTINGS}
    assert (first["outcome"] == "the defaults") == is_as_it_began == (not first["is_changed"])
    assert last["start"] == {"num_threads": 1, "batches_ahead": 1}
    for each in (first, last):
        for figures in (each["best"], each["check"]):
            assert len(figures["ratio"]["repetitions"]) == len(figures["candidate"]["repetitions"]) >= 5
    assert record["dataset"]["digest"] and record["command"].startswith("python benchmarks/prove.py tuning ")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("tuning --data nowhere --device cpu", "nowhere"),
        ("tuning --data {digits} --rounds 0", "--rounds must be at least 1, got 0"),
        ("tuning --data {digits} --seconds 0", "--seconds must be greater than 0"),
        ("tuning --data {digits} --minutes 0", "--minutes must be greater than 0 (1 or more is useful), got 0"),
        ("tuning --data {digits} --out no/where.json", "create it or choose another folder"),
        ("verdict --source {digits} --cases slow-storage slow-life", "'slow-life': choose from slow-storage, "),
        ("verdict --source {digits} --cases", "--cases needs at least one value"),
        ("verdict --source {digits} --repetitions 4", "--repetitions must be at least 5, got 4"),
        ("verdict --source nowhere", "--source: nowhere is not a folder"),
        ("ingredients --source {digits} --work new --only", "--only needs at least one value"),
        ("ingredients --source {digits} --work new --only nothing", "--only must name parts of "),
    ],
)
def test_a_refusal_is_one_line(
    prove: Any, digits: Path, monkeypatch: pytest.MonkeyPatch, words: str, expected: str
) -> None:
    with pytest.raises(InputError) as caught:
        run_here(prove, monkeypatch, *words.format(digits=digits).split())
    assert expected in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.skipif(not os.environ.get(SOAK), reason=f"takes a quiet machine: set {SOAK} to a folder of photographs")
def test_the_verdict_is_right_and_its_promises_are_kept(prove: Any, tmp_path: Path) -> None:
    out = tmp_path / "proof.json"
    words = ("verdict", "--source", os.environ[SOAK], "--out", out)
    run_command(CHECKOUT / "benchmarks" / "prove.py", *words, timeout=3600)
    record = json.loads(out.read_text())
    assert record["num_named"] == record["num_kept"] == len(prove.CASES)


@pytest.mark.skipif(not os.environ.get(SOAK), reason=f"takes a quiet machine: set {SOAK} to a folder of photographs")
def test_tuning_does_no_harm(tmp_path: Path) -> None:
    shards, out = tmp_path / "shards", tmp_path / "tuning.json"
    run_command(CHECKOUT / "prep" / "shard.py", "--source", os.environ[SOAK], "--out", shards, "--splits", "train")
    words = ("tuning", "--data", shards, "--out", out)
    run_command(CHECKOUT / "benchmarks" / "prove.py", *words, timeout=3600)
    assert json.loads(out.read_text())["passed"]
