"""A Hugging Face Space as a folder: the app, the modules that it imports, and an artifact. For `serve/publish.py`.

README.md  requirements.txt  app.py  LICENSE   read and started by the hub
serve/  prep/                                  the modules that the app imports, and no others
artifact/  examples/                           the model, and drawn pictures to try it with
contents.json                                  SHA-256 of every other file

A later Space replaces an earlier one only if contents.json shows that nothing in it is new or was changed.
"""

import json
import shutil
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from huggingface_hub import SpaceCardData

from prep.errors import InputError
from prep.files import sha256_of_file
from serve.accuracy_check import count_recorded, describe_accuracy
from serve.app.examples import draw_examples
from serve.artifact import ARTIFACT, WEIGHTS, Served
from serve.dependencies import CHECKOUT, find_dependencies, pin_packages

CONFIG, CARD = "config.json", "README.md"
MODEL_FILES = (WEIGHTS, CONFIG, ARTIFACT, CARD)  # of an artifact, as it is pushed
LICENSE, TITLE = "apache-2.0", "What does the network see?"
CONTENTS = "contents.json"
LEFT_BEHIND = {"__pycache__", ".gradio"}  # made by running a Space
APP = '''"""The Space: serves the model in artifact/."""

from pathlib import Path

from serve.app import run

HERE = Path(__file__).resolve().parent

if __name__ == "__main__":
    run(HERE / "artifact", HERE / "examples")
'''


def write_space(folder: Path, artifact: Path, served: Served, model_repo: str | None) -> None:
    """Write a complete Space into a new folder.

    Args:
        artifact: folder written by train/export.py, from which `served` was loaded.
        model_repo: OWNER/NAME of the model on the hub, for a link to it.
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
    draw_examples(folder / "examples", served.class_names)

    # The files that the hub reads. The requirements include Gradio, although the hub installs it by `sdk_version`, so
    # that the folder starts anywhere.
    shutil.copyfile(CHECKOUT / "LICENSE", folder / "LICENSE")
    (folder / "requirements.txt").write_text(pin_packages(needed.packages))
    (folder / "app.py").write_text(APP)
    (folder / "README.md").write_text(write_readme(served, model_repo), encoding="utf-8")
    write_contents(folder)


def write_readme(served: Served, model_repo: str | None) -> str:
    """Return the Space's README.md, with the front matter from which the hub builds it."""
    card = SpaceCardData(
        title=TITLE,
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
        models=[model_repo] if model_repo else None,
    )
    sections = [
        f"---\n{card.to_yaml()}\n---",
        f"# {TITLE}",
        f"Drop a picture: the five likeliest of {served.num_classes:,} classes, and where the network found each of "
        "them (Grad-CAM).",
        f"The model: {served.name}. {_describe_recorded(served)}",
        "To run it elsewhere: `pip install -r requirements.txt`, then `python app.py`. The example pictures were drawn "
        "by code. Made with Penstock.",
    ]
    return "\n\n".join(sections) + "\n"


def _describe_recorded(served: Served) -> str:
    if served.recorded is None:
        return "Its accuracy was not measured."
    recorded = served.recorded
    words = describe_accuracy(count_recorded(recorded))
    return f"Measured on {recorded.split} of {recorded.dataset or 'its data'}: top-1 {words}."


def write_contents(folder: Path) -> None:
    """Write contents.json: file -> SHA-256 of each file in a folder, except itself."""
    digests = {name: digest for name, digest in _digest_all(folder).items() if name != CONTENTS}
    (folder / CONTENTS).write_text(json.dumps(digests, indent=1) + "\n")


def check_replaceable(folder: Path) -> bool:
    """Return True if a folder holds an earlier Space, False if it is empty or missing.

    Raises:
        InputError: it holds something else, or was changed since, so it must not be deleted.
    """
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise InputError(f"{folder} is not a folder: choose another --out")
    if not folder.exists() or not any(folder.iterdir()):
        return False
    recorded = _read_contents(folder / CONTENTS)
    changed = sorted(
        name
        for name, digest in _digest_all(folder).items()
        if name != CONTENTS and recorded.get(name) != digest and not LEFT_BEHIND & set(Path(name).parts)
    )
    if changed:
        raise InputError(
            f"{folder} holds {changed[0]}, which is yours or was changed since it was assembled: choose another --out"
        )
    return True


def _read_contents(path: Path) -> dict[str, Any]:
    """Return the digests in contents.json; an empty dict if it is missing or damaged."""
    try:
        return dict(json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError):
        return {}


def _digest_all(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file() or path.is_symlink())
    return {path.relative_to(folder).as_posix(): _digest(path) for path in files}


def _digest(path: Path) -> str:
    return "a link" if path.is_symlink() else sha256_of_file(path)
