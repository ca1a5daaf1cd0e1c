"""A command that needs a package which is not installed says so in one line, with what installs it.

The packages of every command's flags are hidden in tests/test_commands.py, those of worker processes in test_bare.py.
"""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from helpers.commands import CHECKOUT, run_hiding
from helpers.packages import OPTIONAL
from packaging.requirements import Requirement

from prep.errors import OWN_PACKAGES, find_requirement, run

PROJECT = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
S3 = Requirement(EXTRAS["s3"][0]).name
# Packages that only tests use, or that come with one that is named here and are imported after it.
NOT_USED = {"fastapi", "httpx", "playwright", "pytorch_grad_cam", "swift", "uvicorn"}
ELSEWHERE = {"simplejpeg"}  # in test_bare.py

GALLERY = "serve/gradcam_viz.py --checkpoint_path {tmp}/x.safetensors --model test_resnet --num_classes 10 --anyway "
GALLERY += "--size 32 --limit 3 --output_path {tmp}/gallery.png --validation_img_path "
TEXTS = {"", ".md", ".py", ".sh", ".toml", ".txt", ".yaml", ".yml"}
DALI = "DALI is not installed: `pip install -e '.[cu12]'` (or cu13), or use reference"
CASES = [
    ("datasets", "prep/digits.py --out {tmp}/out", "pip install datasets"),
    (
        "braceexpand",
        "prep/adopt.py {digits}/train/train-{{000000..000004}}.tar --out {tmp}/out",
        "pip install braceexpand",
    ),
    ("ray", "prep/shard.py --source {source} --out {tmp}/out --ray auto", "pip install -e '.[ray]'"),
    (S3, "prep/shard.py --source {source} --out s3://bucket/prefix", "pip install -e '.[s3]'"),
    (S3, "prep/verify.py s3://bucket/prefix", "pip install -e '.[s3]'"),
    ("tyro", "train/main.py demo --data.root {digits} --run.dir {tmp}/out", "pip install tyro"),
    ("tyro", "train/main.py --help", "pip install tyro"),
    ("nvidia.dali", "train/main.py demo --data.root {digits} --run.dir {tmp}/out --device cpu", DALI),
    ("captum", GALLERY + "{folder}", "pip install captum"),
    ("webdataset", GALLERY + "{digits}/validation", "pip install webdataset"),
    *(
        (package, "train/export.py {tmp} --out {tmp}/out --onnx", "pip install -e '.[onnx]'")
        for package in ("onnx", "onnxruntime", "onnxscript")
    ),
    ("gradio", "serve/app.py --artifact {tmp}", "pip install -e '.[app]'"),
    ("starlette", "serve/app.py --artifact {tmp}", "pip install -e '.[app]'"),
]


def test_every_optional_package_has_a_case() -> None:
    assert {package for package, _, _ in CASES} | NOT_USED | ELSEWHERE >= OPTIONAL


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the weights of a small network, and a folder of images in it."""
    import timm  # noqa: PLC0415 - only two cases need it
    from PIL import Image  # noqa: PLC0415
    from safetensors.torch import save_file  # noqa: PLC0415

    folder = tmp_path_factory.mktemp("weights")
    save_file(timm.create_model("test_resnet", num_classes=10).state_dict(), folder / "x.safetensors")
    for number in range(10):
        (folder / "images" / str(number)).mkdir(parents=True)
        Image.new("RGB", (40, 40), (25 * number, 0, 0)).save(folder / "images" / str(number) / "a.jpg")
    return folder


@pytest.mark.parametrize(("package", "command", "advice"), CASES, ids=[f"{p}-{c.split()[0]}" for p, c, _ in CASES])
def test_a_command_without_a_package_says_so_in_one_line(
    package: str, command: str, advice: str, digits: Path, digits_source: Path, weights: Path
) -> None:
    names = {"tmp": weights, "digits": digits, "source": digits_source, "folder": weights / "images"}
    done = run_hiding([package], *(part.format(**names) for part in command.split()))
    assert done.returncode == 1
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.endswith(f"{advice}\n")
    assert not (weights / "out").exists() or not list((weights / "out").iterdir()), "nothing is half-written"


def list_imported() -> set[str]:
    """Return the packages that our commands import, anywhere in them, without the standard library's and our own."""
    paths = [path for name in OWN_PACKAGES for path in (CHECKOUT / name).glob("**/*.py")]
    nodes = [node for path in paths for node in ast.walk(ast.parse(path.read_text()))]
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
    return {name.partition(".")[0] for name in names} - sys.stdlib_module_names - set(OWN_PACKAGES)


def test_the_advice_names_what_the_project_installs() -> None:
    """The advice is an extra, or the distribution that has a module of this name."""
    in_extras = {Requirement(text).name for name in ("app", "cu12", "onnx", "ray", "s3") for text in EXTRAS[name]}
    owners = packages_distributions()
    for package in sorted(list_imported()):
        advice = find_requirement(f"{package}.part")
        if extra := re.fullmatch(r"-e '\.\[(\w+)\]'", advice):
            assert extra[1] in EXTRAS
        else:
            assert package not in in_extras, f"{package}: an extra says which version fits"
            names = [advice.replace("-", "_"), *(name.replace("-", "_").lower() for name in owners.get(package, ()))]
            assert names[0] in names[1:] or package not in owners, f"pip install {advice} does not install {package}"


def test_a_missing_module_of_ours_is_not_sought_on_the_index() -> None:
    def main() -> None:
        raise ModuleNotFoundError("No module named 'prep.lost'", name="prep.lost")

    with pytest.raises(ModuleNotFoundError):
        run(main)


def test_nothing_installs_penstock_from_the_index() -> None:
    """`penstock` on PyPI is another project: extras are installed from the checkout, as `-e '.[EXTRA]'`."""
    by_name = re.compile(r"pip3? install [^\n]*?(?<=[\s'\"])penstock(?=[\[\s'\"`=<>~]|$)", re.MULTILINE)
    assert by_name.search("run `pip install penstock`") and by_name.search("pip install -U 'penstock[s3]'")
    folders = (*OWN_PACKAGES, "benchmarks", "docs", "tests", "cloud", ".github")
    paths = [*CHECKOUT.glob("*"), *(path for name in folders for path in (CHECKOUT / name).glob("**/*"))]
    texts = [path for path in paths if path.is_file() and path.suffix in TEXTS and path != Path(__file__)]
    assert len(texts) > 400
    assert [path for path in texts if by_name.search(path.read_text(encoding="utf-8"))] == []
