"""A loader's whole state is one integer, of the batch consumed; what it leaves behind is nothing."""

import os
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
from helpers.commands import run_command
from helpers.ranks import Ended, Ranks

from loaders import (
    Batch,
    EvalTransform,
    Loader,
    LoaderConfig,
    Sampling,
    Split,
    TrainTransform,
    World,
    build_loader,
    through,
)
from loaders.backends import BACKENDS
from loaders.plan import Plan
from loaders.reader import Encoded, Reader
from prep.errors import InputError

TRAIN = TrainTransform(size=24)
NUM_KEPT = 8

every_backend = pytest.mark.parametrize("backend", BACKENDS)
reading_backend = pytest.mark.parametrize("backend", sorted(set(BACKENDS) - {"synthetic"}))
needs_gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")]
GPU = World(device=torch.device("cuda", 0))
ON_CPU, ON_GPU = LoaderConfig(placement="cpu"), LoaderConfig(placement="gpu")
# Where the batches go, and which backend decodes where. A share of hardware decoding between 0 and 1 would make an
# image's pixels depend on its batch: here no image goes there.
PLACES = [
    *(pytest.param(World(), LoaderConfig(backend), id=backend) for backend in BACKENDS),
    *(
        pytest.param(
            GPU,
            replace(side, backend=backend, hw_decoder_load=0.0),
            marks=needs_gpu,
            id=f"{backend}-{side.placement}-gpu",
        )
        for backend, side in (("dali", ON_CPU), ("dali", ON_GPU), ("reference", ON_CPU), ("synthetic", ON_GPU))
    ),
]


@pytest.fixture(scope="module")
def split(digits: Path) -> Split:
    return Split(digits, "validation")


def _assert_same(batches: list[Batch], others: list[Batch]) -> None:
    assert len(batches) == len(others)
    for batch, other in zip(batches, others, strict=True):
        assert batch.position == other.position
        assert batch.rows_B.tolist() == other.rows_B.tolist()
        assert torch.equal(batch.images_BCHW, other.images_BCHW)
        assert torch.equal(batch.labels_B, other.labels_B)


@every_backend
def test_a_new_loader_continues_from_a_saved_state_bit_by_bit(split: Split, backend: str) -> None:
    uninterrupted = list(islice(build_loader(split, TRAIN, 70, sampling=Sampling(4), config=LoaderConfig(backend)), 8))
    first = build_loader(split, TRAIN, 70, sampling=Sampling(4), config=LoaderConfig(backend))
    before = list(islice(first, 4))
    second = build_loader(split, TRAIN, 70, sampling=Sampling(4), config=LoaderConfig(backend, batches_ahead=4))
    second.load_state_dict(first.state_dict())
    _assert_same(uninterrupted, before + list(islice(second, 4)))  # the sixth batch straddles two epochs


@every_backend
def test_the_same_loader_continues_after_a_pause(split: Split, backend: str) -> None:
    uninterrupted = list(islice(build_loader(split, TRAIN, 50, config=LoaderConfig(backend)), 5))
    paused = build_loader(split, TRAIN, 50, config=LoaderConfig(backend))
    _assert_same(uninterrupted, [*islice(paused, 2), *islice(paused, 3)])


@reading_backend
def test_a_state_saved_by_two_processes_is_continued_by_three(split: Split, backend: str) -> None:
    config = LoaderConfig(backend)
    uninterrupted = list(islice(build_loader(split, TRAIN, 60, config=config), 3))
    saved = build_loader(split, TRAIN, 60, World(1, 2), config=config)
    list(islice(saved, 2))
    parts = []
    for rank in range(3):
        loader = build_loader(split, TRAIN, 60, World(rank, 3), config=config)
        loader.load_state_dict(saved.state_dict())
        parts.append(next(iter(loader)))
    assert torch.equal(torch.cat([part.images_BCHW for part in parts]), uninterrupted[2].images_BCHW)


def _wait_until_planned(loader: Loader, monkeypatch: pytest.MonkeyPatch, num_batches: int) -> Iterator[Batch]:
    """Begin to iterate, take one batch, and wait for the producer to have planned `num_batches`."""
    planned: list[int] = []

    def plan(position: int) -> Plan:
        planned.append(position)
        return type(loader).plan(loader, position)

    monkeypatch.setattr(loader, "plan", plan)
    batches = iter(loader)
    next(batches)
    given_up = time.monotonic() + 30
    while len(planned) < num_batches and time.monotonic() < given_up:
        time.sleep(0.01)
    assert len(planned) >= num_batches
    return batches


