"""Folders to Hugging Face's hub. For `serve/publish.py`. The token is the user's own, and in no message."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import huggingface_hub
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from prep.errors import InputError

Kind = Literal["space", "model"]
LOG_IN = "`hf auth login`, or set HF_TOKEN, with a token that may write"


def check_push(repo: str) -> None:
    """Raises InputError where nothing could be pushed to a repository of this name; asks nobody."""
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise InputError(f"{repo} is no name of a repository ({error}): give OWNER/NAME") from error
    if repo.count("/") != 1:
        raise InputError(f"{repo} has no owner: give OWNER/NAME")
    if huggingface_hub.get_token() is None:
        raise InputError(f"nobody is logged in to push {repo}: {LOG_IN}")


def push(folder: Path, repo: str, kind: Kind, files: Sequence[str]) -> str:
    """Make a repository if there is none, and commit the files; its address.

    Args:
        files: patterns. In a Space whatever else lies there in folders is deleted: modules of an earlier one.

    Raises:
        InputError: the hub refuses, or cannot be reached.
    """
    api = huggingface_hub.HfApi()
    try:
        url = api.create_repo(repo, repo_type=kind, exist_ok=True, space_sdk="gradio" if kind == "space" else None)
        api.upload_folder(
            folder_path=folder,
            repo_id=repo,
            repo_type=kind,
            allow_patterns=list(files),
            delete_patterns="*/*" if kind == "space" else None,
            commit_message="Pushed by Penstock",
        )
    except Exception as error:  # the hub's client and its HTTP client raise nearly anything
        raise InputError(_explain(repo, kind, error)) from error
    return str(url)


def _explain(repo: str, kind: Kind, error: Exception) -> str:
    """One line on what to do; never the token, which a server may repeat."""
    said = " ".join(str(error).split())[:300].replace(huggingface_hub.get_token() or "\0", "…")
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        return f"the hub does not let you write to the {kind} {repo}: {LOG_IN} ({said})"
    if status is None and any(word in f"{type(error).__name__} {said}".lower() for word in ("connect", "offline")):
        return f"cannot reach the hub for {repo}: check the network and run the same command again"
    return f"the {kind} {repo} was not pushed: {said}"
