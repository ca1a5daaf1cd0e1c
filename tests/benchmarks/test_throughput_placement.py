"""The verdict's probe of the other placement, and the flags and records of `benchmarks/throughput.py` for it.

There is no GPU here. If a test needs a loader that decodes on one, a stand-in that decodes on the CPU replaces
it: it shows how the two are compared and reported, not how fast a GPU decodes.
"""

import importlib
import json
import sys
import time
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.commands import free_port
from helpers.ranks import Ranks

from loaders import Loader, LoaderConfig, Split, TrainTransform, World, build_loader
from loaders.backends import BackendSpec, Pixels, find_backend
from loaders.order import Sampling
from loaders.placement import choose_placement
from prep.errors import InputError

ON_GPU = LoaderConfig(placement="gpu", decode="full")
SMALL = ("--device", "cpu", "--batch-size", "16", "--size", "32", "--model", "test_resnet", "--amp", "none")


def part(name: str) -> Any:
    return importlib.import_module(name)


def settings(**changes: Any) -> Any:
    return part("stages").Setting(16, 32, "test_resnet", "none", **{"seconds": 0.1, **changes})


@pytest.fixture
def loader(digits: Path) -> Loader:
    return build_loader(Split(digits, "train"), TrainTransform(32), 16)


class StandIn(Loader):
    """A stand-in for a loader that decodes on a GPU: it decodes on the CPU, after a pause, and may fail."""

    def __init__(self, like: Loader, pause: float = 0.0, fails_after: int | None = None) -> None:
        super().__init__(like.split, like.transform, like.batch_size, like.world, like.sampling, like.config)
        self.pause, self.fails_after = pause, fails_after

    def _decode(self, spec: BackendSpec, position: int) -> Generator[Pixels, None, None]:
        for number, pixels in enumerate(super()._decode(spec, position)):
            if number == self.fails_after:
                raise RuntimeError("nvJPEG error 8\n  in the decoder")
            time.sleep(self.pause)
            yield pixels


def test_training_is_measured_with_a_stand_in_for_the_other_placement(loader: Loader) -> None:
    compare = part("probes").compare_placements
    opened: list[StandIn] = []

    def open_other() -> Loader:
        opened.append(StandIn(loader, pause=0.4))
        return opened[0]

    loader.position = 160
    found = compare(loader, ON_GPU, open_other, settings())
    assert (found.here, found.there, found.decode, found.failure) == ("cpu", "gpu", "full", "")
    assert 0 < found.rate < 0.9  # at most 40 images/s; training alone takes milliseconds per batch, also on busy cores
    assert opened[0].position > loader.batch_size + 160  # it started at the other's position
    alike = compare(loader, ON_GPU, lambda: StandIn(loader), settings())
    assert alike.rate > found.rate


@pytest.mark.parametrize("fails_after", [0, 12])
def test_a_stand_in_that_fails_is_reported_with_its_reason(loader: Loader, fails_after: int) -> None:
    """At its first batch, or while it is measured: by then both warm-ups and windows have taken more."""
    compare = part("probes").compare_placements
    found = compare(loader, ON_GPU, lambda: StandIn(loader, fails_after=fails_after), settings())
    assert (found.rate, found.failure) == (None, "nvJPEG error 8 in the decoder")


def test_another_placement_that_cannot_be_built_is_reported_with_its_reason(loader: Loader) -> None:
    def open_other() -> Loader:
        raise InputError("the backend dali has no equalize here")

    found = part("probes").compare_placements(loader, ON_GPU, open_other, settings())
    assert (found.rate, found.failure) == (None, "the backend dali has no equalize here")


def test_if_one_process_cannot_open_the_other_placement_all_continue(
    ranks: Ranks, digits: Path, tmp_path: Path
) -> None:
    port = free_port()
    group = ranks.start("probe", 2, tmp_path, data=str(digits), port=port)
    for rank in ranks.wait(60):
        assert rank.status == 0 and "Traceback" not in rank.stderr, rank
    found = [json.loads((group / f"found-{rank}").read_text()) for rank in range(2)]
    assert found[0] == found[1]
    assert (found[0]["rate"], found[0]["failure"]) == (None, "this GPU has no decoder")


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (LoaderConfig(placement="cpu", num_threads=3), LoaderConfig(placement="gpu", decode="full", num_threads=3)),
        (LoaderConfig(placement="cpu", decode="full"), LoaderConfig(placement="gpu", decode="full")),
        (LoaderConfig(placement="gpu", decode="roi"), LoaderConfig(placement="cpu", decode="roi")),
        (LoaderConfig(placement="gpu"), LoaderConfig(placement="cpu", decode="roi")),
    ],
)
def test_the_other_placement_decodes_in_its_default_way(
    monkeypatch: pytest.MonkeyPatch, asked: LoaderConfig, expected: LoaderConfig
) -> None:
    """A namespace replaces a loader on a GPU, and nothing is measured."""
    probes, world = part("probes"), World(device=torch.device("cuda", 0))
    monkeypatch.setattr(probes, "compare_placements", lambda loader, config, open_other, setting: (config, open_other))
    built: list[LoaderConfig] = []
    monkeypatch.setattr(probes, "build_loader", lambda *arguments: built.append(arguments[-1]))
    choice = choose_placement(asked, world)
    given = {"world": world, "placement": choice, "config": choice.config, "backend": find_backend("dali")}
    parts = {"split": None, "transform": None, "batch_size": 16, "sampling": Sampling()}
    config, open_other = probes.probe_placement(SimpleNamespace(**given, **parts), None, lambda *_: None)
    open_other()
    assert config == expected and built == [expected]


