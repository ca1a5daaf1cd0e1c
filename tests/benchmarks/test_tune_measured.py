"""The tuning of a real loader on the digits: alternating windows of the same images, and the resulting file.

PENSTOCK_SOAK_TUNE=1 adds a search on real photographs that starts with one thread, and takes a minute.
"""

import importlib
import json
import os
import statistics
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.commands import free_port
from helpers.pretend_gpu import GPU, pretend
from helpers.ranks import Ranks
from helpers.tuned_files import SETTINGS as SETTINGS_OF_A_FILE
from helpers.tuned_files import write_tuned

from loaders import LoaderConfig, Split, World, build
from loaders.placement import choose_placement
from loaders.tuned import SETTINGS, apply_tuned, read_tuned
from prep.errors import InputError

START = LoaderConfig(placement="cpu", decode="roi")  # what the defaults mean on a CPU
MINUTES = 0.02  # the least that a search can do takes longer


@pytest.fixture(scope="module", autouse=True)
def tuning() -> Any:
    """The module, importable as the benchmarks import it."""
    return importlib.import_module("tune")


@pytest.fixture(scope="module")
def work(digits: Path, tuning: Any) -> Any:
    return tuning.Workload(Split(digits, "train"), World(), 16, 24)


@pytest.mark.parametrize("backend", ["dali", "reference"])
def test_a_file_holds_every_figure_and_training_takes_it(
    digits: Path, work: Any, tuning: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], backend: str
) -> None:
    out = tmp_path / "tuned.json"
    record = tuning.run_search(work, LoaderConfig(backend), MINUTES)
    out.write_text(json.dumps(record))
    assert record == json.loads(out.read_text())
    assert (record["what"], record["backend"], record["device"]) == ("loader settings", backend, "cpu")
    assert record["dataset"]["digest"] == work.split.digest and record["hardware"]["cores"] >= 1
    best = record["best"]
    assert len(best["candidate"]["repetitions"]) >= 5
    quotients = zip(best["candidate"]["repetitions"], best["other"]["repetitions"], strict=True)
    assert best["ratio"]["repetitions"] == [candidate / other for candidate, other in quotients]
    assert best["ratio"]["median"] == statistics.median(best["ratio"]["repetitions"])
    assert [each["batch_size"] for each in record["batch_sizes"]] == [8, 16, 32]
    assert record["is_changed"] == (record["settings"] != {name: getattr(START, name) for name in SETTINGS})
    assert record["is_changed"] == (best["is_better"] and best["changes"] != {})
    assert (record["settings"]["placement"], record["settings"]["decode"] in ("roi", "full")) == ("cpu", True)
    assert record["starts_with"] == {"placement": "cpu", "decode": "roi", "reason": "the model is on the CPU too"}
    assert read_tuned(out).settings == record["settings"]
    assert apply_tuned(LoaderConfig(backend, tuned=out), World()) == LoaderConfig(backend, **record["settings"])
    epochs = build(digits, "train", 16, device="cpu", backend=backend, tuned=out)
    next(iter(epochs))
    epochs.close()
    said, kinds = capsys.readouterr(), importlib.import_module("reports.kinds")
    assert said.out == "" and " s left: " in said.err
    assert "[not ImageNet]" in str(kinds.make_tables(record))
    assert "images are decoded on the CPU (the model is on the CPU too)" in said.err


def test_a_file_of_before_there_were_placements_is_read(tmp_path: Path) -> None:
    old = {name: value for name, value in SETTINGS_OF_A_FILE.items() if name != "placement"}
    path = write_tuned(tmp_path / "tuned.json", settings=old)
    assert read_tuned(path).settings == old
    choice = choose_placement(LoaderConfig(tuned=path), World())
    assert choice.config == LoaderConfig(placement="cpu", **old)


