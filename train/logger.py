"""The output of a run: metrics.jsonl, TensorBoard and a progress line, on rank 0; the x axis is images seen."""

import errno
import json
import math
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

from loaders import Batch, Split, World
from loaders.placement import Choice
from prep.curves import METRICS
from prep.errors import print_or_discard
from prep.files import write_whole
from prep.json_lines import cut_to_whole_lines, read_json_lines
from train.config import STARTS, TENSORBOARD, Recipe
from train.start import Start
from train.step import Step
from train.versions import describe_commit, describe_versions

NUM_PICTURES = 16
IMAGES_PER_ROW = 4
EVENTS = "events.out.tfevents."  # beginning of the names of TensorBoard's files; ten digits of seconds follow
NOT_METRICS = ("kind", "clock", "epoch")  # keys of an entry in metrics.jsonl


class RunLogger:
    """Writes a run's metrics from `clock` on; drops what an interrupted run logged after its checkpoint.

    It also drops an evaluation at `clock` that the checkpoint owes: the run was killed after it had logged the
    evaluation and before it had saved that, and will evaluate again. Use as a context manager.
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
        self.writes = world.rank == 0
        if self.writes:
            # metrics.jsonl up to the checkpoint.
            kept, is_redone = self._rewind(recipe.run_dir / METRICS, clock)
            self.file = (recipe.run_dir / METRICS).open("a", encoding="utf-8")

            # TensorBoard hides earlier points from `purge_step` on. If an evaluation at `clock` is redone, that hides
            # the training metrics at `clock` too, which are therefore written again.
            sort_before_now(recipe.run_dir / TENSORBOARD)
            purge_step = clock if is_redone else clock + 1
            self.tensorboard = SummaryWriter(str(recipe.run_dir / TENSORBOARD), purge_step=purge_step)
            for entry in kept if is_redone else []:
                self._add_scalars(entry)
            self._record_start(recipe, clock)

    def __enter__(self) -> "RunLogger":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        if self.writes:
            self.file.close()
            self.tensorboard.close()

    def print(self, text: str) -> None:
        """Print a line on standard output."""
        if self.writes:
            print_or_discard(text)

    def sync(self) -> None:
        """Wait until metrics.jsonl is on disk; do nothing on file systems that cannot do so."""
        if self.writes:
            try:
                os.fsync(self.file.fileno())
            except OSError as error:
                if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
                    raise

    def log_metrics(self, kind: str, clock: int, metrics: dict[str, float]) -> None:
        """Record metrics of one kind (train or validation), and print them in one line."""
        if not self.writes:
            return
        entry: dict[str, Any] = {"kind": kind, "clock": clock, "epoch": clock / self.epoch_size, **metrics}
        self.file.write(json.dumps(entry) + "\n")
        self.file.flush()
        self._add_scalars(entry)
        self.tensorboard.flush()  # otherwise a kill would lose what metrics.jsonl keeps
        shown = "  ".join(filter(None, (_format_metric(name, value) for name, value in metrics.items())))
        eta = f"  ETA {self._eta(clock)}" if kind == "train" else ""
        self.print(f"epoch {clock / self.epoch_size:.2f}/{self.epochs:g}  {kind}  {shown}{eta}")

    def log_images(self, name: str, images_BCHW: torch.Tensor, clock: int, lines: Sequence[str] = ()) -> None:
        """Write images (uint8 RGB) to TensorBoard in one grid, with one line of text per image."""
        if self.writes and len(images_BCHW):
            grid_CHW = make_grid(images_BCHW.cpu(), nrow=IMAGES_PER_ROW)
            self.tensorboard.add_image(name, grid_CHW, clock)
            if lines:
                self.tensorboard.add_text(name, "\n".join(f"1. {line}" for line in lines), clock)

    def _rewind(self, path: Path, clock: int) -> tuple[list[dict[str, Any]], bool]:
        """Drop the lines of metrics.jsonl that will come again.

        Returns:
            The kept entries at `clock`, and whether an evaluation at `clock` was dropped.
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

    def _record_start(self, recipe: Recipe, clock: int) -> None:
        """Append commit, versions, devices and recipe to starts.jsonl; give the recipe to TensorBoard."""
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

        # SummaryWriter.add_hparams would also log these zeros as metrics, so write its two summaries directly.
        experiment, session, _ = hparams(_flatten(recipe.to_dict()), {"validation/top1": 0, "validation/ema_top1": 0})
        for summary in (experiment, session):
            self.tensorboard._get_file_writer().add_summary(summary)

    def _add_scalars(self, entry: dict[str, Any]) -> None:
        for name, value in entry.items():
            if name not in NOT_METRICS:
                self.tensorboard.add_scalar(f"{entry['kind']}/{name}", value, entry["clock"])

    def _eta(self, clock: int) -> str:
        done, left = clock - self.first_clock, self.epochs * self.epoch_size - clock
        minutes = round((time.monotonic() - self.started) * max(0, left) / max(1, done) / 60)
        return f"{minutes // 60} h {minutes % 60:02d} min"


