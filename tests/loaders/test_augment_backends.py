"""The contract of every backend for augmented images: Pillow's operations on its own images, bit-identical."""

import re
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from loaders import (
    AugmentConfig,
    Batch,
    Loader,
    LoaderConfig,
    Sampling,
    Split,
    TrainTransform,
    World,
    build,
    build_loader,
)
from loaders.augment import OPS, Op
from loaders.backends import BACKENDS
from loaders.reference import PILLOW_OPS, apply_ops
from prep.errors import InputError

PLAIN = TrainTransform(size=32)
RAND = replace(PLAIN, augment=AugmentConfig("rand", probability=1))
TRIVIAL = replace(PLAIN, augment=AugmentConfig("trivial"))
DECODING = sorted(set(BACKENDS) - {"synthetic"})
BATCH_SIZE = 60

every_backend = pytest.mark.parametrize("backend", BACKENDS)
decoding_backend = pytest.mark.parametrize("backend", DECODING)
both_kinds = pytest.mark.parametrize("transform", [RAND, TRIVIAL], ids=["rand", "trivial"])


@pytest.fixture(scope="module")
def split(digits: Path) -> Split:
    return Split(digits, "validation")


def _loader(split: Split, transform: TrainTransform, backend: str, world: World | None = None) -> Loader:
    return build_loader(split, transform, BATCH_SIZE, world, Sampling(1, repeats=2), LoaderConfig(backend))


def _take(loader: Loader, num_batches: int) -> list[Batch]:
    return list(islice(loader, num_batches))


@every_backend
@both_kinds
def test_an_augmented_batch_has_the_form_of_any_other(split: Split, backend: str, transform: TrainTransform) -> None:
    for batch in _take(_loader(split, transform, backend), 2):
        assert (batch.images_BCHW.shape, batch.images_BCHW.dtype) == ((BATCH_SIZE, 3, 32, 32), torch.uint8)
        assert batch.images_BCHW.is_contiguous(memory_format=torch.channels_last)
        assert batch.labels_B.tolist() == split.column("label")[batch.rows_B].tolist()


@decoding_backend
@both_kinds
def test_a_backend_does_pillows_operations_to_its_own_images(
    split: Split, backend: str, transform: TrainTransform
) -> None:
    loader, seen = _loader(split, transform, backend), set()
    plain, augmented = _take(_loader(split, PLAIN, backend), 6), _take(loader, 6)
    for before, after in zip(plain, augmented, strict=True):
        plan = loader.plan(after.position)
        seen |= set(plan.ops_BL.ravel().tolist())
        for i in range(BATCH_SIZE):
            image = Image.fromarray(before.images_BCHW[i].permute(1, 2, 0).contiguous().numpy())
            wanted_HWC = np.asarray(apply_ops(image, plan, i))
            assert (after.images_BCHW[i].permute(1, 2, 0).numpy() == wanted_HWC).all(), plan.ops_BL[i]
    assert seen == set(OPS[transform.augment.kind])


@both_kinds
def test_dali_shows_what_the_reference_shows(split: Split, transform: TrainTransform) -> None:
    """Images that differed by 1 of 255 before may differ by more: equalised, or solarised at the very threshold."""
    small = replace(transform, size=8)  # digits that shrink: enlarged ones are the same to the bit
    dali, reference = (_take(_loader(split, small, backend), 6) for backend in ("dali", "reference"))
    apart = torch.cat(
        [(a.images_BCHW.int() - b.images_BCHW.int()).abs() for a, b in zip(dali, reference, strict=True)]
    ).float()
    assert apart.mean() < 0.1  # measured: 0.02 and 0.01
    assert apart.mean(dim=(1, 2, 3)).median() == 0


