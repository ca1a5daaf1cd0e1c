"""The layering: which package may import which, no cycle, no shadowing name, short files and functions."""

import ast
import importlib
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from importlib.metadata import packages_distributions
from pathlib import Path

from helpers.commands import CHECKOUT
from helpers.slow import LONGEST, SAME_WORKER, SLOW_FILES

PACKAGES = ("prep", "loaders", "train", "serve", "benchmarks")
MAY_IMPORT = {
    "prep": {"prep"},
    "loaders": {"loaders", "prep"},
    "train": {"train", "loaders", "prep"},
    "serve": {"serve", "prep"},
    "benchmarks": {"benchmarks", "loaders", "train", "prep", "serve"},
}
# Every package may import these.
FLOOR_FILES = ("errors", "files", "json_lines", "curves", "calibration", "preprocess", "blur", "metadata")
FLOOR_FILES += ("weights", "weight_files")
FLOOR = {f"prep.{name}" for name in (*FLOOR_FILES, "progress")}
NETWORKS = "prep.blur"  # the only module of the floor that needs torch
DATA = FLOOR | {"prep.dataset", "prep.remote", "prep.segments", "prep.staging"}  # format, object storage, cache
OF_PREP = {"loaders": DATA, "train": DATA, "serve": FLOOR, "benchmarks": DATA}
RACES_PREP = "benchmarks/peers"  # what measures prep itself runs prep itself
MAX_FILE_LINES, MAX_FUNCTION_LINES = 500, 60
MAX_LINES_OF = {"fit": 100}
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


def find_wrong_imports(path: Path) -> Iterator[str]:
    """Yield a line for each import that points to the right, or that takes more of prep than others may use."""
    package = path.relative_to(CHECKOUT).parts[0]
    for name in sorted(imported(path)):
        top = name.partition(".")[0]
        if top in PACKAGES and top not in MAY_IMPORT[package]:
            yield f"{path} imports {name}"
        if top == "prep" and package != "prep" and not path.match(f"{RACES_PREP}/*") and name not in OF_PREP[package]:
            yield f"{path} imports {name}, but may only import {sorted(OF_PREP[package])}"
        if package == "serve" and top == "nvidia":
            yield f"{path} imports {name}: serve must work without DALI"


def test_imports_point_left() -> None:
    assert [line for path in SOURCES for line in find_wrong_imports(path)] == []


def test_no_import_cycle() -> None:
    # Packages last: Python imports the package serve/app/, not the command serve/app.py of the same name.
    modules = {module_name(path): path for path in sorted(SOURCES, key=lambda path: path.stem == "__init__")}
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


def find_long_parts(path: Path) -> Iterator[str]:
    """Yield a line for a file, and for each of its functions, that is longer than allowed."""
    text = path.read_text()
    if (num_lines := len(text.splitlines())) > MAX_FILE_LINES:
        yield f"{path} has {num_lines} lines, more than {MAX_FILE_LINES}"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None:
            num_lines, most = node.end_lineno - node.lineno + 1, MAX_LINES_OF.get(node.name, MAX_FUNCTION_LINES)
            if num_lines > most:
                yield f"{path}: {node.name} has {num_lines} lines, more than {most}"


def test_files_and_functions_stay_short() -> None:
    paths = [*SOURCES, *sorted((CHECKOUT / "tests").glob("**/*.py"))]
    assert [line for path in paths for line in find_long_parts(path)] == []


def test_the_floor_needs_little() -> None:
    for name in FLOOR:
        path = CHECKOUT / f"{name.replace('.', '/')}.py"
        others = {each for each in imported(path) if each.partition(".")[0] not in sys.stdlib_module_names}
        packages = {"numpy", "matplotlib"}
        if name == NETWORKS:
            packages |= {"torch", "torch.nn", "timm.layers"}
        if name in ("prep.weights", "prep.weight_files"):  # inside of their functions
            packages |= {"torch", "safetensors", "safetensors.torch"}
        if name == "prep.progress":
            packages |= {"rich.console", "rich.progress"}
        assert others <= FLOOR | packages, path


def test_only_what_builds_networks_imports_torch_through_the_floor() -> None:
    importing = {path.relative_to(CHECKOUT).parts[0] for path in SOURCES if NETWORKS in imported(path)}
    assert importing == {"train", "serve"}, "preparing and loading a dataset start without it"


def test_the_lists_of_slow_files_name_files() -> None:
    stems = {path.stem for path in (CHECKOUT / "tests").glob("**/test_*.py")}
    assert SLOW_FILES | set(LONGEST) | SAME_WORKER.keys() <= stems
    assert len(stems) == len(list((CHECKOUT / "tests").glob("**/test_*.py"))), "two test files have the same name"
