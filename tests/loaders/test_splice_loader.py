"""Training from shards with segments shows the same pixels as from complete images, and reads less."""

import logging
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from loaders import (
    AugmentConfig,
    Batch,
    EvalTransform,
    Loader,
    LoaderConfig,
    OrderKind,
    Sampling,
    Split,
    TrainTransform,
    World,
    build_loader,
    compiled,
    select,
)
from loaders.config import SpliceKind
from loaders.world import log_once
from prep.errors import InputError
from prep.segments import HEADER, RECORD, lengths_of

BATCH_SIZE, NUM_BATCHES = 24, 10
Pair = tuple[Path, Path]  # the same images without and with restart markers

both_backends = pytest.mark.parametrize("backend", ["dali", "reference"])


def _loader(root: Path, config: LoaderConfig, *, part: bool = False, **others: Any) -> Loader:
    split = Split(root, "train")
    transform = others.pop("transform", TrainTransform(size=48))
    return build_loader(select(split, 0.7) if part else split, transform, BATCH_SIZE, config=config, **others)


def _take(loader: Loader, num_batches: int = NUM_BATCHES) -> list[Batch]:
    return list(islice(loader, num_batches))


def _assert_equal(ours: list[Batch], theirs: list[Batch]) -> None:
    assert len(ours) == len(theirs) > 0
    for one, other in zip(ours, theirs, strict=True):
        assert one.position == other.position and one.rows_B.tolist() == other.rows_B.tolist()
        assert torch.equal(one.labels_B, other.labels_B) and torch.equal(one.images_BCHW, other.images_BCHW)


@both_backends
@pytest.mark.parametrize("order", ["shuffle", "blocks"])
@pytest.mark.parametrize("decode", ["roi", "full"])
def test_batches_are_those_of_complete_images(restart_pair: Pair, backend: str, order: OrderKind, decode: Any) -> None:
    original, restarts = restart_pair
    sampling = Sampling(4, order, repeats=2)
    choices: list[tuple[Path, SpliceKind]] = [(original, "auto"), (restarts, "off"), (restarts, "auto")]
    loaders = [
        _loader(root, LoaderConfig(backend, splice=splice, decode=decode), sampling=sampling, part=order == "blocks")
        for root, splice in choices
    ]
    plain, whole, spliced = map(_take, loaders)
    _assert_equal(whole, plain)
    _assert_equal(spliced, plain)
    for loader in loaders[:2]:
        stats = loader.stats()
        assert stats.decode_bytes == stats.read_bytes == stats.image_bytes > 0
    stats = loaders[2].stats()
    assert stats.decode_bytes < stats.read_bytes < stats.image_bytes


@both_backends
def test_operations_and_a_progressive_resolution_see_the_same_pixels(restart_pair: Pair, backend: str) -> None:
    transform = TrainTransform(size=64, first_size=32, grow=(0, 2), augment=AugmentConfig("rand"))
    plain, spliced = (_take(_loader(root, LoaderConfig(backend), transform=transform)) for root in restart_pair)
    _assert_equal(spliced, plain)
    assert len({batch.images_BCHW.shape for batch in spliced}) == 2


@both_backends
def test_two_ranks_share_the_batches_of_one(restart_pair: Pair, backend: str) -> None:
    one = _take(_loader(restart_pair[0], LoaderConfig(backend)))
    halves = [_take(_loader(restart_pair[1], LoaderConfig(backend), world=World(rank, 2))) for rank in range(2)]
    for whole, *parts in zip(one, *halves, strict=True):
        assert torch.equal(whole.images_BCHW, torch.cat([part.images_BCHW for part in parts]))


def test_a_state_continues_with_or_without_splicing(restart_pair: Pair) -> None:
    config = LoaderConfig("dali")
    first = _loader(restart_pair[1], config)
    undisturbed = _take(first)
    half = _loader(restart_pair[1], config)
    _take(half, 4)
    for each in (config, LoaderConfig("dali", splice="off")):
        second = _loader(restart_pair[1], each)
        second.load_state_dict(half.state_dict())
        _assert_equal(_take(second, NUM_BATCHES - 4), undisturbed[4:])
    assert set(half.state_dict()) == {"dataset", "seed", "order", "repeats", "position", "damaged"}


@both_backends
def test_evaluation_reads_complete_images(restart_pair: Pair, backend: str) -> None:
    transform = EvalTransform(48, 56)
    plain, ours = (_loader(root, LoaderConfig(backend), transform=transform) for root in restart_pair)
    _assert_equal(list(ours), list(plain))
    assert ours.stats().read_bytes == ours.stats().image_bytes == ours.stats().decode_bytes


def test_only_auto_and_off_are_choices(restart_pair: Pair) -> None:
    with pytest.raises(InputError, match="splice must be one of auto, off, got 'on'"):
        _loader(restart_pair[1], LoaderConfig(splice="on"))  # pyright: ignore[reportArgumentType]


# Images that do not decode.


