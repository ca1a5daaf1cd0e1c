"""Connect the page, the model and the examples to a Gradio server. For `serve.app.run`."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.utils import get_upload_folder
from starlette.middleware import Middleware

from prep.errors import InputError
from serve.app.api import PredictRoute, read_token
from serve.app.examples import choose_examples, list_examples
from serve.app.leftovers import forget_answers, make_private_folder
from serve.app.limits import MAX_UPLOAD, PREDICT, RequestFilter
from serve.app.page import (
    read_file,
    read_script,
    write_about,
    write_answer,
    write_chooser,
    write_head,
    write_refusal,
    write_shown,
    write_welcome,
)
from serve.app.preview import Preview, make_preview
from serve.app.uploads import start_cleaner
from serve.app.worker import Answerer
from serve.artifact import Served
from serve.device import choose_device
from serve.loading import load_served

GONE = "This picture is no longer there. Choose it again."
# Characters with a meaning in Gradio's templates, which are JavaScript and Handlebars. Names of example files may hold
# them, and would be run as code in the visitor's browser.
IN_TEMPLATES = str.maketrans({each: f"&#{ord(each)};" for each in "${}`\\"})
AT_ONCE, MAX_WAITING = 1, 64  # one picture keeps all cores busy; Gradio refuses requests beyond the queue's length


def serve_artifact(artifact: Path, examples: Path | None, device: str = "auto", api: bool = False) -> None:
    """Serve the page of an artifact until it is interrupted; see `serve.app.run`."""
    # Refuse flags that cannot be used before the slow part.
    token = read_token() if api else None
    torch_device = choose_device(device)
    served = load_served(artifact)
    served.model.to(torch_device)
    with _ending_on_sigterm(), make_private_folder() as folder:
        uploads, chosen = folder / "uploads", folder / "examples"
        uploads.mkdir()
        chosen.mkdir()

        # Use a private upload folder: all Gradio apps of a machine share the default one.
        os.environ["GRADIO_TEMP_DIR"] = str(uploads)

        # Build the page, and POST /predict if it is wanted.
        shown = list_examples(examples) if examples else choose_examples(chosen, served.class_names)
        preview = make_preview(served, shown)
        predict = PredictRoute(Answerer(served), token) if token else None
        blocks = make_blocks(served, shown)
        blocks.title = preview.title
        start_cleaner(uploads, also=lambda: forget_answers(blocks))
        blocks.launch(**make_launch_options(preview, predict), prevent_thread_lock=True)
        try:
            lines = [f"Running on {blocks.local_url} ({torch_device}). Stop it with Ctrl-C."]
            if predict:
                lines.append(f"POST {str(blocks.local_url).rstrip('/')}{PREDICT} answers programs that send the token.")
            print("\n".join(lines), flush=True)
            while blocks.is_running:
                time.sleep(0.5)
        except KeyboardInterrupt:
            print("stopped", flush=True)
        finally:
            blocks.close(verbose=False)


@contextmanager
def _ending_on_sigterm() -> Iterator[None]:
    """Let SIGTERM end the block as Ctrl-C does, so that the folder with visitors' pictures is deleted."""
    if threading.current_thread() is not threading.main_thread():  # only the main thread may handle signals
        yield
        return

    def interrupt(_signal: int, _frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def make_blocks(served: Served, examples: Sequence[Path]) -> gr.Blocks:
    """Return the page of a model as a Gradio app. Launch it with `make_launch_options()`."""
    respond = make_response(served, examples)
    first = respond({"example": 0}) if examples else write_welcome()
    with gr.Blocks(title="What is in this photo?", analytics_enabled=False) as app:
        gr.HTML(write_head(served), elem_id="head", apply_default_css=False)
        with gr.Row(elem_id="columns"):
            chooser = gr.HTML(
                html_template=escape_template(write_chooser(examples)),
                js_on_load=read_script(served),
                elem_id="chooser",
                apply_default_css=False,
            )
            shown = gr.HTML(write_shown(first), elem_id="shown", apply_default_css=False)
        gr.HTML(write_about(served), elem_id="about", apply_default_css=False)

        # The page's own script sends this event to Gradio's queue (transport.js). It has no input component, so Gradio
        # opens no file that a visitor names. The event's data names the chosen picture, and find_chosen checks it.
        def answer_event(event: gr.EventData) -> str:
            return respond(event._data)

        chooser.submit(answer_event, None, shown, api_visibility="private", show_progress="hidden")
    return app.queue(max_size=MAX_WAITING, default_concurrency_limit=AT_ONCE, api_open=False)


def escape_template(html: str) -> str:
    """Return HTML that a template of Gradio shows unchanged."""
    return html.translate(IN_TEMPLATES)


def make_response(served: Served, examples: Sequence[Path]) -> Callable[[Any], str]:
    """Return the function that answers the choice of a picture, as `find_chosen` takes it, with HTML."""
    answerer = Answerer(served)

    def respond(chosen: Any) -> str:
        started = time.perf_counter()
        try:
            answer = answerer.answer_file(find_chosen(chosen, examples))
        except FileNotFoundError:  # the cleaner was faster
            return write_refusal(GONE)
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
    if type(number) is int and 0 <= number < len(examples):
        return examples[number]
    folder = Path(get_upload_folder()).resolve()
    path = Path(upload).resolve() if isinstance(upload, str) and "\0" not in upload else folder
    if folder not in path.parents or not path.is_file():
        raise InputError(GONE)
    return path


def make_launch_options(preview: Preview | None = None, predict: PredictRoute | None = None) -> dict[str, Any]:
    """Return the options of `launch`: the request filter, the page's style, and every extra of Gradio turned off.

    Args:
        preview: the page's title, icon and link preview; None leaves Gradio's.
        predict: answers POST /predict; None: the route does not exist.
    """
    fonts = ["system-ui", "sans-serif"]
    return {
        "app_kwargs": {"middleware": [Middleware(RequestFilter, preview=preview, predict=predict)]},
        "theme": gr.themes.Base(primary_hue="teal", neutral_hue="stone", font=fonts, font_mono=["monospace"]),
        "css": read_file("style.css"),
        "max_file_size": MAX_UPLOAD,
        # Gradio keeps the last answer of each session, and the page starts a session for each picture.
        "state_session_capacity": 2 * MAX_WAITING,
        "quiet": True,
        "footer_links": [],
        "run_history": False,
        "share": False,
        "ssr_mode": False,
        "enable_monitoring": False,
        "mcp_server": False,
        "pwa": False,
        "show_error": False,
    }
