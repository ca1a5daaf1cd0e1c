"""Checkpoints: copy the training state, write the copy to disk while training continues, read it again.

step_0000012800/    a checkpoint, named by its clock (images seen); the folder appears only when it is complete
  model.safetensors  ema.safetensors  optimizer.pt (weights_only)  meta.json (recipe, metrics, versions, digests)

To resume, run the same command again: the newest complete checkpoint (all files match their digests) is loaded.
"""

import copy
import json
import shutil
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from loaders import World
from prep.errors import InputError
from prep.files import sha256_of_file, write_folder, write_whole
from train.config import CHECKPOINTS, Recipe
from train.model import build_model
from train.versions import describe_commit, describe_versions

META, MODEL, EMA, OPTIMIZER = "meta.json", "model.safetensors", "ema.safetensors", "optimizer.pt"
PARTIAL = ".partial-"
SCORES = ("top1", "ema_top1")  # the best checkpoint by each of these metrics is kept

Named = TypeVar("Named")
AfterSave = Callable[[Path], Collection[Path]]


@dataclass
class TrainState:
    """Everything that training changes: what a checkpoint holds and a resumed run needs."""

    model: nn.Module
    ema: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    clock: int = 0  # images seen, over all processes


@dataclass(frozen=True)
class Snapshot:
    """A copy of the state at one moment, in host memory; training does not change it."""

    clock: int
    model: dict[str, torch.Tensor]
    ema: dict[str, torch.Tensor]
    optimizer: dict[str, Any]  # and the scaler
    copied: torch.cuda.Event | None  # on a GPU: recorded after the copies, which are complete when it is reached


# Writing.


class Saver:
    """Writes checkpoints on rank 0 in a thread, one at a time. Use as a context manager: the exit waits for the last.

    Args:
        folder: of the checkpoints.
        keep: number of newest checkpoints to keep, besides the best.
        after: is called in the thread with each checkpoint that is on disk; returns those that must not be deleted yet.
    """

    def __init__(self, folder: Path, keep: int, world: World, after: AfterSave = lambda path: ()) -> None:
        self.folder, self.keep, self.after = folder, keep, after
        self.writes = world.rank == 0
        self.thread = ThreadPoolExecutor(1, "penstock-saver")
        self.pending: Future[None] | None = None

    def __enter__(self) -> "Saver":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self.thread.shutdown()
        if error is None:
            self.wait()

    def save(self, state: TrainState, facts: dict[str, Any]) -> None:
        """Save the state as it is now; training may change it as soon as this returns.

        Waits for the previous save, and on a GPU once for the steps queued so far (`take_snapshot`); neither for the
        copies of this save nor for the disk.

        Args:
            facts: as for `write_checkpoint`.

        Raises:
            Exception: the error with which the previous save failed.
        """
        self.wait()
        if self.writes:
            self.pending = self.thread.submit(self._write, take_snapshot(state), facts)

    def wait(self) -> None:
        """Wait until the last save is on disk; raise the error with which it failed."""
        pending, self.pending = self.pending, None
        if pending is not None:
            pending.result()

    def delete_others(self) -> None:
        """Delete what the last save had to spare, because it was in use."""
        if self.writes:
            prune(self.folder, self.keep)

    def _write(self, snapshot: Snapshot, facts: dict[str, Any]) -> None:
        path = write_checkpoint(self.folder, snapshot, facts)
        prune(self.folder, self.keep, self.after(path))


def take_snapshot(state: TrainState) -> Snapshot:
    """Copy a state into host memory.

    On a GPU this waits once, for the steps queued so far: `GradScaler.state_dict` reads its scale on the CPU. (`fit`
    has already waited, to read the sums for meta.json.) The copies themselves are queued before the coming steps, into
    pinned memory, and only `write_checkpoint` waits for them. The first save takes longer: it pins memory for every
    tensor, which torch keeps for later saves.
    """
    # The scaler first: the wait must not include the copies.
    optimizer = {"optimizer": state.optimizer.state_dict(), "scaler": state.scaler.state_dict()}
    model, ema, optimizer = map(_copy, (state.model.state_dict(), state.ema.state_dict(), optimizer))

    # An event that marks the end of the copies.
    copied = None
    if next(state.model.parameters()).is_cuda:
        copied = torch.cuda.Event(blocking=True)  # the waiting thread sleeps instead of spinning
        copied.record()
    return Snapshot(state.clock, model, ema, optimizer, copied)


def write_checkpoint(folder: Path, snapshot: Snapshot, facts: dict[str, Any]) -> Path:
    """Write a checkpoint below `folder`; it appears under its name only when all of it is on disk.

    Args:
        facts: content of `meta.json` besides clock, versions and digests; must be JSON.

    Returns:
        The checkpoint's folder.
    """
    if snapshot.copied is not None:
        snapshot.copied.synchronize()

    # If a complete checkpoint of this clock exists, replace only meta.json: the state is the same. Weights that are
    # complete are never deleted and rewritten.
    final = folder / f"step_{snapshot.clock:010d}"
    if final.exists() and not find_fault(final):
        write_whole(final / META, _describe(snapshot, facts, read_meta(final)["files"]))
        return final

    # Weights first, then their digests in meta.json; `write_folder` syncs and renames.
    with write_folder(final, folder / f"{PARTIAL}{final.name}") as partial:
        save_file(_contiguous(snapshot.model), partial / MODEL)
        save_file(_contiguous(snapshot.ema), partial / EMA)
        torch.save(snapshot.optimizer, partial / OPTIMIZER)
        digests = {name: sha256_of_file(partial / name) for name in (MODEL, EMA, OPTIMIZER)}
        (partial / META).write_bytes(_describe(snapshot, facts, digests))
    return final