@decoding_backend
def test_ranks_share_out_an_augmented_batch_and_a_resumed_stream_is_the_same(split: Split, backend: str) -> None:
    uninterrupted = _take(_loader(split, RAND, backend), 8)  # the seventh batch begins the second epoch
    saved = _loader(split, RAND, backend, World(1, 2))
    _take(saved, 5)
    parts = []
    for rank in range(3):
        resumed = _loader(split, RAND, backend, World(rank, 3))
        resumed.load_state_dict(saved.state_dict())
        parts.append(_take(resumed, 3))
    for whole, *shares in zip(uninterrupted[5:], *parts, strict=True):
        assert torch.equal(torch.cat([share.images_BCHW for share in shares]), whole.images_BCHW)
        assert np.concatenate([share.rows_B for share in shares]).tolist() == whole.rows_B.tolist()


@decoding_backend
def test_repeats_of_an_image_come_one_after_the_other_and_look_different(split: Split, backend: str) -> None:
    batch = _take(_loader(split, PLAIN, backend), 1)[0]
    assert batch.rows_B[::2].tolist() == batch.rows_B[1::2].tolist() and len(set(batch.rows_B.tolist())) == 30
    assert (batch.images_BCHW[::2] != batch.images_BCHW[1::2]).flatten(1).any(dim=1).float().mean() > 0.9


@decoding_backend
def test_augmented_images_grow_in_the_middle_of_a_stream(split: Split, backend: str) -> None:
    """Return each batch alone, from a loader that starts there."""
    growing = replace(RAND, size=64, first_size=32, grow=(0, 1))
    batches = _take(_loader(split, growing, backend), 8)
    assert [batch.images_BCHW.shape[-1] for batch in batches] == [32] * 6 + [64] * 2
    for batch in batches[5:]:
        alone = _loader(split, growing, backend)
        alone.load_state_dict({**alone.state_dict(), "position": batch.position})
        assert torch.equal(next(iter(alone)).images_BCHW, batch.images_BCHW)


def test_a_state_of_before_there_were_repeats_is_of_none(split: Split) -> None:
    once = build_loader(split, PLAIN, BATCH_SIZE)
    old = {name: value for name, value in once.state_dict().items() if name != "repeats"} | {"position": 60}
    once.load_state_dict(old)
    assert once.position == 60
    with pytest.raises(InputError, match=r"the saved position belongs to repeats 1, but .* is read with repeats 2"):
        build_loader(split, PLAIN, BATCH_SIZE, sampling=Sampling(repeats=2)).load_state_dict(old)


def test_any_training_loop_gets_repeats_and_augmentation(digits: Path) -> None:
    with_options = build(digits, "train", BATCH_SIZE, RAND, "uint8", seed=1, repeats=2, backend="reference")
    images, _ = next(iter(with_options))
    assert torch.equal(images, _take(_loader(Split(digits, "train"), RAND, "reference"), 1)[0].images_BCHW)
    with_options.close()


@decoding_backend
def test_an_operation_that_a_backend_lacks_is_refused_by_name(
    split: Split, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(PILLOW_OPS, Op.SOLARIZE_ADD)
    monkeypatch.delitem(PILLOW_OPS, Op.SHEAR_X)
    with pytest.raises(InputError, match=f"the backend {backend} does not support solarize_add, shear_x here: choose"):
        _loader(split, RAND, backend)
    with pytest.raises(InputError, match=f"the backend {backend} does not support shear_x here"):
        _loader(split, TRIVIAL, backend)
    assert _loader(split, PLAIN, backend)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (AugmentConfig("auto"), "augment must be one of none, rand, trivial, got 'auto'"),  # pyright: ignore[reportArgumentType]
        (AugmentConfig("rand", num_ops=0), "num_ops must be at least 1, got 0"),
        (AugmentConfig("rand", magnitude=11), "magnitude must be between 0 and 10, got 11"),
        (AugmentConfig("rand", std=-1), "std must be at least 0 and finite, got -1"),
        (AugmentConfig("rand", std=float("nan")), "got nan"),
        (AugmentConfig("rand", probability=1.5), "probability must be between 0 and 1, got 1.5"),
    ],
)
def test_augmentation_that_cannot_work_is_refused(split: Split, config: AugmentConfig, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        build_loader(split, replace(PLAIN, augment=config), 10)
