"""A Hugging Face Space as a folder: the app, what it needs, and an artifact. For `serve/publish.py`.

README.md  requirements.txt  app.py  LICENSE   what the hub reads, and starts
serve/  prep/                                  the modules that the app needs, and no others
artifact/  examples/                           the model, and drawn pictures to try it with
"""

import shutil
import sys
from importlib.metadata import version
from pathlib import Path

from huggingface_hub import SpaceCardData

from serve.app_examples import draw_examples
from serve.artifact import ARTIFACT, WEIGHTS, Served
from serve.contents import write_contents
from serve.honesty import count_recorded, describe
from serve.needs import CHECKOUT, find_needs, pin

CONFIG, CARD = "config.json", "README.md"
LICENSE, TITLE = "apache-2.0", "What does the network see?"
APP = '''"""The Space: serves the model in artifact/."""

from pathlib import Path

from serve.app import run

HERE = Path(__file__).resolve().parent

if __name__ == "__main__":
    run(HERE / "artifact", HERE / "examples")
'''


def write_space(folder: Path, artifact: Path, served: Served, model_repo: str | None) -> None:
    """Write all of a Space into a new folder.

    Args:
        artifact: a folder of train/export.py, which `served` was loaded from.
        model_repo: OWNER/NAME of the model on the hub, for a link to it.
    """
    needs = find_needs("serve.app")
    for name in ("serve", "prep", "artifact", "examples"):
        (folder / name).mkdir(parents=True)
    for file in needs.files:
        shutil.copyfile(CHECKOUT / file, folder / file)
    for name in (WEIGHTS, ARTIFACT, CONFIG):
        shutil.copyfile(artifact / name, folder / "artifact" / name)
    draw_examples(folder / "examples", served.class_names)
    shutil.copyfile(CHECKOUT / "LICENSE", folder / "LICENSE")
    # Gradio as well, though the hub installs it by `sdk_version`: so the folder starts anywhere.
    (folder / "requirements.txt").write_text(pin(needs.packages))
    (folder / "app.py").write_text(APP)
    (folder / "README.md").write_text(write_readme(served, model_repo), encoding="utf-8")
    write_contents(folder)


def write_readme(served: Served, model_repo: str | None) -> str:
    """The page of the Space, with the front matter that the hub builds it from."""
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
        f"The model: {served.name}. {_describe_accuracy(served)}",
        "To run it elsewhere: `pip install -r requirements.txt`, then `python app.py`. The example pictures were drawn "
        "by code. Made with Penstock.",
    ]
    return "\n\n".join(sections) + "\n"


def _describe_accuracy(served: Served) -> str:
    if served.recorded is None:
        return "Its accuracy was not measured."
    recorded = served.recorded
    words = describe(count_recorded(recorded))
    return f"Measured on {recorded.split} of {recorded.dataset or 'its data'}: top-1 {words}."
