"""The model's answer to one picture: its five most likely classes, and a Grad-CAM map of each.

Between `serve/app/uploads.py` and `serve/app/page.py`. T is the number of classes shown, h and w the size of the stage
of the network whose maps are shown, for example 7 x 7.
"""

import time
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from serve.app.uploads import Photo
from serve.artifact import Served
from serve.cam import GradCam
from serve.class_names import look_up_words
from serve.predict import predict_probabilities
from serve.preprocess import Preprocessing, show_crop, to_tensor

NUM_SHOWN = 5  # classes
VIEW_SIDE = 640  # pixels; the largest side of the picture in the page


@dataclass(frozen=True)
class Guess:
    """One class of an answer."""

    name: str
    share: float  # softmax, 0 to 1
    map_hw: np.ndarray  # Grad-CAM at the stage's resolution, see `compute_map`


@dataclass(frozen=True)
class Answer:
    """Everything that the page shows for one picture."""

    view: Image.Image  # the square that the network saw, at the photograph's resolution
    guesses: tuple[Guess, ...]  # the most likely class first
    notes: tuple[str, ...]
    seconds: float  # from the opened picture to the last map


def answer_photo(served: Served, cam: GradCam, photo: Photo) -> Answer:
    """Return the five most likely classes (all classes if the model has fewer), each with its map."""
    started = time.perf_counter()
    image_CHW = to_tensor(show_crop(photo.picture, served.preprocessing), served.preprocessing)
    # Compute one map at a time: a batch of five would save a quarter of the time and need five times the memory.
    guesses = tuple(
        Guess(name_class(served, label), share, compute_map(cam, image_CHW, label))
        for label, share in rank_classes(served, image_CHW)
    )
    view = show_view(photo.picture, served.preprocessing)
    return Answer(view, guesses, photo.notes, time.perf_counter() - started)


def rank_classes(served: Served, image_CHW: torch.Tensor) -> list[tuple[int, float]]:
    """Return (output, probability) of the five most likely classes, the most likely first."""
    probabilities_K = predict_probabilities(served, image_CHW[None])[0]
    shares_T, labels_T = probabilities_K.topk(min(NUM_SHOWN, served.num_classes))
    return list(zip(labels_T.tolist(), shares_T.tolist(), strict=True))


def compute_map(cam: GradCam, image_CHW: torch.Tensor, label: int) -> np.ndarray:
    """Return the map of a class, float32 [h, w], divided by its own maximum; all zeros if no place supports it."""
    map_hw = cam.raw(image_CHW, [label])[0].numpy()
    highest = map_hw.max()
    return map_hw / highest if highest > 0 else map_hw


def name_class(served: Served, label: int) -> str:
    """Return the name of an output in words, or `output 12` if the model has no names."""
    return f"output {label}" if served.class_names is None else look_up_words(served.class_names[label])


def show_view(picture: Image.Image, preprocessing: Preprocessing) -> Image.Image:
    """Return the square that the network saw, cut from the photograph at its own resolution, at most 640 pixels.

    It is the region of `show_crop`, without being reduced to the network's resolution.
    """
    side = min(picture.size) * preprocessing.crop / preprocessing.resize
    left, top = (picture.width - side) / 2, (picture.height - side) / 2
    size = min(VIEW_SIDE, max(1, round(side)))
    return picture.resize((size, size), Image.Resampling.LANCZOS, (left, top, left + side, top + side))


def make_cam(served: Served) -> GradCam:
    """Return the Grad-CAM of a model, and freeze the model so that no gradient of a weight is computed."""
    served.model.requires_grad_(False)
    return GradCam(served.model, served.preprocessing.crop)


def warm_up(served: Served, cam: GradCam) -> None:
    """Answer a grey picture: the first answer is slower than the others, so a visitor should not get it."""
    side = served.preprocessing.crop
    answer_photo(served, cam, Photo(Image.new("RGB", (side, side), "grey")))
