"""The parts of the app's page as HTML, from `page.html.j2`: the head, the chooser of a photo, and the answer.

An answer brings each map as its few numbers, at the resolution of the network's stage; maps.js enlarges and draws it.
"""

import base64
import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from PIL import Image

from prep.errors import InputError
from serve import templates
from serve.accuracy_check import count_recorded, describe_accuracy
from serve.app.answer import Answer, Guess
from serve.app.limits import MAX_UPLOAD
from serve.app.uploads import FORMATS, open_photo
from serve.artifact import Served

THUMBNAIL, SMALL = 160, 112  # pixels; a smaller view is enlarged without smoothing, so that its pixels are visible
OPACITY = 75  # percent, at first
WEAKEST = 0.3  # strength of the map of a class that is hardly likely
UNLIKELY = 0.1  # the sentence below the classes says that a class with a smaller share is not likely
QUALITY = {"JPEG": {"quality": 90}, "WEBP": {"quality": 82}, "PNG": {}}
ACCEPTED = tuple(f"image/{kind.lower()}" for kind in FORMATS)
TEMPLATE = "page.html.j2"
SCRIPTS = ("transport.js", "shrink.js", "maps.js", "answer.js", "several.js", "chooser.js")


def read_file(name: str) -> str:
    """Return the text of a file next to this module, e.g. style.css."""
    return templates.read_file("serve.app", name)


def read_script(served: Served) -> str:
    """Return the page's script: its constants, then its files, each after those that it uses."""
    # A browser keeps the last answer of a tab; `PAGE` tells whether it was written by this page and for this model.
    sources = [read_file(name) for name in (*SCRIPTS, TEMPLATE)]
    page = hashlib.sha256("".join((*sources, served.name)).encode()).hexdigest()
    constants = {"MAX_UPLOAD": MAX_UPLOAD, "ACCEPTED": ACCEPTED, "PAGE": page}
    lines = [f"const {name} = {json.dumps(value)};" for name, value in constants.items()]
    return "\n".join([*lines, *sources[: len(SCRIPTS)]])


def _macros() -> Any:
    return templates.load_template("serve.app", TEMPLATE).module


# The head and the facts about the model


@dataclass(frozen=True)
class Facts:
    """What the page says about the model."""

    summary: str  # for everyone, one or two short sentences
    rows: Sequence[tuple[str, str]]  # name and text, for those who want to know more


def describe_model(served: Served) -> Facts:
    """Return what the page says about a model."""
    knows = f"Recognizes {served.num_classes:,} things."
    if served.recorded is None:
        summary, accuracy = knows, "Not measured."
    else:
        recorded = served.recorded
        summary = f"{knows} Right {round(recorded.top1)} times in 100."
        words = describe_accuracy(count_recorded(recorded))
        accuracy = f"Top-1 {words}, {recorded.split} of {recorded.dataset or 'its data'}."
    see = served.preprocessing
    return Facts(
        summary,
        (
            ("Model", f"{served.name}."),
            ("Accuracy", accuracy),
            (
                "Classes",
                f"The network always chooses among its {served.num_classes:,} classes, even if the photo shows none of "
                "them. The percentages add up to 100 over all classes.",
            ),
            (
                "What the network sees",
                f"The short side is reduced to {see.resize} pixels, and a square of {see.crop} pixels is cut from the "
                "middle. Only this square is shown.",
            ),
            (
                "The map",
                "Grad-CAM: orange shows which parts of the square support a class. Each map is scaled to its own "
                "maximum. It is fainter if the class is unlikely. A map says where the network looked, not why.",
            ),
            (
                "Your photo",
                "This page makes a large photo smaller before it sends it. The server deletes it within 5 minutes and "
                "does not use it for anything else.",
            ),
            *(("Note", note) for note in served.notes),
        ),
    )


def write_head(served: Served) -> str:
    """Return the page's head: the question, and one plain sentence about the model."""
    return str(_macros().head(describe_model(served)))


def write_about(served: Served) -> str:
    """Return the part that tells more about the model when it is opened."""
    return str(_macros().about(describe_model(served)))


# The chooser


