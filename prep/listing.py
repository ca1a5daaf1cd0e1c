"""The files of a dataset, in a local folder or on the hub: their paths, and the texts of its card. Reads no data."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

from prep.card import CARD_FILES
from prep.errors import InputError

LARGEST_CARD_BYTES = 16 << 20
# By name: the hub's client changed its HTTP library twice, and each has classes of its own.
UNREACHABLE = {"TransportError", "ConnectError", "ConnectionError", "TimeoutError", "TimeoutException"}


@dataclass(frozen=True)
class Listing:
    """What a dataset consists of: paths below `root` with "/" between folders, hidden ones left out."""

    source: str  # as the user gave it
    root: str  # a folder, or hf://datasets/OWNER/NAME@COMMIT
    paths: tuple[str, ...]
    card: dict[str, str]  # name of a card's file -> its text
    commit: str | None = None  # of a dataset on the hub

    def url(self, path: str) -> str:
        """Return where a file of the listing is."""
        return f"{self.root}/{path}"


def list_local(folder: Path) -> Listing:
    """List a local folder, following links to folders."""
    paths = tuple(sorted(_walk(folder, "", set())))
    card = {}
    for name in CARD_FILES:
        path = folder / name
        if path.is_file() and path.stat().st_size <= LARGEST_CARD_BYTES:
            card[name] = path.read_text(encoding="utf-8", errors="replace")
    return Listing(str(folder), str(folder), paths, card)


def list_hub(source: str) -> Listing:
    """List a dataset of the hub at its present commit; its card is read without a cache on disk.

    Raises:
        InputError: it is not there, gated or unreachable.
    """
    huggingface_hub.logging.set_verbosity_error()  # its retries are no news: one line says what failed
    try:
        info = huggingface_hub.HfApi().dataset_info(source)
        paths = tuple(sorted(file.rfilename for file in info.siblings or () if _is_shown(file.rfilename)))
        names = {file.rfilename for file in info.siblings or ()}
        root = f"hf://datasets/{info.id}@{info.sha}"
        files = huggingface_hub.HfFileSystem()
        card = {name: str(files.read_text(f"{root}/{name}", errors="replace")) for name in CARD_FILES if name in names}
    except Exception as error:
        raise InputError(explain_hub(source, error)) from error
    return Listing(source, root, paths, card, info.sha)


def explain_hub(source: str, error: BaseException) -> str:
    """Return one line on what to do; never the token, and never the hub's page-long answer."""
    chain: list[BaseException] = [error]
    while (cause := chain[-1].__cause__) is not None and cause not in chain:
        chain.append(cause)
    by_kind: dict[type[BaseException] | tuple[type[BaseException], ...], str] = {
        OfflineModeIsEnabled: f"cannot reach the hub for {source}: HF_HUB_OFFLINE is set; "
        "unset it, or give --source a local folder",
        GatedRepoError: f"{source} is gated: accept its terms at https://huggingface.co/datasets/{source}, "
        "then `hf auth login` or set HF_TOKEN to a read token",
        RepositoryNotFoundError: f"{source} is not on the hub, or private: check the name, "
        "then `hf auth login` if it is private",
    }
    for kind, line in by_kind.items():
        if any(isinstance(each, kind) for each in chain):
            return line
    status = next((each.response.status_code for each in chain if isinstance(each, HfHubHTTPError)), 0)
    if status:
        return _explain_status(source, status)
    if any(base.__name__ in UNREACHABLE for each in chain for base in type(each).__mro__):
        return f"cannot reach the hub for {source}: check the network, or give --source a local folder"
    return f"cannot open {source}: {type(error).__name__} {' '.join(str(error).split())[:300]}"


def _explain_status(source: str, status: int) -> str:
    """One line for the status of the hub's answer."""
    if status == 429:
        return (
            f"the hub refuses more requests for {source} now (429): wait some minutes and run again; "
            "`hf auth login` raises the limit"
        )
    if status in (401, 403):
        return f"the hub refuses access to {source} ({status}): `hf auth login`, or set HF_TOKEN to a valid token"
    return f"the hub fails for {source} ({status}): run again later, or give --source a local folder"


def _walk(folder: Path, below: str, above: set[str]) -> Iterator[str]:
    """Paths of files below a folder. `above` holds the folders that contain this one: a link to one would not end."""
    real = os.path.realpath(folder)
    if real in above:
        return
    for entry in os.scandir(folder):
        path = f"{below}{entry.name}"
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            if entry.name.startswith("__"):
                continue
            yield from _walk(folder / entry.name, f"{path}/", above | {real})
        else:
            yield path


def _is_shown(path: str) -> bool:
    """Whether no part of a path is hidden, or a cache, by the rules of `datasets`."""
    *folders, name = path.split("/")
    return not name.startswith(".") and not any(part.startswith((".", "__")) for part in folders)
