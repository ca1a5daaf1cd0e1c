"""What a run tells: metrics.jsonl, TensorBoard and a progress line. Rank 0 alone speaks; the x axis is images seen."""

import errno
import json
import os
import platform
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams
from torchvision.utils import make_grid

from loaders import World
from loaders.placement import Choice
from prep.errors import print_or_discard
from prep.files import write_whole
from prep.json_lines import cut_to_whole_lines, read_json_lines
from train.checkpoint import describe_commit, describe_versions
from train.config import Recipe
from train.run_folder import METRICS, STARTS, TENSORBOARD
from train.start import Start

IMAGES_A_ROW = 4
EVENTS = "events.out.tfevents."  # how the names of TensorBoard's files begin; ten digits of seconds follow
NOT_METRICS = ("kind", "clock", "epoch")  # of a line in metrics.jsonl


class Journal:
    """Writes a run's metrics, from `clock` on: what an interrupted run wrote beyond its checkpoint is dropped.

    So is an evaluation at `clock` that is owed by the checkpoint: the run was killed after it had logged it and before
    it had saved that, and evaluates again.
    """

    def __init__(
        self,
        recipe: Recipe,
        clock: int,
        epoch_size: int,
        world: World,
        placement: Choice | None = None,
        start: Start | None = None,
    ) -> None:
        self.placement, self.start = placement, start or Start(clock=clock)
        self.epoch_size, self.world = epoch_size, world
        self.epochs = recipe.epochs
        self.first_clock, self.started = clock, time.monotonic()
        self.speaks = world.rank == 0
        if self.speaks:
            again, is_redone = self._rewind(recipe.run_dir / METRICS, clock)
            self.file = (recipe.run_dir / METRICS).open("a", encoding="utf-8")
            sort_before_now(recipe.run_dir / TENSORBOARD)
            purge_step = clock if is_redone else clock + 1
            self.tensorboard = SummaryWriter(str(recipe.run_dir / TENSORBOARD), purge_step=purge_step)
            for entry in again if is_redone else []:
                self._add_scalars(entry)
            self._start(recipe, clock)

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        if self.speaks:
            self.file.close()
            self.tensorboard.close()

    def say(self, text: str) -> None:
        """A line for the person watching."""
        if self.speaks:
            print_or_discard(text)

    def sync(self) -> None:
        """Wait until the metrics are on disk, on file systems that can do so."""
        if self.speaks:
            try:
                os.fsync(self.file.fileno())
            except OSError as error:
                if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
                    raise

    def _rewind(self, path: Path, clock: int) -> tuple[list[dict[str, Any]], bool]:
        """Drop the lines that are to come again.

        Returns:
            The entries at `clock` that stay, and whether an evaluation at `clock` was dropped.
        """
        lines = read_json_lines(path, "kind", "clock")
        redone = [
            self.start.owes_evaluation and entry["clock"] == clock and entry["kind"] == "validation"
            for entry in lines.entries
        ]
        kept = [
            (entry, text)
            for entry, text, is_redone in zip(lines.entries, lines.texts, redone, strict=True)
            if entry["clock"] <= clock and not is_redone
        ]
        write_whole(path, "".join(text + "\n" for _, text in kept).encode())
        return [entry for entry, _ in kept if entry["clock"] == clock], any(redone)

    def _start(self, recipe: Recipe, clock: int) -> None:
        """Record what a run is started with: commit, versions, devices, recipe."""
        header = {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "clock": clock,
            "command": sys.argv,
            "commit": describe_commit(),
            "versions": describe_versions(),
            "num_processes": self.world.size,
            "device": describe_device(self.world.device),
            "recipe": recipe.to_dict(),
            "loader": self.placement.to_dict() if self.placement else None,
            **self.start.to_dict(),
        }
        path = recipe.run_dir / STARTS
        before = cut_to_whole_lines(path.read_bytes()) if path.exists() else b""
        write_whole(path, before + json.dumps(header).encode() + b"\n")
        experiment, session, _ = hparams(_flat(recipe.to_dict()), {"validation/top1": 0, "validation/ema_top1": 0})
        for summary in (experiment, session):  # SummaryWriter.add_hparams would log the made-up zeros too
            self.tensorboard._get_file_writer().add_summary(summary)

    def show(self, name: str, images_BCHW: torch.Tensor, clock: int, lines: Sequence[str] = ()) -> None:
        """Pictures for TensorBoard, uint8 RGB, in rows of IMAGES_A_ROW; and a line about each."""
        if self.speaks and len(images_BCHW):
            grid_CHW = make_grid(images_BCHW.cpu(), nrow=IMAGES_A_ROW)
            self.tensorboard.add_image(name, grid_CHW, clock)
            if lines:
                self.tensorboard.add_text(name, "\n".join(f"1. {line}" for line in lines), clock)

    def log(self, kind: str, clock: int, metrics: dict[str, float]) -> None:
        """Record metrics of one kind (train or validation) and show them in one line."""
        if not self.speaks:
            return
        entry: dict[str, Any] = {"kind": kind, "clock": clock, "epoch": clock / self.epoch_size, **metrics}
        self.file.write(json.dumps(entry) + "\n")
        self.file.flush()
        self._add_scalars(entry)
        self.tensorboard.flush()  # or a kill would lose what metrics.jsonl keeps
        shown = "  ".join(filter(None, (_show(name, value) for name, value in metrics.items())))
        eta = f"  ETA {self._eta(clock)}" if kind == "train" else ""
        self.say(f"epoch {clock / self.epoch_size:.2f}/{self.epochs:g}  {kind}  {shown}{eta}")

    def _add_scalars(self, entry: dict[str, Any]) -> None:
        for name, value in entry.items():
            if name not in NOT_METRICS:
                self.tensorboard.add_scalar(f"{entry['kind']}/{name}", value, entry["clock"])

    def _eta(self, clock: int) -> str:
        done, left = clock - self.first_clock, self.epochs * self.epoch_size - clock
        minutes = round((time.monotonic() - self.started) * max(0, left) / max(1, done) / 60)
        return f"{minutes // 60} h {minutes % 60:02d} min"


