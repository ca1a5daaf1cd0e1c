# pyright: reportAttributeAccessIssue=false, reportArgumentType=false
"""DALI's graphs for a GPU: each option defines one that serializes, and on the CPU it makes the reference's pixels.

No GPU takes part. A graph without a device serializes anywhere; to run it, only its decoder is moved to the CPU. What
nvJPEG and CUDA round otherwise is left to the tests that need a GPU.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import nvidia.dali
import pytest
import torch

from loaders import AugmentConfig, EvalTransform, LoaderConfig, Split, TrainTransform, build_loader, dali_graph
from loaders.backends import BackendSpec
from loaders.dali import make_inputs
from loaders.reader import Reader
from loaders.stats import Counters

TRANSFORMS = {
    "train": TrainTransform(48),
    "evaluation": EvalTransform(48, 55),
    "rand": TrainTransform(48, augment=AugmentConfig("rand")),
    "trivial": TrainTransform(48, augment=AugmentConfig("trivial")),
}
every_decode = pytest.mark.parametrize("decode", ["roi", "full"])
every_transform = pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)


def gpu_spec(split: Split, transform: TrainTransform | EvalTransform, decode: str) -> BackendSpec:
    """Return what a GPU's backend is built for; the device has no number, so that no GPU is looked for."""
    loader = build_loader(split, transform, 20, config=LoaderConfig(decode=decode, num_threads=2))
    return replace(
        loader.make_spec(), decodes_on_gpu=True, device=torch.device("cuda"), width_hint=500, height_hint=375
    )


@pytest.fixture
def defined(monkeypatch: pytest.MonkeyPatch) -> list[nvidia.dali.Pipeline]:
    """Collects the pipelines that are defined, instead of building them."""
    pipelines: list[nvidia.dali.Pipeline] = []
    monkeypatch.setattr(nvidia.dali.Pipeline, "build", lambda self: pipelines.append(self))  # noqa: PLW0108
    return pipelines


@every_decode
@every_transform
@pytest.mark.parametrize("hw_decoder_load", [0.0, 0.65, 1.0])
def test_every_graph_of_a_gpu_is_defined_and_serializes(
    digits: Path,
    defined: list[nvidia.dali.Pipeline],
    transform: TrainTransform | EvalTransform,
    decode: str,
    hw_decoder_load: float,
) -> None:
    spec = replace(gpu_spec(Split(digits, "train"), transform, decode), hw_decoder_load=hw_decoder_load)
    dali_graph.build_pipeline(spec, iter([]))
    (pipeline,) = defined
    assert len(pipeline.serialize()) > 1000
    on_gpu = [each.name for each in pipeline._ops or () if each._op.device == "gpu"]
    assert any("Resize" in name for name in on_gpu)
    if isinstance(transform, EvalTransform):
        # A constant on the GPU that a slice takes its shape from would make DALI's thread wait for the GPU each batch.
        assert not [name for name in on_gpu if "Constant" in name]


@every_decode
@pytest.mark.parametrize("transform", [TRANSFORMS["train"], TRANSFORMS["evaluation"]], ids=["train", "evaluation"])
def test_the_graph_of_a_gpu_makes_the_reference_pixels_on_the_cpu(
    digits: Path, monkeypatch: pytest.MonkeyPatch, transform: TrainTransform | EvalTransform, decode: str
) -> None:
    monkeypatch.setattr(dali_graph, "_device_options", lambda _: {"device": "cpu"})
    split = Split(digits, "train")
    spec = gpu_spec(split, transform, decode)
    plan = build_loader(split, transform, 20).plan(0)
    with Reader(split, 1, 1, Counters()) as reader:
        (pair,) = reader.read([plan])
        pipeline = dali_graph.build_pipeline(spec, iter([make_inputs(*pair, spec)]))
        images_BHWC = np.array(pipeline.run()[0].as_tensor())
    reference = next(iter(build_loader(split, transform, 20, config=LoaderConfig("reference"))))
    apart_BHWC = np.abs(images_BHWC.astype(int) - reference.images_BCHW.permute(0, 2, 3, 1).numpy())
    assert images_BHWC.shape == (20, 48, 48, 3)
    # DALI repeats the border of a window where Pillow leaves out what is beyond it: single pixels differ by more.
    assert apart_BHWC.mean(axis=(1, 2, 3)).max() < 0.5
