"""What a run tells: metrics.jsonl, TensorBoard and a progress line. Rank 0 alone speaks; the x axis is images seen."""

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
from prep.dataset import write_whole
from train.checkpoint import describe_commit, describe_versions
from train.config import Recipe
from train.run_folder import METRICS, STARTS, TENSORBOARD

IMAGES_A_ROW = 4


class Journal:
    """Writes a run's metrics, from `clock` on: what an interrupted run wrote beyond its checkpoint is dropped."""

    def __init__(
        self, recipe: Recipe, clock: int, epoch_size: int, world: World, placement: Choice | None = None
    ) -> None:
        self.placement = placement
        self.epoch_size, self.world = epoch_size, world
        self.epochs = recipe.epochs
        self.first_clock, self.started = clock, time.monotonic()
        self.speaks = world.rank == 0
        if self.speaks:
            path = recipe.run_dir / METRICS
            kept = [line for line in _lines(path) if json.loads(line)["clock"] <= clock]
            write_whole(path, "".join(line + "\n" for line in kept).encode())
            self.file = path.open("a", encoding="utf-8")
            self.tensorboard = SummaryWriter(str(recipe.run_dir / TENSORBOARD), purge_step=clock + 1)
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
            print(text, flush=True)

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
        }
        with (recipe.run_dir / STARTS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(header) + "\n")
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
        for name, value in metrics.items():
            self.tensorboard.add_scalar(f"{kind}/{name}", value, clock)
        shown = "  ".join(filter(None, (_show(name, value) for name, value in metrics.items())))
        eta = f"  ETA {self._eta(clock)}" if kind == "train" else ""
        self.say(f"epoch {clock / self.epoch_size:.2f}/{self.epochs:g}  {kind}  {shown}{eta}")

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


def _lines(path: Path) -> list[str]:
    """The whole lines of a file that a killed process may have left with half a line at its end."""
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    return text[: text.rfind("\n") + 1].splitlines()


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
