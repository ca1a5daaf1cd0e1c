"""The command as users run it: a gallery with measured figures, or a refusal that says why."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from helpers.served import Exported, run_here
from PIL import Image
from safetensors.torch import load_file

from prep.errors import InputError
from serve.class_names import find_class
from serve.gallery import GAP, HEADING, ROW, WIDTH, Caption, Row
from serve.gallery_files import MAX_FILE_HEIGHT, draw_pages
from serve.image_sources import open_images
from serve.overlay import TILE
from serve.predict import Prediction
from serve.selection import Choice, select_predictions

Gallery = Callable[..., str]
RED = (0xB3, 0x26, 0x1E)


@pytest.fixture
def gallery(exported: Exported, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Gallery:
    """Runs the command on the digits; what it prints."""

    def run(*flags: object, weights: Path = exported.artifact, images: Path = exported.data / "validation") -> str:
        capsys.readouterr()
        try:
            run_here(
                "serve/gradcam_viz.py",
                *("--checkpoint_path", weights, "--validation_img_path", images),
                *("--output_path", tmp_path / "out" / "gallery.png", *flags),
            )
        except SystemExit as ended:
            raise InputError(str(ended.code)) from None
        return "\n".join(capsys.readouterr())

    return run


def is_red(picture: Image.Image) -> np.ndarray:
    """Return True for each pixel in the colour of warnings, bool [H, W]."""
    return (np.asarray(picture) == RED).all(2)


def test_mistakes_are_drawn_with_measured_figures(exported: Exported, gallery: Gallery, tmp_path: Path) -> None:
    said = gallery("--num_show", 3, "--num_classes", 10)
    scores = json.loads((exported.scores / "scores.json").read_text())["ema"]
    assert f"top-1 {scores['top1']:.2f}% of 360 images (99% interval" in said
    assert "recorded by the artifact on validation" in said and "warning" not in said
    with Image.open(tmp_path / "out" / "gallery.png") as picture:
        assert picture.width == WIDTH and picture.height > 3 * ROW
        pixels = np.asarray(picture)
    top = pixels.shape[0] - 3 * ROW + HEADING
    tiles = [pixels[top : top + TILE, left : left + TILE] for left in (GAP, 2 * GAP + TILE, 3 * GAP + 2 * TILE)]
    assert all(np.unique(tile.reshape(-1, 3), axis=0).shape[0] > 3 for tile in tiles)
    assert not is_red(Image.fromarray(pixels[: top - 40])).any()


def test_the_same_command_draws_the_same_picture(gallery: Gallery, tmp_path: Path) -> None:
    flags = ("--num_show", 2, "--select", "random", "--seed", 5, "--all")
    gallery(*flags)
    first = (tmp_path / "out" / "gallery.png").read_bytes()
    gallery(*flags)
    assert (tmp_path / "out" / "gallery.png").read_bytes() == first


def test_random_weights_are_refused_unless_warned(gallery: Gallery, tmp_path: Path) -> None:
    torch.manual_seed(1)
    torch.save(timm.create_model("test_resnet", num_classes=10).state_dict(), tmp_path / "random.pth")
    flags = ("--model", "test_resnet", "--size", 16, "--resize", 20, "--num_classes", 10, "--num_show", 2)
    with pytest.raises(InputError, match=r"^error: nothing was drawn: top-1 is .* not better than chance \(10%\)"):
        gallery(*flags, weights=tmp_path / "random.pth")
    assert not (tmp_path / "out").exists()
    assert "warning: top-1 is" in gallery(*flags, "--anyway", weights=tmp_path / "random.pth")
    with Image.open(tmp_path / "out" / "gallery.png") as picture:
        head = picture.crop((0, 0, WIDTH, picture.height - 2 * ROW))
    assert is_red(head).sum() > 200


def test_an_artifact_that_is_not_as_good_as_it_says_is_refused(
    exported: Exported, gallery: Gallery, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(exported.artifact, tmp_path / "boasting"))
    facts = json.loads((folder / "artifact.json").read_text())
    facts["accuracy"] |= {"num_images": 50_000, "num_top1": 20_000}
    (folder / "artifact.json").write_text(json.dumps(facts))
    with pytest.raises(InputError, match=r"nothing was drawn: top-1 is .* and the artifact records 40\.00%"):
        gallery(weights=folder)


def test_bare_weights_are_as_good_as_their_artifact(exported: Exported, gallery: Gallery, tmp_path: Path) -> None:
    torch.save({"state_dict": load_file(exported.artifact / "model.safetensors")}, tmp_path / "model.pth.tar")
    flags = ("--model", "test_resnet", "--size", 16, "--resize", 20, "--num_classes", 10, "--num_show", 1)
    top1 = json.loads((exported.scores / "scores.json").read_text())["ema"]["top1"]
    assert f"top-1 {top1:.2f}% of 360" in gallery(*flags, weights=tmp_path / "model.pth.tar")


def test_damaged_images_count_as_wrong_and_are_said(exported: Exported, gallery: Gallery, tmp_path: Path) -> None:
    source = open_images(exported.data / "validation", 10, None)
    for each in source.read(range(100)):
        folder = tmp_path / "digits" / source.class_names[each.label]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{each.key}.jpg").write_bytes(each.content[:150] if each.row < 3 else each.content)
    said = gallery("--num_show", 2, "--all", "--anyway", images=tmp_path / "digits")
    assert "of 100 images" in said and "3 images cannot be decoded and count as wrong" in said


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--num_classes", 1000), "has 10 classes: remove --num_classes"),
        (("--size", 32), "already records --size: remove the flag"),
        (("--true_class", "eleven"), "no class is named eleven"),
        (("--method", "rollout"), "ResNet has no attention that can be read: --method rollout needs a transformer"),
        (("--true_class", "one", "--predicted_class", "one"), "no image matches the flags: use --all"),
    ],
)
def test_wrong_flags_are_refused(gallery: Gallery, flags: tuple[object, ...], words: str) -> None:
    with pytest.raises(InputError, match=words):
        gallery(*flags)


def test_a_suffix_is_checked_before_the_model_is_loaded(gallery: Gallery, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--output_path must end in one of \.png, .*, got \.gif"):
        gallery("--output_path", tmp_path / "x.gif", weights=tmp_path / "absent")


def test_right_predictions_show_the_second_guess_and_maps_are_checked(gallery: Gallery, tmp_path: Path) -> None:
    said = gallery("--num_show", 3, "--all", "--output_path", tmp_path / "x.jpg", "--method", "layercam")
    assert "maps: LayerCAM of layer" in said and "check of the maps: hiding the warmest 20% lowers" in said
    assert "of 3 pictures" in said and f"3 images: {tmp_path / 'x.jpg'}" in said
    with Image.open(tmp_path / "x.jpg") as picture:
        assert picture.format == "JPEG"


def test_a_slow_method_says_its_cost_and_progress(gallery: Gallery) -> None:
    said = gallery("--num_show", 2, "--method", "occlusion")
    assert "maps: occlusion by squares of 4 pixels in steps of 2" in said
    assert "occlusion: 50 forward passes for each of 2 pictures" in said
    assert "occlusion: 2 of 2 pictures, 0:00:00 left" in said


def prediction(row: int, label: int, guess: int, confidence: float) -> Prediction:
    return Prediction(row, str(row), label, guess, confidence)


PREDICTIONS = [
    prediction(0, 0, 1, 0.5),
    prediction(1, 0, 1, 0.6),
    prediction(2, 0, 2, 0.9),
    prediction(3, 2, 1, 0.8),
    prediction(4, 2, 2, 0.99),
    prediction(5, 1, -1, 0.0),
    prediction(6, 1, 1, 0.999),
]


@pytest.mark.parametrize(
    ("choice", "rows"),
    [
        (Choice(), [2, 3, 1, 0]),
        (Choice(num_show=2), [2, 3]),
        (Choice(order="class"), [2, 3, 1, 0]),
        (Choice(order="pair"), [1, 0, 2, 3]),
        (Choice(show_all=True), [2, 3, 1, 0, 4, 6]),
        (Choice(order="class", show_all=True), [2, 6, 3, 1, 4, 0]),
        (Choice(order="pair", show_all=True), [1, 0, 2, 3, 6, 4]),
        (Choice(true_class=0), [2, 1, 0]),
        (Choice(predicted_class=1), [3, 1, 0]),
    ],
)
def test_the_order_has_its_reason(choice: Choice, rows: list[int]) -> None:
    assert [each.row for each in select_predictions(PREDICTIONS, choice)] == rows


def test_a_model_without_mistakes_is_answered_with_what_can_be_seen() -> None:
    right = [prediction(row, row, row, 0.9 - row / 10) for row in range(3)]
    with pytest.raises(InputError, match=r"no mistake to show, all 3 images are right: use --all to show them"):
        select_predictions(right, Choice())
    assert [each.row for each in select_predictions(right, Choice(show_all=True))] == [2, 1, 0]


def test_a_random_order_follows_the_seed() -> None:
    many = [prediction(row, 0, 1, 0.5) for row in range(50)]
    orders = [[each.row for each in select_predictions(many, Choice(50, "random", seed=seed))] for seed in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == list(range(50))


def test_a_class_is_found_by_name_or_number() -> None:
    names = ("tench, Tinca tinca", "crane", "crane")
    assert (find_class("tench", names), find_class("2", names)) == (0, 2)
    with pytest.raises(InputError, match="several classes are named crane"):
        find_class("crane", names)


def test_long_names_stay_in_their_row() -> None:
    names = ("a " + "very " * 60 + "long name", "ünïcödé " * 30)
    flat = np.zeros((16, 16), np.float32)
    row = Row(Prediction(0, "k" * 300, 0, 1, 1.0, 0.0), Image.new("RGB", (16, 16)), flat, flat)
    caption = Caption("title " * 50, ["figure " * 50], ["doubt " * 50])
    picture = np.asarray(draw_pages([row, row], names, caption, MAX_FILE_HEIGHT)[0])
    foot = picture[-GAP:]
    assert (foot == 255).all() and (picture[:, -4:] == 255).all()
