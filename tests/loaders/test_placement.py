"""The placement: which one is chosen and why, and that the CPU's pixels equal those of a CPU run.

No GPU takes part: uploads, streams and events are stand-ins (`pretend_gpu.py`), and GPU graphs are defined, not run.
"""

import json
import logging
import os
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.pretend_gpu import GPU, FakeEvent, FakeStream, PretendGpu, pretend
from helpers.tuned_files import tuned_record, write_tuned
from hypothesis import given
from hypothesis import strategies as st

from loaders import AugmentConfig, EvalTransform, LoaderConfig, Split, TrainTransform, World, build_loader
from loaders.batch import MAX_IN_USE, InUse, Ready
from loaders.loader import find_size_hint
from loaders.placement import CPU_SECONDS_PER_IMAGE, MIN_CORES_FOR_CPU, choose_placement
from loaders.stats import Counters
from loaders.world import log_once
from prep.errors import InputError

TRANSFORMS = [TrainTransform(32), EvalTransform(32, 36), TrainTransform(32, augment=AugmentConfig("rand"))]
RATES = Path(__file__).parents[2] / "benchmarks" / "records" / "h200" / "rates.json"
TWO = World(1, 2, 1, 2, torch.device("cuda", 1))


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> PretendGpu:
    return pretend(monkeypatch)


def use_cores(monkeypatch: pytest.MonkeyPatch, num_cores: int, capability: tuple[int, int] = (8, 6)) -> None:
    monkeypatch.setattr("loaders.placement.find_capability", lambda world: capability)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(num_cores)))


@pytest.mark.parametrize(
    ("config", "world", "num_cores", "expected"),
    [
        (LoaderConfig(), World(), 64, ("cpu", "roi", "the model is on the CPU too")),
        (LoaderConfig(placement="cpu"), World(), 1, ("cpu", "roi", "as asked for")),
        (LoaderConfig(), GPU, 6, ("cpu", "roi", "this process has 6 cores, at least 6")),
        (LoaderConfig(), GPU, 5, ("gpu", "full", "this process has 5 cores, fewer than 6")),
        (LoaderConfig(), TWO, 12, ("cpu", "roi", "this process has 6 cores, at least 6")),
        (LoaderConfig(), TWO, 8, ("gpu", "full", "this process has 4 cores, fewer than 6")),
        (LoaderConfig(placement="gpu"), GPU, 64, ("gpu", "full", "as asked for")),
        (LoaderConfig(placement="gpu", decode="roi"), GPU, 64, ("gpu", "roi", "as asked for")),
        (LoaderConfig(placement="cpu", decode="full"), GPU, 64, ("cpu", "full", "as asked for")),
        (LoaderConfig("reference"), GPU, 1, ("cpu", "roi", "the backend reference cannot decode on a GPU")),
        (LoaderConfig("synthetic"), GPU, 1, ("gpu", "full", "the backend synthetic decodes nothing")),
        (
            LoaderConfig("synthetic", placement="cpu"),
            World(),
            1,
            ("cpu", "roi", "the backend synthetic decodes nothing"),
        ),
    ],
)
def test_a_placement_is_chosen_by_request_then_by_gpu_and_cores(
    monkeypatch: pytest.MonkeyPatch, config: LoaderConfig, world: World, num_cores: int, expected: tuple[str, str, str]
) -> None:
    side, decode, reason = expected
    use_cores(monkeypatch, num_cores)
    choice = choose_placement(config, world)
    assert choice.to_dict() == {"placement": side, "reason": reason, "decode": decode}
    assert (choice.config.placement, choice.config.decode) == (side, decode)
    assert str(choice) == f"images are decoded on the {side.upper()} ({reason})"
    assert choose_placement(choice.config, world).config == choice.config


