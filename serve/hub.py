"""Push files to the Hugging Face hub. For `serve/publish.py`. The user's token never appears in a message.

A push reads the repository, plans (serve/contents.py), and is one commit on the revision that was read, so that nothing
of the user's is overwritten, also when another push happens at the same time.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import huggingface_hub
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, RepoFile
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError
from huggingface_hub.utils import validate_repo_id

from prep.errors import InputError
from prep.files import sha256_of_file
from serve.contents import ALL, CONTENTS, Plan, format_contents, name_some, parse_contents, plan_push

Kind = Literal["space", "model"]
LOG_IN = "`hf auth login`, or set HF_TOKEN, with a token that may write"
ATTRIBUTES, CARD = ".gitattributes", "README.md"  # the hub writes them when it creates a repository
TEMPLATE = "Check out the configuration reference at"  # the only text in the README.md of a Space that the hub created


@dataclass(frozen=True)
class Push:
    """Files to push, and the flags of the command."""

    repo: str  # OWNER/NAME
    kind: Kind
    files: Mapping[str, Path]  # path in the repository -> file, except contents.json
    private: bool = False  # create the repository as private
    replace: frozenset[str] = frozenset()  # files of the user's to overwrite, or "all"
    keep: frozenset[str] = frozenset()  # files of the user's to leave as they are, or "all"

    @property
    def title(self) -> str:
        """The repository in words."""
        return f"the {self.kind} {self.repo}"


@dataclass(frozen=True)
class Prepared:
    """A push, and the repository as it was read."""

    push: Push
    digests: Mapping[str, str]  # SHA-256 of each file to push
    revision: str | None  # None: the repository does not exist
    plan: Plan


@dataclass(frozen=True)
class Pushed:
    """The result of a push."""

    url: str
    notes: tuple[str, ...]  # what was done besides adding files, one sentence each


def check_push(repo: str) -> None:
    """Check a repository's name, and that the user is logged in and online, without sending a request.

    Raises:
        InputError: nothing could be pushed.
    """
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise InputError(f"{repo} is not a valid name of a repository ({error}): give OWNER/NAME") from error
    if repo.count("/") != 1:
        raise InputError(f"{repo} has no owner: give OWNER/NAME")
    if huggingface_hub.is_offline_mode():
        raise InputError(f"cannot push {repo}, HF_HUB_OFFLINE (or TRANSFORMERS_OFFLINE) is set: unset it")
    if huggingface_hub.get_token() is None:
        raise InputError(f"cannot push {repo}, you are not logged in: {LOG_IN}")


def check_hardware(flavor: str) -> None:
    """Check the name of a Space's hardware, without sending a request.

    Raises:
        InputError: the installed huggingface_hub does not know it.
    """
    known = [each.value for each in huggingface_hub.SpaceHardware]
    if flavor not in known:
        raise InputError(f"--hardware must be one of {', '.join(known)} (a newer huggingface_hub may know more)")


def prepare_push(push: Push) -> Prepared:
    """Read the repository and plan the push. Nothing is changed.

    Raises:
        InputError: the push would overwrite what Penstock did not write, or the hub refuses or cannot be reached.
    """
    digests = {path: sha256_of_file(file) for path, file in push.files.items()}
    api = huggingface_hub.HfApi()
    try:
        try:
            found = api.repo_info(push.repo, repo_type=push.kind)
        except RepositoryNotFoundError:
            return Prepared(push, digests, None, plan_push(digests, {}, {}, (), ()))
        if push.private and not found.private:
            raise InputError(
                f"{push.title} exists and is public, and --private applies to a new one: "
                "make it private in its settings on the hub, or give another name"
            )
        entries = api.list_repo_tree(push.repo, recursive=True, revision=found.sha, repo_type=push.kind)
        files = {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}
        with TemporaryDirectory(prefix="penstock-hub-") as folder:
            reader = _Reader(api, push, found.sha, Path(folder))
            plan = _plan(reader, files, digests)
    except InputError:
        raise
    except Exception as error:  # the hub's client and its HTTP client raise almost any exception
        raise InputError(_explain_error(push, error)) from error
    return Prepared(push, digests, found.sha, plan)


@dataclass(frozen=True)
class _Reader:
    """Reads files of a repository at one revision."""

    api: huggingface_hub.HfApi
    push: Push
    revision: str | None
    folder: Path  # for the downloads

    def download(self, path: str) -> Path:
        repo, kind = self.push.repo, self.push.kind
        return Path(self.api.hf_hub_download(repo, path, repo_type=kind, revision=self.revision, cache_dir=self.folder))


def _plan(reader: _Reader, files: dict[str, RepoFile], digests: dict[str, str]) -> Plan:
    """Compare the files of a repository with those to push.

    Raises:
        InputError: the push would overwrite what Penstock did not write.
    """
    push = reader.push
    theirs = files.keys() - {ATTRIBUTES, CONTENTS}
    earlier = parse_contents(reader.download(CONTENTS).read_bytes()) if CONTENTS in files else None
    if earlier is None and push.kind == "space" and theirs and ALL not in push.replace:
        if theirs != {CARD} or not _is_template(reader.download(CARD)):
            raise InputError(
                f"{push.title} was not pushed: it holds {name_some(sorted(theirs))} and no contents.json of Penstock, "
                "so it is another Space: give another name, or --replace all to overwrite files of the same names"
            )
        theirs = frozenset()  # the hub's own README.md may be overwritten

    # Tell the content of each file by its SHA-256. The hub knows it for large files. A small one is compared by its git
    # id, and downloaded only if an earlier push wrote a file of this name and its content is not the new one.
    remote = {}
    for path in theirs:
        large = files[path].lfs
        if large is not None:
            remote[path] = large.sha256
        elif path in digests and files[path].blob_id == _git_id(push.files[path]):
            remote[path] = digests[path]
        else:
            remote[path] = sha256_of_file(reader.download(path)) if path in (earlier or {}) else "not from Penstock"
    try:
        return plan_push(digests, earlier or {}, remote, push.replace, push.keep)
    except InputError as error:
        raise InputError(f"{push.title} was not pushed: {error}") from error


def _is_template(path: Path) -> bool:
    """Return True if a README.md is as the hub creates it: front matter, and at most the line of `TEMPLATE`."""
    lines = path.read_text(encoding="utf-8", errors="replace").rpartition("\n---\n")[2].strip().splitlines()
    return lines == [] or (len(lines) == 1 and lines[0].startswith(TEMPLATE))


def _git_id(path: Path) -> str:
    """Return git's id of a file's content."""
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def commit_push(prepared: Prepared) -> Pushed:
    """Create the repository if it does not exist, and commit the files.

    Raises:
        InputError: the hub refuses, cannot be reached, or the repository was changed since it was read.
    """
    push, plan, notes = prepared.push, prepared.plan, []
    api = huggingface_hub.HfApi()
    try:
        if prepared.revision is None:
            sdk = "gradio" if push.kind == "space" else None
            api.create_repo(push.repo, repo_type=push.kind, exist_ok=True, space_sdk=sdk, private=push.private)
            notes.append(f"created, {'private' if push.private else 'public: anyone can see it'}")
            # Plan again: the hub puts files of its own into a new repository.
            prepared = prepare_push(push)
            plan = prepared.plan
        if plan.written or plan.deleted:
            _commit(api, prepared)
    except InputError:
        raise
    except Exception as error:  # as above
        raise InputError(_explain_error(push, error)) from error
    for words, paths in (("deleted, from an earlier push", plan.deleted), ("left as they are", plan.kept)):
        shown = [path for path in paths if path != ATTRIBUTES]
        notes += [f"{words}: {name_some(shown)}"] if shown else []
    if not plan.written and not plan.deleted:
        notes.append("nothing had changed, so nothing was committed")
    return Pushed(f"{api.endpoint}/{'spaces/' if push.kind == 'space' else ''}{push.repo}", tuple(notes))


def _commit(api: huggingface_hub.HfApi, prepared: Prepared) -> None:
    push, plan = prepared.push, prepared.plan
    contents = format_contents(prepared.digests).encode()
    api.create_commit(
        push.repo,
        [
            *(CommitOperationAdd(path, push.files[path]) for path in plan.written),
            *(CommitOperationDelete(path, is_folder=False) for path in plan.deleted),
            CommitOperationAdd(CONTENTS, contents),
        ],
        commit_message="Pushed by Penstock",
        repo_type=push.kind,
        parent_commit=prepared.revision,
    )


def request_hardware(repo: str, flavor: str) -> None:
    """Ask the hub to run a Space on other hardware.

    Raises:
        InputError: the hub refuses; the message has its reason.
    """
    try:
        huggingface_hub.HfApi().request_space_hardware(repo, huggingface_hub.SpaceHardware(flavor))
    except Exception as error:  # as above
        raise InputError(
            f"the space {repo} was pushed, but the hub refused the hardware {flavor} ({_shorten(error)}): choose the "
            "hardware in the Space's settings on the hub"
        ) from error


def _explain_error(push: Push, error: Exception) -> str:
    """Return one line that says what to do, without the token, which a server's message may contain."""
    words = _shorten(error)
    # A response has a status; without one the request did not reach the hub.
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        return f"the hub does not let you write to {push.title}: {LOG_IN} ({words})"
    if status == 412:
        return f"another push changed {push.title} at the same time, and nothing was pushed: run the same command again"
    if status is None and any(word in f"{type(error).__name__} {words}".lower() for word in ("connect", "timeout")):
        return f"cannot reach the hub for {push.repo}: check the network and run the same command again"
    return f"{push.title} was not pushed: {words}"


def _shorten(error: Exception) -> str:
    """Return an error's message in one line, without the token."""
    return " ".join(str(error).split())[:300].replace(huggingface_hub.get_token() or "\0", "…")