def test_without_a_gpu_or_another_way_to_decode_there_is_no_other_placement(loader: Loader) -> None:
    probe = part("probes").probe_placement
    assert probe(loader, settings(), lambda *_: None) is None
    reference = SimpleNamespace(world=World(device=torch.device("cuda", 0)), backend=find_backend("reference"))
    assert probe(reference, settings(), lambda *_: None) is None


def test_the_record_and_the_words_have_what_a_stand_in_gave(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The stand-in is opened and compared as a loader on a GPU would be; only the measured ratio is given."""
    command, probes = part("throughput"), part("probes")

    def give_half(pair: Any, seconds: float) -> tuple[float, float]:
        assert [isinstance(stage.feed.loader, StandIn) for stage in pair] == [
            False,
            True,
        ]  # the current one comes first
        for stage in pair:
            stage.take()
        return 0.5, 1.2

    def probe(loader: Loader, setting: Any, report: Any) -> Any:
        with monkeypatch.context() as patch:
            patch.setattr(probes, "measure_ratios", give_half)
            return probes.compare_placements(loader, ON_GPU, lambda: StandIn(loader), setting)

    monkeypatch.setattr(probes, "probe_placement", probe)
    out = tmp_path / "record.json"
    words = ("--data", str(digits), "--seconds", "0.05", "--out", str(out), *SMALL)
    monkeypatch.setattr(sys, "argv", ["throughput.py", *words])
    command.main()
    shown, record = capsys.readouterr().out, json.loads(out.read_text())
    assert record["placement"] == {"placement": "cpu", "decode": "roi", "reason": "the model is on the CPU too"}
    assert "decoded on the CPU (roi; the model is on the CPU too)" in shown
    assert record["verdict"]["other_placement"] == {
        "here": "cpu",
        "there": "gpu",
        "decode": "full",
        "rate": 0.5,
        "failure": "",
    }
    train = record["stages"]["train"]["total"]["median"]
    line = f"Decoding on the GPU instead of the CPU: {train / 2:,.0f} instead of {train:,.0f} images/s."
    assert line in record["verdict"]["says"] and line in shown


def test_a_way_to_decode_that_was_asked_for_is_measured_and_recorded(digits: Path) -> None:
    command = part("throughput")
    words = ["--data", str(digits), "--mode", "decode", "--seconds", "0.02", "--decode", "full", "--placement", "cpu"]
    record = command.measure(command.read_options([*words, *SMALL]), World())
    assert record["placement"] == {"placement": "cpu", "decode": "full", "reason": "as asked for"}
    asked = command.read_options(["--placement", "gpu", "--hw-decoder-load", "0.99"]).loader
    assert asked == replace(LoaderConfig(), placement="gpu", hw_decoder_load=0.99)


@pytest.mark.parametrize("tune", [(), ("--tune",)])
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--placement", "hybrid"), "placement must be one of auto, cpu, gpu, got 'hybrid'"),
        (("--placement", "gpu"), "placement gpu needs a GPU, but this process runs on the CPU"),
        (("--decode", "half"), "decode must be one of auto, roi, full, got 'half'"),
        (("--hw-decoder-load", "1.5"), "hw_decoder_load must be between 0 and 1, got 1.5"),
    ],
)
def test_an_impossible_placement_is_refused_in_one_line_before_anything_is_prepared(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tune: tuple[str, ...], words: tuple[str, ...], message: str
) -> None:
    command = part("throughput")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, "open_split", lambda *_: pytest.fail("photographs must not be prepared"))
    monkeypatch.setattr(sys, "argv", ["throughput.py", "--device", "cpu", *words, *tune])
    with pytest.raises(InputError, match=message) as caught:
        command.main()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("cores", "threads", "scaling"), [(1, 0, 2.0), (12, 0, 16 / 12), (16, 0, 1.0), (4, 3, 1.0)])
def test_more_cores_help_decoding_up_to_the_most_threads(
    loader: Loader, monkeypatch: pytest.MonkeyPatch, cores: int, threads: int, scaling: float
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(cores)))
    loader.config = replace(loader.config, num_threads=threads)
    assert part("probes").find_core_scaling(loader).decode == pytest.approx(scaling)