@pytest.mark.parametrize(("capability", "side"), [((9, 0), "gpu"), ((8, 6), "cpu"), ((7, 5), "cpu"), ((10, 0), "cpu")])
def test_auto_decodes_on_gpus_that_were_measured_faster(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], side: str
) -> None:
    use_cores(monkeypatch, 64, capability)
    choice = choose_placement(LoaderConfig(), GPU)
    assert choice.side == side
    assert (choice.reason == "an H100 or H200 decodes faster than its CPU") == (side == "gpu")
    assert choose_placement(LoaderConfig(placement="cpu"), GPU).side == "cpu"
    assert choose_placement(LoaderConfig(), World()).side == "cpu"


def test_a_record_says_that_an_h200_trains_faster_if_it_decodes() -> None:
    cases = json.loads(RATES.read_text())["cases"]
    cpu, gpu = (cases[f"train-resnet50-{each}"]["result"]["images_per_second"] for each in ("cpu", "full-0.99"))
    assert gpu["min"] > 1.02 * cpu["max"]


@pytest.mark.parametrize("placement", ["cpu", "gpu"])
@pytest.mark.parametrize("num_cores", [2, 64])
def test_the_tuned_files_placement_comes_before_the_number_of_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, placement: str, num_cores: int
) -> None:
    use_cores(monkeypatch, num_cores)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "H100")
    hardware = {"cpu": "any", "cores": num_cores, "gpu": "H100"}
    settings = {**tuned_record()["settings"], "placement": placement}
    path = write_tuned(tmp_path / "tuned.json", settings=settings, hardware=hardware)
    choice = choose_placement(LoaderConfig(tuned=path), GPU)
    assert (choice.side, choice.reason, choice.config.decode) == (placement, f"from {path}", "full")
    other = "cpu" if placement == "gpu" else "gpu"
    assert choose_placement(LoaderConfig(tuned=path, placement=other), GPU).side == other  # pyright: ignore


def test_a_file_of_settings_from_before_there_were_placements_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {name: value for name, value in tuned_record()["settings"].items() if name != "placement"}
    path = write_tuned(tmp_path / "tuned.json", settings=settings)
    choice = choose_placement(LoaderConfig(tuned=path), World())
    assert (choice.side, choice.config.num_threads, choice.config.decode) == ("cpu", 1, "full")


@pytest.mark.parametrize(
    ("fields", "world", "line"),
    [
        ({"placement": "hybrid"}, GPU, "placement must be one of auto, cpu, gpu, got 'hybrid'"),
        ({"placement": ""}, World(), "placement must be one of auto, cpu, gpu, got ''"),
        ({"placement": "gpu"}, World(), "placement gpu needs a GPU, but this process runs on the CPU"),
        ({"placement": "gpu", "backend": "synthetic"}, World(), "placement gpu needs a GPU"),
        ({"placement": "gpu", "backend": "reference"}, GPU, "the backend reference cannot decode on a GPU: set"),
    ],
)
def test_what_cannot_be_placed_is_one_line(digits: Path, fields: dict[str, Any], world: World, line: str) -> None:
    with pytest.raises(InputError) as caught:
        build_loader(Split(digits, "train"), TrainTransform(32), 16, world, config=LoaderConfig(**fields))
    assert str(caught.value).startswith(line) and "\n" not in str(caught.value)


