"""Connect the page, the model and the examples to a Gradio server. For `serve.app.run`."""

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.utils import get_upload_folder
from starlette.middleware import Middleware

from prep.errors import InputError
from serve.app.answer import answer_photo, make_cam, warm_up
from serve.app.examples import draw_examples, list_examples
from serve.app.limits import MAX_UPLOAD, RequestFilter
from serve.app.page import read_file, write_answer, write_chooser, write_head, write_refusal, write_welcome
from serve.app.uploads import open_photo, start_cleaner
from serve.artifact import Served, load_artifact

AT_ONCE, MAX_WAITING = 1, 64  # one picture keeps all cores busy; Gradio refuses requests beyond the queue's length


def serve_artifact(artifact: Path, examples: Path | None) -> None:
    """Serve the page of an artifact until it is interrupted; see `serve.app.run`."""
    served = load_artifact(artifact)
    with tempfile.TemporaryDirectory(prefix="penstock-app-") as temporary:
        uploads, drawn = Path(temporary) / "uploads", Path(temporary) / "examples"
        uploads.mkdir()
        drawn.mkdir()

        # Use a private upload folder: all Gradio apps of a machine share the default one.
        os.environ["GRADIO_TEMP_DIR"] = str(uploads)
        start_cleaner(uploads)

        shown = list_examples(examples) if examples else draw_examples(drawn, served.class_names)
        make_blocks(served, shown).launch(**make_launch_options())


def make_blocks(served: Served, examples: Sequence[Path]) -> gr.Blocks:
    """Return the page of a model as a Gradio app. Launch it with `make_launch_options()`."""
    respond = make_response(served, examples)
    with gr.Blocks(title="Penstock", analytics_enabled=False) as app:
        gr.HTML(write_head(served), elem_id="head", apply_default_css=False)
        with gr.Row(elem_id="columns"):
            chooser = gr.HTML(
                html_template=write_chooser(examples),
                js_on_load=f"const MAX_UPLOAD = {MAX_UPLOAD};\n{read_file('chooser.js')}",
                elem_id="chooser",
                apply_default_css=False,
            )
            shown = gr.HTML(
                write_welcome(), js_on_load=read_file("answer.js"), elem_id="shown", apply_default_css=False
            )

        # The event has no input component, so Gradio opens no file that a visitor names. The event's data names the
        # chosen picture, and find_chosen checks it.
        chooser.submit(respond, None, shown, api_visibility="private", show_progress="full", trigger_mode="always_last")
    return app.queue(max_size=MAX_WAITING, default_concurrency_limit=AT_ONCE, api_open=False)


def make_response(served: Served, examples: Sequence[Path]) -> Callable[[gr.EventData], str]:
    """Return the function that answers the choice of a picture with HTML."""
    cam = make_cam(served)
    warm_up(served, cam)

    def respond(event: gr.EventData) -> str:
        started = time.perf_counter()
        try:
            answer = answer_photo(served, cam, open_photo(find_chosen(event._data, examples)))
        except InputError as error:
            return write_refusal(str(error))
        return write_answer(answer, time.perf_counter() - started)

    return respond


def find_chosen(chosen: Any, examples: Sequence[Path]) -> Path:
    """Return the file that an event names: {"example": NUMBER}, or {"upload": PATH} with the path the server returned.

    Raises:
        InputError: it names neither an example nor a file in the upload folder.
    """
    number, upload = (chosen.get(key) for key in ("example", "upload")) if isinstance(chosen, dict) else (None, None)
    if isinstance(number, int) and 0 <= number < len(examples):
        return examples[number]
    folder = Path(get_upload_folder()).resolve()
    path = Path(upload).resolve() if isinstance(upload, str) and "\0" not in upload else folder
    if folder not in path.parents or not path.is_file():
        raise InputError("This picture is no longer there. Choose it again.")
    return path


def make_launch_options() -> dict[str, Any]:
    """Return the options of `launch`: the request filter, the page's style, and every extra of Gradio turned off."""
    fonts = ["system-ui", "sans-serif"]
    return {
        "app_kwargs": {"middleware": [Middleware(RequestFilter)]},
        "theme": gr.themes.Base(primary_hue="teal", neutral_hue="stone", font=fonts, font_mono=["monospace"]),
        "css": read_file("style.css"),
        "max_file_size": MAX_UPLOAD,
        "footer_links": [],
        "run_history": False,
        "share": False,
        "ssr_mode": False,
        "enable_monitoring": False,
        "mcp_server": False,
        "pwa": False,
        "show_error": False,
    }
