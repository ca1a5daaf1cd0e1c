# pyright: reportAttributeAccessIssue=false, reportCallIssue=false, reportArgumentType=false, reportGeneralTypeIssues=false
# (DALI builds its operators at run time; its stubs do not know them)
"""The GPU's part of augmentation, run on the CPU: each operation against Pillow's, as docs/loading.md states it."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nvidia.dali import fn, pipeline_def, types
from PIL import Image
from sklearn.datasets import load_sample_images

from loaders import LoaderConfig, Split, World, build_loader, dali_graph
from loaders.augment import AugmentConfig, Op, draw_ops
from loaders.augment_dali import AFFINE_PARTS, DALI_OPS, apply_ops, augment_arrays
from loaders.dali import make_inputs
from loaders.order import Sampling
from loaders.plan import Images, Plan, TrainTransform, train_plan
from loaders.reader import Reader
from loaders.reference import apply_ops as augment_by_pillow
from loaders.stats import Counters
from prep.errors import InputError

SIZE = 224
NUM_ARGUMENTS = 7
RAND = AugmentConfig("rand", probability=1)


@dataclass(frozen=True)
class Bound:
    """The allowed differences between DALI's and Pillow's images, in 255ths."""

    mean: float = 0.0  # of the worst image
    most: int = 0  # of a pixel
    share_beyond: float = 0.0  # of pixels that may be further, one at a border that is the fill in one of the two


INEXACT = {
    Op.EQUALIZE: Bound(0.4, 1),
    Op.ROTATE: Bound(0.05, 1, 1e-5),
    **dict.fromkeys(AFFINE_PARTS, Bound(0.08, 1)),
}


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    """Photographs, cut out in several places; noise, one colour, and two: uint8 [B, H, W, 3]."""
    cuts = [picture[top : top + SIZE, 100 : 100 + SIZE] for picture in load_sample_images().images for top in (0, 190)]
    noise = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), np.uint8)
    flat = np.full_like(noise, (7, 130, 255))
    return np.stack([*cuts, noise, flat, np.where(np.arange(SIZE)[:, None, None] < 70, flat, flat // 2)])


def _plan(num_images: int, config: AugmentConfig) -> Plan:
    sides = np.full(num_images, SIZE)
    return train_plan(Sampling(), 0, range(num_images), Images(sides, sides), TrainTransform(SIZE, augment=config))


def _run(plan: Plan, images_BHWC: np.ndarray) -> np.ndarray:
    """The images after a plan's operations in DALI's graph, on the CPU."""
    arrays = [images_BHWC, *augment_arrays(plan)]

    @pipeline_def(batch_size=len(images_BHWC), num_threads=2, device_id=None, enable_conditionals=True)
    def graph() -> Any:
        kinds = [types.UINT8, types.INT32, types.FLOAT, types.FLOAT]
        images, *others = fn.external_source(
            source=lambda: arrays, num_outputs=4, batch=True, dtype=kinds, ndim=[3, 1, 1, 3], layout=["HWC", "", "", ""]
        )
        return apply_ops(images, *others, plan.ops_BL.shape[1])

    pipeline: Any = graph()
    pipeline.build()
    return pipeline.run()[0].as_array()


def _run_pillow(plan: Plan, images_BHWC: np.ndarray) -> np.ndarray:
    images = [augment_by_pillow(Image.fromarray(image), plan, i) for i, image in enumerate(images_BHWC)]
    return np.stack([np.asarray(image) for image in images])


def _arguments(op: Op) -> np.ndarray:
    """Arguments that are drawn for an operation, from the lowest to the highest."""
    noisy = AugmentConfig("rand", std=6)
    found = []
    for config in (noisy, replace(noisy, increasing=True), AugmentConfig("trivial")):
        draws_4BL = np.random.default_rng(0).random((4, 3000, config.num_layers))
        ops_BL, arguments_BL = draw_ops(config, draws_4BL, SIZE)
        found.append(arguments_BL[ops_BL == op])
    values = np.unique(np.concatenate(found))
    return values[np.linspace(0, len(values) - 1, NUM_ARGUMENTS).round().astype(int)]


@pytest.mark.parametrize("op", list(Op), ids=lambda op: op.name.lower())
def test_an_operation_of_the_graph_is_pillows(op: Op, pictures: np.ndarray) -> None:
    arguments_BL = np.tile(_arguments(op), len(pictures))[:, None]
    images_BHWC = np.repeat(pictures, NUM_ARGUMENTS, axis=0)
    plan = replace(_plan(1, RAND), ops_BL=np.full(arguments_BL.shape, op), arguments_BL=arguments_BL)
    expected_BHWC = _run_pillow(plan, images_BHWC)
    assert op == Op.IDENTITY or (expected_BHWC != images_BHWC).any()  # else nothing is compared
    apart_BHWC = np.abs(_run(plan, images_BHWC).astype(np.int16) - expected_BHWC)
    bound, mean = INEXACT.get(op, Bound()), apart_BHWC.mean(axis=(1, 2, 3)).max()
    assert mean <= bound.mean
    assert (apart_BHWC > bound.most).mean() <= bound.share_beyond


def test_each_image_of_a_batch_goes_through_its_own_operations_in_their_order(pictures: np.ndarray) -> None:
    """Exactly as by Pillow where the operations are exact; else an error of 1 may grow in the next one."""
    plan, images_BHWC = _plan(70, RAND), np.tile(pictures, (10, 1, 1, 1))
    apart_B = np.abs(_run(plan, images_BHWC).astype(np.int16) - _run_pillow(plan, images_BHWC)).mean(axis=(1, 2, 3))
    is_exact_B = ~np.isin(plan.ops_BL, list(INEXACT)).any(axis=1)
    assert len(np.unique(plan.ops_BL)) == 15 and is_exact_B.sum() > 15
    assert (apart_B[is_exact_B] == 0).all()
    assert apart_B.mean() < 0.1 and apart_B.max() < 2


def test_the_whole_graph_of_a_gpu_augments_what_it_decodes(digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Built as for a GPU, with all its inputs, but decoding on the CPU."""
    monkeypatch.setattr(dali_graph, "_device_options", lambda _: {"device": "cpu"})
    images = []
    for config in (AugmentConfig(), RAND):
        split, transform = Split(digits, "train"), TrainTransform(32, augment=config)
        loader = build_loader(split, transform, 100, World(), config=LoaderConfig("dali", num_threads=2))
        plan, spec = loader.plan(0), replace(loader.make_spec(), decodes_on_gpu=True)
        with Reader(split, 1, 1, Counters()) as reader:
            (pair,) = reader.read([plan])
            pipeline = dali_graph.build_pipeline(spec, iter([make_inputs(*pair, spec)]))
            images.append(pipeline.run()[0].as_tensor())
    plain_BHWC, augmented_BHWC = (np.array(each) for each in images)
    apart_BHWC = np.abs(augmented_BHWC.astype(np.int16) - _run_pillow(plan, plain_BHWC))
    assert augmented_BHWC.shape == (100, 32, 32, 3) and (augmented_BHWC != plain_BHWC).any()
    assert apart_BHWC.mean() < 0.1


def test_an_operation_that_a_gpu_lacks_is_refused_by_name(digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    split, gpu, transform = Split(digits, "train"), World(device=torch.device("cuda", 0)), TrainTransform(augment=RAND)
    config = LoaderConfig(placement="gpu")
    assert build_loader(split, transform, 10, gpu, config=config)
    monkeypatch.delitem(DALI_OPS, Op.EQUALIZE)
    assert build_loader(split, transform, 10)  # a CPU has it
    assert build_loader(split, transform, 10, gpu, config=LoaderConfig(placement="cpu"))  # whatever trains there
    with pytest.raises(InputError, match="the backend dali does not support equalize here: choose another backend"):
        build_loader(split, transform, 10, gpu, config=config)
