"""`python serve/app.py --artifact DIR`: a page on which anyone can try a model, and see what it saw.

DIR: what train/export.py wrote. It listens at GRADIO_SERVER_NAME and GRADIO_SERVER_PORT (127.0.0.1 and 7860, or the
next free port). A picture is answered one at a time, the others wait in line; it is deleted within minutes.
"""

import argparse
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
from prep.errors import run as run_command
from serve.app_answer import answer, prepare, warm_up
from serve.app_examples import draw_examples, list_examples
from serve.app_guard import MAX_UPLOAD, Guard
from serve.app_page import write_answer, write_chooser, write_head, write_refusal, write_welcome
from serve.app_photo import open_photo
from serve.app_style import SCRIPT_OF_ANSWER, SCRIPT_OF_CHOOSER, STYLE
from serve.app_sweep import keep_swept
from serve.artifact import Served, load_artifact

AT_ONCE, MAX_WAITING = 1, 64  # the network takes all cores for one picture; who comes after them is told so


def build_app(served: Served, examples: Sequence[Path]) -> gr.Blocks:
    """The page of a model. Launch it with `launch_options()`."""
    respond = make_response(served, examples)
    with gr.Blocks(title="Penstock", analytics_enabled=False) as app:
        gr.HTML(write_head(served), elem_id="head", apply_default_css=False)
        with gr.Row(elem_id="columns"):
            chooser = gr.HTML(
                html_template=write_chooser(examples),
                js_on_load=f"const MAX_UPLOAD = {MAX_UPLOAD};{SCRIPT_OF_CHOOSER}",
                elem_id="chooser",
                apply_default_css=False,
            )
            shown = gr.HTML(write_welcome(), js_on_load=SCRIPT_OF_ANSWER, elem_id="shown", apply_default_css=False)
        # No input: Gradio handles no file that a visitor names. The event says what was chosen, and it is checked here.
        chooser.submit(respond, None, shown, api_visibility="private", show_progress="full", trigger_mode="always_last")
    return app.queue(max_size=MAX_WAITING, default_concurrency_limit=AT_ONCE, api_open=False)


def make_response(served: Served, examples: Sequence[Path]) -> Callable[[gr.EventData], str]:
    """What is done with a chosen picture."""
    cam = prepare(served)
    warm_up(served, cam)

    def respond(event: gr.EventData) -> str:
        started = time.perf_counter()
        try:
            found = answer(served, cam, open_photo(find_chosen(event._data, examples)))
        except InputError as error:
            return write_refusal(str(error))
        return write_answer(found, time.perf_counter() - started)

    return respond


def find_chosen(chosen: Any, examples: Sequence[Path]) -> Path:
    """The file that an event means: an example by its number, or an upload by the path that the server gave it.

    Raises:
        InputError: it is neither.
    """
    number, upload = (chosen.get(key) for key in ("example", "upload")) if isinstance(chosen, dict) else (None, None)
    if isinstance(number, int) and 0 <= number < len(examples):
        return examples[number]
    folder = Path(get_upload_folder()).resolve()
    path = Path(upload).resolve() if isinstance(upload, str) and "\0" not in upload else folder
    if folder not in path.parents or not path.is_file():
        raise InputError("This picture is no longer there. Choose it again.")
    return path


def launch_options() -> dict[str, Any]:
    """How the page is served: to nobody but its own visitors, from nowhere else, with nothing of the server to read."""
    fonts = ["system-ui", "sans-serif"]
    return {
        "app_kwargs": {"middleware": [Middleware(Guard)]},
        "theme": gr.themes.Base(primary_hue="teal", neutral_hue="stone", font=fonts, font_mono=["monospace"]),
        "css": STYLE,
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


def run(artifact: Path, examples: Path | None = None) -> None:
    """Serve an artifact's page until it is interrupted.

    Args:
        artifact: a folder of train/export.py.
        examples: a folder of pictures to try; None: some are drawn.

    Raises:
        InputError: the artifact cannot be trusted, or an example is no picture.
    """
    served = load_artifact(artifact)
    with tempfile.TemporaryDirectory(prefix="penstock-app-") as temporary:
        uploads, drawn = Path(temporary) / "uploads", Path(temporary) / "examples"
        uploads.mkdir()
        drawn.mkdir()
        os.environ["GRADIO_TEMP_DIR"] = str(uploads)  # a place of its own: others' Gradio apps share the default one
        keep_swept(uploads)
        shown = list_examples(examples) if examples else draw_examples(drawn, served.class_names)
        build_app(served, shown).launch(**launch_options())


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="serve/app.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--artifact", type=Path, required=True, metavar="DIR", help="what train/export.py wrote")
    add("--examples", type=Path, metavar="FOLDER", help="pictures to try (default: a few drawn ones)")
    return parser.parse_args()


def main() -> None:
    """Serve."""
    arguments = parse_arguments()
    run(arguments.artifact, arguments.examples)


if __name__ == "__main__":
    run_command(main, interrupted="nothing was written")
