"""Checkpoints: a folder each, whole or not there. To resume, run the same command again.

step_0000012800/    the clock: images seen
  model.safetensors  ema.safetensors  optimizer.pt (weights_only)  meta.json (recipe, metrics, versions, digests)
"""

import hashlib
import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from loaders import InputError
from prep.dataset import sync_folder

META, MODEL, EMA, OPTIMIZER = "meta.json", "model.safetensors", "ema.safetensors", "optimizer.pt"
PARTIAL = ".partial-"


@dataclass
class TrainState:
    """All that training changes: what a checkpoint holds and a resumed run needs."""

    model: nn.Module
    ema: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    clock: int = 0  # images seen, over all processes


def save_checkpoint(folder: Path, state: TrainState, facts: dict[str, Any]) -> Path:
    """Write a checkpoint below `folder`; it appears under its name only when all of it is on disk.

    Args:
        facts: what `meta.json` holds beside clock, versions and digests; must be JSON.
    """
    final = folder / f"step_{state.clock:010d}"
    partial = folder / f"{PARTIAL}{final.name}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_file(_contiguous(state.model), partial / MODEL)
    save_file(_contiguous(state.ema), partial / EMA)
    torch.save({"optimizer": state.optimizer.state_dict(), "scaler": state.scaler.state_dict()}, partial / OPTIMIZER)
    files = {name: _sha256(partial / name) for name in (MODEL, EMA, OPTIMIZER)}
    meta = {"clock": state.clock, **facts, "commit": describe_commit(), "versions": describe_versions(), "files": files}
    (partial / META).write_text(json.dumps(meta, indent=1) + "\n")
    for path in partial.iterdir():
        _sync_file(path)
    sync_folder(partial)
    shutil.rmtree(final, ignore_errors=True)
    partial.rename(final)
    sync_folder(folder)
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
        changed = [name for name, digest in files.items() if _sha256(path / name) != digest]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{META}: {error}"
    return f"{changed[0]} changed after it was saved" if changed else None


def prune(folder: Path, keep: int, best: Path | None) -> None:
    """Delete all but the `keep` newest checkpoints and the best; and what a killed save left."""
    for path in [*list_checkpoints(folder)[:-keep], *folder.glob(f"{PARTIAL}*")]:
        if path != best:
            shutil.rmtree(path)


def _contiguous(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync_file(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def describe_versions() -> dict[str, str]:
    return {name: version(name) for name in ("torch", "timm", "numpy", "penstock")}


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