def log_augmented(logger: RunLogger, step: Step, batch: Batch) -> None:
    """Show the first images of a training batch in TensorBoard, as the network sees them."""
    if logger.writes:
        logger.log_images("train/augmented", step.preview(batch, NUM_PICTURES), batch.position)


@torch.inference_mode()
def log_mistakes(logger: RunLogger, step: Step, batch: Batch, split: Split) -> None:
    """Show in TensorBoard the first images of a validation batch that the averaged model (EMA) gets wrong.

    The model must be in evaluation mode.
    """
    if not logger.writes:
        return
    with step.amp:
        logits_BK = step.state.ema(step.augment.normalize(batch.images_BCHW))
    confidences_B, guesses_B = logits_BK.float().softmax(dim=1).max(dim=1)
    wrong_B = (guesses_B != batch.labels_B) & batch.valid_B
    wrong = torch.nonzero(wrong_B)[:NUM_PICTURES, 0]

    # One line per image: its key, its class, the predicted class and the softmax of that.
    names, keys = split.class_names, split.keys(batch.rows_B[wrong.cpu().numpy()])
    columns = (tensor_B[wrong].tolist() for tensor_B in (batch.labels_B, guesses_B, confidences_B))
    lines = [
        f"{key}: {names[label]}, predicted {names[guess]} ({confidence:.0%})"
        for key, label, guess, confidence in zip(keys, *columns, strict=True)
    ]
    logger.log_images("validation/mistakes", batch.images_BCHW[wrong], step.state.clock, lines)


def describe_device(device: torch.device) -> str:
    """Return the name of the GPU, or of the CPU with its number of cores."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"


def sort_before_now(folder: Path) -> None:
    """Rename TensorBoard's files so that a new file sorts after them; TensorBoard reads them in the order of names.

    Names begin with the time. If the clock was set back, or the run moved to a machine with a slow clock, a new
    file would be read first, and points that it replaces would appear twice.
    """
    paths = sorted(folder.glob(f"{EVENTS}*"))
    now = int(time.time())
    if not paths or paths[-1].name < f"{EVENTS}{now:010d}":
        return
    for number, path in enumerate(paths):
        rest = path.name.removeprefix(EVENTS).partition(".")[2]
        path.rename(folder / f"{EVENTS}{now - len(paths) + number:010d}.{rest}")


def _flatten(fields: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested fields by dotted names, with values that TensorBoard's hparams accepts: numbers, strings, bools."""
    flat: dict[str, Any] = {}
    for name, value in fields.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value if isinstance(value, bool | int | float | str) else str(value)
    return flat


def _format_metric(name: str, value: float) -> str:
    """Return a metric for the progress line: `ema_top1`, 71.234 -> 'ema top-1 71.23%'; rates with their unit."""
    if name == "images_per_second":
        return f"{value:,.0f} images/s"
    if name == "num_images":
        return f"{value:,} images"
    if name == "num_damaged":
        return f"{value:,} damaged" if value else ""
    if name == "cached_percent":
        return f"cache {math.floor(value)}%"
    words = name.replace("_percent", "").replace("_", " ").replace("top", "top-")
    is_percent = "top" in name or name.endswith("_percent")
    return f"{words} {value:.2f}%" if is_percent else f"{words} {value:.4g}"
