"""An export is what was trained: timm loads the same bits and preprocessing, and nothing is said unmeasured."""

import copy
import csv
import hashlib
import io
import json
import math
import runpy
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import yaml
from helpers.commands import CHECKOUT
from helpers.evaluations import CPU, learn, one_thread, save, tiny_recipe
from PIL import Image
from safetensors.torch import load_file
from timm.data import create_transform, resolve_data_config, resolve_model_data_config
from torch import nn

from loaders import EvalTransform, LoaderConfig, build_loader
from loaders.batch import Normalize
from prep.dataset import Manifest, Split
from prep.preprocess import draw_pattern
from train import card
from train.artifact import FILES, crop_share, describe_for_timm
from train.checkpoint import EMA, read_meta
from train.config import Recipe
from train.model import build_model
from train.recipe import fast_24, seed_113

Export = Callable[..., str]
FIGURES = {"top1": 40.0, "top5": 80.0, "loss": 2.0, "ema_top1": 45.0, "ema_top5": 85.0, "ema_loss": 1.5}
# timm cannot load a network with blur, which it does not have: tests/serve/test_served_blur.py.
WITHOUT_BLUR = replace(fast_24(), model=replace(fast_24().model, blur_first=False))
METRICS = {**FIGURES, "num_images": 360, "num_damaged": 2}


