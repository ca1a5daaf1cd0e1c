"""Decide which files Penstock wrote and which are the user's: contents.json, in a report, a Space and on the hub.

contents.json has the SHA-256 of every other file that was written with it. A file is Penstock's while its content is
still what contents.json records. Only such files are replaced or deleted without asking.
"""

import json
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from prep.errors import InputError
from prep.files import sha256_of_file

CONTENTS = "contents.json"
ALL = "all"  # of --keep and --replace: every file
LEFT_BEHIND = {"__pycache__", ".gradio", ".DS_Store"}  # made by running a Space, or by looking into a folder
NUM_NAMED = 3  # files in a message
SHA256 = re.compile(r"[0-9a-f]{64}")
Digests = Mapping[str, str]  # path with slashes, relative to the folder or repository -> SHA-256


def digest_folder(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each file in a folder, except contents.json; a link has the text `a link` instead."""
    return {name: _digest(folder / name) for name in sorted(_list_files(folder)) if name != CONTENTS}


def _digest(path: Path) -> str:
    return "a link" if path.is_symlink() else sha256_of_file(path)


def _list_files(folder: Path) -> Iterator[str]:
    """Yield the files and links in a folder and below it, as paths relative to it."""
    for parent, folders, names in os.walk(folder):
        links = [name for name in folders if (Path(parent) / name).is_symlink()]
        for name in (*names, *links):
            yield (Path(parent) / name).relative_to(folder).as_posix()


def format_contents(digests: Digests) -> str:
    """Return the text of contents.json."""
    return json.dumps(dict(sorted(digests.items())), indent=1) + "\n"


def parse_contents(content: bytes) -> dict[str, str] | None:
    """Return the digests in contents.json; None if it is not one that Penstock wrote."""
    try:
        digests = dict(json.loads(content))
    except (ValueError, TypeError):
        return None
    return digests if all(isinstance(each, str) and SHA256.fullmatch(each) for each in digests.values()) else None


def name_some(paths: Sequence[str]) -> str:
    """Return the first three paths in words, and how many more there are."""
    more = f" and {len(paths) - NUM_NAMED} more" if len(paths) > NUM_NAMED else ""
    return ", ".join(paths[:NUM_NAMED]) + more


def write_contents(folder: Path) -> None:
    """Write contents.json for the files in a folder."""
    (folder / CONTENTS).write_text(format_contents(digest_folder(folder)))


def check_replaceable(folder: Path, marker: str = "", flag: str = "--out", taken_over: Collection[Path] = ()) -> bool:
    """Return True if a folder holds an earlier result of this command, False if it is empty or missing.

    Args:
        marker: a file that every result of the command has, to tell it from the results of other commands.
        flag: of the folder, for the error.
        taken_over: files that the new result will contain too, so that nothing of theirs is lost.

    Raises:
        InputError: it holds something else, or was changed since, so it must not be deleted.
    """
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        what = "is a link, which is not a folder that can be replaced" if folder.is_symlink() else "is not a folder"
        raise InputError(f"{folder} {what}: choose another {flag}")
    if not folder.exists() or not any(folder.iterdir()):
        return False
    path = folder / CONTENTS
    recorded = (parse_contents(path.read_bytes()) if path.is_file() else None) or {}
    if marker and marker not in recorded:
        recorded = {}

    # Stop at the first other file, and read only files that are listed: the folder may be a large one of the user's.
    copied = {each.resolve() for each in taken_over}
    for name in _list_files(folder):
        is_ours = (name == CONTENTS and recorded) or LEFT_BEHIND & set(Path(name).parts)
        if is_ours or (folder / name).resolve() in copied:
            continue
        if name not in recorded or _digest(folder / name) != recorded[name]:
            advice = f"choose another {flag}"
            if name.startswith("examples/") and recorded:
                advice = f"give --examples {folder / 'examples'} to keep its pictures as examples, or {advice}"
            raise InputError(
                f"{folder} holds {name}, which is yours or was changed since this command wrote the folder: {advice}"
            )
    return True


@dataclass(frozen=True)
class Plan:
    """What a push does to the files of a repository; sorted paths."""

    written: tuple[str, ...]  # new, or changed by Penstock
    deleted: tuple[str, ...]  # written by an earlier push, not part of this one, and unchanged since
    kept: tuple[str, ...]  # the user's, or changed by the user; they stay as they are


def plan_push(new: Digests, earlier: Digests, remote: Digests, replace: Collection[str], keep: Collection[str]) -> Plan:
    """Return what to do with each file, so that no content that Penstock did not write is lost.

    Args:
        new: the files to push.
        earlier: what the repository's contents.json records.
        remote: the files in the repository. A file in neither of the others may have any digest.
        replace: files of the user's that the push overwrites, or "all".
        keep: files of the user's that the push leaves out, or "all".

    Raises:
        InputError: a file to push would overwrite one of the user's that neither `replace` nor `keep` names.
    """
    theirs = {path for path, digest in remote.items() if earlier.get(path) != digest and new.get(path) != digest}
    overwritten = theirs & new.keys()
    spared = overwritten if ALL in keep else overwritten & set(keep)
    if ALL not in replace:
        undecided = sorted(overwritten - spared - set(replace))
        if undecided:
            shown = undecided if len(undecided) <= NUM_NAMED else [ALL]
            flags = " ".join(f"--replace {path}" for path in shown)
            raise InputError(
                f"{name_some(undecided)} there was not written by Penstock or was changed since: "
                f"give {flags} to overwrite, or {flags.replace('--replace', '--keep')} to leave it as it is"
            )
    return Plan(
        written=tuple(sorted(path for path in new.keys() - spared if remote.get(path) != new[path])),
        deleted=tuple(sorted(path for path in remote.keys() - new.keys() if path not in theirs)),
        kept=tuple(sorted((theirs - new.keys()) | spared)),
    )
