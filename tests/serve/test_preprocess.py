"""The server computes the same from an image as evaluation."""

import csv
import io
from pathlib import Path

import pytest
import torch
from helpers.evaluations import one_thread
from helpers.served import Exported
from PIL import Image

from loaders import EvalTransform, LoaderConfig, build_loader
from loaders.batch import Normalize
from prep.dataset import Split
from prep.errors import InputError
from serve.artifact import load_artifact
from serve.image_sources import open_images
from serve.pictures import decode_image
from serve.predict import predict_probabilities, predict_rows
from serve.preprocess import Preprocessing, show_crop, to_tensor


def test_probabilities_are_those_of_evaluation(exported: Exported) -> None:
    served = load_artifact(exported.artifact)
    source = open_images(exported.data / "validation", 10, served.class_names)
    with one_thread():
        verdicts = predict_rows(served, source, range(source.num_images))
    with (exported.scores / "images.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [each.key for each in verdicts] == [line["key"] for line in lines]
    assert [each.label for each in verdicts] == [int(line["label"]) for line in lines]
    assert [each.guess for each in verdicts] == [int(line["ema_predicted"]) for line in lines]
    assert [each.in_top5 for each in verdicts] == [line["ema_top5"] == "1" for line in lines]
    theirs = [float(line["ema_confidence"]) for line in lines]
    assert [each.confidence for each in verdicts] == pytest.approx(theirs, abs=1e-3)
    assert 0 < sum(each.is_right for each in verdicts) < 360


@pytest.mark.parametrize("transform", [EvalTransform(224, 256), EvalTransform(256, 292), EvalTransform(17, 18)])
def test_photographs_are_seen_as_evaluation_sees_them(transform: EvalTransform, imagenet_samples: Path) -> None:
    split = Split(imagenet_samples, "validation")
    batch = next(iter(build_loader(split, transform, 16, config=LoaderConfig("reference"))))
    expected_BCHW = Normalize()(batch.images_BCHW)
    preprocessing = Preprocessing(transform.resize, transform.size)
    source = open_images(imagenet_samples / "validation", 1000, None)
    for encoded, expected_CHW in zip(source.read(range(16)), expected_BCHW, strict=True):
        picture = decode_image(encoded.content)
        assert picture is not None
        torch.testing.assert_close(
            to_tensor(show_crop(picture, preprocessing), preprocessing), expected_CHW, rtol=0, atol=1e-5
        )


@pytest.mark.parametrize("size", [(31, 20), (20, 31), (20, 20), (20, 400), (7, 5)])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK", "RGBA"])
def test_any_picture_becomes_a_square(size: tuple[int, int], mode: str) -> None:
    crop = show_crop(Image.new(mode, size), Preprocessing(20, 16))
    assert (crop.size, crop.mode) == ((16, 16), "RGB")
    assert to_tensor(crop, Preprocessing(20, 16)).shape == (3, 16, 16)


def test_impossible_preprocessing_is_refused() -> None:
    for wrong in (Preprocessing(16, 20), Preprocessing(10**6, 224)):
        with pytest.raises(InputError, match="the crop must be between 1 and"):
            wrong.validate()
    nan, infinity = float("nan"), float("inf")
    for channels in ((nan, 1.0, 1.0), (1.0, infinity, 1.0), (1.0, 1.0, -infinity)):
        for wrong in (Preprocessing(mean=channels), Preprocessing(std=channels), Preprocessing(std=(0.0, 1.0, 1.0))):
            with pytest.raises(InputError, match=r"three channels with finite values.*correct --mean and --std"):
                wrong.validate()


def test_a_network_that_computes_nan_is_not_counted_as_wrong(exported: Exported) -> None:
    served = load_artifact(exported.artifact)
    served.model.get_parameter("fc.bias").data[3] = torch.nan
    with pytest.raises(InputError, match=r"ema of demo .* computes NaN or infinity: .* check --mean and --std"):
        predict_probabilities(served, torch.zeros(1, 3, 16, 16))


def test_bombs_and_damage_are_not_pictures(tmp_path: Path) -> None:
    Image.new("1", (30_000, 30_000)).save(tmp_path / "bomb.png")
    photo = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(photo, "JPEG")
    assert decode_image(photo.getvalue()) is not None
    for content in ((tmp_path / "bomb.png").read_bytes(), photo.getvalue()[:200], b"", b"GIF89a" + bytes(50)):
        assert decode_image(content) is None
