"""A Space holds what it needs and nothing else, starts with its requirements alone, and replaces no user's file."""

import ast
import hashlib
import json
import runpy
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.commands import CHECKOUT
from helpers.served import Exported, run_here
from PIL import Image
from safetensors.torch import load_file, save_file

from prep.errors import InputError
from serve import smoke_test
from serve.app.drawings import DRAWINGS, draw_examples
from serve.app.examples import LICENSES
from serve.app.uploads import open_photo
from serve.artifact import load_artifact
from serve.contents import CONTENTS, check_replaceable
from serve.predict import predict_probabilities
from serve.preprocess import show_crop, to_tensor
from serve.publish import check_portable
from serve.smoke_test import ask_space, is_same_answer, request, start_space
from serve.space import Wishes, write_space

UV = Path(sys.executable).with_name("uv")
FOLDERS = ("serve", "prep", "artifact", "examples")
OURS = ("loaders", "train", "benchmarks", "nvidia.dali")  # what a Space must not need
NEEDED = {"captum", "gradio", "jinja2", "numpy", "pillow", "safetensors", "timm", "torch", "torchvision"}


def publish(artifact: Path, out: Path) -> object:
    """The exit status, or the message, of the command."""
    try:
        run_here("serve/publish.py", artifact, "--out", out)
    except SystemExit as ended:
        return ended.code
    return 0