def prune(folder: Path, keep: int, spared: Collection[Path] = ()) -> None:
    """Delete the checkpoints that `choose_kept` does not choose, except `spared`; and remains of killed saves."""
    paths = list_checkpoints(folder)
    kept = {*choose_kept({path: _read_scores(path) for path in paths}, keep), *spared}
    for path in [*paths, *folder.glob(f"{PARTIAL}*")]:
        if path not in kept:
            shutil.rmtree(path)


def choose_kept(scores: Mapping[Named, Mapping[str, float]], keep: int) -> set[Named]:
    """Return which checkpoints to keep: the `keep` newest (at least one), and the best by each of SCORES.

    Args:
        scores: the metrics of each checkpoint, oldest first; of equally good ones the oldest is kept.
    """
    kept = {*list(scores)[-max(1, keep) :]}
    for name in SCORES:
        if having := [each for each in scores if name in scores[each]]:
            kept.add(max(having, key=lambda each: scores[each][name]))
    return kept


def _read_scores(path: Path) -> dict[str, float]:
    try:
        return read_meta(path)["metrics"]
    except (OSError, ValueError, KeyError):
        return {}  # damaged


def _describe(snapshot: Snapshot, facts: dict[str, Any], digests: dict[str, str]) -> bytes:
    """Return the content of meta.json."""
    about = {"commit": describe_commit(), "versions": describe_versions(), "files": digests}
    return (json.dumps({"clock": snapshot.clock, **facts, **about}, indent=1) + "\n").encode()


def _copy(value: Any) -> Any:
    """Return a state_dict with each tensor's present value, in host memory and the same memory format."""
    if isinstance(value, torch.Tensor):
        return torch.empty_like(value, device="cpu", pin_memory=value.is_cuda).copy_(value, non_blocking=True)
    if isinstance(value, dict):
        return {name: _copy(each) for name, each in value.items()}
    return [_copy(each) for each in value] if isinstance(value, list) else value


def _contiguous(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


# Reading.


def load_checkpoint(path: Path, state: TrainState) -> dict[str, Any]:
    """Load a checkpoint into `state`; return its meta.json.

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
    """Load a checkpoint's weights into a model and its EMA.

    Raises:
        InputError: a tensor is missing, unknown or of another shape.
    """
    for module, name in ((model, MODEL), (ema, EMA)):
        try:
            module.load_state_dict(load_file(path / name), strict=True)
        except RuntimeError as error:
            raise InputError(f"{path / name} does not fit: {' '.join(str(error).split())[:300]}") from error


def restore_models(path: Path, recipe: Recipe, num_classes: int, device: torch.device) -> dict[str, nn.Module]:
    """Return a checkpoint's two networks by name: `model`, as trained, and `ema`, its averaged weights.

    Raises:
        InputError: the weights are not those of such a model, or a run in progress has deleted them in the meantime.
    """
    model = build_model(recipe.model, num_classes, device, recipe.image_sizes())
    models = {"model": model, "ema": copy.deepcopy(model)}
    try:
        load_weights(path, **models)
    except OSError as error:
        raise InputError(f"{path} can no longer be read ({error}): start again to use a newer one") from error
    return models


def read_meta(path: Path) -> dict[str, Any]:
    """Return the content of a checkpoint's meta.json."""
    return json.loads((path / META).read_text())


def find_checkpoint(path: Path) -> Path:
    """Return the checkpoint that a user means by a run folder (its newest complete one) or by a checkpoint's folder.

    Raises:
        InputError: there is none, or it is damaged.
    """
    if (path / META).exists():
        if fault := find_fault(path):
            raise InputError(f"{path} is damaged ({fault}): choose another checkpoint")
        return path
    newest, _ = newest_complete(path / CHECKPOINTS)
    if newest is None:
        raise InputError(
            f"{path} holds no complete checkpoint: give a run folder of train/main.py or one of its step_ folders"
        )
    return newest


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints below `folder`, oldest first."""
    return sorted(folder.glob("step_*"))


def newest_complete(folder: Path) -> tuple[Path | None, list[str]]:
    """Return the newest complete checkpoint, and one line about each damaged one that was skipped."""
    damaged = []
    for path in reversed(list_checkpoints(folder)):
        if fault := find_fault(path):
            damaged.append(f"{path} is damaged ({fault}): using the previous one")
            continue
        return path, damaged
    return None, damaged


def find_fault(path: Path) -> str | None:
    """Return what is wrong with a checkpoint's files; None if they match their digests."""
    try:
        files = read_meta(path)["files"]
        changed = [name for name, digest in files.items() if sha256_of_file(path / name) != digest]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{META}: {error}"
    return f"{changed[0]} changed after it was saved" if changed else None
