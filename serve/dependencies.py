"""Find what a module of serve depends on: modules of serve, modules of prep that all packages share, and pip packages.

For `serve/space.py`. It parses the source, including imports inside functions, so that an assembled Space holds all
that it needs and nothing else.
"""

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import packages_distributions, version
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent
DATA_SUFFIXES = (".css", ".j2", ".js", ".jpg", ".txt")  # of files that modules read from their own folder


@dataclass(frozen=True)
class Dependencies:
    """All that a module imports, directly or through other modules of ours."""

    files: tuple[str, ...]  # in serve and prep, relative to the checkout
    packages: tuple[str, ...]  # names for pip


def find_dependencies(module: str) -> Dependencies:
    """Return the dependencies of a module or package of serve, e.g. `serve.app`, including its own files.

    A package below serve brings its templates, styles, scripts and photographs along, e.g. serve/app/style.css.
    """
    # Follow the imports of our modules; collect the names of all others.
    files: set[str] = set()
    imported: set[str] = set()
    waiting = ["serve", "prep", module]
    while waiting:
        file = _to_file(waiting.pop())
        if file in files:
            continue
        files.add(file)
        for name in _list_imports(CHECKOUT / file):
            top = name.partition(".")[0]
            if top in ("serve", "prep"):
                # Importing serve.app.page runs serve/app/__init__.py first.
                waiting += [name, name.rpartition(".")[0] or name]
            else:
                imported.add(top)
    files |= {name for file in files if file.count("/") > 1 for name in _list_data_files(file)}
    return Dependencies(tuple(sorted(files)), _to_packages(imported - sys.stdlib_module_names))


def _to_file(module: str) -> str:
    """Return the file of a module; a package wins over a module of the same name, as in Python."""
    path = module.replace(".", "/")
    return f"{path}/__init__.py" if (CHECKOUT / path).is_dir() else f"{path}.py"


def _list_data_files(file: str) -> list[str]:
    """Return the templates, styles, scripts and photographs in the folder of a module and in folders below it."""
    folder = (CHECKOUT / file).parent
    found = (path for path in folder.rglob("*") if path.suffix in DATA_SUFFIXES)
    return [path.relative_to(CHECKOUT).as_posix() for path in found]


def _list_imports(path: Path) -> Iterator[str]:
    """Yield the modules that a file imports; of `from package import module`, the module too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            submodules = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name for name in submodules if (CHECKOUT / _to_file(name)).is_file())


def _to_packages(names: set[str]) -> tuple[str, ...]:
    installed = packages_distributions()
    ours = {path.parent.name for path in CHECKOUT.glob("*/__init__.py")}
    assert not names & ours, f"serve imports {names & ours}"
    return tuple(sorted({installed[name][0].lower() for name in names}))


def pin_packages(packages: tuple[str, ...]) -> str:
    """Return requirements.txt: each package in its installed version, without a build's suffix (`2.15.0+cpu`)."""
    return "".join(f"{name}=={version(name).partition('+')[0]}\n" for name in packages)
