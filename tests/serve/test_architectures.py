"""A network is recognised by its tensors, and prepared for as its file records; what was assumed is said."""

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from helpers.checkpoint_kinds import NAME, NUM_CLASSES, SIZE, make_network, save
from PIL import Image
from timm.data import create_transform
from torch import nn

from prep.errors import InputError
from serve.architectures import DEPTHS, TWINS, describe_architecture, recognise
from serve.loading import BareOptions, load_served
from serve.preprocess import Preprocessing, show_crop, to_tensor
from serve.recorded import Settings, make_preprocessing

HALF, TENTH = (0.5, 0.5, 0.5), (0.1, 0.1, 0.1)
ALL = [name for names in DEPTHS.values() for name in names]


def fill(shapes: Any) -> dict[str, torch.Tensor]:
    """Tensors of these shapes that need no memory."""
    return {name: torch.zeros(()).expand(shape) for name, shape in shapes.items()}


def test_each_resnet_is_recognised_as_itself_alone(tmp_path: Path) -> None:
    for name in ALL:
        weights = {f"module.{key}": each for key, each in fill(describe_architecture(name, 224, False).shapes).items()}
        recognised = recognise({"model": weights}, "FILE", 224, None, "")
        assert recognised is not None and recognised.architecture == name
        assert f"network: {name}, recognised by the names and shapes of its tensors" in recognised.notes[0]
        assert all(twin in recognised.notes[0] for twin in TWINS.get(name, ()))


def test_the_twins_are_all_networks_of_the_same_tensors() -> None:
    related = [each for each in timm.list_models("resnet*") if each.startswith(("resnetaa", "resnetblur"))]
    named = {twin for twins in TWINS.values() for twin in twins}
    assert set(related) == named
    for name, twins in TWINS.items():
        shapes = describe_architecture(name, 224, False).shapes
        assert all(describe_architecture(twin, 224, False).shapes == shapes for twin in twins)


def test_recognition_is_fast() -> None:
    describe_architecture.cache_clear()
    weights = fill(describe_architecture("resnext101_32x8d", 224, False).shapes)
    describe_architecture.cache_clear()
    started = time.process_time()
    assert recognise(weights, "FILE", 224, None, "") is not None
    assert time.process_time() - started < 2


@pytest.mark.parametrize("name", ["resnet18", "resnet34"])
def test_torchvisions_networks_compute_the_same_as_timms(tmp_path: Path, name: str) -> None:
    torch.manual_seed(0)
    theirs: Any = torchvision.models.get_model(name, weights=None, num_classes=3).eval()
    served = load_served(save(theirs.state_dict(), tmp_path / "w.pth"))
    image_BCHW = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(served.model(image_BCHW), theirs(image_BCHW))
    assert served.num_classes == 3 and served.name == f"{name} from w.pth"


@pytest.mark.parametrize(
    "extra",
    [
        {"arch": NAME},
        {"args": argparse.Namespace(model=NAME)},
        {"config": {"architecture": NAME}},
        {"hyper_parameters": {"model_name": NAME}},
    ],
)
def test_the_name_that_a_file_records_is_used(tmp_path: Path, extra: dict[str, Any]) -> None:
    served = load_served(save({"state_dict": make_network(1).state_dict(), **extra}, tmp_path / "w.pth"))
    assert f"network: {NAME}, as w.pth records" in served.notes


def test_a_recorded_name_that_does_not_fit_is_not_believed(tmp_path: Path) -> None:
    content = {"state_dict": make_network(1).state_dict(), "arch": "resnet18"}
    assert f"network: {NAME}, recognised by" in load_served(save(content, tmp_path / "w.pth")).notes[0]


def test_a_network_that_is_no_resnet_is_taken_by_its_recorded_name(tmp_path: Path) -> None:
    weights = make_network(1, "test_vit", 4).state_dict()
    served = load_served(save({"arch": "test_vit", "state_dict": weights}, tmp_path / "w.pth"), BareOptions(crop=160))
    assert (served.name, served.num_classes) == ("test_vit from w.pth", 4)
    with pytest.raises(InputError, match=r"which records vit_b_16, a name that timm does not know, fits no ResNet"):
        load_served(save({"arch": "vit_b_16", "state_dict": weights}, tmp_path / "w.pth"))


