"""The app's page in HTML: where a picture is chosen, and what was found in it. For `serve/app.py`.

Which map is seen follows from which class is chosen, by style alone; and so does its opacity. No script draws anything.
"""

import base64
import io
from collections.abc import Sequence
from html import escape
from pathlib import Path

import matplotlib as mpl
import numpy as np
from PIL import Image

from prep.errors import InputError
from serve.app_answer import Answer, Guess
from serve.app_guard import MAX_UPLOAD
from serve.app_photo import FORMATS, open_photo
from serve.artifact import Served
from serve.honesty import count_recorded, describe

THUMBNAIL, SMALL = 160, 112  # pixels; a smaller view is shown in visible pixels
OPACITY = 60  # percent, at first
ACCEPTED = ",".join(f"image/{kind.lower()}" for kind in FORMATS)


def write_head(served: Served) -> str:
    """What is asked here, of which model, and how good that is."""
    if served.recorded is None:
        figure = "its accuracy was not recorded"
    else:
        recorded = served.recorded
        words = describe(count_recorded(recorded))
        figure = f"top-1 {words}, {recorded.split} of {recorded.dataset or 'its data'}"
    return (
        "<h1>What does the network see?</h1>"
        f"<p>{escape(served.name)}.<br>Measured: {escape(figure)}. "
        f"It knows {served.num_classes:,} classes and takes every picture for one of them.</p>"
    )


def write_chooser(examples: Sequence[Path]) -> str:
    """A place to drop a picture, and examples as buttons."""
    buttons = "".join(_write_example(number, path) for number, path in enumerate(examples))
    shown = f'<h2>Or try one of these</h2><div class="examples">{buttons}</div>' if buttons else ""
    return (
        f'<label class="drop"><input type="file" class="file" accept="{ACCEPTED}" '
        'aria-describedby="penstock-limits">'
        '<span class="drop-words"><strong>Drop a picture here</strong>'
        "<span>paste one, or <u>choose a file</u></span></span></label>"
        f'<p id="penstock-limits" class="small">JPEG, PNG, WebP, GIF or BMP, up to {MAX_UPLOAD >> 20} MB. '
        "It is deleted within minutes.</p>"
        f'<p class="trouble" role="alert" hidden></p>{shown}'
    )


def _write_example(number: int, path: Path) -> str:
    try:
        picture = open_photo(path).picture
    except InputError as error:
        raise InputError(f"example {path}: {error}") from error
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    name = path.stem.replace("_", " ")
    return (
        f'<button type="button" data-example="{number}"><img alt="" src="{to_uri(picture, "JPEG")}">'
        f"<span>{escape(name)}</span></button>"
    )


def write_answer(found: Answer, seconds: float) -> str:
    """Five classes to choose from beside the picture with the chosen one's map over it.

    Args:
        seconds: for all of the answer, opening the file included.
    """
    best = found.guesses[0]
    said = f"{best.name}, {format_share(best.share)}"
    notes = "".join(f'<p class="note">{escape(note)}</p>' for note in found.notes)
    choices = "".join(_write_choice(number, guess) for number, guess in enumerate(found.guesses))
    maps = "".join(_write_map(number, guess) for number, guess in enumerate(found.guesses))
    return (
        f'<section class="answer" style="--opacity: {OPACITY / 100}" aria-label="Answer">'
        f'<p class="said" role="status">Most likely: {escape(said)}</p>{notes}'
        f'<div class="beside"><div class="picture"><div class="layers">{_write_view(found.view)}{maps}</div>'
        f"{_write_slider()}</div>"
        f'<fieldset class="choices"><legend>Choose a class to see where it was found</legend>{choices}</fieldset></div>'
        f'<p class="small">Warm colours: places that spoke for the chosen class '
        "(Grad-CAM, each map from 0 to its own highest). "
        f'The picture is the square that the network saw. <span class="latency">Answered in {seconds:.2f} s.</span></p>'
        "</section>"
    )


def write_refusal(message: str) -> str:
    """Why there is no answer."""
    return f'<section class="answer"><p class="refusal" role="alert">{escape(message)}</p></section>'


def write_welcome() -> str:
    """What stands where the answer will be."""
    words = "The five likeliest classes will stand here, and where in the picture each was found."
    return f'<section class="answer empty"><p>{words}</p></section>'


def _write_choice(number: int, guess: Guess) -> str:
    checked = " checked" if number == 0 else ""
    percent = escape(format_share(guess.share))
    return (
        f'<label class="choice"><input type="radio" name="penstock-class" value="{number}"{checked} '
        f'aria-label="{escape(guess.name)}, {percent}">'
        f'<span class="name">{escape(guess.name)}</span><span class="share">{percent}</span>'
        f'<span class="bar"><span style="width: {100 * guess.share:.2f}%"></span></span></label>'
    )


def _write_view(view: Image.Image) -> str:
    small = view.width < SMALL
    kind = "view pixels" if small else "view"
    return f'<img class="{kind}" alt="the picture" src="{to_uri(view, "PNG" if small else "JPEG")}">'


def _write_map(number: int, guess: Guess) -> str:
    words = f"where {guess.name} was found" if guess.map_HW.any() else f"no place speaks for {guess.name}"
    return f'<img class="map map-{number}" alt="{escape(words)}" src="{to_uri(color_map(guess.map_HW), "PNG")}">'


def _write_slider() -> str:
    return (
        '<label class="slider"><span>Map</span>'
        f'<input type="range" min="0" max="100" value="{OPACITY}" aria-label="opacity of the map, percent">'
        f'<output class="percent">{OPACITY}%</output></label>'
    )


def format_share(share: float) -> str:
    """Percent with one decimal; what rounds to nothing is not nothing."""
    return f"{100 * share:.1f}%" if share >= 0.001 else "< 0.1%"


def color_map(map_HW: np.ndarray) -> Image.Image:
    """The gallery's colours, clear where the map is 0, RGBA: the picture shows through where it was of no account."""
    colors_HWC = mpl.colormaps["turbo"](map_HW)
    colors_HWC[..., 3] = np.minimum(1, 1.6 * map_HW)
    return Image.fromarray(np.rint(255 * colors_HWC).astype(np.uint8))


def to_uri(picture: Image.Image, kind: str) -> str:
    """A picture in the page itself."""
    content = io.BytesIO()
    picture.save(content, kind, **({"quality": 90} if kind == "JPEG" else {}))
    return f"data:image/{kind.lower()};base64,{base64.b64encode(content.getvalue()).decode()}"
