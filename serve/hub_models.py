"""Download models from the Hugging Face hub: artifacts of this project, and models in timm's layout.

For `serve/loading.py`. Only safetensors and JSON are downloaded; a pickle only if the repository has no safetensors,
and `prep/weight_files.py` reads it without executing code. The user's token never appears in a message.
"""

import re
from pathlib import Path

import huggingface_hub
from huggingface_hub import constants
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from prep.errors import InputError

PREFIXES = ("hf-hub:", "hf_hub:")  # timm accepts both
TIMM_OWNER = "timm/"
NAME = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")
PICKLE = "pytorch_model.bin"
FILES = ("artifact.json", "config.json", "README.md", "model.safetensors", "model.safetensors.index.json")
FILES += ("model-*-of-*.safetensors",)
LOG_IN = "`hf auth login`, or set HF_TOKEN"


def is_hub_name(where: str) -> bool:
    """Return True for `hf-hub:OWNER/NAME[@REVISION]`, and for `timm/TAG` if no local file has this path."""
    if where.startswith(PREFIXES):
        return True
    return where.startswith(TIMM_OWNER) and bool(NAME.fullmatch(where)) and not Path(where).exists()


def fetch_model(where: str) -> Path:
    """Download a model, and return its folder in the cache of the hub's client.

    Raises:
        InputError: the name is invalid, the repository does not exist, is private or holds no weights, or the hub
            cannot be reached.
    """
    name = where
    for prefix in PREFIXES:
        name = name.removeprefix(prefix)
    parsed = NAME.fullmatch(name)
    if parsed is None:
        raise InputError(f"{where} is not a model on the hub: give hf-hub:OWNER/NAME or hf-hub:OWNER/NAME@REVISION")
    repo, revision = parsed["repo"], parsed["revision"]
    try:
        folder = Path(huggingface_hub.snapshot_download(repo, revision=revision, allow_patterns=list(FILES)))
        if not any(folder.glob("*.safetensors")):
            huggingface_hub.hf_hub_download(repo, PICKLE, revision=revision)
    except Exception as error:  # the hub's client and its HTTP client raise almost any exception
        raise InputError(_explain_error(where, repo, revision, error)) from error
    return folder


def _explain_error(where: str, repo: str, revision: str | None, error: Exception) -> str:
    """Return one line that says what to do, without the token, which a server's message may contain."""
    words = " ".join(str(error).split())[:300].replace(huggingface_hub.get_token() or "\0", "…")
    status = getattr(getattr(error, "response", None), "status_code", None)
    answers: list[tuple[bool, str]] = [
        (
            isinstance(error, HFValidationError),
            f"{where} is not a valid name of a model on the hub: give hf-hub:OWNER/NAME",
        ),
        (
            isinstance(error, RevisionNotFoundError),
            f"{repo} on the hub has no revision {revision}: check the branch, tag or commit after @",
        ),
        (
            isinstance(error, GatedRepoError),
            f"{repo} is gated: accept its conditions at https://huggingface.co/{repo}, then log in: {LOG_IN}",
        ),
        (
            isinstance(error, RepositoryNotFoundError) or status in (401, 403),
            f"the hub has no model {repo}, or it is private: check the name; for a private model log in: {LOG_IN}",
        ),
        (
            constants.HF_HUB_OFFLINE,
            f"{repo} is not in the cache, and HF_HUB_OFFLINE is set: unset it to download the model",
        ),
        (
            isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError),
            f"{repo} holds neither model.safetensors nor {PICKLE}: it is not a model of timm or of train/export.py",
        ),
        (
            status is None,
            f"cannot reach the hub for {repo}: check the network and run the same command again ({words})",
        ),
    ]
    return next((answer for applies, answer in answers if applies), f"{repo} was not downloaded: {words}")
