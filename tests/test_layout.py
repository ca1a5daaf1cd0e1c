"""The layering: who may import whom, no cycle, no shadowing name, every command starts from anywhere."""

import ast
import importlib
import sys
from graphlib import TopologicalSorter
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from conftest import CHECKOUT, run_command
from test_bare import COMMANDS as STARTED_ELSEWHERE

PACKAGES = ("prep", "loaders", "train", "serve", "benchmarks")
MAY_IMPORT = {
    "prep": {"prep"},
    "loaders": {"loaders", "prep"},
    "train": {"train", "loaders", "prep"},
    "serve": {"serve", "prep"},
    "benchmarks": {"benchmarks", "loaders", "train", "prep", "serve"},
}
COMMANDS = (
    "prep/shard.py",
    "prep/verify.py",
    "prep/adopt.py",
    "prep/digits.py",
    "train/main.py",
    "train/evaluate.py",
    "train/export.py",
    "train/curves.py",
    "serve/gradcam_viz.py",
    "serve/report.py",
    "serve/publish.py",
    "serve/app.py",
    "benchmarks/throughput.py",
    "benchmarks/prove_verdict.py",
    "benchmarks/peers.py",
    "benchmarks/preparation.py",
    "benchmarks/startup.py",
    "benchmarks/sweeps.py",
    "benchmarks/results.py",
    "benchmarks/pictures.py",
    "benchmarks/serving.py",
    "benchmarks/gpu_suite.py",
    "benchmarks/gpu_pack.py",
    "benchmarks/gpu_model.py",
    "benchmarks/certify.py",
    "benchmarks/prove_tuning.py",
)
SERVE_PAGES = {"serve/app.py", "serve/publish.py", "benchmarks/serving.py"}
FLOOR = {f"prep.{name}" for name in ("errors", "files", "json_lines", "calibration", "preprocess")}  # for everyone
OF_PREP = {"loaders": FLOOR | {"prep.dataset"}, "train": FLOOR | {"prep.dataset"}, "serve": FLOOR}
OF_PREP["benchmarks"] = OF_PREP["train"]
RACES_PREP = "benchmarks/contenders"  # what measures prep itself runs prep itself
SOURCES = [path for package in PACKAGES for path in sorted((CHECKOUT / package).glob("**/*.py"))]


def imported(path: Path) -> set[str]:
    """The absolute names of the modules that a file imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module or "")
    return names


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(CHECKOUT).with_suffix("").parts).removesuffix(".__init__")


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_imports_point_left(path: Path) -> None:
    package = path.relative_to(CHECKOUT).parts[0]
    for name in imported(path):
        top = name.partition(".")[0]
        if top in PACKAGES:
            assert top in MAY_IMPORT[package], f"{path} imports {name}"
        if top == "prep" and package != "prep" and not path.match(f"{RACES_PREP}/*"):
            assert name in OF_PREP[package], f"{path} imports {name}, but may only import {sorted(OF_PREP[package])}"
        assert package != "serve" or top != "nvidia", f"{path}: serve needs no DALI"


def test_no_import_cycle() -> None:
    modules = {module_name(path): path for path in SOURCES}
    graph = {name: {other for other in imported(path) if other in modules} for name, path in modules.items()}
    assert list(TopologicalSorter(graph).static_order())


def test_every_import_resolves_to_this_checkout() -> None:
    for package in ("prep", "loaders", "train", "serve"):
        module = importlib.import_module(package)
        assert module.__file__ == str(CHECKOUT / package / "__init__.py")


def test_no_module_bears_the_name_of_another() -> None:
    # Our own packages' too: a script's folder comes first in its path, so benchmarks/prep.py would hide prep.
    taken = sys.stdlib_module_names | set(packages_distributions()) | set(PACKAGES)
    assert [path for path in SOURCES if path.stem in taken and path.stem != "__init__"] == []


def test_plan_needs_numpy_and_a_function_of_scipy_alone() -> None:
    parts = [CHECKOUT / "loaders" / f"{name}.py" for name in ("plan", "augment", "order", "philox")]
    ours = {f"loaders.{name}" for name in ("augment", "order", "philox")}
    allowed = {"numpy", "scipy.special", "dataclasses", "enum", "functools", "math", "typing"} | ours
    assert set().union(*map(imported, parts)) == allowed


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(each, marks=pytest.mark.needs("gradio") if each in SERVE_PAGES else ())
        for each in COMMANDS
        if each not in STARTED_ELSEWHERE  # in tests/test_bare.py, from another folder too
    ],
)
def test_every_command_starts_from_another_folder(command: str, tmp_path: Path) -> None:
    done = run_command(CHECKOUT / command, "--help", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "usage" in done.stdout.lower()


def test_files_and_functions_stay_short() -> None:
    for path in [*SOURCES, *sorted((CHECKOUT / "tests").glob("*.py"))]:
        text = path.read_text()
        assert len(text.splitlines()) <= 500, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef) and node.end_lineno is not None:
                most = 100 if node.name == "fit" else 60
                assert node.end_lineno - node.lineno + 1 <= most, f"{path}: {node.name}"


def test_the_floor_needs_little() -> None:
    for name in FLOOR:
        path = CHECKOUT / f"{name.replace('.', '/')}.py"
        others = {each for each in imported(path) if each.partition(".")[0] not in sys.stdlib_module_names}
        assert others <= FLOOR | {"numpy"}, path