@pytest.fixture(scope="module")
def space(exported: Exported, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Space that the command assembled and tried."""
    out = tmp_path_factory.mktemp("published") / "space"
    out.mkdir()
    assert publish(exported.artifact, out) == 0
    return out


def test_a_space_of_a_network_with_blur_starts_and_computes_the_recorded_logits(
    exported_with_blur: Exported, tmp_path: Path
) -> None:
    assert publish(exported_with_blur.artifact, tmp_path / "space") == 0
    assert (tmp_path / "space" / "prep" / "blur.py").is_file()
    assert "test_resnet with blur, ema of demo" in (tmp_path / "space" / "README.md").read_text()


def list_files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def read_requirements(space: Path) -> dict[str, str]:
    lines = (space / "requirements.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines)


def test_it_holds_the_app_the_artifact_and_nothing_else(space: Path, exported: Exported) -> None:
    files = list_files(space)
    parts = {name.partition("/")[0] for name in files}
    assert parts == {
        "README.md",
        "LICENSE",
        "app.py",
        "requirements.txt",
        CONTENTS,
        "serve",
        "prep",
        "artifact",
        "examples",
    }
    artifact = {"model.safetensors", "artifact.json", "config.json"}
    assert {name for name in files if name.startswith("artifact/")} == {f"artifact/{name}" for name in artifact}
    for name in artifact:
        assert (space / "artifact" / name).read_bytes() == (exported.artifact / name).read_bytes()
    assert files >= {f"serve/app/{name}" for name in ("page.html.j2", "style.css", "chooser.js", "answer.js")}
    assert not files & {f"serve/{name}.py" for name in ("shards", "image_sources", "report", "publish", "hub")}
    assert list(space.parent.iterdir()) == [space]


def test_its_modules_import_one_another_and_what_is_required(space: Path) -> None:
    modules = {name.removesuffix(".py").replace("/", ".").removesuffix(".__init__") for name in list_files(space)}
    imported = set()
    for path in [*space.glob("serve/**/*.py"), *space.glob("prep/*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                imported.add(node.module)
    assert {name for name in imported if name.partition(".")[0] in ("serve", "prep")} <= modules
    assert not {name.partition(".")[0] for name in imported} & {"loaders", "train", "nvidia", "webdataset", "pyarrow"}


def test_the_front_matter_is_what_the_hub_builds_from(space: Path) -> None:
    _, front, words = (space / "README.md").read_text().split("---\n", 2)
    facts: dict[str, Any] = yaml.safe_load(front)
    assert facts["sdk"] == "gradio" and facts["sdk_version"] == version("gradio")
    assert facts["python_version"] == f"{sys.version_info.major}.{sys.version_info.minor}"
    assert (space / facts["app_file"]).is_file() and facts["license"] == "apache-2.0"
    assert facts["title"] and len(facts["short_description"]) <= 60 and "models" not in facts
    recorded = json.loads((space / "artifact" / "artifact.json").read_text())["accuracy"]
    assert f"top-1 {100 * recorded['num_top1'] / recorded['num_images']:.2f}% of 360 images" in words


def test_every_requirement_is_exact_and_as_installed(space: Path) -> None:
    required = read_requirements(space)
    assert required.keys() >= NEEDED
    for name, number in required.items():
        assert number == version(name).partition("+")[0]
    assert not {name for name in required if "dali" in name or name in ("webdataset", "pyarrow", "datasets", "tyro")}


def test_its_examples_are_drawn_the_same_way_each_time(space: Path, tmp_path: Path, exported: Exported) -> None:
    names = load_artifact(exported.artifact).class_names
    drawn = draw_examples(tmp_path, names)
    assert [path.stem for path in drawn] == ["two", "three", "four", "seven"]
    assert {path.name: path.read_bytes() for path in drawn} == {
        path.name: path.read_bytes() for path in (space / "examples").iterdir()
    }
    for path in draw_examples(tmp_path):
        with Image.open(path) as picture:
            assert len(set(picture.convert("RGB").resize((32, 32)).get_flattened_data())) > 50


@pytest.mark.parametrize(
    ("class_names", "names", "words"),
    [
        (("cat", "dog"), {"cat.jpg", "dog.jpg", LICENSES}, "The example photographs are CC0 or in the public domain"),
        (("left", "right"), {f"{name}.jpg" for name in DRAWINGS}, "The example pictures were drawn by code."),
    ],
)
def test_the_readme_tells_where_the_examples_are_from(
    class_names: tuple[str, ...], names: set[str], words: str, exported: Exported, tmp_path: Path
) -> None:
    served = replace(load_artifact(exported.artifact), class_names=class_names)
    write_space(tmp_path, exported.artifact, served, Wishes())
    assert {path.name for path in (tmp_path / "examples").iterdir()} == names
    assert words in (tmp_path / "README.md").read_text()


def test_a_space_with_own_examples_and_title_is_its_own_successor(exported: Exported, tmp_path: Path) -> None:
    served, space, mine = load_artifact(exported.artifact), tmp_path / "space", tmp_path / "mine"
    mine.mkdir()
    Image.new("RGB", (32, 32), "red").save(mine / "my_dog.png")
    write_space(space, exported.artifact, served, Wishes('Dogs: "all" of them', mine))
    assert [path.name for path in (space / "examples").iterdir()] == ["my_dog.png"]
    _, front, words = (space / "README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(front)["title"] == 'Dogs: "all" of them' and "# Dogs" in words
    assert "The example pictures are the publisher's." in words
    assert check_replaceable(space)


@contextmanager
def installed(space: Path, folder: Path) -> Iterator[Path]:
    """Python of an environment with a Space's requirements alone, in the versions that the project was tried with."""
    subprocess.run([UV, "venv", "--quiet", "--python", sys.executable, folder], check=True)
    command = [UV, "pip", "install", "--python", folder / "bin" / "python", "-r", space / "requirements.txt"]
    command += ["--constraint", CHECKOUT / "constraints.txt"]
    try:
        if subprocess.run([*command, "--offline"], check=False, capture_output=True).returncode:  # uv's cache has it
            subprocess.run(command, check=True)
        yield folder / "bin" / "python"
    finally:
        shutil.rmtree(folder)  # torch is gigabytes


@pytest.mark.skipif(not UV.is_file(), reason=f"needs {UV}: pip install uv")
def test_it_starts_where_nothing_but_its_requirements_is_installed(
    space: Path, exported: Exported, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(space, tmp_path / "elsewhere" / "space"))
    find = f"from importlib.util import find_spec; import serve; print(serve.__file__, *map(find_spec, {OURS}))"
    with installed(space, tmp_path / "fresh") as python:
        found = subprocess.run([python, "-c", find], cwd=folder, check=True, capture_output=True, text=True, env={})
        with start_space(folder, python) as address:
            page, said = request(address), ask_space(address)
    assert found.stdout.split() == [str(folder / "serve" / "__init__.py"), *["None"] * len(OURS)]
    assert "window.gradio_config" in page
    assert is_same_answer(said, expect(exported, folder))


def expect(exported: Exported, space: Path) -> list[tuple[str, float]]:
    """Return the artifact's answer here to the Space's first example: its five classes, percent."""
    served = load_artifact(exported.artifact)
    first = sorted((space / "examples").iterdir())[0]
    crop = show_crop(open_photo(first).picture, served.preprocessing)
    shares_T, labels_T = predict_probabilities(served, to_tensor(crop, served.preprocessing)[None])[0].topk(5)
    assert served.class_names is not None
    return [(served.class_names[n], 100 * share) for n, share in zip(labels_T, shares_T.tolist(), strict=True)]


def test_other_weights_do_not_start(space: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(space, tmp_path / "space"))
    weights = load_file(folder / "artifact" / "model.safetensors")
    save_file({name: tensor + 1 for name, tensor in weights.items()}, folder / "artifact" / "model.safetensors")
    with pytest.raises(InputError, match="is not what was exported"):
        runpy.run_path(str(folder / "app.py"), run_name="__main__")


@pytest.mark.parametrize(
    ("said", "same"),
    [
        ([("one", 60.0), ("two", 40.0)], True),
        ([("one", 60.05), ("two", 39.95)], True),
        ([("two", 60.0), ("one", 40.0)], False),
        ([("one", 59.0), ("two", 41.0)], False),
        ([("one", 60.0)], False),
        ([], False),
    ],
)
def test_another_answer_is_noticed(said: list[tuple[str, float]], same: bool) -> None:
    assert is_same_answer(said, [("one", 60.0), ("two", 40.0)]) is same
    assert not is_same_answer(said, [])


def test_a_space_that_does_not_start_leaves_nothing(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONHOME", str(tmp_path))  # no Python starts with this
    assert str(publish(exported.artifact, tmp_path / "space")).startswith("error: the Space does not start: ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["mine.txt", "serve/mine.py", "README.md", "examples/two.png"])
def test_a_users_file_is_never_deleted(name: str, space: Path, exported: Exported, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(space, tmp_path / "space"))
    (folder / "serve" / "__pycache__").mkdir()
    (folder / "serve" / "__pycache__" / "app.pyc").write_bytes(b"left behind")
    assert check_replaceable(folder)
    with (folder / name).open("ab") as file:
        file.write(b"mine")
    before = {path: (folder / path).read_bytes() for path in list_files(folder)}
    assert f"holds {name}, which is yours or was changed" in str(publish(exported.artifact, folder))
    assert before == {path: (folder / path).read_bytes() for path in list_files(folder)}


def test_a_file_that_is_added_while_the_space_is_tried_is_kept(
    space: Path, exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(space, tmp_path / "space"))

    def add(*_arguments: object) -> list[tuple[str, float]]:
        (folder / "mine.txt").write_text("mine")
        return [("one", 50.0)]

    monkeypatch.setattr(smoke_test, "try_space", add)
    assert "holds mine.txt, which is yours or was changed" in str(publish(exported.artifact, folder))
    assert (folder / "mine.txt").read_text() == "mine" and list(tmp_path.iterdir()) == [folder]


@pytest.mark.parametrize(("content", "found"), [(None, "is missing"), (b"other", "has another SHA-256")])
def test_a_push_without_a_recorded_file_is_refused(
    content: bytes | None, found: str, exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    folder, out = Path(shutil.copytree(exported.artifact, tmp_path / "artifact")), tmp_path / "space"
    facts = json.loads((folder / "artifact.json").read_text())
    facts["onnx"] = {"file": "model.onnx", "sha256": hashlib.sha256(b"exported").hexdigest()}
    (folder / "artifact.json").write_text(json.dumps(facts))
    (folder / "model.onnx").write_bytes(b"exported")
    check_portable(folder)
    (folder / "model.onnx").unlink()
    if content:
        (folder / "model.onnx").write_bytes(content)
    with pytest.raises(SystemExit, match=rf"nothing was pushed: .* records model\.onnx, which {found}: put the "):
        run_here("serve/publish.py", folder, "--out", out, "--push-model", "me/model")
    assert not out.exists()


def test_a_model_of_the_hub_is_not_pushed_again(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="--push-model pushes an artifact on this machine, and hf-hub:me/m is on"):
        run_here("serve/publish.py", "hf-hub:me/m", "--out", tmp_path / "space", "--push-model", "me/m")


@pytest.mark.parametrize("change", ["chance", "no card"])
def test_what_should_not_be_published_is_not(change: str, exported: Exported, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(exported.artifact, tmp_path / "artifact"))
    if change == "chance":
        facts = json.loads((folder / "artifact.json").read_text())
        facts["accuracy"] |= {"num_images": 1000, "num_top1": 101}
        (folder / "artifact.json").write_text(json.dumps(facts))
    else:
        (folder / "README.md").unlink()
    said = {"chance": "nothing was assembled: top-1 is 10.10%", "no card": "has no README.md: export it again"}
    assert said[change] in str(publish(folder, tmp_path / "space"))
    assert not (tmp_path / "space").exists()
