"""A file of tuned settings: what is at its default comes from it, of another machine nothing; damage is one line."""

import json
import logging
import os
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.commands import run_command
from helpers.tuned_files import SETTINGS, tuned_record, write_tuned
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loaders import LoaderConfig, Split, TrainTransform, World, build, build_loader
from loaders.config import MAX_THREADS
from loaders.tuned import apply_tuned
from prep.errors import InputError

TRAIN = TrainTransform(size=24)
quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
given_fields = st.fixed_dictionaries(
    {},
    optional={
        "num_threads": st.integers(0, 16),
        "batches_ahead": st.integers(1, 9),
        "decode": st.sampled_from(["roi", "full"]),
        "hw_decoder_load": st.floats(0, 1),
        "pin_threads": st.booleans(),
        "most_damaged": st.integers(0, 9),
    },
)


@quick
@given(
    ours=given_fields, theirs=st.fixed_dictionaries({}, optional={name: st.just(SETTINGS[name]) for name in SETTINGS})
)
def test_what_differs_from_its_default_stays_and_the_rest_is_taken(
    tmp_path: Path, ours: dict[str, Any], theirs: dict[str, Any]
) -> None:
    usual = LoaderConfig()
    path = write_tuned(tmp_path / "tuned.json", settings=theirs)
    settled = apply_tuned(LoaderConfig(**ours, tuned=path), World())
    assert settled.tuned is None
    for name, default in vars(usual).items():
        own = ours.get(name, default)
        assert getattr(settled, name) == (own if own != default else theirs.get(name, default)), name


def test_batches_are_those_of_the_same_settings_given_by_hand(digits: Path, tmp_path: Path) -> None:
    path, split = write_tuned(tmp_path / "tuned.json"), Split(digits, "train")
    tuned = build_loader(split, TRAIN, 30, config=LoaderConfig(tuned=path, batches_ahead=1))
    by_hand = build_loader(split, TRAIN, 30, config=LoaderConfig(**{**SETTINGS, "batches_ahead": 1}))
    assert tuned.config == by_hand.config
    for ours, theirs in zip(islice(tuned, 5), islice(by_hand, 5), strict=True):
        assert torch.equal(ours.images_BCHW, theirs.images_BCHW)


def test_on_a_cpu_no_setting_changes_a_pixel(imagenet_samples: Path) -> None:
    split = Split(imagenet_samples, "train")
    usual = next(iter(build_loader(split, TrainTransform(64), 48)))
    tuned = next(iter(build_loader(split, TrainTransform(64), 48, config=LoaderConfig(**SETTINGS))))
    assert torch.equal(usual.images_BCHW, tuned.images_BCHW)


def test_anyones_loop_takes_the_file_by_its_name(digits: Path, tmp_path: Path) -> None:
    path = write_tuned(tmp_path / "tuned.json")
    epochs = build(digits, "train", 30, TRAIN, device="cpu", tuned=str(path), decode="full")
    assert epochs.loader.config == LoaderConfig(**SETTINGS)
    path.unlink()
    next(iter(epochs))  # it was read once
    epochs.close()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"hardware": {"cpu": "any", "cores": 4096, "gpu": None}}, "4096 cores"),
        ({"hardware": {**tuned_record()["hardware"], "gpu": "NVIDIA H100"}}, "NVIDIA H100"),
        ({"local_processes": 8}, "processes on the machine: 8"),
    ],
)
def test_another_machines_file_is_left_aside_in_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, changes: dict[str, Any], named: str
) -> None:
    path = write_tuned(tmp_path / "tuned.json", **changes)
    with caplog.at_level(logging.WARNING, "penstock"):
        settled = apply_tuned(LoaderConfig(num_threads=2, tuned=path), World())
    assert settled == LoaderConfig(num_threads=2)
    (line,) = caplog.messages
    assert str(path) in line and named in line and "\n" not in line


def test_a_file_of_two_processes_holds_for_two(tmp_path: Path) -> None:
    path = write_tuned(tmp_path / "tuned.json", num_processes=2)
    assert apply_tuned(LoaderConfig(tuned=path), World(1, 2, 1, 2)) == LoaderConfig(**SETTINGS)


def test_another_backends_file_is_refused(tmp_path: Path) -> None:
    path = write_tuned(tmp_path / "tuned.json")
    with pytest.raises(InputError, match="the backend dali, not reference"):
        apply_tuned(LoaderConfig("reference", tuned=path), World())


def _refusal(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        apply_tuned(LoaderConfig(tuned=path), World())
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"what": "throughput"}, "'throughput'"),
        ({"format": 2}, "format 2"),
        ({"settings": {"num_threads": "two"}}, "num_threads 'two'"),
        ({"settings": {"num_threads": True}}, "num_threads True"),
        ({"settings": {"batches_ahead": 0}}, "batches_ahead must be at least 1, got 0"),
        ({"settings": {"decode": "half"}}, "decode must be one of auto, roi, full, got 'half'"),
        ({"settings": {"hw_decoder_load": float("nan")}}, "must be between 0 and 1, got nan"),
        ({"settings": {"backend": "synthetic"}}, "backend 'synthetic'"),
        ({"settings": []}, "settings"),
        ({"hardware": "fast"}, "--tune --out"),
    ],
)
def test_a_damaged_or_foreign_file_is_one_line(tmp_path: Path, changes: dict[str, Any], named: str) -> None:
    assert named in _refusal(write_tuned(tmp_path / "tuned.json", **changes))


def test_what_is_no_file_is_one_line(tmp_path: Path) -> None:
    assert "No such file" in _refusal(tmp_path / "nowhere.json")
    assert "directory" in _refusal(tmp_path)
    (tmp_path / "picture").write_bytes(b"\xff\xd8\xff\xe0")
    _refusal(tmp_path / "picture")
    for missing in tuned_record():
        record = {name: value for name, value in tuned_record().items() if name != missing}
        (tmp_path / "part.json").write_text(json.dumps(record))
        assert f"no '{missing}'" in _refusal(tmp_path / "part.json")


@quick
@given(share=st.floats(0, 1, exclude_max=True))
def test_a_file_that_was_cut_short_is_one_line(tmp_path: Path, share: float) -> None:
    whole = json.dumps(tuned_record())
    (tmp_path / "short.json").write_text(whole[: int(share * len(whole))])
    _refusal(tmp_path / "short.json")


def test_settling_twice_is_settling_once(tmp_path: Path) -> None:
    path = write_tuned(tmp_path / "tuned.json")
    settled = apply_tuned(LoaderConfig(tuned=path), World())
    assert apply_tuned(settled, World()) == settled == apply_tuned(replace(settled, tuned=path), World())


PINNED = """
import sys
from pathlib import Path
from loaders import LoaderConfig, Split, TrainTransform, build_loader
batches = iter(build_loader(Split(sys.argv[1], "train"), TrainTransform(24), 30, config=LoaderConfig(pin_threads=True)))
next(batches)
statuses = [path.read_text() for path in Path("/proc/self/task").glob("*/status")]
pinned = [status.partition("Cpus_allowed_list:")[2].split()[0] for status in statuses if "[DALI][TP" in status]
print(*sorted(map(int, pinned)))
"""


def test_each_pinned_thread_has_a_core_of_its_own(digits: Path) -> None:
    done = run_command("-c", PINNED, digits)  # DALI's threads may start after its pipeline was built
    assert (done.returncode, done.stderr) == (0, "")
    assert [int(core) for core in done.stdout.split()] == sorted(os.sched_getaffinity(0))[:MAX_THREADS]
