"""A Hugging Face Space as a folder: the app, the modules that it imports, and an artifact. For `serve/publish.py`.

README.md  requirements.txt  app.py  LICENSE   read and started by the hub
serve/  prep/                                  the modules that the app imports, and no others
artifact/  examples/                           the model, and pictures to try it with
contents.json                                  SHA-256 of every other file, for serve/contents.py
"""

import shutil
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from huggingface_hub import SpaceCardData

from prep.errors import InputError
from serve.accuracy_check import count_recorded, describe_accuracy
from serve.app.examples import LICENSES, choose_examples, copy_examples
from serve.artifact import ARTIFACT, WEIGHTS, Served
from serve.contents import write_contents
from serve.dependencies import CHECKOUT, find_dependencies, pin_packages

CONFIG, CARD = "config.json", "README.md"
MODEL_FILES = (WEIGHTS, CONFIG, ARTIFACT, CARD)  # of an artifact, as it is pushed
# Files of an artifact that was exported with --onnx or --torch-export, by their keys in artifact.json.
PORTABLE = {"onnx": "model.onnx", "torch_export": "model.pt2"}
LICENSE, TITLE = "apache-2.0", "What does the network see?"
APP = '''"""The Space: serves the model in artifact/."""

from pathlib import Path

from serve.app import run

HERE = Path(__file__).resolve().parent

if __name__ == "__main__":
    run(HERE / "artifact", HERE / "examples")
'''


@dataclass(frozen=True)
class Wishes:
    """What the user may choose about a Space."""

    title: str = TITLE  # one line
    examples: Path | None = None  # folder of pictures to copy; None: choose_examples
    model_repo: str | None = None  # OWNER/NAME of the model on the hub, for a link to it

    def validate(self) -> None:
        """Check the title.

        Raises:
            InputError: it is empty, or has several lines.
        """
        if not self.title.strip() or len(self.title.splitlines()) != 1:
            raise InputError(f"--title must be one line of text, got {self.title!r}")


def write_space(folder: Path, artifact: Path, served: Served, wishes: Wishes) -> None:
    """Write a complete Space into a new folder.

    Args:
        artifact: folder written by train/export.py, from which `served` was loaded.

    Raises:
        InputError: an example is not a picture.
    """
    # The app's modules, styles and templates.
    needed = find_dependencies("serve.app")
    for name in ("serve", "prep", "artifact", "examples"):
        (folder / name).mkdir(parents=True)
    for file in needed.files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(CHECKOUT / file, folder / file)

    # The model, and pictures to try it with.
    for name in (WEIGHTS, ARTIFACT, CONFIG):
        shutil.copyfile(artifact / name, folder / "artifact" / name)
    if wishes.examples:
        copy_examples(wishes.examples, folder / "examples")
    else:
        choose_examples(folder / "examples", served.class_names)

    # The files that the hub reads. The requirements include Gradio, although the hub installs it by `sdk_version`, so
    # that the folder starts anywhere.
    shutil.copyfile(CHECKOUT / "LICENSE", folder / "LICENSE")
    (folder / "requirements.txt").write_text(pin_packages(needed.packages))
    (folder / "app.py").write_text(APP)
    words = _describe_examples(folder / "examples", wishes)
    (folder / "README.md").write_text(write_readme(served, wishes, words), encoding="utf-8")
    write_contents(folder)


def _describe_examples(folder: Path, wishes: Wishes) -> str:
    """Return a sentence on the origin of the example pictures."""
    if wishes.examples:
        return "The example pictures are the publisher's."
    if (folder / LICENSES).is_file():
        return f"The example photographs are CC0 or in the public domain: see `examples/{LICENSES}`."
    return "The example pictures were drawn by code."


def write_readme(served: Served, wishes: Wishes, examples: str) -> str:
    """Return the Space's README.md, with the front matter from which the hub builds it.

    Args:
        examples: a sentence on the origin of the example pictures.
    """
    title = wishes.title.strip()
    card = SpaceCardData(
        title=title,
        emoji="🔎",
        colorFrom="blue",
        colorTo="green",
        sdk="gradio",
        sdk_version=version("gradio"),
        python_version=f"{sys.version_info.major}.{sys.version_info.minor}",
        app_file="app.py",
        license=LICENSE,
        pinned=False,
        short_description="Five likeliest classes, and where it sees them",
        models=[wishes.model_repo] if wishes.model_repo else None,
    )
    sections = [
        f"---\n{card.to_yaml()}\n---",
        f"# {title}",
        f"Drop a picture: the five likeliest of {served.num_classes:,} classes, and where the network found each of "
        "them (Grad-CAM).",
        f"The model: {served.name}. {_describe_recorded(served)}",
        f"To run it elsewhere: `pip install -r requirements.txt`, then `python app.py`. {examples} Made with Penstock.",
    ]
    return "\n\n".join(sections) + "\n"


def _describe_recorded(served: Served) -> str:
    if served.recorded is None:
        return "Its accuracy was not measured."
    recorded = served.recorded
    words = describe_accuracy(count_recorded(recorded))
    return f"Measured on {recorded.split} of {recorded.dataset or 'its data'}: top-1 {words}."