def test_too_few_cores_for_the_cpu_are_warned_of_once_with_the_expected_rate(
    digits: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    use_cores(monkeypatch, 2)
    log_once.cache_clear()
    config = LoaderConfig(placement="cpu")
    with caplog.at_level(logging.WARNING, "penstock"):
        for transform in TRANSFORMS[:2]:
            build_loader(Split(digits, "train"), transform, 16, GPU, config=config)
        build_loader(Split(digits, "train"), TRANSFORMS[0], 16, World(), config=config)  # the CPU feeds itself
    (line,) = caplog.messages
    assert f"has 2 cores in this process and will decode about {2 / CPU_SECONDS_PER_IMAGE:,.0f} images/s" in line
    assert "--loader.placement gpu" in line and "\n" not in line


@pytest.mark.parametrize(("num_cores", "num_threads", "warns"), [(6, 0, False), (64, 2, True), (5, 16, True)])
def test_threads_bound_the_rate_as_cores_do(
    monkeypatch: pytest.MonkeyPatch, num_cores: int, num_threads: int, warns: bool
) -> None:
    use_cores(monkeypatch, num_cores)
    choice = choose_placement(LoaderConfig(placement="cpu", num_threads=num_threads), GPU)
    assert bool(choice.warning) is warns
    assert MIN_CORES_FOR_CPU / CPU_SECONDS_PER_IMAGE > 4000


@pytest.mark.parametrize("transform", TRANSFORMS, ids=str)
@pytest.mark.parametrize("backend", ["dali", "reference"])
def test_the_cpu_makes_the_same_bits_for_a_gpu_as_for_itself(
    digits: Path, gpu: PretendGpu, backend: str, transform: TrainTransform | EvalTransform
) -> None:
    """The upload is a stand-in: it checks that memory is pinned and the loader's stream current."""
    split, config = Split(digits, "validation"), LoaderConfig(backend, placement="cpu")
    alone = list(islice(build_loader(split, transform, 50, config=config), 8))
    fed = []
    with closing(iter(build_loader(split, transform, 50, GPU, config=config))) as batches:  # pyright: ignore
        fed = list(islice(batches, 8))
    assert len(alone) == len(fed) == 8
    for ours, theirs in zip(fed, alone, strict=True):
        for name in ("images_BCHW", "labels_B", "valid_B", "damaged_B"):
            tensor, wanted = getattr(ours, name), getattr(theirs, name)
            assert torch.equal(tensor, wanted) and tensor.dtype == wanted.dtype, name
        assert ours.images_BCHW.is_contiguous(memory_format=torch.channels_last)
        assert ours.position == theirs.position and ours.rows_B.tolist() == theirs.rows_B.tolist()
    made = list(gpu.consumer.awaited)
    assert len(made) == 8 and all(event.has_timing for event in made)
    assert gpu.num_recorded == 2 * 8  # images, and labels with masks


def test_a_batch_is_uploaded_in_two_copies(digits: Path, gpu: PretendGpu) -> None:
    loader = build_loader(Split(digits, "validation"), EvalTransform(32, 36), 60, GPU, config=LoaderConfig("reference"))
    assert len(list(loader)) == 6
    assert gpu.num_uploads == 2 * 6  # pixels; labels and both masks


def test_the_last_batch_of_a_closed_stream_is_kept_until_it_is_used(digits: Path, gpu: PretendGpu) -> None:
    loader = build_loader(Split(digits, "train"), TrainTransform(32), 16, GPU, config=LoaderConfig("reference"))
    batches = iter(loader)
    for _ in range(2):
        next(batches)
    before = len([event for event in FakeEvent.all if event.is_done])
    batches.close()  # pyright: ignore
    assert before == 0 and len([event for event in FakeEvent.all if event.is_done]) == 2


def _ready(at: float) -> Ready:
    stream = FakeStream()
    stream.now = at
    made = FakeEvent(enable_timing=True)
    made.record(stream)
    return Ready(None, made)  # pyright: ignore


@given(
    gaps=st.lists(st.floats(-50, 50), min_size=1, max_size=30),
    step=st.floats(0.1, 30),
)
def test_waiting_is_what_the_gpu_stood_still_between_two_batches(gaps: list[float], step: float) -> None:
    """Times in milliseconds; a negative gap: the batch was ready before the one before it was used up."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        gpu, counters = pretend(monkeypatch), Counters()
        with InUse(GPU.device, counters) as in_use:
            for gap in [0.0, *gaps]:
                ready = _ready(gpu.consumer.now + gap)
                assert ready.ready_event is not None
                gpu.consumer.wait_event(ready.ready_event)  # pyright: ignore
                gpu.consumer.now += step
                in_use.add(ready)
        assert counters.wait_seconds == pytest.approx(sum(max(0.0, gap) for gap in gaps) / 1000, abs=1e-9)


def test_run_ahead_is_bounded(gpu: PretendGpu) -> None:
    """Nothing of the queued work is done: the thread waits for the oldest batch once four are kept."""
    in_use = InUse(GPU.device, Counters())
    for number in range(10):
        in_use.add(_ready(float(number)))
        assert len(in_use.kept) == min(number + 1, MAX_IN_USE)
    for _, used in in_use.kept:
        used.is_done = True  # pyright: ignore
    in_use.add(_ready(10.0))
    assert len(in_use.kept) == 1  # what is used is let go at once


def test_on_the_cpu_waiting_is_that_of_the_queue(digits: Path) -> None:
    loader = build_loader(Split(digits, "train"), TrainTransform(32), 64)
    list(islice(loader, 5))
    stats = loader.stats()
    assert stats.wait_seconds == stats.queue_seconds > 0


@given(st.lists(st.tuples(st.integers(1, 9000), st.integers(1, 9000)), min_size=1, max_size=3000))
def test_memory_hints_are_the_size_of_one_large_image(sizes: list[tuple[int, int]]) -> None:
    widths, heights = (np.array(column, np.int32) for column in zip(*sizes, strict=True))
    width, height = find_size_hint(widths, heights)
    assert (width, height) in sizes
    smaller = sum(w * h <= width * height for w, h in sizes)
    assert smaller >= 0.999 * len(sizes)
    assert sum(w * h < width * height for w, h in sizes) < 0.999 * len(sizes)


def test_one_giant_image_does_not_set_the_decoders_memory() -> None:
    widths, heights = np.full(5000, 500), np.full(5000, 375)
    widths[17], heights[17] = 6000, 6000
    assert find_size_hint(widths, heights) == (500, 375)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("transform", TRANSFORMS, ids=str)
@pytest.mark.parametrize("backend", ["dali", "reference"])
def test_on_a_gpu_the_bits_of_placement_cpu_are_those_of_a_cpu_run(
    digits: Path, backend: str, transform: TrainTransform | EvalTransform
) -> None:
    """With real uploads, while the GPU is busy with other work on the training stream."""
    split, config = Split(digits, "validation"), LoaderConfig(backend, placement="cpu")
    alone = islice(build_loader(split, transform, 50, config=config), 8)
    work = torch.ones(2048, 2048, device="cuda")
    for ours, theirs in zip(build_loader(split, transform, 50, GPU, config=config), alone, strict=False):
        for _ in range(20):
            work = work @ work / 2048
        assert ours.images_BCHW.is_cuda and ours.images_BCHW.is_contiguous(memory_format=torch.channels_last)
        for name in ("images_BCHW", "labels_B", "valid_B", "damaged_B"):
            assert torch.equal(getattr(ours, name).cpu(), getattr(theirs, name)), name


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_on_a_gpu_only_a_loader_that_is_too_slow_is_waited_for(digits: Path) -> None:
    """Pillow is slower than small products; the synthetic batch is ready before large ones end."""
    waited = {}
    for backend, side in (("reference", 1024), ("synthetic", 8192)):  # products of 0.04 ms, and of 20 ms or more
        loader = build_loader(Split(digits, "train"), TrainTransform(64), 64, GPU, config=LoaderConfig(backend))
        with closing(iter(loader)) as batches:  # pyright: ignore
            list(islice(batches, 5))
            before, work = loader.stats(), torch.ones(side, side, device="cuda")
            for _ in range(30):
                next(batches)  # pyright: ignore
                work = work @ work / side
        interval = loader.stats().since(before)
        waited[backend] = interval.wait_seconds / interval.seconds
    assert waited["synthetic"] < 0.05 and waited["reference"] > 0.5, waited