@every_backend
def test_the_state_is_of_the_batch_consumed_however_far_the_producer_is(
    split: Split, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader = build_loader(split, TRAIN, 20, config=LoaderConfig(backend, batches_ahead=3))
    batches = _wait_until_planned(loader, monkeypatch, 4)
    identity = {"dataset": split.digest, "seed": 0, "order": "shuffle", "repeats": 1}
    assert loader.state_dict() == {**identity, "position": 20, "damaged": []}
    for batch in islice(batches, 5):
        time.sleep(0.05)  # the producer plans the next one meanwhile, and must not move the state
        assert loader.state_dict()["position"] == batch.position + 20


@reading_backend
def test_the_producer_runs_only_so_far_ahead(split: Split, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Queue, decoder and reader each hold `batches_ahead`, and each a batch in hand."""
    loader = build_loader(split, TRAIN, 10, config=LoaderConfig(backend, batches_ahead=2))
    batches = _wait_until_planned(loader, monkeypatch, 4)
    time.sleep(0.3)  # a producer without bounds would be hundreds ahead by now
    next(batches)
    assert next(batches).position == 20
    assert loader.stats().read_bytes < 15 * 10 * split.column("size").max()


def test_the_state_of_another_dataset_is_refused(digits: Path, split: Split) -> None:
    state = build_loader(Split(digits, "train"), TRAIN, 10).state_dict()
    with pytest.raises(
        InputError, match=r"saved position belongs to dataset \w+, but .*validation is read with dataset"
    ):
        build_loader(split, TRAIN, 10).load_state_dict(state)


@pytest.mark.parametrize(
    ("sampling", "message"),
    [
        (Sampling(1), "belongs to seed 1, but .* with seed 0"),
        (Sampling(0, "blocks"), "order blocks, .* order shuffle"),
        (Sampling(repeats=3), "repeats 3, .* repeats 1"),
    ],
)
def test_the_state_of_another_stream_is_refused(split: Split, sampling: Sampling, message: str) -> None:
    state = build_loader(split, TRAIN, 10, sampling=sampling).state_dict()
    with pytest.raises(InputError, match=message):
        build_loader(split, TRAIN, 10).load_state_dict(state)


@pytest.mark.parametrize(("world", "config"), PLACES)
@pytest.mark.parametrize("transform", [TRAIN, EvalTransform(size=24, resize=28)])
def test_kept_batches_stay_as_they_were(
    split: Split, world: World, config: LoaderConfig, transform: TrainTransform | EvalTransform
) -> None:
    """DALI reuses the memory of outputs that nothing holds: a tensor that torch holds must not be among them."""
    kept: list[Batch] = []
    copies: list[torch.Tensor] = []
    for batch in islice(build_loader(split, transform, 16, world, config=config), 3 * NUM_KEPT):
        if len(kept) < NUM_KEPT:
            kept.append(batch)
            copies.append(batch.images_BCHW.clone())
    for batch, copy in zip(kept, copies, strict=True):
        assert torch.equal(batch.images_BCHW, copy)
    again = list(islice(build_loader(split, transform, 16, world, config=config), NUM_KEPT))
    _assert_same(kept, again)


@reading_backend
def test_a_released_buffer_may_be_overwritten_at_once(
    split: Split, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Backends release no buffer that they still read: here each release destroys what it held."""
    undisturbed = list(islice(build_loader(split, TRAIN, 16, config=LoaderConfig(backend)), 30))
    buffers: dict[int, Encoded] = {}

    class Destroying(Reader):
        def release(self, encoded: Encoded) -> None:
            encoded.buffer.fill(0)
            buffers[id(encoded.buffer)] = encoded  # kept alive, so that no other gets its id
            super().release(encoded)

    monkeypatch.setattr(through, "Reader", Destroying)
    _assert_same(undisturbed, list(islice(build_loader(split, TRAIN, 16, config=LoaderConfig(backend)), 30)))
    assert 1 <= len(buffers) <= 12  # all 30 batches passed through these


def _open_shards(folder: Path) -> list[str]:
    links = [Path("/proc/self/fd", name) for name in os.listdir("/proc/self/fd")]
    targets = [str(link.readlink()) for link in links if link.is_symlink()]
    return [target for target in targets if target.startswith(str(folder)) and target.endswith(".tar")]


def _penstock_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("penstock")]


@reading_backend
def test_iterating_holds_threads_and_files_and_breaking_out_gives_them_back(split: Split, backend: str) -> None:
    loader = build_loader(split, TRAIN, 10, config=LoaderConfig(backend))
    for batch in loader:
        assert _penstock_threads()
        assert len(_open_shards(split.folder)) == 2
        if batch.position == 30:
            break
    assert not _penstock_threads()
    assert not _open_shards(split.folder)


@every_backend
def test_a_pass_to_its_end_leaves_no_threads_and_no_files(split: Split, backend: str) -> None:
    list(build_loader(split, EvalTransform(24, 28), 100, config=LoaderConfig(backend)))
    assert not _penstock_threads()
    assert not _open_shards(split.folder)


@every_backend
def test_an_error_of_the_consumer_leaves_no_threads_and_no_files(split: Split, backend: str) -> None:
    def consume() -> None:
        for batch in build_loader(split, TRAIN, 10, config=LoaderConfig(backend)):
            raise ArithmeticError(f"the loss is not finite at {batch.position}")

    with pytest.raises(ArithmeticError, match="at 0"):
        consume()
    assert not _penstock_threads()
    assert not _open_shards(split.folder)


LEAVE_OPEN = """
import sys, types
from loaders import LoaderConfig, Split, TrainTransform, build_loader
batches = iter(build_loader(Split(sys.argv[1], "validation"), TrainTransform(24), 60, config=LoaderConfig(sys.argv[2])))
next(batches)
# Something that Python unloads late may still refer to the batches.
types.kept = batches
"""


@every_backend
def test_a_process_may_end_with_a_loader_open(ranks: Ranks, digits: Path, tmp_path: Path, backend: str) -> None:
    """DALI aborts a process that ends while a thread runs its pipeline."""
    done = run_command("-c", LEAVE_OPEN, digits, backend)
    assert (done.returncode, done.stderr) == (0, "")
    for _ in range(5):  # forked processes, which start at once and end as others do
        assert ranks.run("leave-open", 1, tmp_path, root=str(digits), backend=backend) == [Ended(0, "")]
