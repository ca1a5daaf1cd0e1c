"""The parts of the app's page as HTML, from `page.html.j2`: the chooser of a picture, and the answer.

Which map is visible, and how opaque it is, follows from the chosen class and the slider by CSS; no script draws.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from PIL import Image

from prep.errors import InputError
from serve import templates
from serve.accuracy_check import count_recorded, describe_accuracy
from serve.app.answer import Answer, Guess
from serve.app.limits import MAX_UPLOAD
from serve.app.uploads import FORMATS, open_photo
from serve.artifact import Served

THUMBNAIL, SMALL = 160, 112  # pixels; a smaller view is enlarged without smoothing, so that its pixels are visible
OPACITY = 60  # percent, at first
ACCEPTED = ",".join(f"image/{kind.lower()}" for kind in FORMATS)


def read_file(name: str) -> str:
    """Return the text of a file next to this module, e.g. style.css."""
    return templates.read_file("serve.app", name)


def _macros() -> Any:
    return templates.load_template("serve.app", "page.html.j2").module


def write_head(served: Served) -> str:
    """Return the page's head: the question, the model, and its recorded accuracy."""
    if served.recorded is None:
        figure = "its accuracy was not recorded"
    else:
        recorded = served.recorded
        words = describe_accuracy(count_recorded(recorded))
        figure = f"top-1 {words}, {recorded.split} of {recorded.dataset or 'its data'}"
    return str(_macros().head(served.name, figure, f"{served.num_classes:,}"))


@dataclass(frozen=True)
class _Example:
    """A button of the chooser, with the fields that the template uses."""

    name: str
    uri: str


def write_chooser(examples: Sequence[Path]) -> str:
    """Return the field in which to drop a picture, with the examples as buttons.

    Raises:
        InputError: an example is not a picture.
    """
    buttons = [_make_example(path) for path in examples]
    return str(_macros().chooser(ACCEPTED, MAX_UPLOAD >> 20, buttons))


def _make_example(path: Path) -> _Example:
    try:
        picture = open_photo(path).picture
    except InputError as error:
        raise InputError(f"example {path}: {error}") from error
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    return _Example(path.stem.replace("_", " "), to_uri(picture, "JPEG"))


@dataclass(frozen=True)
class _Choice:
    """One class of an answer, with the fields that the template uses."""

    name: str
    percent: str
    width: str  # of its bar, percent
    map_words: str  # describes the map to a visitor who cannot see it
    map_uri: str


def write_answer(answer: Answer, seconds: float) -> str:
    """Return the answer to a picture: the picture under the chosen class's map, next to the classes to choose from.

    Args:
        seconds: time for the complete answer, including opening the file.
    """
    is_small = answer.view.width < SMALL
    view = {"is_small": is_small, "uri": to_uri(answer.view, "PNG" if is_small else "JPEG")}
    choices = [_make_choice(guess) for guess in answer.guesses]
    return str(_macros().answer(view, choices, answer.notes, OPACITY, f"{seconds:.2f}"))


def _make_choice(guess: Guess) -> _Choice:
    words = f"where {guess.name} was found" if guess.map_HW.any() else f"no place supports {guess.name}"
    width = f"{100 * guess.share:.2f}"
    return _Choice(guess.name, format_share(guess.share), width, words, to_uri(color_map(guess.map_HW), "PNG"))


def write_refusal(message: str) -> str:
    """Return the section that says why there is no answer."""
    return str(_macros().refusal(message))


def write_welcome() -> str:
    """Return the section that is shown until the first answer."""
    return str(_macros().welcome())


def format_share(share: float) -> str:
    """Return a share as percent with one decimal; a share that would round to 0.0% is written as < 0.1%."""
    return f"{100 * share:.1f}%" if share >= 0.001 else "< 0.1%"


def color_map(map_HW: np.ndarray) -> Image.Image:
    """Return a map in the gallery's colours, RGBA: transparent where it is 0, so that the picture is visible there."""
    colors_HWC = mpl.colormaps["turbo"](map_HW)
    # Full opacity from 0.625 on, so that the middle of a map is clearly visible.
    colors_HWC[..., 3] = np.minimum(1, 1.6 * map_HW)
    return Image.fromarray(np.rint(255 * colors_HWC).astype(np.uint8))


def to_uri(picture: Image.Image, kind: str) -> str:
    """Return a picture as a `data:` URI of a PNG or a JPEG."""
    content = io.BytesIO()
    picture.save(content, kind, **({"quality": 90} if kind == "JPEG" else {}))
    return templates.to_data_uri(content.getvalue(), kind)