@pytest.fixture
def run_script(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Export:
    """Runs a command of the checkout in this process; what it prints."""

    def run(script: str, *arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
        capsys.readouterr()
        with one_thread():
            runpy.run_path(str(CHECKOUT / script), run_name="__main__")
        return capsys.readouterr().out

    return run


@pytest.fixture
def export(run_script: Export) -> Export:
    return lambda *arguments: run_script("train/export.py", *arguments)


@pytest.fixture(scope="module")
def small(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, Path]:
    """A recipe for digits and a checkpoint of it that was evaluated."""
    recipe = tiny_recipe(digits)
    return recipe, save(tmp_path_factory.mktemp("small"), recipe, *learn(recipe, 40), **METRICS)


@one_thread()
def _fresh(recipe: Recipe) -> nn.Module:
    """A network in which every weight matters: as timm starts them, residual branches add nothing."""
    torch.manual_seed(113)
    model = build_model(recipe.model, 1000, CPU)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            module.momentum = 1.0
    with torch.no_grad():
        model(torch.randn(8, 3, 64, 64))  # takes the running statistics
    return model.eval()


def _load(folder: Path) -> Any:
    return timm.create_model(f"local-dir:{folder}", pretrained=True).eval()


@pytest.mark.parametrize("recipe", [seed_113(), WITHOUT_BLUR], ids=lambda recipe: recipe.name)
def test_timm_loads_the_ema_bit_for_bit_with_its_preprocessing(recipe: Recipe, export: Export, tmp_path: Path) -> None:
    recipe = replace(
        recipe,
        evaluation=EvalTransform(64, 73),
        model=replace(recipe.model, drop_path=0.1),
        data=replace(recipe.data, root=tmp_path / "gone"),
    )
    ema = _fresh(recipe)
    model = copy.deepcopy(ema)
    for name in ("fc.weight", "fc.bias"):
        model.get_parameter(name).data.neg_()
    said = export(save(tmp_path / "run", recipe, model, ema), "--out", tmp_path / "out")
    assert "without class names" in said and "without accuracy" in said
    loaded = _load(tmp_path / "out")
    images = torch.randn(2, 3, 64, 64)
    with one_thread(), torch.inference_mode():
        as_trained = loaded.to(memory_format=torch.channels_last)(images)
        assert torch.equal(as_trained, ema(images))
        assert torch.equal(as_trained, -model(images))
        assert (as_trained[0] - as_trained[1]).abs().max() > 0.01 * as_trained.abs().max()
    config = resolve_model_data_config(loaded)
    assert (tuple(config["input_size"]), config["crop_mode"]) == ((3, 64, 64), "center")
    assert (config["interpolation"], math.floor(64 / config["crop_pct"])) == ("bilinear", 73)
    assert (tuple(config["mean"]), tuple(config["std"])) == (recipe.model.mean, recipe.model.std)
    assert resolve_model_data_config(loaded, use_test_size=True) == config
    assert loaded.num_classes == 1000
    assert loaded.pretrained_cfg.get("tag") is None, "the tag of weights that timm publishes"


def test_the_model_that_is_not_averaged_on_request(small: tuple[Recipe, Path], export: Export, tmp_path: Path) -> None:
    _, path = small
    for which in ("ema", "model"):
        export(path, "--out", tmp_path / which, "--model", which)
        ours = load_file(path / FILES[which])
        theirs = _load(tmp_path / which).state_dict()
        assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def test_timms_preprocessing_guesses_what_evaluate_does(
    small: tuple[Recipe, Path], run_script: Export, tmp_path: Path
) -> None:
    """Pillow decodes in both, so that only rounding differs."""
    recipe, path = small
    flags = ("--backend", "reference", "--device", "cpu", "--out", tmp_path / "scores", "--model", "ema")
    run_script("train/evaluate.py", path, *flags)
    run_script("train/export.py", path, "--out", tmp_path / "out", "--scores", tmp_path / "scores" / "scores.json")
    model = _load(tmp_path / "out")
    transform: Any = create_transform(**resolve_model_data_config(model))
    split = Split(recipe.data.root, "validation")
    with one_thread(), torch.inference_mode():
        logits_NK = model(torch.stack([transform(image) for image in _open_images(split, 360)]))
    with (tmp_path / "scores" / "images.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    labels_N1 = torch.tensor([[int(line["label"])] for line in lines])
    assert logits_NK.argmax(1).tolist() == [int(line["ema_predicted"]) for line in lines]
    in_top5_N = (logits_NK.topk(5).indices == labels_N1).any(1)
    assert in_top5_N.tolist() == [line["ema_top5"] == "1" for line in lines]
    assert 0 < int(in_top5_N.sum()) < 360
    accuracy = json.loads((tmp_path / "out" / "artifact.json").read_text())["accuracy"]
    assert (accuracy["num_images"], accuracy["num_top5"]) == (360, int(in_top5_N.sum()))


@pytest.mark.parametrize("recipe", [seed_113(), fast_24()], ids=lambda recipe: recipe.name)
def test_timms_preprocessing_sees_the_same_pixels_of_photographs(recipe: Recipe, imagenet_samples: Path) -> None:
    split = Split(imagenet_samples, "validation")
    batch = next(iter(build_loader(split, recipe.evaluation, 12, config=LoaderConfig("reference"))))
    model = build_model(recipe.model, 10, CPU)
    transform: Any = create_transform(**resolve_data_config(pretrained_cfg=describe_for_timm(model, recipe)))
    theirs = torch.stack([transform(image) for image in _open_images(split, 12)])
    ours = Normalize(recipe.model.mean, recipe.model.std)(batch.images_BCHW)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def _open_images(split: Split, num_images: int) -> list[Image.Image]:
    images = []
    columns = (split.column(name)[:num_images].tolist() for name in ("shard", "offset", "size"))
    for shard, offset, size in zip(*columns, strict=True):
        with split.shard_paths[shard].open("rb") as file:
            file.seek(offset)
            content = file.read(size)
        with Image.open(io.BytesIO(content)) as opened:
            images.append(opened.convert("RGB"))
    return images


def test_the_artifact_lets_a_server_check_itself(small: tuple[Recipe, Path], export: Export, tmp_path: Path) -> None:
    recipe, path = small
    export(path, "--out", tmp_path / "out")
    artifact = json.loads((tmp_path / "out" / "artifact.json").read_text())
    weights = (tmp_path / "out" / "model.safetensors").read_bytes()
    assert artifact["weights_sha256"] == hashlib.sha256(weights).hexdigest()
    assert artifact["class_names"] == list(Split(recipe.data.root, "train").class_names)
    assert artifact["preprocessing"]["resize"] == 20 and artifact["preprocessing"]["crop"] == 16
    accuracy = artifact["accuracy"]
    assert (accuracy["num_top1"], accuracy["num_top5"], accuracy["num_images"]) == (162, 306, 360)
    row, column, channel = np.meshgrid(range(16), range(16), range(3), indexing="ij")
    image = ((3 * row + 5 * column + 85 * channel) % 256).astype(np.uint8)
    assert np.array_equal(draw_pattern(16), image)
    assert "(3 * row + 5 * column + 85 * channel) % 256" in artifact["golden"]["image"]
    model = _load(tmp_path / "out")
    transform: Any = create_transform(**{**resolve_model_data_config(model), "crop_pct": 1.0})
    with one_thread(), torch.inference_mode():
        logits = model(transform(Image.fromarray(image))[None])[0]
    torch.testing.assert_close(logits, torch.tensor(artifact["golden"]["logits"]), rtol=1e-4, atol=1e-5)


def test_the_card_says_what_was_measured_and_where_the_data_is_from(
    small: tuple[Recipe, Path], export: Export, tmp_path: Path
) -> None:
    recipe, path = small
    export(path, "--out", tmp_path / "out")
    _, front, body = (tmp_path / "out" / "README.md").read_text().split("---\n", 2)
    fields = yaml.safe_load(front)
    assert (fields["library_name"], fields["license"]) == ("timm", "apache-2.0")
    source = Manifest.from_json((Path(recipe.data.root) / "train" / "manifest.json").read_text()).source
    (result,) = fields["model-index"][0]["results"]
    assert result["dataset"]["name"] == source.name
    assert [metric["value"] for metric in result["metrics"]] == [45.0, 85.0]
    for words in ("45.00% (162 images)", "85.00% (306 images)", "1.5000 nats", source.revision, "2 that cannot"):
        assert words in body
    assert "calibration" not in body and str(recipe.data.root) not in body
    assert json.loads(body.partition("```json\n")[2].partition("```")[0])["optim"]["lr"] == recipe.optim.lr


def test_wordnet_numbers_are_also_given_in_words(
    small: tuple[Recipe, Path], digits: Path, export: Export, tmp_path: Path
) -> None:
    """timm and the hub show `label_descriptions`, of which `label_names` are the keys."""
    numbers = [f"n{number}" for number in ("01443537", "02012849", "03126707", "04399382", "99999999")]
    manifest = json.loads((digits / "train" / "manifest.json").read_text())
    manifest["class_names"] = [*numbers, *manifest["class_names"][5:]]
    (tmp_path / "data" / "train").mkdir(parents=True)
    (tmp_path / "data" / "train" / "manifest.json").write_text(json.dumps(manifest))
    export(small[1], "--out", tmp_path / "out", "--data", tmp_path / "data")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    words = config["label_descriptions"]
    assert config["label_names"] == manifest["class_names"] == list(words)
    assert words[numbers[0]] == "goldfish, Carassius auratus"
    assert words[numbers[1]] == words[numbers[2]] == "crane" and words[numbers[3]].startswith("teddy")
    assert (words[numbers[4]], words["nine"]) == (numbers[4], "nine"), "not in WordNet"
    assert "10 classes: goldfish, crane, crane, teddy and 6 more." in (tmp_path / "out" / "README.md").read_text()
    assert json.loads((tmp_path / "out" / "artifact.json").read_text())["class_names"] == manifest["class_names"]
    assert _load(tmp_path / "out").pretrained_cfg["label_descriptions"] == words

    # Names that are words already need no description.
    export(small[1], "--out", tmp_path / "words")
    config = json.loads((tmp_path / "words" / "config.json").read_text())
    assert config["label_names"][9] == "nine" and "label_descriptions" not in config


@pytest.mark.parametrize("size", [16, 64, 160, 176, 192, 224, 256, 288, 299, 384])
def test_timm_resizes_to_the_recipes_short_side(size: int) -> None:
    for resize in range(size, 2 * size):
        assert math.floor(size / crop_share(EvalTransform(size, resize))) == resize


def test_an_earlier_export_is_replaced_and_nothing_else_is(
    small: tuple[Recipe, Path], export: Export, tmp_path: Path
) -> None:
    _, path = small
    out = tmp_path / "out"
    out.mkdir()
    assert "replaced" not in export(path, "--out", out)
    before = (out / "config.json").read_bytes()
    (out / "config.json").write_text("{}")
    assert "the earlier export was replaced" in export(path, "--out", out)
    assert (out / "config.json").read_bytes() == before
    assert len({path.stat().st_mode for path in out.iterdir()}) == 1, "others may not read the weights"
    text = (out / "README.md").read_text()
    (out / "README.md").write_text(text + "mine")
    with pytest.raises(SystemExit, match=r"^error: .*README\.md was changed since it was exported: choose "):
        export(path, "--out", out)
    assert (out / "README.md").read_text() == text + "mine"
    facts = json.loads((out / "artifact.json").read_text())
    assert facts.pop("card_sha256") == hashlib.sha256(text.encode()).hexdigest()
    (out / "artifact.json").write_text(json.dumps(facts))  # an earlier version's
    assert "the earlier export was replaced" in export(path, "--out", out)
    (out / ".git").mkdir()
    with pytest.raises(SystemExit, match=r"^error: .*out holds \.git, which is not part of an earlier export"):
        export(path, "--out", out)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "README.md").write_text("mine")
    with pytest.raises(
        SystemExit, match=r"notes holds README\.md, which is not part of an earlier export: choose another"
    ):
        export(path, "--out", tmp_path / "notes")
    assert (tmp_path / "notes" / "README.md").read_text() == "mine"
    assert sorted(each.name for each in tmp_path.iterdir()) == ["notes", "out"]
    assert (out / "config.json").read_bytes() == before


def test_a_file_that_is_added_during_the_export_is_kept(
    small: tuple[Recipe, Path], export: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, write = tmp_path / "out", card.write_card
    export(small[1], "--out", out)

    def write_and_add(*arguments: Any) -> str:
        (out / "mine.txt").write_text("mine")
        return write(*arguments)

    monkeypatch.setattr(card, "write_card", write_and_add)
    with pytest.raises(SystemExit, match=r"out holds mine\.txt, which is not part of an earlier export"):
        export(small[1], "--out", out)
    assert (out / "mine.txt").read_text() == "mine" and list(tmp_path.iterdir()) == [out]


def test_what_is_not_finite_is_refused_by_name(small: tuple[Recipe, Path], export: Export, tmp_path: Path) -> None:
    recipe, _ = small
    model, ema = (build_model(recipe.model, 10, CPU) for _ in range(2))
    ema.get_buffer("bn1.running_var")[3] = torch.inf
    path = save(tmp_path / "run", recipe, model, ema)
    with pytest.raises(SystemExit, match=rf"^error: {path / EMA}: bn1\.running_var contains NaN or infinity"):
        export(path, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    export(path, "--out", tmp_path / "out", "--model", "model")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"files": {FILES["ema"]: "0", FILES["model"]: "0"}}, "holds no scores of these ema weights"),
        ({"size": 24}, "was measured with another --size"),
        ({"flip": True}, "was measured with another --size"),
        ({"data": None}, "holds no scores .*give a scores.json of train/evaluate.py"),
    ],
)
def test_scores_of_something_else_are_refused(
    small: tuple[Recipe, Path], export: Export, tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    _, path = small
    names = ("num_images", "num_damaged", "num_top1", "num_top5", "loss", "ece_percent")
    scores = {
        "files": read_meta(path)["files"],
        "data": {"source": "digits", "split": "validation"},
        "size": 16,
        "resize": 20,
        "flip": False,
        "ema": dict.fromkeys(names, 7),
    }
    (tmp_path / "scores.json").write_text(json.dumps(scores | change))
    with pytest.raises(SystemExit, match=rf"^error: .*scores.json {words}"):
        export(path, "--out", tmp_path / "out", "--scores", tmp_path / "scores.json")
    assert not (tmp_path / "out").exists()


def test_data_with_other_classes_is_refused(
    small: tuple[Recipe, Path], digits: Path, export: Export, tmp_path: Path
) -> None:
    manifest = json.loads((digits / "train" / "manifest.json").read_text())
    (tmp_path / "data" / "train").mkdir(parents=True)
    manifest["class_names"] = manifest["class_names"][:7]
    (tmp_path / "data" / "train" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(SystemExit, match="the dataset has 7 classes and the checkpoint 10: give --data"):
        export(small[1], "--out", tmp_path / "out", "--data", tmp_path / "data")
