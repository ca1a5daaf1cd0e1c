"""Checkpoints: a folder each, whole or not there. To resume, run the same command again.

step_0000012800/    the clock: images seen
  model.safetensors  ema.safetensors  optimizer.pt (weights_only)  meta.json (recipe, metrics, versions, digests)
"""

import json
import shutil
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from prep.errors import InputError
from prep.files import sha256_of_file, write_folder, write_whole

META, MODEL, EMA, OPTIMIZER = "meta.json", "model.safetensors", "ema.safetensors", "optimizer.pt"
PARTIAL = ".partial-"
SCORES = ("top1", "ema_top1")  # the best checkpoint by each of these metrics is kept
PROJECT = "penstock"
CHECKOUT = Path(__file__).resolve().parent.parent


@dataclass
class TrainState:
    """All that training changes: what a checkpoint holds and a resumed run needs."""

    model: nn.Module
    ema: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    clock: int = 0  # images seen, over all processes


@dataclass(frozen=True)
class Snapshot:
    """A state as it was at one moment, in host memory, whatever training has done since."""

    clock: int
    model: dict[str, torch.Tensor]
    ema: dict[str, torch.Tensor]
    optimizer: dict[str, Any]  # and the scaler
    copied: torch.cuda.Event | None  # until then a GPU has not copied all of it


def take_snapshot(state: TrainState) -> Snapshot:
    """Copy a state.

    On a GPU this waits once, for the steps queued so far: `GradScaler.state_dict` reads its scale on the CPU. (The
    trainer has waited by then anyway, to read the sums that belong into the checkpoint.) The copies themselves are
    queued before the steps to come, into pinned memory, and only `write_checkpoint` waits for them. The first save
    takes longer: it pins memory for every tensor, which torch keeps for the saves after it.
    """
    # The scaler first: the wait must not include the copies.
    optimizer = {"optimizer": state.optimizer.state_dict(), "scaler": state.scaler.state_dict()}
    model, ema, optimizer = map(_copy, (state.model.state_dict(), state.ema.state_dict(), optimizer))
    copied = None
    if next(state.model.parameters()).is_cuda:
        copied = torch.cuda.Event(blocking=True)  # or who waits for it would spin
        copied.record()
    return Snapshot(state.clock, model, ema, optimizer, copied)


def write_checkpoint(folder: Path, snapshot: Snapshot, facts: dict[str, Any]) -> Path:
    """Write a checkpoint below `folder`; it appears under its name only when all of it is on disk.

    Where there is a whole one of this clock already it holds the same state, and is told the new facts alone: it is
    never taken away to be put back.

    Args:
        facts: what `meta.json` holds beside clock, versions and digests; must be JSON.
    """
    if snapshot.copied is not None:
        snapshot.copied.synchronize()
    final = folder / f"step_{snapshot.clock:010d}"
    if final.exists() and not find_fault(final):
        write_whole(final / META, _describe(snapshot, facts, read_meta(final)["files"]))
        return final
    with write_folder(final, folder / f"{PARTIAL}{final.name}") as partial:
        save_file(_contiguous(snapshot.model), partial / MODEL)
        save_file(_contiguous(snapshot.ema), partial / EMA)
        torch.save(snapshot.optimizer, partial / OPTIMIZER)
        digests = {name: sha256_of_file(partial / name) for name in (MODEL, EMA, OPTIMIZER)}
        (partial / META).write_bytes(_describe(snapshot, facts, digests))
    return final


def load_checkpoint(path: Path, state: TrainState) -> dict[str, Any]:
    """Put a checkpoint into `state`; its meta.json.

    Raises:
        InputError: it does not fit the state's model.
    """
    meta = read_meta(path)
    load_weights(path, state.model, state.ema)
    saved = torch.load(path / OPTIMIZER, weights_only=True, map_location="cpu")
    state.optimizer.load_state_dict(saved["optimizer"])
    state.scaler.load_state_dict(saved["scaler"])
    state.clock = meta["clock"]
    return meta