@pytest.mark.parametrize("is_able", [True, False])
def test_on_a_gpu_the_other_placement_is_tried_first(
    digits: Path, tuning: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_able: bool
) -> None:
    """On a pretended GPU: a stand-in that decodes on the CPU, or that fails, for a loader that decodes on the GPU."""
    pretend(monkeypatch)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(6)))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Pretended GPU")
    properties = SimpleNamespace(name="Pretended GPU", total_memory=80 << 30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    monkeypatch.setattr(tuning, "all_gather_values", lambda values, _: [values])
    build_loader, opened = tuning.build_loader, []

    def stand_in(*arguments: Any, config: LoaderConfig) -> Any:
        opened.append((config.placement, config.decode))
        if config.placement == "gpu" and not is_able:
            raise RuntimeError("nvJPEG is not there")
        return build_loader(*arguments, config=replace(config, placement="cpu"))

    tries = iter([True] * 12)
    monkeypatch.setattr(tuning, "build_loader", stand_in)
    monkeypatch.setattr(tuning.Tuner, "has_time", lambda _, pairs: pairs > tuning.LAST_PAIRS and next(tries, False))
    work = tuning.Workload(Split(digits, "train"), GPU, 16, 24)
    record = tuning.run_search(work, LoaderConfig(), MINUTES)
    reason = "this process has 6 cores, at least 6"
    assert record["starts_with"] == {"placement": "cpu", "decode": "roi", "reason": reason}
    first = record["comparisons"][0]
    assert first["changes"] == {"placement": ["cpu", "gpu"], "decode": ["roi", "full"]}
    assert first.get("failure") == (None if is_able else "nvJPEG is not there")
    assert ("gpu", "full") in opened and ("gpu", "roi") not in opened
    settings = record["settings"]
    assert set(settings) == set(SETTINGS) and settings["placement"] in (("cpu", "gpu") if is_able else ("cpu",))
    (tmp_path / "tuned.json").write_text(json.dumps(record))
    choice = choose_placement(LoaderConfig(tuned=tmp_path / "tuned.json"), GPU)  # what training takes of the file
    assert record["hardware"]["gpu"].startswith("Pretended GPU, ") and record["gpu"] == "Pretended GPU"
    assert choice.config == LoaderConfig(**settings) and choice.reason == f"from {tmp_path / 'tuned.json'}"


def test_where_a_placement_lacks_a_gpu_nothing_is_tuned(work: Any, tuning: Any) -> None:
    with pytest.raises(InputError, match="placement gpu needs a GPU"):
        tuning.run_search(work, LoaderConfig(placement="gpu"), MINUTES)


def test_the_windows_of_a_pair_are_of_the_same_images(work: Any, tuning: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    windows: list[tuple[LoaderConfig, int]] = []
    take = tuning.Runner.window

    def window(self: Any, num_untimed: int, num_steps: int) -> float:
        windows.append((self.config, self.num_taken + num_untimed))
        return take(self, num_untimed, num_steps)

    monkeypatch.setattr(tuning.Runner, "window", window)
    candidate = replace(START, batches_ahead=4)
    with tuning.PairedWindows(work, START, 0.05) as each:
        comparison = each.compare(candidate, START, 5, lambda: False)
        again = each.compare(START, START, 2, lambda: False)
    assert (len(comparison.pairs), len(again.pairs)) == (5, 2)
    pairs = list(zip(windows[1::2], windows[2::2], strict=True))  # the first one only measures how long it takes
    assert len(pairs) == 7
    for number, (first, second) in enumerate(pairs[:5]):
        assert first[1] == second[1]
        order = [START, candidate] if first[0] == START else [candidate, START]
        assert [first[0], second[0]] == order
        assert number == 0 or pairs[number - 1][0][0] != first[0]  # the first one alternates
    assert pairs[5][0][1] == pairs[5][1][1]


def test_processes_wait_for_each_other_before_the_untimed_batches(
    work: Any, tuning: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a loader reads ahead while its process waits for others is not part of its window."""
    timing, events = importlib.import_module("timing"), []
    runner = tuning.Runner(work, START, 0)
    first = runner.num_taken
    monkeypatch.setattr(timing, "barrier", lambda _: events.append(("wait", runner.num_taken - first)))

    def read_clock(_: World) -> float:
        events.append(("clock", runner.num_taken - first))
        return time.perf_counter()

    monkeypatch.setattr(timing, "read_clock", read_clock)
    with closing(runner):
        assert runner.window(7, 3) > 0
    assert events == [("wait", 0), ("clock", 7), ("clock", 10)]


def test_a_loader_that_is_not_measured_rests(work: Any, tuning: Any) -> None:
    runner = tuning.Runner(work, START, 0)
    planned = runner.loader.planned
    time.sleep(0.3)
    assert runner.loader.planned == planned
    assert runner.loader.stats().queue_depth == START.batches_ahead
    runner.rest()
    assert runner.loader.planned > planned
    runner.close()


def test_a_candidate_that_fails_has_lost_and_the_search_continues(
    work: Any, tuning: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_loader = tuning.build_loader

    def failing(*arguments: Any, config: LoaderConfig) -> Any:
        if config.decode == "full":
            raise RuntimeError("out of memory\nin a place of the decoder's")
        return build_loader(*arguments, config=config)

    monkeypatch.setattr(tuning, "build_loader", failing)
    with tuning.PairedWindows(work, START, 0.05) as each:
        failed = each.compare(replace(START, decode="full"), START, 5, lambda: True)
        assert (failed.failure, failed.is_better) == ("out of memory in a place of the decoder's", False)
        assert len(each.compare(replace(START, batches_ahead=1), START, 2, lambda: False).pairs) == 2


def test_what_was_found_outlives_batches_that_do_not_fit(
    work: Any, tuning: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(tuning, "measure_sizes", fail)
    record = tuning.run_search(work, START, MINUTES)
    assert record["batch_sizes"] == [] and len(record["best"]["ratio"]["repetitions"]) >= 5
    assert "cannot be measured (out of memory)" in capsys.readouterr().err


def test_two_processes_agree_on_every_figure(ranks: Ranks, digits: Path, tmp_path: Path) -> None:
    port = free_port()
    group = ranks.start("tune", 2, tmp_path, data=str(digits), minutes=MINUTES, port=port)
    for rank in ranks.wait(60):
        assert rank.status == 0 and "Traceback" not in rank.stderr, rank
    records = [json.loads((group / f"record-{rank}").read_text()) for rank in range(2)]
    for record in records:
        del record["date"]
    assert records[0] == records[1]
    assert (records[0]["num_processes"], records[0]["local_processes"]) == (2, 2)
    assert apply_tuned(LoaderConfig(tuned=group / "record-0"), World(1, 2, 1, 2)).tuned is None
    assert read_tuned(group / "record-0").machine.num_processes == 2
    assert (group / "stderr-1").read_text().count(" s left: ") == 0  # only rank 0 prints


def test_what_cannot_be_tuned_is_refused_before_anything_opens(work: Any, tuning: Any) -> None:
    with pytest.raises(InputError, match="synthetic"):
        tuning.run_search(work, LoaderConfig("synthetic"), MINUTES)


def test_one_thread_is_found_to_be_too_few(imagenet_samples: Path, tuning: Any) -> None:
    if not os.environ.get("PENSTOCK_SOAK_TUNE"):
        pytest.skip("takes a minute: set PENSTOCK_SOAK_TUNE")
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("needs two cores")
    work = tuning.Workload(Split(imagenet_samples, "train"), World(), 16, 224)
    start = LoaderConfig(num_threads=1, batches_ahead=1)
    record = tuning.run_search(work, start, 1.0)
    assert record["settings"]["num_threads"] != 1 and record["best"]["is_better"]
