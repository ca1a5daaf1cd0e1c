"""serve computes the same as the library grad-cam, and as evaluation on photographs; it keeps no memory."""

import csv
import gc
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from helpers.evaluations import CPU, one_thread, save, tiny_recipe
from helpers.served import run_here
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import nn
from torch.nn import functional

from loaders import EvalTransform, LoaderConfig, Split, build_loader
from loaders.batch import Normalize
from serve.artifact import load_artifact
from serve.cam import GradCam
from serve.image_sources import open_images
from serve.pictures import decode_image
from serve.predict import Prediction, predict_probabilities, predict_rows
from serve.preprocess import show_crop, to_tensor
from train.model import build_model

NUM_CAMS = int(os.environ.get("PENSTOCK_SOAK_CAMS", "60"))
MIB = 2**20


def waken(model: nn.Module, images_BCHW: torch.Tensor) -> nn.Module:
    """A network in which every weight matters, with running statistics of real inputs: as timm starts one, residual
    branches add nothing."""
    torch.manual_seed(113)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.3)
            module.momentum = 1.0
    with torch.no_grad():
        model.train()(images_BCHW)
    return model.eval()


@contextmanager
def oracle(model: Any, layer: nn.Module) -> Iterator[Any]:
    """Maps of the library: (image [3, H, W], class) -> [H, W], from 0 to 1."""
    target: Any = ClassifierOutputTarget
    with GradCAM(model=model, target_layers=[layer]) as cam:
        yield lambda image_CHW, kind: cam(input_tensor=image_CHW[None], targets=[target(kind)])[0]


@one_thread()
def test_the_maps_are_those_of_the_library_grad_cam() -> None:
    torch.manual_seed(0)
    model = waken(timm.create_model("resnet50d", num_classes=1000), torch.randn(2, 3, 160, 160))
    cam, image_CHW = GradCam(model, 160), torch.randn(3, 160, 160)
    classes = (0, 7, 500)
    # The library enlarges bilinearly; `cam(image_CHW, classes)` does it by a cubic (tests/serve/test_maps.py).
    raw_Thw = cam.raw(image_CHW, classes)
    maps_THW = functional.interpolate(raw_Thw[:, None], (160, 160), mode="bilinear")[:, 0]
    maps_THW = (maps_THW / maps_THW.amax((1, 2), keepdim=True)).numpy()
    with oracle(model, cam.stage.module) as theirs:
        for map_HW, kind in zip(maps_THW, classes, strict=True):
            expected_HW = theirs(image_CHW, kind)
            assert 0.01 < expected_HW.mean() < 0.9
            np.testing.assert_allclose(stretch(map_HW), stretch(expected_HW), rtol=0, atol=1e-5)
    assert np.abs(maps_THW[0] - maps_THW[1]).max() > 0.1


def stretch(map_HW: np.ndarray) -> np.ndarray:
    """From 0 to 1: the library subtracts the lowest and divides by the highest plus 1e-7, ours starts at 0."""
    return (map_HW - map_HW.min()) / np.ptp(map_HW)


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def count_tensors() -> int:
    gc.collect()
    return sum(issubclass(type(each), torch.Tensor) for each in gc.get_objects())


@one_thread()
def test_memory_is_flat_over_many_maps() -> None:
    torch.manual_seed(0)
    cam = GradCam(timm.create_model("test_resnet", num_classes=10).eval(), 160)

    def draw(count: int) -> None:
        for number in range(count):
            cam(torch.randn(3, 160, 160), (number % 10, (number + 1) % 10))

    draw(NUM_CAMS // 4 + 10)  # until the allocator has what it wants
    tensors, hooks, memory = count_tensors(), len(cam.stage.module._forward_hooks), resident()
    draw(NUM_CAMS)
    assert (count_tensors(), len(cam.stage.module._forward_hooks)) == (tensors, hooks)
    grown = (resident() - memory) / MIB
    assert grown < 16, f"{grown:.1f} MiB after {NUM_CAMS} pictures of which each map takes 0.2"


def evaluate_photographs(data: Path, folder: Path) -> tuple[list[dict[str, str]], Path, list[list[int]]]:
    """Return evaluation's results for 80 photographs: images.csv, the export, and the top five classes of each."""
    torch.manual_seed(0)
    recipe = replace(tiny_recipe(data), evaluation=EvalTransform(224, 256))
    split = Split(data, "validation")
    loader = build_loader(split, recipe.evaluation, 80, config=LoaderConfig("reference"))
    images_BCHW = Normalize()(next(iter(loader)).images_BCHW)
    model: Any = waken(build_model(recipe.model, 1000, CPU), images_BCHW)
    with torch.no_grad():
        spread = model(images_BCHW).std(0).mean()
        model.get_classifier().weight.mul_(2 / spread)  # so that it is sure of something
        tops_BT = model(images_BCHW).topk(5).indices.tolist()
    path = save(folder, recipe, model, model)
    run_here(
        *("train/evaluate.py", path, "--backend", "reference", "--device", "cpu"),
        *("--model", "ema", "--out", folder / "scores"),
    )
    run_here("train/export.py", path, "--out", folder / "artifact", "--scores", folder / "scores" / "scores.json")
    with (folder / "scores" / "images.csv").open(newline="") as file:
        return list(csv.DictReader(file)), folder / "artifact", tops_BT


@one_thread()
def test_photographs_are_judged_as_evaluation_judges_them(imagenet_samples: Path, tmp_path: Path) -> None:
    lines, artifact, tops_BT = evaluate_photographs(imagenet_samples, tmp_path)
    served = load_artifact(artifact)
    source = open_images(imagenet_samples / "validation", 1000, served.class_names)
    verdicts = predict_rows(served, source, range(80))
    assert len(lines) == len(verdicts) == 80
    for line, each, top_T, encoded in zip(lines, verdicts, tops_BT, source.read(range(80)), strict=True):
        check_alike(line, each)
        picture = decode_image(encoded.content)
        assert picture is not None
        image_CHW = to_tensor(show_crop(picture, served.preprocessing), served.preprocessing)
        assert predict_probabilities(served, image_CHW[None])[0].topk(5).indices.tolist() == top_T
    assert len({each.guess for each in verdicts}) > 8 and np.ptp([each.confidence for each in verdicts]) > 0.1


def check_alike(line: dict[str, str], verdict: Prediction) -> None:
    """An image's line of evaluation, and its verdict."""
    assert (line["key"], int(line["label"])) == (verdict.key, verdict.label)
    assert (int(line["ema_predicted"]), line["ema_top5"] == "1") == (verdict.guess, verdict.in_top5)
    assert verdict.confidence == pytest.approx(float(line["ema_confidence"]), abs=1e-3)
    assert verdict.true_confidence == pytest.approx(math.exp(-float(line["ema_loss"])), abs=1e-3)
