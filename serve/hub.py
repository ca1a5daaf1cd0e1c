"""Push folders to the Hugging Face hub. For `serve/publish.py`. The user's token never appears in a message."""

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
    """Check a repository's name, and that the user is logged in, without sending a request.

    Raises:
        InputError: nothing could be pushed.
    """
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise InputError(f"{repo} is not a valid name of a repository ({error}): give OWNER/NAME") from error
    if repo.count("/") != 1:
        raise InputError(f"{repo} has no owner: give OWNER/NAME")
    if huggingface_hub.get_token() is None:
        raise InputError(f"cannot push {repo}, you are not logged in: {LOG_IN}")


def push_folder(folder: Path, repo: str, kind: Kind, files: Sequence[str]) -> str:
    """Create a repository if it does not exist, commit the files, and return its address.

    Args:
        files: patterns. In a Space all other files in folders are deleted: they are modules of an earlier version.

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
    except Exception as error:  # the hub's client and its HTTP client raise almost any exception
        raise InputError(_explain_error(repo, kind, error)) from error
    return str(url)


def _explain_error(repo: str, kind: Kind, error: Exception) -> str:
    """Return one line that says what to do, without the token, which a server's message may contain."""
    words = " ".join(str(error).split())[:300].replace(huggingface_hub.get_token() or "\0", "…")
    # A response has a status; without one the request did not reach the hub.
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        return f"the hub does not let you write to the {kind} {repo}: {LOG_IN} ({words})"
    if status is None and any(word in f"{type(error).__name__} {words}".lower() for word in ("connect", "offline")):
        return f"cannot reach the hub for {repo}: check the network and run the same command again"
    return f"the {kind} {repo} was not pushed: {words}"
