"""What a network says of one picture: its five surest classes, and where it sees each of them.

Between `serve/app_photo.py` and `serve/app_page.py`. T classes, H and W the crop's side.
"""

import time
from dataclasses import dataclass

import numpy as np
from PIL import Image

from serve.app_photo import Photo
from serve.artifact import Served
from serve.cam import GradCam
from serve.judge import predict
from serve.preprocess import Preprocessing, show_crop, to_tensor
from serve.wordnet import to_words

NUM_SHOWN = 5  # classes
VIEW_SIDE = 640  # pixels at most, of the picture in the page


@dataclass(frozen=True)
class Guess:
    """One class."""

    name: str
    share: float  # softmax, 0 to 1
    map_HW: np.ndarray  # Grad-CAM, 0 to 1


@dataclass(frozen=True)
class Answer:
    """All that the page shows of one picture."""

    view: Image.Image  # the square that the network saw, with the photograph's own pixels
    guesses: tuple[Guess, ...]  # the surest first
    notes: tuple[str, ...]
    seconds: float  # from the opened picture to the last map


def answer(served: Served, cam: GradCam, photo: Photo) -> Answer:
    """The five surest classes, or all where there are fewer, each with its map."""
    started = time.perf_counter()
    image_CHW = to_tensor(show_crop(photo.picture, served.preprocessing), served.preprocessing)
    shares_T, labels_T = predict(served, image_CHW[None])[0].topk(min(NUM_SHOWN, served.num_classes))
    labels = labels_T.tolist()
    # One map at a time: all five in one batch save a quarter of the time and take five times the memory.
    maps_HW = [cam(image_CHW, [label])[0].numpy() for label in labels]
    guesses = tuple(
        Guess(name_class(served, label), share, map_HW)
        for label, share, map_HW in zip(labels, shares_T.tolist(), maps_HW, strict=True)
    )
    view = show_view(photo.picture, served.preprocessing)
    return Answer(view, guesses, photo.notes, time.perf_counter() - started)


def name_class(served: Served, label: int) -> str:
    """Its name where the artifact has names, else its number."""
    return f"class {label}" if served.class_names is None else to_words(served.class_names)[label]


def show_view(picture: Image.Image, preprocessing: Preprocessing) -> Image.Image:
    """The square that the network saw, as fine as the photograph is: `show_crop` without its coarse pixels."""
    side = min(picture.size) * preprocessing.crop / preprocessing.resize
    left, top = (picture.width - side) / 2, (picture.height - side) / 2
    size = min(VIEW_SIDE, max(1, round(side)))
    return picture.resize((size, size), Image.Resampling.LANCZOS, (left, top, left + side, top + side))


def prepare(served: Served) -> GradCam:
    """Finds the stage, and freezes the network: nobody trains it here, and no gradient of a weight is computed."""
    served.model.requires_grad_(False)
    return GradCam(served.model, served.preprocessing.crop)


def warm_up(served: Served, cam: GradCam) -> None:
    """The first answer takes longer than the others; it is not a visitor's."""
    side = served.preprocessing.crop
    answer(served, cam, Photo(Image.new("RGB", (side, side), "grey")))
