"""An export's ONNX file and program compute the network's logits on real pictures, and are written whole or not."""

import json
import os
import re
import shutil
import signal
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxscript  # noqa: F401 - where it is missing, this file is skipped
import pytest
import torch
from helpers.commands import CHECKOUT, start_command
from helpers.evaluations import CPU, learn, one_thread, save, tiny_recipe
from helpers.served import run_here
from helpers.train_runs import await_that
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import nn

import train.portable
from loaders import EvalTransform, TrainTransform
from prep.dataset import Split
from prep.errors import InputError
from prep.files import sha256_of_file
from serve.artifact import Served, load_artifact
from serve.preprocess import show_crop, to_tensor
from train.config import ModelConfig, Recipe
from train.model import build_model
from train.portable import TOLERANCE, compare_logits, run_onnx, run_program, trace_network, write_onnx
from train.real_images import NUM_IMAGES, RealImages, read_real_images

ONNX, PROGRAM = "model.onnx", "model.pt2"
BOTH = ("--onnx", "--torch-export")
FOUR = ["README.md", "artifact.json", "config.json", "model.safetensors"]


@pytest.fixture(scope="module")
def small(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, Path]:
    """A recipe for digits with blur, and a checkpoint whose weights differ from their average."""
    recipe = tiny_recipe(digits)
    recipe = replace(recipe, model=replace(recipe.model, blur_first=True))
    return recipe, save(tmp_path_factory.mktemp("small"), recipe, *learn(recipe, 20))


