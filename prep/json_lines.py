"""Read files with one JSON object per line, when a killed process or a power failure may have damaged the end.

This damages only the last line: a part of it is missing, or it consists of zeros. Damage anywhere else has another
cause, and is an error.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prep.errors import InputError

BLANK = b" \t\r"


@dataclass(frozen=True)
class JsonLines:
    """The complete lines of a file."""

    entries: list[dict[str, Any]]
    texts: list[str]  # the same lines, unparsed
    skipped: str | None  # what is wrong with the last line, in a sentence


def read_json_lines(path: Path, *required: str) -> JsonLines:
    """Read a file; a missing file is empty. Blank lines are skipped.

    Args:
        required: keys that each object must have.

    Raises:
        InputError: a line before the last one is damaged.
    """
    entries, texts, fault = [], [], None
    content = path.read_bytes() if path.exists() else b""
    for number, line in enumerate(content.split(b"\n"), start=1):
        if not line.strip(BLANK):
            continue
        if fault:
            raise InputError(f"{fault}, and it is not the last line: repair or delete that line")
        try:
            entries.append(_parse(line, required))
            texts.append(line.decode())
        except ValueError as error:
            fault = f"{path}, line {number} is not complete ({error})"
    return JsonLines(entries, texts, fault and f"{fault}: skipped, a killed run left it")


def cut_to_whole_lines(content: bytes) -> bytes:
    """Return a file's content without an incomplete last line, and with a newline at its end."""
    whole, newline, rest = content.rpartition(b"\n")
    try:
        _parse(rest, ())
    except ValueError:
        return whole + newline
    return content + b"\n"


def _parse(line: bytes, required: tuple[str, ...]) -> dict[str, Any]:
    """Return the object in a line.

    Raises:
        ValueError: it does not hold one, or the object lacks a key.
    """
    if b"\0" in line:
        raise ValueError("it holds zero bytes")
    entry = json.loads(line.decode())
    if not isinstance(entry, dict):
        raise ValueError("it holds no JSON object")
    for key in required:
        if key not in entry:
            raise ValueError(f"{key} is missing")
    return entry
