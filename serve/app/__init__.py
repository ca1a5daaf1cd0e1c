"""The web app: upload a picture, get the five most likely classes and the places that support each.

The command is the file serve/app.py next to this package. When a package and a module have the same name, Python
imports the package, so `from serve.app import run` always means this file.

A picture takes this way:
    uploads.py   the visitor's file, checked and decoded, or explained by file_kinds.py; deleted after a few minutes
    answer.py    the five most likely classes, with a Grad-CAM map of each
    worker.py    one picture at a time, for the page and for programs
    page.py      the answer as HTML, from page.html.j2; style.css and the scripts are sent as they are
    server.py    connects these to Gradio, behind limits.py, which lets through only the requests that the page makes
    preview.py   the page's title, icon and link preview, in place of Gradio's
    api.py       POST /predict, which answers programs with JSON

The functions below import server.py when they are called, because Gradio and torch take seconds to import.
"""

# ruff: noqa: PLC0415

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gradio import Blocks

    from serve.artifact import Served


def run(artifact: Path, examples: Path | None = None, *, device: str = "auto", api: bool = False) -> None:
    """Serve the page of an artifact until it is interrupted.

    Args:
        artifact: folder written by train/export.py.
        examples: folder of pictures to offer as examples; None: photographs or drawings that fit the classes.
        device: auto (a GPU if there is one), cpu, cuda or cuda:N.
        api: also answer POST /predict for requests with the token in the environment variable PENSTOCK_API_TOKEN.

    Raises:
        InputError: the artifact is invalid, an example is not a picture, the device is missing, or `api` is given
            without a token of at least 16 characters.
    """
    from serve.app.server import serve_artifact

    serve_artifact(artifact, examples, device, api)


def build_app(served: Served, examples: Sequence[Path]) -> Blocks:
    """Return the page of a model as a Gradio app. Launch it with `launch_options(served, examples)`.

    Set the environment variable GRADIO_TEMP_DIR to a folder for uploads that no other app uses.
    """
    from serve.app.server import make_blocks

    return make_blocks(served, examples)


def launch_options(served: Served | None = None, examples: Sequence[Path] = ()) -> dict[str, Any]:
    """Return the options of `launch`: the request filter, the page's style, and every extra of Gradio turned off.

    Args:
        served, examples: make the page's title, icon and link preview; without them they are Gradio's.

    Raises:
        InputError: the first example is not a picture.
    """
    from serve.app.preview import make_preview
    from serve.app.server import make_launch_options

    return make_launch_options(make_preview(served, examples) if served else None)