@pytest.fixture(scope="module")
def exported(small: tuple[Recipe, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export of it with both files."""
    out = tmp_path_factory.mktemp("exported") / "out"
    run_here("train/export.py", small[1], "--out", out, *BOTH)
    return out


@pytest.fixture(scope="module")
def served(exported: Path) -> Served:
    """The export as a server loads it, which ignores the two files."""
    return load_artifact(exported)


@pytest.fixture(scope="module")
def images(small: tuple[Recipe, Path]) -> RealImages:
    """Digits."""
    return read_real_images(small[0], {}, None)


@one_thread()
def draw_network(recipe: Recipe) -> nn.Module:
    torch.manual_seed(113)
    model: Any = build_model(recipe.model, 10, CPU, recipe.image_sizes()).to(memory_format=torch.contiguous_format)
    return model.eval()


def read_artifact(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "artifact.json").read_text())


def list_names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@one_thread()
def test_both_files_compute_the_logits_of_real_pictures_for_any_number_of_them(
    exported: Path, served: Served, images: RealImages
) -> None:
    images_BCHW = images.images_BCHW
    assert len(images_BCHW) == NUM_IMAGES and "with blur, ema of demo" in served.name
    for num_images in (1, 3, NUM_IMAGES):
        with torch.inference_mode():
            logits_BK = served.model(images_BCHW[-num_images:])
        for run, name in ((run_onnx, ONNX), (run_program, PROGRAM)):
            theirs_BK = run(exported / name, images_BCHW[-num_images:])
            assert (theirs_BK - logits_BK).abs().max() <= 1e-5 * logits_BK.abs().max()
            assert theirs_BK.argmax(1).tolist() == logits_BK.argmax(1).tolist()
    assert len(set(logits_BK.argmax(1).tolist())) > 1, "the network tells images from each other"


def test_the_artifact_and_the_card_record_the_comparison(exported: Path) -> None:
    facts, card = read_artifact(exported), (exported / "README.md").read_text()
    for kind, name, opset in (("onnx", ONNX, 18), ("torch_export", PROGRAM, None)):
        recorded = facts[kind]
        assert (recorded["file"], recorded["opset"], recorded["num_images"]) == (name, opset, NUM_IMAGES)
        assert recorded["sha256"] == sha256_of_file(exported / name)
        assert 0 <= recorded["largest_difference"] < recorded["tolerance"] == TOLERANCE
        assert f"16 images of {load_source(exported)}, split validation" == recorded["images"]
        assert recorded["images"] in card
    assert f"{facts['onnx']['largest_difference']:.1e} of the largest logit" in card
    assert onnx.load(exported / ONNX).opset_import[0].version == 18


def load_source(exported: Path) -> str:
    return re.findall(r"## Data\n\n(.*?), revision", (exported / "README.md").read_text())[0]


def test_the_files_contain_what_is_needed_to_use_them_alone(exported: Path) -> None:
    facts = read_artifact(exported)
    stored = {each.key: json.loads(each.value) for each in onnx.load(exported / ONNX).metadata_props}
    extra = {"metadata.json": ""}
    torch.export.load(exported / PROGRAM, extra_files=extra)
    assert stored == json.loads(extra["metadata.json"])
    assert {name: stored[name] for name in facts["preprocessing"]} == facts["preprocessing"]
    assert stored["class_names"] == facts["class_names"] and stored["weights_sha256"] == facts["weights_sha256"]
    assert stored["images"].startswith("float32 [N, 3, 16, 16], RGB")


def test_the_files_contain_no_path_of_this_machine(exported: Path) -> None:
    for name in (ONNX, PROGRAM):
        content = (exported / name).read_bytes()
        paths = (str(CHECKOUT), str(Path(torch.__file__).parents[1]), str(exported.parent))
        assert not [path for path in paths if path.encode() in content]


def find_code(exported: Path, title: str) -> str:
    """Return the card's lines below a heading, for this folder."""
    (code,) = re.findall(rf"## {title}\n.*?```python\n(.*?)```", (exported / "README.md").read_text(), re.DOTALL)
    return code.replace("DIR", str(exported))


def run_onnx_code(exported: Path, picture: Path) -> dict[str, Any]:
    names: dict[str, Any] = {}
    exec(compile(find_code(exported, "ONNX").replace("PICTURE", str(picture)), "README.md", "exec"), names)
    return names


@one_thread()
def test_the_cards_code_classifies_photographs_as_torch_does(
    exported: Path, served: Served, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "photograph.jpg"
    assert served.class_names
    assert not re.search(r"torch|timm", find_code(exported, "ONNX"))
    for pixels_HWC in load_sample_images().images:
        Image.fromarray(pixels_HWC).save(path, quality=95)
        with Image.open(path) as picture, torch.inference_mode():
            logits_K = served.model(to_tensor(show_crop(picture, served.preprocessing), served.preprocessing)[None])[0]
        names = run_onnx_code(exported, path)
        assert np.abs(names["logits"][0] - logits_K.numpy()).max() <= 1e-5 * logits_K.abs().max()
        label = int(logits_K.argmax())
        assert capsys.readouterr().out == f"{label} {served.class_names[label]}\n"
    names = {}
    exec(compile(find_code(exported, r"torch\.export"), "README.md", "exec"), names)
    assert names["logits"].shape == (1, 10)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(width=st.integers(1, 400), height=st.integers(1, 400), mode=st.sampled_from(["RGB", "L", "RGBA", "P"]))
def test_the_cards_code_crops_pictures_of_any_size_as_serving_does(
    exported: Path, served: Served, tmp_path: Path, width: int, height: int, mode: str
) -> None:
    pixels = np.random.default_rng(width * height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(tmp_path / "picture.png")
    names = run_onnx_code(exported, tmp_path / "picture.png")
    with Image.open(tmp_path / "picture.png") as picture:
        ours_CHW = to_tensor(show_crop(picture, served.preprocessing), served.preprocessing).numpy()
    np.testing.assert_allclose(names["pixels_HWC"].transpose(2, 0, 1), ours_CHW, rtol=0, atol=1e-5)


def test_a_network_of_one_resolution_is_compared_on_photographs_if_the_data_is_elsewhere(
    small: tuple[Recipe, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = replace(
        small[0],
        model=ModelConfig("test_vit"),
        transform=TrainTransform(size=32),
        evaluation=EvalTransform(size=32, resize=36),
        data=replace(small[0].data, root=tmp_path / "gone"),
    )
    model = draw_network(recipe)
    run_here("train/export.py", save(tmp_path, recipe, model, model), "--out", tmp_path / "out", *BOTH)
    said = capsys.readouterr().out
    assert read_artifact(tmp_path / "out")["model_args"] == {"img_size": 32}
    recorded = read_artifact(tmp_path / "out")["onnx"]
    source = "10 parts of scikit-learn's two photographs and the generated image"
    assert (recorded["images"], recorded["num_images"]) == (source, 11)
    assert f"on {source}." in said and f"{tmp_path}/gone/validation does not exist); --data gives another path" in said
    assert len(load_artifact(tmp_path / "out").model(torch.zeros(1, 3, 32, 32))[0]) == 10


def test_damaged_images_are_not_compared(small: tuple[Recipe, Path], digits_copy: Path) -> None:
    recipe, _ = small
    split = Split(digits_copy, "validation")
    row = int(np.linspace(0, len(split) - 1, NUM_IMAGES)[1])
    shard, offset, size = (int(split.column(name)[row]) for name in ("shard", "offset", "size"))
    with split.shard_paths[shard].open("r+b") as file:
        file.seek(offset)
        file.write(bytes(size))
    images = read_real_images(recipe, {}, str(digits_copy))
    assert len(images) == NUM_IMAGES - 1 and images.source.startswith("15 images") and not images.note


def test_an_export_is_replaced_by_one_with_the_files_and_back_and_files_of_others_are_kept(
    small: tuple[Recipe, Path], exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = Path(shutil.copytree(exported, tmp_path / "out"))
    run_here("train/export.py", small[1], "--out", out)
    said = capsys.readouterr().out
    assert "the earlier export was replaced" in said
    assert "model.onnx of the earlier export was removed: --onnx writes it again" in said
    assert "model.pt2 of the earlier export was removed: --torch-export writes it again" in said
    assert list_names(out) == FOUR
    assert (read_artifact(out)["onnx"], read_artifact(out)["torch_export"]) == (None, None)
    assert "onnx" not in (out / "README.md").read_text().lower()
    run_here("train/export.py", small[1], "--out", out, "--torch-export")
    assert list_names(out) == sorted([*FOUR, PROGRAM])
    assert len({path.stat().st_mode for path in out.iterdir()}) == 1, "others may not read a file"

    # A file of the same name that another tool wrote, and one that was changed.
    for name, content in ((ONNX, b"mine"), (PROGRAM, b"changed")):
        kept = Path(shutil.copytree(out, tmp_path / f"with-{name}"))
        (kept / name).write_bytes(content)
        with pytest.raises(SystemExit, match=rf"^error: .* holds {name}, which is not part of an earlier export"):
            run_here("train/export.py", small[1], "--out", kept, *BOTH)
        assert (kept / name).read_bytes() == content


def test_other_logits_are_refused(exported: Path, images: RealImages) -> None:
    model = load_artifact(exported).model
    with one_thread():
        assert 0 < compare_logits(exported / ONNX, run_onnx, model, images) < 1e-5
        for parameter in model.parameters():
            parameter.data = parameter.data.half().float()
        with pytest.raises(
            InputError, match=r"expected a difference of at most 1e-04 of the largest logit, found 0\.00"
        ):
            compare_logits(exported / ONNX, run_onnx, model, images)

        def run_nan(path: Path, images_BCHW: torch.Tensor) -> torch.Tensor:
            return run_onnx(path, images_BCHW) * torch.nan

        with pytest.raises(InputError, match="found nan"):
            compare_logits(exported / ONNX, run_nan, model, images)


def test_a_file_that_differs_is_not_written_and_the_earlier_export_stays(
    small: tuple[Recipe, Path], exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = Path(shutil.copytree(exported, tmp_path / "out"))
    before = {path.name: path.read_bytes() for path in out.iterdir()}

    def write_another(program: torch.export.ExportedProgram, path: Path, metadata: Mapping[str, Any]) -> None:
        shutil.copyfile(exported / ONNX, path)  # of the averaged weights

    monkeypatch.setitem(train.portable.WRITERS, "onnx", (write_another, run_onnx))
    with pytest.raises(SystemExit, match=r"^error: model\.onnx computes other logits than the network.*file$"):
        run_here("train/export.py", small[1], "--out", out, "--model", "model", "--onnx")
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert list_names(tmp_path) == ["out"]


def test_a_network_that_cannot_be_exported_is_refused_in_a_line(
    served: Served, images: RealImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Undecided(nn.Module):
        def forward(self, images_BCHW: torch.Tensor) -> torch.Tensor:
            return images_BCHW if images_BCHW.sum() > 0 else -images_BCHW

    with pytest.raises(
        InputError, match=r"cannot export this network \(.*\): leave out --onnx and --torch-export"
    ) as no:
        trace_network(Undecided(), images.images_BCHW, ["onnx", "torch_export"])
    assert "\n" not in str(no.value)
    monkeypatch.setattr(train.portable, "MOST_BYTES", 1000)
    with pytest.raises(InputError, match=r"leave out --onnx \(--torch-export has no limit\)"):
        write_onnx(trace_network(served.model, images.images_BCHW, ["onnx"]), tmp_path / ONNX, {})
    assert list_names(tmp_path) == []


def test_a_killed_export_leaves_the_earlier_one_as_it_was(
    small: tuple[Recipe, Path], exported: Path, tmp_path: Path
) -> None:
    out, partial = Path(shutil.copytree(exported, tmp_path / "out")), tmp_path / ".out.partial"
    before = {path.name: path.read_bytes() for path in out.iterdir()}

    # Kill it while it converts the network.
    process = start_command("train/export.py", small[1], "--out", out, *BOTH)
    await_that(lambda: (partial / "config.json").is_file() or process.poll() is not None, "the export began to write")
    os.killpg(process.pid, signal.SIGKILL)
    assert process.communicate()[1] == "" and process.returncode == -signal.SIGKILL
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before

    # The same command again cleans up.
    run_here("train/export.py", small[1], "--out", out)
    assert list_names(tmp_path) == ["out"] and list_names(out) == FOUR
