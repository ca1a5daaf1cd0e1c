"""Find what a module of serve needs: other modules of serve, modules of prep's common floor, and packages.

For `serve/space.py`. It reads the source, including imports inside of functions, so that the assembled Space holds
all that it needs and nothing else.
"""

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import packages_distributions, version
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Needs:
    """All that a module imports, and what that imports."""

    files: tuple[str, ...]  # of serve and prep, relative to the checkout
    packages: tuple[str, ...]  # as pip names them


def find_needs(module: str) -> Needs:
    """Of a module of serve, `serve.app`."""
    files: set[str] = set()
    names: set[str] = set()
    waiting = ["serve", "prep", module]
    while waiting:
        file = _to_file(waiting.pop())
        if file in files:
            continue
        files.add(file)
        for name in _list_imports(CHECKOUT / file):
            if name.partition(".")[0] in ("serve", "prep"):
                waiting.append(name)
            else:
                names.add(name.partition(".")[0])
    return Needs(tuple(sorted(files)), _to_packages(names - sys.stdlib_module_names))


def _to_file(module: str) -> str:
    path = module.replace(".", "/")
    return f"{path}/__init__.py" if (CHECKOUT / path).is_dir() else f"{path}.py"


def _list_imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def _to_packages(names: set[str]) -> tuple[str, ...]:
    installed = packages_distributions()
    ours = {path.parent.name for path in CHECKOUT.glob("*/__init__.py")}
    assert not names & ours, f"serve imports {names & ours}"
    return tuple(sorted({installed[name][0].lower() for name in names}))


def pin(packages: tuple[str, ...]) -> str:
    """Lines of a requirements.txt: each as it is installed here, whatever it was built for (`2.15.0+cpu`)."""
    return "".join(f"{name}=={version(name).partition('+')[0]}\n" for name in packages)
