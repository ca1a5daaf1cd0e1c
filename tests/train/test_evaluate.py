"""Evaluation counts every image once, whatever the number of processes and the padding, and says which is which."""

import csv
import io
import json
import os
import shutil
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from helpers.datasets import prepare_folder
from helpers.evaluations import CPU, evaluate, learn, one_thread, save, tiny_recipe
from helpers.ranks import Ranks
from PIL import Image
from sklearn.metrics import confusion_matrix
from torch.nn import functional
from torchvision.transforms import CenterCrop, Compose, Normalize, Resize, ToTensor

from prep.dataset import Options, Split
from train.checkpoint import load_weights, read_meta
from train.config import Recipe
from train.model import build_model

NUM_IMAGES = int(os.environ.get("PENSTOCK_SOAK_IMAGES", "2003"))  # a prime: no batch and no rank divides it
FLAGS = ("--backend", "reference", "--batch-size", "50")
NAMES = ("model", "ema")


@dataclass(frozen=True)
class Trained:
    """A checkpoint and the data to evaluate it on."""

    recipe: Recipe
    path: Path
    data: Path


@dataclass(frozen=True)
class Plain:
    """Results of a plain loop over Pillow's images, one entry per image."""

    keys: list[str]
    labels_N: torch.Tensor
    logits_NK: dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def trained(digits: Path, digits_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Weights that have learnt something, and 2,003 images: the training digits, some of them twice."""
    folder = tmp_path_factory.mktemp("evaluate")
    recipe = tiny_recipe(digits)
    path = save(folder / "run", recipe, *learn(recipe, 80))
    digits_1437 = pq.read_table(next((digits_source / "data").glob("train-*.parquet")))
    (folder / "source" / "data").mkdir(parents=True)
    many = digits_1437.take(np.arange(NUM_IMAGES) % len(digits_1437))
    pq.write_table(many, folder / "source" / "data" / "validation-00000-of-00001.parquet")
    prepare_folder(folder / "source", "validation", folder / "many", Options(images_per_shard=800), num_workers=2)
    return Trained(recipe, path, folder / "many")


@pytest.fixture(scope="module")
def by_three(ranks: Ranks, trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of an evaluation by three processes."""
    folder = tmp_path_factory.mktemp("three")
    printed = evaluate(ranks, 3, folder, trained.path, "--data", trained.data, "--out", folder / "out", *FLAGS)
    assert json.loads(printed) == json.loads((folder / "out" / "scores.json").read_text())
    return folder / "out"


@pytest.fixture(scope="module")
def plain(trained: Trained) -> Plain:
    """Tar by tar, Pillow and torchvision, batches of another size, without padding."""
    recipe = trained.recipe
    models = {name: build_model(recipe.model, 10, CPU) for name in NAMES}
    load_weights(trained.path, **models)
    keys, labels, images = [], [], []
    for path in sorted((trained.data / "validation").glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                content = tar.extractfile(member).read()  # pyright: ignore[reportOptionalMemberAccess]
                if member.name.endswith(".cls"):
                    labels.append(int(content))
                else:
                    keys.append(member.name.removesuffix(".jpg"))
                    images.append(_preprocess(content, recipe))
    with one_thread(), torch.inference_mode():
        batches = torch.stack(images).split(128)
        logits = {name: torch.cat([each.eval()(batch) for batch in batches]) for name, each in models.items()}
    return Plain(keys, torch.tensor(labels), logits)


def _preprocess(encoded: bytes, recipe: Recipe) -> torch.Tensor:
    size, resize = recipe.evaluation.size, recipe.evaluation.resize
    normalize = Normalize(recipe.model.mean, recipe.model.std)
    transform: Any = Compose([Resize(resize), CenterCrop(size), ToTensor(), normalize])
    with Image.open(io.BytesIO(encoded)) as opened:
        return transform(opened.convert("RGB"))


def _read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _scores(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "scores.json").read_text())


def test_three_processes_find_the_sums_of_a_plain_loop(by_three: Path, plain: Plain) -> None:
    scores = _scores(by_three)
    assert scores["num_processes"] == 3
    for name in NAMES:
        logits_NK, labels_N = plain.logits_NK[name], plain.labels_N
        of_labels_N1 = logits_NK.gather(1, labels_N[:, None])
        ranks_N = (logits_NK > of_labels_N1).sum(1)
        found = scores[name]
        assert (found["num_images"], found["num_damaged"]) == (NUM_IMAGES, 0)
        assert (found["num_top1"], found["num_top5"]) == (int((ranks_N < 1).sum()), int((ranks_N < 5).sum()))
        loss_sum = functional.cross_entropy(logits_NK.double(), labels_N, reduction="sum").item()
        assert found["loss_sum"] == pytest.approx(loss_sum, rel=1e-5)
        assert found["top1"] == pytest.approx(100 * found["num_top1"] / NUM_IMAGES)
    assert 15 < scores["model"]["top1"] < scores["ema"]["top1"] < 100  # or the test would see less


def test_a_line_an_image_says_what_the_plain_loop_found(by_three: Path, plain: Plain) -> None:
    lines = _read(by_three / "images.csv")
    assert [line["key"] for line in lines] == plain.keys
    assert [int(line["label"]) for line in lines] == plain.labels_N.tolist()
    assert {line["damaged"] for line in lines} == {"0"}
    for name in NAMES:
        logits_NK = plain.logits_NK[name]
        assert [int(line[f"{name}_predicted"]) for line in lines] == logits_NK.argmax(1).tolist()
        confidences = torch.tensor([float(line[f"{name}_confidence"]) for line in lines])
        torch.testing.assert_close(confidences, logits_NK.softmax(1).amax(1), rtol=1e-4, atol=1e-5)
        losses = torch.tensor([float(line[f"{name}_loss"]) for line in lines])
        expected = functional.cross_entropy(logits_NK, plain.labels_N, reduction="none")
        torch.testing.assert_close(losses, expected, rtol=1e-4, atol=1e-5)
        assert sum(int(line[f"{name}_top5"]) for line in lines) == _scores(by_three)[name]["num_top5"]


def test_classes_and_confusions_are_those_of_the_confusion_matrix(by_three: Path, plain: Plain) -> None:
    classes, confusions = _read(by_three / "per_class.csv"), _read(by_three / "confusions.csv")
    for name in NAMES:
        counts_KK = confusion_matrix(plain.labels_N, plain.logits_NK[name].argmax(1))
        assert [int(line["num_images"]) for line in classes] == counts_KK.sum(1).tolist()
        assert [int(line[f"{name}_num_top1"]) for line in classes] == counts_KK.diagonal().tolist()
        percents = [float(line[f"{name}_top1"]) for line in classes]
        assert percents == pytest.approx((100 * counts_KK.diagonal() / counts_KK.sum(1)).tolist())
        pairs = [line for line in confusions if line["model"] == name]
        found = {(int(line["label"]), int(line["predicted"])): int(line["num_images"]) for line in pairs}
        off_KK = counts_KK - np.diag(counts_KK.diagonal())
        expected = {(i, j): int(off_KK[i, j]) for i, j in zip(*map(np.ndarray.tolist, off_KK.nonzero()), strict=True)}
        assert found == expected and len(found) > 10
        assert [int(line["num_images"]) for line in pairs] == sorted(found.values(), reverse=True)
    assert classes[3]["name"] == "three"
    assert confusions[0]["label_name"] == classes[int(confusions[0]["label"])]["name"]


def test_calibration_is_the_papers(by_three: Path, plain: Plain) -> None:
    bins = _read(by_three / "calibration.csv")
    for name in NAMES:
        confidences_N, guesses_N = (each.numpy() for each in plain.logits_NK[name].softmax(1).max(1))
        right_N, error = guesses_N == plain.labels_N.numpy(), 0.0
        for m in range(15):
            in_bin_N = (confidences_N > m / 15) & (confidences_N <= (m + 1) / 15)
            if in_bin_N.any():
                gap = abs(right_N[in_bin_N].mean() - confidences_N[in_bin_N].astype(np.float64).mean())
                error += in_bin_N.sum() / NUM_IMAGES * gap
        assert _scores(by_three)[name]["ece_percent"] == pytest.approx(100 * error, rel=1e-3)
        ours = [line for line in bins if line["model"] == name]
        assert len(ours) == 15 and sum(int(line["num_images"]) for line in ours) == NUM_IMAGES
        assert sum(int(line["num_hits"]) for line in ours) == right_N.sum()


def test_any_number_of_processes_and_batch_counts_the_same(ranks: Ranks, trained: Trained, tmp_path: Path) -> None:
    """On the 360 held-out digits, by DALI."""
    found = []
    for num_processes, batch_size in ((1, 64), (2, 64), (3, 50)):
        out = tmp_path / str(num_processes)
        evaluate(ranks, num_processes, tmp_path, trained.path, "--out", out, "--batch-size", batch_size)
        found.append((_scores(out), _read(out / "images.csv")))
    exact = ("key", "label", "model_predicted", "model_top5", "ema_predicted", "ema_top5")
    (first, lines), *others = found
    assert len(lines) == first["ema"]["num_images"] == 360
    for scores, theirs in others:
        assert [[line[each] for each in exact] for line in theirs] == [[line[each] for each in exact] for line in lines]
        for name in NAMES:
            assert scores[name] == pytest.approx(first[name], rel=1e-5)


def test_one_model_other_pixels_and_mirror_images(ranks: Ranks, trained: Trained, tmp_path: Path) -> None:
    usual = json.loads(evaluate(ranks, 1, tmp_path, trained.path))
    flags = ("--model", "ema", "--size", "24", "--flip")
    other = json.loads(evaluate(ranks, 2, tmp_path, trained.path.parent.parent, *flags))
    assert (usual["size"], usual["resize"], usual["flip"]) == (16, 20, False)
    assert (other["size"], other["resize"], other["flip"]) == (24, 30, True)
    assert "model" in usual and "model" not in other
    assert other["ema"]["num_images"] == usual["ema"]["num_images"] == 360
    assert other["ema"]["loss"] != pytest.approx(usual["ema"]["loss"], rel=1e-3)
    assert usual["data"]["split"] == "validation"
    assert usual["files"] == other["files"] == read_meta(trained.path)["files"]


def test_a_damaged_image_is_marked_and_is_no_confusion(ranks: Ranks, trained: Trained, tmp_path: Path) -> None:
    root = Path(shutil.copytree(trained.recipe.data.root, tmp_path / "digits"))
    split, row = Split(root, "validation"), 200
    shard, offset, size = (int(split.column(name)[row]) for name in ("shard", "offset", "size"))
    with split.shard_paths[shard].open("r+b") as file:
        file.seek(offset)
        file.write(bytes(size))
    out = tmp_path / "out"
    scores = json.loads(evaluate(ranks, 2, tmp_path, trained.path, "--data", root, "--out", out))
    lines = _read(out / "images.csv")
    assert [line["key"] for line in lines if line["damaged"] == "1"] == split.keys([row])
    assert lines[row]["ema_top5"] == "0"
    assert (scores["ema"]["num_images"], scores["ema"]["num_damaged"]) == (360, 1)
    bins, confusions = (_read(out / name) for name in ("calibration.csv", "confusions.csv"))
    num_seen, num_confused = (
        sum(int(line["num_images"]) for line in table if line["model"] == "ema") for table in (bins, confusions)
    )
    assert (num_seen, num_confused) == (359, 359 - scores["ema"]["num_top1"])
