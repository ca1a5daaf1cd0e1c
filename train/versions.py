"""The commit of this checkout and the versions of the packages that decide a result, for checkpoints and records."""

import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PROJECT = "penstock"
CHECKOUT = Path(__file__).resolve().parent.parent


def describe_versions(*more_packages: str) -> dict[str, str]:
    """Return the versions of the packages that decide a result, and of `more_packages`, by distribution name.

    A package without a known version is left out: a checkpoint or a record must not fail because of it.
    """
    names = dict.fromkeys(("torch", "timm", "numpy", PROJECT, *more_packages))
    found = {name: find_version(name) for name in names}
    return {name: each for name, each in found.items() if each is not None}


def find_version(package: str) -> str | None:
    """Return the version of an installed or importable package, None if it is unknown.

    On a machine where code is merely on PYTHONPATH, nothing is installed and packages have no metadata. Then the
    version is the one that an imported module reports, or for this project the one in the checkout's pyproject.toml.
    """
    try:
        return version(package)
    except PackageNotFoundError:
        pass
    if package == PROJECT:
        return _read_project_version(CHECKOUT / "pyproject.toml")
    return getattr(sys.modules.get(package), "__version__", None)


def _read_project_version(path: Path) -> str | None:
    """Return this project's version from its pyproject.toml, None if the file is missing or of another project."""
    try:
        project = tomllib.loads(path.read_text(encoding="utf-8"))["project"]
        return project["version"] if project["name"] == PROJECT else None
    except (OSError, ValueError, KeyError):
        return None


def describe_commit() -> str | None:
    """Return the commit of this checkout, with a plus sign if files differ from it; None if git cannot tell."""
    describe = ["describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"]
    command = ["git", "-C", str(Path(__file__).parent), *describe]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