def _find_tables(split: Split, row: int) -> tuple[Path, int, Any]:
    """Return the tar with an image, the offset of its tables there, and its record."""
    content, place = split.segments_path(row // 32).read_bytes(), HEADER.itemsize + row % 32 * RECORD.itemsize
    record = np.frombuffer(content, RECORD, 1, place)[0].copy()
    return split.shard_paths[row // 32], int(split.column("offset")[row]) + int(record["tables_start"]), record


def _write(path: Path, place: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(place)
        file.write(content)


@both_backends
def test_an_image_that_is_damaged_is_quarantined_and_named_once(
    restarts_copy: Path, restart_pair: Pair, backend: str, caplog: pytest.LogCaptureFixture
) -> None:
    split, row = Split(restarts_copy, "train"), 40
    tar, place, record = _find_tables(split, row)
    # A Huffman table with more codes than there can be.
    tables = tar.read_bytes()[place : place + int(record["tables_size"])]
    _write(tar, place + tables.index(b"\xff\xc4") + 5, bytes([255] * 16))
    loader = _loader(restarts_copy, LoaderConfig(backend))
    with caplog.at_level(logging.WARNING, "penstock"):
        batches = _take(loader)
    (line,) = [each.getMessage() for each in caplog.records]
    key = split.keys([row])[0]
    assert line.startswith(f"{key} in {tar} cannot be decoded: another image takes its place from now on (")
    assert loader.quarantine.keys() == [key] == loader.state_dict()["damaged"]

    # All others are as they would be without it.
    for ours, plain in zip(batches, _take(_loader(restart_pair[0], LoaderConfig(backend))), strict=True):
        same = ours.rows_B == plain.rows_B
        assert torch.equal(ours.images_BCHW[same], plain.images_BCHW[same]) and set(plain.rows_B[~same]) <= {row}


@both_backends
def test_an_image_that_only_fails_when_it_is_spliced_is_used_whole(
    restarts_copy: Path, restart_pair: Pair, backend: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Its record leaves out the first quantization table."""
    split, row = Split(restarts_copy, "train"), 40
    tar, place, record = _find_tables(split, row)
    tables = tar.read_bytes()[place : place + int(record["tables_size"])]
    assert tables[:2] == b"\xff\xdb"
    size = 2 + int.from_bytes(tables[2:4], "big")
    record["tables_start"] += size
    record["tables_size"] -= size
    record["frame"] -= size
    _write(split.segments_path(1), HEADER.itemsize + row % 32 * RECORD.itemsize, record.tobytes())
    loader = _loader(restarts_copy, LoaderConfig(backend))
    with caplog.at_level(logging.WARNING, "penstock"):
        batches = _take(loader)
    _assert_equal(batches, _take(_loader(restart_pair[0], LoaderConfig(backend))))
    assert loader.whole is not None and loader.whole.rows == {row}
    assert not loader.quarantine.keys()
    (line,) = [each.getMessage() for each in caplog.records]
    reason = "lists segments that the decoder refused, of the image"
    assert line.startswith(f"{split.segments_path(1)} {reason} {split.keys([row])[0]}: ")


@both_backends
def test_damage_outside_of_the_windows_is_not_seen(restarts_copy: Path, restart_pair: Pair, backend: str) -> None:
    """All segments that the first batch does not need are zeros, except the markers at their ends."""
    split, num_zeros = Split(restarts_copy, "train"), 0
    loader, plan = _loader(restarts_copy, LoaderConfig(backend)), _loader(restarts_copy, LoaderConfig(backend)).plan(0)
    with loader.open_reader(1, 1, loader.counters) as reader:
        assert reader.splicer is not None
        spans = reader.splicer.find_spans(plan)
    for i, row in enumerate(plan.rows_B.tolist()):
        tar, place, record = _find_tables(split, row)
        lengths = lengths_of(split.segments_path(row // 32).read_bytes(), record).astype(int)
        ends = place + int(record["tables_size"]) + np.cumsum(lengths)
        rows, columns = np.divmod(np.arange(len(lengths)), spans.columns_B[i])
        is_needed = (rows >= spans.tops_B[i]) & (rows < spans.bottoms_B[i])
        is_needed &= (columns >= spans.lefts_B[i]) & (columns < spans.rights_B[i])
        for end, length in zip(ends[~is_needed].tolist(), lengths[~is_needed].tolist(), strict=True):
            _write(tar, end - length, bytes(length - 2))
            num_zeros += length - 2
    assert num_zeros > 10_000
    _assert_equal(_take(loader, 1), _take(_loader(restart_pair[0], LoaderConfig(backend)), 1))
    assert not loader.quarantine.keys()


def test_without_the_extension_only_the_cpu_decodes_spliced_images(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(compiled, "find_extension", lambda: None)
    log_once.cache_clear()
    assert compiled.splicing_pays(False, World())
    assert not compiled.splicing_pays(True, World(1, 2, local_rank=1, local_size=2)) and not caplog.text
    assert not compiled.splicing_pays(True, World())
    assert "loaders/_read.c was not built" in caplog.text
