"""What lies in an assembled folder, written down in it, so that a later one replaces that and nothing of the user's.

For `serve/publish.py`.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from prep.errors import InputError

CONTENTS = "contents.json"  # file -> SHA-256, of all the others
LEFT_BEHIND = {"__pycache__", ".gradio"}  # by running it


def write_contents(folder: Path) -> None:
    """Write down what a folder holds."""
    digests = {name: digest for name, digest in _digest_all(folder).items() if name != CONTENTS}
    (folder / CONTENTS).write_text(json.dumps(digests, indent=1) + "\n")


def check_replaceable(folder: Path) -> bool:
    """Whether there is an earlier one.

    Raises:
        InputError: there is something else, or it was changed since, which must not be deleted.
    """
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise InputError(f"{folder} is no folder: choose another --out")
    if not folder.exists() or not any(folder.iterdir()):
        return False
    recorded = _read(folder / CONTENTS)
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


def _read(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError):
        return {}


def _digest_all(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file() or path.is_symlink())
    return {path.relative_to(folder).as_posix(): _digest(path) for path in files}


def _digest(path: Path) -> str:
    return "a link" if path.is_symlink() else hashlib.sha256(path.read_bytes()).hexdigest()
