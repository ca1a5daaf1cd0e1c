"""The app answers a picture with the network's predictions, and its page shows them unchanged."""

import io
import re
from base64 import b64decode
from html import unescape
from pathlib import Path

import numpy as np
import pytest
from helpers.commands import CHECKOUT, run_command
from helpers.served import Exported
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from prep.errors import InputError
from serve.app.answer import Answer, Guess, answer_photo, make_cam, show_view
from serve.app.examples import draw_examples, list_examples
from serve.app.page import (
    format_share,
    map_strength,
    write_about,
    write_answer,
    write_chooser,
    write_head,
    write_refusal,
)
from serve.app.uploads import Photo
from serve.artifact import Served, load_artifact
from serve.cam import GradCam
from serve.image_sources import open_images
from serve.pictures import decode_image
from serve.predict import predict_rows
from serve.preprocess import Preprocessing, show_crop, to_tensor
from serve.weights import build_network

HOSTILE = '<img src=x onerror="alert(1)">&'


def test_it_says_what_evaluation_says(exported: Exported) -> None:
    served = load_artifact(exported.artifact)
    source = open_images(exported.data / "validation", 10, served.class_names)
    verdicts, cam = predict_rows(served, source, range(30)), make_cam(served)
    for each, verdict in zip(source.read(range(30)), verdicts, strict=True):
        picture = decode_image(each.content)
        assert picture is not None
        guesses = answer_photo(served, cam, Photo(picture)).guesses
        assert guesses[0].name == source.class_names[verdict.guess]
        assert guesses[0].share == pytest.approx(verdict.confidence, abs=1e-5)
        assert [each.share for each in guesses] == sorted((each.share for each in guesses), reverse=True)
        assert len({each.name for each in guesses}) == 5


def test_each_class_has_the_map_that_grad_cam_gives_it(exported: Exported) -> None:
    served = load_artifact(exported.artifact)
    picture = Image.effect_noise((60, 40), 90).convert("RGB")
    found = answer_photo(served, make_cam(served), Photo(picture)).guesses
    image_CHW = to_tensor(show_crop(picture, served.preprocessing), served.preprocessing)
    untouched = load_artifact(exported.artifact)
    labels = [(untouched.class_names or ()).index(each.name) for each in found]
    maps_Thw = GradCam(untouched.model, untouched.preprocessing.crop).raw(image_CHW, labels).numpy()
    highest_T11 = maps_Thw.max((1, 2), keepdims=True)
    assert np.allclose(np.stack([each.map_hw for each in found]), maps_Thw / np.maximum(highest_T11, 1e-30), atol=1e-5)
    assert sum(each.map_hw.any() for each in found) >= 2


def test_a_model_of_three_classes_has_three_and_one_without_names_has_numbers() -> None:
    served = Served(build_network("test_resnet", 3).eval(), "x", 3, Preprocessing(40, 32))
    guesses = answer_photo(served, make_cam(served), Photo(Image.new("RGB", (50, 50), "red"))).guesses
    assert sorted(each.name for each in guesses) == ["output 0", "output 1", "output 2"]
    assert sum(each.share for each in guesses) == pytest.approx(1)


@pytest.mark.parametrize("size", [(500, 375), (375, 500), (3000, 300), (20, 30), (1, 1)])
def test_the_view_is_what_the_network_saw(size: tuple[int, int]) -> None:
    ramp = np.linspace(0, 255, max(size)).astype(np.uint8)
    pixels_HW = ramp[None, : size[0]] if size[0] >= size[1] else ramp[: size[1], None]
    picture = Image.fromarray(np.broadcast_to(pixels_HW, size[::-1]).copy()).convert("RGB")
    view = show_view(picture, Preprocessing(256, 224))
    assert view.width == view.height <= 640
    crop = np.asarray(show_crop(picture, Preprocessing(256, 224)), dtype=float)
    shown = np.asarray(view.resize((224, 224), Image.Resampling.BILINEAR), dtype=float)
    assert np.abs(crop - shown)[8:-8, 8:-8].mean() < 4


def make_answer(name: str) -> Answer:
    guesses = tuple(Guess(name, share, np.zeros((4, 4), np.float32)) for share in (0.7, 0.2, 0.0004))
    return Answer(Image.new("RGB", (8, 8)), guesses, (HOSTILE,), 0.1)