def load_weights(path: Path, model: nn.Module, ema: nn.Module) -> None:
    """Put a checkpoint's weights into a model and its EMA.

    Raises:
        InputError: they do not fit, key by key.
    """
    for module, name in ((model, MODEL), (ema, EMA)):
        try:
            module.load_state_dict(load_file(path / name), strict=True)
        except RuntimeError as error:
            raise InputError(f"{path / name} does not fit: {' '.join(str(error).split())[:300]}") from error


def read_meta(path: Path) -> dict[str, Any]:
    """A checkpoint's meta.json."""
    return json.loads((path / META).read_text())


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints below `folder`, oldest first."""
    return sorted(folder.glob("step_*"))


def newest_whole(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint whose files match their digests, and a line about each damaged one passed over."""
    damaged = []
    for path in reversed(list_checkpoints(folder)):
        if fault := find_fault(path):
            damaged.append(f"{path} is damaged ({fault}): taking the one before")
            continue
        return path, damaged
    return None, damaged


def find_fault(path: Path) -> str | None:
    """What is wrong with a checkpoint's files, if anything."""
    try:
        files = read_meta(path)["files"]
        changed = [name for name, digest in files.items() if sha256_of_file(path / name) != digest]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{META}: {error}"
    return f"{changed[0]} changed after it was saved" if changed else None


def prune(folder: Path, keep: int) -> None:
    """Delete all but the `keep` newest checkpoints (at least one) and the best; and what a killed save left."""
    paths = list_checkpoints(folder)
    kept = {*paths[-max(1, keep) :], *find_best(paths)}
    for path in [*paths, *folder.glob(f"{PARTIAL}*")]:
        if path not in kept:
            shutil.rmtree(path)


def find_best(paths: list[Path]) -> set[Path]:
    """The best checkpoint by each of SCORES, where one bears it; the oldest of several alike."""
    best = set()
    for name in SCORES:
        scores = {path: score for path in paths if (score := _read_score(path, name)) is not None}
        if scores:
            best.add(max(scores, key=lambda path: scores[path]))
    return best


def _read_score(path: Path, name: str) -> float | None:
    try:
        return read_meta(path)["metrics"].get(name)
    except (OSError, ValueError, KeyError):
        return None  # damaged


def _describe(snapshot: Snapshot, facts: dict[str, Any], digests: dict[str, str]) -> bytes:
    """The content of meta.json."""
    about = {"commit": describe_commit(), "versions": describe_versions(), "files": digests}
    return (json.dumps({"clock": snapshot.clock, **facts, **about}, indent=1) + "\n").encode()


def _copy(value: Any) -> Any:
    """A state_dict with each tensor's value as it is now, in host memory and the same memory format."""
    if isinstance(value, torch.Tensor):
        return torch.empty_like(value, device="cpu", pin_memory=value.is_cuda).copy_(value, non_blocking=True)
    if isinstance(value, dict):
        return {name: _copy(each) for name, each in value.items()}
    return [_copy(each) for each in value] if isinstance(value, list) else value


def _contiguous(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def describe_versions(*more_packages: str) -> dict[str, str]:
    """Return the versions of the packages that decide a result, and of `more_packages`, by distribution name.

    A package whose version cannot be found is left out: it is no reason to lose a checkpoint or a record.
    """
    names = dict.fromkeys(("torch", "timm", "numpy", PROJECT, *more_packages))
    found = {name: find_version(name) for name in names}
    return {name: each for name, each in found.items() if each is not None}


def find_version(package: str) -> str | None:
    """Return the version of an installed or importable package, None if it is unknown.

    On a machine where code is merely put on PYTHONPATH, nothing is installed and packages have no metadata. Then the
    version is what an imported module says of itself, or for this project what pyproject.toml of the checkout says.
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
    """The commit of this checkout, with a plus sign where files differ from it."""
    command = [
        "git",
        "-C",
        str(Path(__file__).parent),
        "describe",
        "--always",
        "--dirty=+",
        "--abbrev=12",
        "--exclude=*",
    ]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