@dataclass(frozen=True)
class _Example:
    """A button of the chooser, with the fields that the template uses."""

    name: str
    uri: str
    is_small: bool


def write_chooser(examples: Sequence[Path]) -> str:
    """Return the field in which to drop a photo, with the examples as buttons.

    Raises:
        InputError: an example is not a picture.
    """
    return str(_macros().chooser([_make_example(path) for path in examples]))


def _make_example(path: Path) -> _Example:
    try:
        picture = open_photo(path).picture
    except InputError as error:
        raise InputError(f"example {path}: {error}") from error
    is_small = min(picture.size) < SMALL
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    square = picture.crop((left, top, left + side, top + side))
    square.thumbnail((THUMBNAIL, THUMBNAIL))
    return _Example(path.stem.replace("_", " "), to_uri(square, "JPEG"), is_small)


# The answer


@dataclass(frozen=True)
class _Choice:
    """One class of an answer, with the fields that the template uses."""

    name: str
    short_name: str  # without synonyms
    share: str  # 0 to 1
    percent: str
    width: str  # of its bar, percent
    map_size: str  # HEIGHTxWIDTH
    map_values: str  # base64 of one byte per place, row by row
    strength: str  # of the map, 0 to 1
    where: str  # describes the map to a visitor who cannot see it
    meaning: str


def write_shown(answer: str) -> str:
    """Return the place of the answers, with the HTML of the first one."""
    return str(_macros().shown(Markup(answer)))


def write_answer(answer: Answer, seconds: float) -> str:
    """Return the answer to a photo: the photo under the chosen class's map, next to the classes to choose from.

    Args:
        seconds: time for the complete answer, including opening the file.
    """
    is_small = answer.view.width < SMALL
    view = {"is_small": is_small, "uri": to_uri(answer.view, "PNG" if is_small else "WEBP")}
    choices = [_make_choice(guess) for guess in answer.guesses]
    return str(_macros().answer(view, choices, answer.notes, OPACITY, f"{seconds:.2f}"))


def _make_choice(guess: Guess) -> _Choice:
    height, width = guess.map_hw.shape
    percent, short = format_share(guess.share), guess.name.split(",")[0]
    if not guess.map_hw.any():
        where = f"no part of the photo supports {short}"
        meaning = f"No part of the photo supports {short}, so nothing is coloured."
    else:
        where = f"where the network looked for {short}"
        meaning = f"Orange: where the network looked for {short}."
        if guess.share < UNLIKELY:
            meaning += f" The map is faint because this class got only {percent}."
    return _Choice(
        name=guess.name,
        short_name=short,
        share=f"{guess.share:.6f}",
        percent=percent,
        width=f"{100 * guess.share:.2f}",
        map_size=f"{height}x{width}",
        map_values=base64.b64encode(np.rint(255 * guess.map_hw).astype(np.uint8).tobytes()).decode(),
        strength=f"{map_strength(guess.share):.3f}",
        where=where,
        meaning=meaning,
    )


def map_strength(share: float) -> float:
    """Return how strongly a map is drawn, 0.3 to 1, so that an unlikely class does not look like a find.

    The fourth root spreads small shares: 100% gives 1, 10% gives 0.56, 1% gives 0.32.
    """
    return max(WEAKEST, share**0.25)


def write_refusal(message: str) -> str:
    """Return the section that says why the picture has no answer."""
    return str(_macros().refusal(message))


def write_welcome() -> str:
    """Return the section that is shown until the first answer, if the page has no examples."""
    return str(_macros().welcome())


def format_share(share: float) -> str:
    """Return a share as percent with one decimal; what would round to 0.0 or 100.0% is written as < 0.1 or > 99.9%."""
    if share < 0.001:
        return "< 0.1%"
    return "> 99.9%" if 0.9995 <= share < 1 else f"{100 * share:.1f}%"


def to_uri(picture: Image.Image, kind: str) -> str:
    """Return a picture as a `data:` URI of a PNG, a JPEG or a WebP."""
    content = io.BytesIO()
    picture.save(content, kind, **QUALITY[kind])
    return templates.to_data_uri(content.getvalue(), kind)