def test_two_networks_in_a_file_are_not_chosen_between(tmp_path: Path) -> None:
    student, teacher = make_network(1), make_network(2, "resnet10t", 5)
    path = save({"student": student.state_dict(), "teacher": teacher.state_dict()}, tmp_path / "w.pth")
    with pytest.raises(InputError, match=r"several networks, test_resnet \(student\) and resnet10t \(teacher\)"):
        load_served(path)
    for options in (BareOptions(model="resnet10t"), BareOptions(weights="teacher")):
        assert load_served(path, options).name.startswith("resnet10t")


# Preprocessing


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("crop", "crop_pct"), [(32, 0.875), (48, 0.95), (64, 1.0)])
def test_pixels_are_those_of_timms_evaluation(interpolation: str, crop: int, crop_pct: float) -> None:
    mean, std = (0.5, 0.4, 0.3), (0.5, 0.6, 0.7)
    given = Settings(crop=crop, crop_pct=crop_pct, mean=mean, std=std, interpolation=interpolation)
    preprocessing, assumed = make_preprocessing(given, Settings())
    pixels_HWC = np.random.default_rng(0).integers(0, 256, (90, 131, 3), np.uint8)
    picture = Image.fromarray(pixels_HWC)
    transform: Any = create_transform(
        (3, crop, crop), interpolation=interpolation, crop_pct=crop_pct, mean=mean, std=std
    )
    ours = to_tensor(show_crop(picture, preprocessing), preprocessing)
    assert not assumed and torch.allclose(ours, transform(picture), atol=1e-6)


def test_what_is_assumed_is_said(tmp_path: Path) -> None:
    path = save(make_network(1).state_dict(), tmp_path / "w.pth")
    note = load_served(path).notes[-1]
    assert note.startswith("preprocessing: short side 256, crop 224, bilinear, mean 0.485 0.456 0.406")
    assert note.endswith("; assumed: crop, interpolation, mean, std, resize")
    options = BareOptions(crop=SIZE, crop_pct=0.8, mean=HALF, std=HALF, interpolation="bicubic")
    served = load_served(path, options)
    assert served.notes[-1].endswith("short side 40, crop 32, bicubic, mean 0.5 0.5 0.5, std 0.5 0.5 0.5")
    assert served.preprocessing == Preprocessing(40, 32, HALF, HALF, "bicubic")
    with pytest.raises(InputError, match="--resize and --crop_pct both give the short side"):
        load_served(path, BareOptions(resize=40, crop_pct=0.8))
    with pytest.raises(InputError, match=r"crop_pct must be above 0 and at most 1, got 1\.5"):
        load_served(path, BareOptions(crop_pct=1.5))


def test_the_command_line_in_a_checkpoint_decides(tmp_path: Path) -> None:
    weights = make_network(1).state_dict()
    timms = argparse.Namespace(model=NAME, crop_pct=0.5, interpolation="bicubic", mean=[0.1] * 3, std=None, img_size=64)
    served = load_served(save({"state_dict": weights, "args": timms}, tmp_path / "timm.pth"))
    config: Any = timm.get_pretrained_cfg(NAME)
    assert served.preprocessing == Preprocessing(128, 64, TENTH, config.std, "bicubic")
    assert served.notes[-1].endswith("recorded by args, as timm's train.py uses them")

    torchvisions = argparse.Namespace(model=NAME, val_resize_size=36, val_crop_size=SIZE, interpolation="bilinear")
    path = save({"model": weights, "args": torchvisions}, tmp_path / "tv.pth")
    served = load_served(path, BareOptions(interpolation="bicubic"))
    assert served.preprocessing == Preprocessing(36, SIZE, interpolation="bicubic")
    assert served.notes[-1].endswith("; assumed: mean, std")


def test_damaged_numbers_are_refused_by_name(tmp_path: Path) -> None:
    model = make_network(1)
    nn.init.constant_(model.layer1[0].conv1.weight, float("nan"))
    with pytest.raises(InputError, match=r"layer1\.0\.conv1\.weight contains NaN or infinity"):
        load_served(save({"model": model.state_dict()}, tmp_path / "w.pth"), BareOptions(num_classes=NUM_CLASSES))