def test_names_are_words_and_not_markup(exported: Exported) -> None:
    served = load_artifact(exported.artifact)
    hostile = Served(served.model, HOSTILE, 10, served.preprocessing, (HOSTILE,) * 10)
    for html in (write_answer(make_answer(HOSTILE), 0.1), write_refusal(HOSTILE), write_about(hostile)):
        assert "<img src=x" not in html
        assert HOSTILE in unescape(html)


def test_shares_and_bars() -> None:
    html = write_answer(make_answer("cat"), 0.1)
    assert [unescape(each) for each in re.findall(r'class="share">(.*?)</', html)] == ["70.0%", "20.0%", "< 0.1%"]
    assert re.findall(r"width: ([\d.]+)%", html) == ["70.00", "20.00", "0.04"]
    assert (format_share(1), format_share(0.001), format_share(0)) == ("100.0%", "0.1%", "< 0.1%")
    assert html.count("No part of the photo supports cat, so nothing is coloured.") == 4  # each class, and the first


def test_an_answer_brings_the_numbers_of_its_maps_and_says_which_are_faint() -> None:
    map_hw = np.array([[0, 0.5], [0.25, 1]], np.float32)
    html = write_answer(
        Answer(Image.new("RGB", (200, 200)), (Guess("cat", 0.9, map_hw), Guess("dog", 0.01, map_hw)), (), 1), 1
    )
    assert re.findall('data-size="(.*?)"', html) == ["2x2", "2x2"]
    assert [list(b64decode(each)) for each in re.findall('data-map="(.*?)"', html)] == [[0, 128, 64, 255]] * 2
    meanings = [unescape(each) for each in re.findall('data-meaning="(.*?)"', html)]
    assert meanings[0] == "Orange: where the network looked for cat."
    assert meanings[1].endswith("looked for dog. The map is faint because this class got only 1.0%.")


@given(st.floats(0, 1), st.floats(0, 1))
def test_a_likelier_class_never_has_a_fainter_map(a: float, b: float) -> None:
    low, high = sorted((a, b))
    assert 0.3 <= map_strength(low) <= map_strength(high) <= 1


def test_an_answer_takes_tens_of_kilobytes() -> None:
    noise = Image.effect_noise((640, 640), 40).convert("RGB").resize((160, 160)).resize((640, 640))
    guesses = tuple(Guess(f"class {number}", 0.2, np.ones((7, 7), np.float32)) for number in range(5))
    assert len(write_answer(Answer(noise, guesses, (), 1), 1)) < 100_000


def test_an_artifact_without_accuracy_says_so() -> None:
    served = Served(build_network("test_resnet", 3).eval(), "x", 3, Preprocessing(40, 32))
    assert "Recognizes 3 things." in write_head(served) and "Right" not in write_head(served)
    assert "Not measured." in write_about(served)


def test_each_drawn_example_is_another_picture(tmp_path: Path) -> None:
    paths = draw_examples(tmp_path)
    assert list_examples(tmp_path) == sorted(paths)
    assert len(paths) == 4
    again = tmp_path / "again"
    again.mkdir()
    assert [path.read_bytes() for path in draw_examples(again)] == [path.read_bytes() for path in paths]
    found = re.findall(r'data-example="(\d)"[^>]*><img alt="" src="data:image/jpeg;base64,(.*?)"', write_chooser(paths))
    assert [number for number, _ in found] == ["0", "1", "2", "3"]
    assert len({Image.open(io.BytesIO(b64decode(content))).tobytes() for _, content in found}) == 4


def test_what_cannot_be_served_is_said_in_one_line(tmp_path: Path) -> None:
    done = run_command(CHECKOUT / "serve/app.py", "--artifact", tmp_path)
    assert done.returncode == 1
    assert "holds no model: expected a folder of train/export.py, or a file of weights" in done.stderr
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(InputError, match="holds no pictures to try: leave --examples out"):
        list_examples(tmp_path / "nowhere")
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(InputError, match=r"text\.png: This file is not a picture"):
        write_chooser(list_examples(tmp_path))


def test_no_gradient_of_a_weight_is_computed(exported: Exported) -> None:
    served = load_artifact(exported.artifact)
    cam = make_cam(served)
    assert not any(parameter.requires_grad for parameter in served.model.parameters())
    answer_photo(served, cam, Photo(Image.new("RGB", (32, 32))))
    assert all(parameter.grad is None for parameter in served.model.parameters())
