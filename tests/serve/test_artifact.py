"""A model is served only as what it is: every tensor in its place, computing what it recorded, and no code run."""

import argparse
import hashlib
import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from helpers.served import Exported
from safetensors.torch import load_file, save_file

from prep.errors import InputError
from serve.artifact import load_artifact
from serve.loading import BareOptions, load_served

SMALL = BareOptions(model="test_resnet", num_classes=10, resize=20, crop=16)
Weights = dict[str, torch.Tensor]


@pytest.fixture
def copied(exported: Exported, tmp_path: Path) -> Path:
    """A copy of the artifact, to damage."""
    return Path(shutil.copytree(exported.artifact, tmp_path / "artifact"))


def weights_of(exported: Exported) -> Weights:
    return load_file(exported.artifact / "model.safetensors")


def change_facts(folder: Path, **changes: Any) -> None:
    path = folder / "artifact.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def write_weights(folder: Path, weights: Weights) -> None:
    """Other weights with a digest that fits them."""
    save_file(weights, folder / "model.safetensors")
    change_facts(folder, weights_sha256=hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest())


def test_an_artifact_is_loaded_with_all_that_it_says(exported: Exported) -> None:
    served = load_artifact(exported.artifact)
    scores = json.loads((exported.scores / "scores.json").read_text())["ema"]
    assert served.recorded is not None
    assert (served.recorded.num_top1, served.recorded.num_images) == (scores["num_top1"], 360)
    assert served.class_names is not None and served.class_names[:3] == ("zero", "one", "two")
    assert (served.preprocessing.resize, served.preprocessing.crop, served.num_classes) == (20, 16, 10)
    assert not served.model.training
    timms = timm.create_model(f"local-dir:{exported.artifact}", pretrained=True).state_dict()
    assert all(torch.equal(tensor, timms[name]) for name, tensor in served.model.state_dict().items())


def rename(weights: Weights) -> Weights:
    return {name.replace("layer1", "stage1"): tensor for name, tensor in weights.items()}


def nine_classes(weights: Weights) -> Weights:
    return {name: tensor[:9].clone() if name.startswith("fc.") else tensor for name, tensor in weights.items()}


def narrower(weights: Weights) -> Weights:
    return weights | {"conv1.weight" if "conv1.weight" in weights else next(iter(weights)): torch.zeros(3)}


def infinite(weights: Weights) -> Weights:
    return weights | {"bn1.running_var": torch.full_like(weights["bn1.running_var"], torch.inf)}


def negated(weights: Weights) -> Weights:
    return weights | {"fc.weight": -weights["fc.weight"]}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (rename, r"does not fit the network \(missing: layer1\..*unknown: stage1\."),
        (nine_classes, "has 9 classes, expected 10: set --num_classes 9"),
        (narrower, r"of another shape: .* \(3,\) for \("),
        (infinite, r"bn1\.running_var contains NaN or infinity"),
        (negated, "computes other logits than it records"),
    ],
)
def test_other_weights_are_refused(exported: Exported, copied: Path, change: Any, words: str) -> None:
    write_weights(copied, change(weights_of(exported)))
    with pytest.raises(InputError, match=words):
        load_artifact(copied)


def test_a_flipped_bit_and_a_missing_file_are_refused(copied: Path) -> None:
    path = copied / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"its SHA-256 differs"):
        load_artifact(copied)
    path.unlink()
    with pytest.raises(InputError, match=r"model\.safetensors is not what was exported"):
        load_artifact(copied)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format": 2}, "has format 2, expected 1"),
        ({"architecture": "hf-hub:someone/something"}, "timm has no model hf-hub:someone/something"),
        ({"class_names": ["one"]}, "names 1 of 10 classes"),
        ({"golden": {}}, "is damaged"),
        ({"preprocessing": {"interpolation": "bicubic"}}, "must be bilinear, got bicubic"),
    ],
)
def test_wrong_facts_are_refused(copied: Path, changes: dict[str, Any], words: str) -> None:
    change_facts(copied, **changes)
    with pytest.raises(InputError, match=words):
        load_artifact(copied)


@pytest.mark.parametrize("place", [".", "..", "../.."], ids=["checkpoint", "checkpoints", "run"])
def test_a_training_run_is_answered_with_the_command(exported: Exported, place: str) -> None:
    path = (exported.checkpoint / place).resolve()
    if place == "..":
        with pytest.raises(InputError, match=r"make an artifact with `python train/export\.py"):
            load_artifact(path)
        return
    with pytest.raises(InputError, match=rf"python train/export\.py {path} --out {path.name}-export"):
        load_artifact(path)


def test_weights_of_a_checkpoint_are_answered_with_the_command(exported: Exported) -> None:
    path = exported.checkpoint / "ema.safetensors"
    with pytest.raises(InputError, match=rf"python train/export\.py {exported.checkpoint} --out"):
        load_served(path, SMALL)


def test_weights_of_an_artifact_are_not_taken_out_of_it(exported: Exported) -> None:
    with pytest.raises(InputError, match=rf"is part of an artifact.*give the folder {exported.artifact}"):
        load_served(exported.artifact / "model.safetensors", SMALL)


def test_bare_weights_in_each_usual_file_are_the_same(exported: Exported, tmp_path: Path) -> None:
    weights = weights_of(exported)
    wrapped = {f"module._orig_mod.{name}": tensor for name, tensor in weights.items()}
    other = {name: torch.zeros_like(tensor) for name, tensor in weights.items()}
    timms = {"args": argparse.Namespace(lr=0.1), "state_dict": other, "state_dict_ema": wrapped, "epoch": 3}
    torch.save(weights, tmp_path / "plain.pth")
    torch.save(timms, tmp_path / "last.pth.tar")
    save_file(weights, tmp_path / "plain.safetensors")
    for name in ("plain.pth", "last.pth.tar", "plain.safetensors"):
        model = load_served(tmp_path / name, SMALL).model
        assert all(torch.equal(tensor, weights[key]) for key, tensor in model.state_dict().items()), name


class Bomb:
    """Runs a command when it is unpickled without care."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_that_would_run_code_is_refused_and_not_run(tmp_path: Path, legacy: bool) -> None:
    marker, path = tmp_path / "ran", tmp_path / "bomb.pth.tar"
    torch.save({"state_dict": Bomb(marker)}, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(InputError, match=r"bomb\.pth\.tar holds more than tensors, or is damaged; nothing in it was"):
        load_served(path, SMALL)
    assert not marker.exists()
    pickle.loads(pickle.dumps(Bomb(marker)))
    assert marker.exists(), "the pickle is one that runs"


@pytest.mark.parametrize("name", ["noise.pth", "noise.safetensors", "missing.pth"])
def test_a_file_that_is_not_weights_is_refused_in_a_line(tmp_path: Path, name: str) -> None:
    if name != "missing.pth":
        (tmp_path / name).write_bytes(b"not weights" * 50)
    with pytest.raises(InputError, match=name):
        load_served(tmp_path / name, SMALL)
