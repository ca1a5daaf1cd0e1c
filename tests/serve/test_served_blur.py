"""A network with blur is exported, loaded and shown with the same bits; timm, which would leave it out, is refused."""

import ast
import importlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml
from helpers.commands import CHECKOUT
from helpers.evaluations import CPU, one_thread
from helpers.served import Exported, run_here
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from prep.blur import BLUR_KERNEL
from prep.errors import InputError
from prep.preprocess import draw_pattern
from serve.artifact import load_artifact
from serve.loading import BareOptions, load_served
from serve.preprocess import to_tensor
from train.checkpoint import read_meta, restore_models
from train.config import Recipe

SIZE = 16  # pixels


@pytest.fixture
def artifact(exported_with_blur: Exported) -> Path:
    return exported_with_blur.artifact


@one_thread()
def compute_logits(model: nn.Module, images_BCHW: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return model(images_BCHW)


def draw_images() -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randn(4, 3, SIZE, SIZE)


def test_the_served_network_computes_the_checkpoints_logits_bit_for_bit(
    exported_with_blur: Exported, artifact: Path
) -> None:
    checkpoint = exported_with_blur.checkpoint
    recipe = Recipe.from_dict(read_meta(checkpoint)["recipe"])
    ema: Any = restore_models(checkpoint, recipe, 10, CPU)["ema"].eval()
    ours, served = ema.to(memory_format=torch.contiguous_format), load_artifact(artifact)
    logits_BK = compute_logits(served.model, draw_images())
    assert torch.equal(logits_BK, compute_logits(ours, draw_images()))
    assert served.name.startswith("test_resnet with blur, ema of demo")
    assert json.loads((artifact / "artifact.json").read_text())["model_args"] == {"blur_first": True}

    # The blur matters: without it the same weights compute something else, by far more than rounding. How much more
    # depends on the weights, and so on the CPU that trained them.
    plain = timm.create_model("test_resnet", num_classes=10).eval()
    plain.load_state_dict(
        {name: each for name, each in load_file(artifact / "model.safetensors").items() if BLUR_KERNEL not in name}
    )
    assert (compute_logits(plain, draw_images()) - logits_BK).abs().max() > 0.01 * logits_BK.abs().max()


@pytest.mark.parametrize("options", [{}, {"num_classes": 5}, {"num_classes": 0}, {"features_only": True}])
def test_timm_refuses_the_folder_whatever_it_is_asked_for(artifact: Path, options: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'blur_first'"):
        timm.create_model(f"local-dir:{artifact}", pretrained=True, **options)


def test_the_weights_alone_are_refused_by_a_network_without_blur(artifact: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(artifact, tmp_path / "copied"))
    config = json.loads((copied / "config.json").read_text())
    del config["model_args"]["blur_first"]
    (copied / "config.json").write_text(json.dumps(config))
    with pytest.raises(RuntimeError, match=r"Unexpected key.*layer2\.0\.conv1\.blur_kernel"):
        timm.create_model(f"local-dir:{copied}", pretrained=True)


def test_the_cards_lines_load_it_with_timm_and_nothing_of_ours(artifact: Path) -> None:
    card = (artifact / "README.md").read_text()
    (lines,) = re.findall(r"## Use\n.*?```python\n(.*?)```", card, re.DOTALL)
    imported = {
        each.module if isinstance(each, ast.ImportFrom) else each.names[0].name
        for each in ast.walk(ast.parse(lines))
        if isinstance(each, ast.Import | ast.ImportFrom)
    }
    assert {str(name).partition(".")[0] for name in imported} == {"json", "pathlib", "timm", "safetensors", "torch"}

    image = Image.fromarray(draw_pattern(48))
    names: dict[str, Any] = {"image": image}
    with one_thread():
        exec(compile(lines.replace("DIR", str(artifact)), "README.md", "exec"), names)
    served = load_artifact(artifact)
    theirs, ours = (compute_logits(model, draw_images()) for model in (names["model"], served.model))
    assert (theirs - ours).abs().max() <= 1e-6 * ours.abs().max()
    assert names["logits"].shape == (1, 10)
    assert names["transform"](image).shape == (3, SIZE, SIZE)
    # The hub offers timm's own line for what is tagged so, and that line would fail.
    front = yaml.safe_load(card.split("---\n")[1])
    assert "library_name" not in front and "timm" not in front["tags"]


def test_certificates_judge_pixels_with_an_export_as_it_is_served(
    artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(CHECKOUT / "benchmarks"))
    served = load_artifact(artifact)
    network = importlib.import_module("certificates.pixels").load_probe_network(artifact, 10, 0)
    assert network.is_trained and network.what == f"test_resnet, {artifact.name}"
    pixels_BCHW = torch.from_numpy(draw_pattern(SIZE)).permute(2, 0, 1)[None].contiguous()
    image_BCHW = to_tensor(Image.fromarray(draw_pattern(SIZE)), served.preprocessing)[None]
    with one_thread():
        logits_BK = network.compute_logits(pixels_BCHW)
    assert (logits_BK - compute_logits(served.model, image_BCHW)).abs().max() <= 1e-5 * logits_BK.abs().max()


def test_bare_weights_say_themselves_that_they_are_of_a_network_with_blur(artifact: Path, tmp_path: Path) -> None:
    weights = load_file(artifact / "model.safetensors")
    save_file(weights, tmp_path / "bare.safetensors")
    bare = load_served(tmp_path / "bare.safetensors", BareOptions(resize=20, crop=SIZE))
    assert torch.equal(*(compute_logits(each.model, draw_images()) for each in (bare, load_artifact(artifact))))
    del weights[f"layer3.0.conv2.{BLUR_KERNEL}"]
    save_file(weights, tmp_path / "part.safetensors")
    with pytest.raises(InputError, match=r"missing: layer3\.0\.conv2\.blur_kernel"):
        load_served(tmp_path / "part.safetensors", BareOptions(resize=20, crop=SIZE))


def test_an_artifact_that_blurs_a_network_without_strides_is_refused_in_a_line(artifact: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(artifact, tmp_path / "copied"))
    facts = json.loads((copied / "artifact.json").read_text())
    (copied / "artifact.json").write_text(json.dumps(facts | {"architecture": "test_vit"}))
    with pytest.raises(InputError, match="expected a convolution with a stride above 1") as refused:
        load_artifact(copied)
    assert "\n" not in str(refused.value)


def test_a_gallery_and_a_report_show_it(
    exported_with_blur: Exported, artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = exported_with_blur.data / "validation"
    run_here(
        "serve/gradcam_viz.py",
        *("--checkpoint_path", artifact, "--validation_img_path", images),
        *("--output_path", tmp_path / "gallery.png", "--num_show", 2, "--num_classes", 10),
    )
    scores = json.loads((exported_with_blur.scores / "scores.json").read_text())["ema"]
    assert f"top-1 {scores['top1']:.2f}% of 360 images" in "\n".join(capsys.readouterr())
    assert (tmp_path / "gallery.png").is_file()
    run_here("serve/report.py", artifact, "--data", images, "--out", tmp_path / "report", "--num_show", 2)
    assert "test_resnet with blur" in next((tmp_path / "report").glob("*.html")).read_text()