def describe_device(device: torch.device) -> str:
    """What the processes run on."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"


def _flat(fields: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested fields by dotted names, as TensorBoard's hparams takes them: numbers, words and truths."""
    flat: dict[str, Any] = {}
    for name, value in fields.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value if isinstance(value, bool | int | float | str) else str(value)
    return flat


def sort_before_now(folder: Path) -> None:
    """Rename TensorBoard's files so that a new one comes after them by name, as TensorBoard reads them.

    Names begin with the time. Where the clock was set back, or the run moved to a machine whose clock is behind, a new
    file would be read first: what it takes back and writes again would then be there twice.
    """
    paths = sorted(folder.glob(f"{EVENTS}*"))
    now = int(time.time())
    if not paths or paths[-1].name < f"{EVENTS}{now:010d}":
        return
    for number, path in enumerate(paths):
        rest = path.name.removeprefix(EVENTS).partition(".")[2]
        path.rename(folder / f"{EVENTS}{now - len(paths) + number:010d}.{rest}")


def _show(name: str, value: float) -> str:
    """`ema_top1`, 71.234 -> 'ema top-1 71.23%'; a rate bears its unit."""
    if name == "images_per_second":
        return f"{value:,.0f} images/s"
    if name == "num_images":
        return f"{value:,} images"
    if name == "num_damaged":
        return f"{value:,} damaged" if value else ""
    words = name.replace("_percent", "").replace("_", " ").replace("top", "top-")
    is_percent = "top" in name or name.endswith("_percent")
    return f"{words} {value:.2f}%" if is_percent else f"{words} {value:.4g}"
