"""The figures that a run logs: sums kept on the device, image rate, data wait, validation scores.

Also the warning that training waits for its loader (`DataWaitWarning`).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from loaders import Loader, Stats, World
from loaders.placement import DecoderSide
from train.dist import all_reduce_sum
from train.validate import Scores

MOST_WAIT_PERCENT = 5.0  # share of its time that training may wait for data without a warning
SMALLER = "smaller images (prep/shard.py --max-side 500 --quality 90)"
GPU_DECODING = f"decoding on the GPU: --loader.placement cpu, another --loader.hw-decoder-load, or {SMALLER}"
NETWORK = "and the other images come from the bucket one by one: `prep/stage.py` before training avoids this"
# The loader's clock that ran longest, and the bottleneck with its remedies.
REMEDIES = {
    "read_seconds": "storage: copy the shards to a local NVMe, or give --data.order blocks",
    "decode_seconds": f"decoding: more --loader.num-threads, with a GPU --loader.placement gpu, or {SMALLER}",
    "copy_seconds": "sending labels to the device: more --loader.batches-ahead",
}


@dataclass
class Sums:
    """Training metrics since the last log, added up on the device so that no step waits for it."""

    loss_and_hits: torch.Tensor  # float64 [2]: loss times images, and top-1 hits
    num_images: int = 0

    @classmethod
    def zero(cls, device: torch.device) -> "Sums":
        """Return zero sums."""
        return cls(torch.zeros(2, dtype=torch.float64, device=device))

    @torch.no_grad()
    def add(self, loss: torch.Tensor, logits_BK: torch.Tensor, labels_B: torch.Tensor) -> None:
        """Add one batch, given its mean loss; a loss that is not finite counts as 0."""
        num_images = len(labels_B)
        hits = (logits_BK.argmax(1) == labels_B).sum()
        finite_loss = torch.where(loss.isfinite(), loss, 0)
        self.loss_and_hits += torch.stack([finite_loss.double() * num_images, hits.double()])
        self.num_images += num_images

    def over_all_ranks(self, world: World) -> list[float]:
        """Return loss, hits and images over all ranks. A checkpoint holds them, so a resumed run logs the same means.

        Every rank must call it.
        """
        return [*all_reduce_sum(self.loss_and_hits.clone(), world).tolist(), self.num_images * world.size]

    def restore(self, saved: list[float] | None, world: World) -> None:
        """Continue from the result of `over_all_ranks`, in a world of any size.

        Rank 0 gets the complete sums, since shares for each rank would be rounded.
        """
        if saved:
            *loss_and_hits, num_images = saved
            if world.rank == 0:
                self.loss_and_hits += torch.tensor(loss_and_hits, dtype=torch.float64, device=self.loss_and_hits.device)
            self.num_images += round(num_images / world.size)


class Meter:
    """Image rate and data wait since the last reading; evaluations in between are not counted (`restart`)."""

    def __init__(self, loader: Loader) -> None:
        self.loader = loader
        self.restart()

    def restart(self) -> None:
        """Count from now on."""
        self.before = self.loader.stats()

    def read_rates(self) -> dict[str, float]:
        """Return images/s over all processes, this process's data wait, and the damaged images that it knows of.

        And the share of the split's bytes in the cache, while images come from a bucket.
        """
        stats = self.loader.stats().since(self.before)
        self.restart()
        return {
            "images_per_second": stats.num_batches * self.loader.batch_size / stats.seconds,
            "data_wait_percent": 100 * stats.wait_seconds / stats.seconds,
            "num_damaged": stats.num_damaged,
            **({"cached_percent": 100 * stats.cached_share} if stats.remote_images else {}),
            **self._read_memory(),
        }

    def _read_memory(self) -> dict[str, float]:
        """Return the most memory that this process's tensors took on its GPU since the run began."""
        device = self.loader.world.device
        if device.type != "cuda":
            return {}
        return {"gpu_memory_gib": torch.cuda.max_memory_allocated(device) / 2**30}


def train_metrics(sums: Sums, meter: Meter, lr: float, world: World) -> dict[str, float]:
    """Return the means since the last log. Waits for the device; every rank must call it."""
    loss, hits = all_reduce_sum(sums.loss_and_hits, world).tolist()
    num_images = sums.num_images * world.size
    return {"loss": loss / num_images, "top1": 100 * hits / num_images, "lr": lr, **meter.read_rates()}


def validation_metrics(scores: dict[str, Scores]) -> dict[str, float]:
    """Return the scores of the model and of its EMA as flat metrics."""
    model, ema = scores["model"], scores["ema"]
    return {
        "loss": model.loss,
        "top1": model.top1,
        "top5": model.top5,
        "ema_loss": ema.loss,
        "ema_top1": ema.top1,
        "ema_top5": ema.top5,
        "num_images": model.num_images,
        "num_damaged": model.num_damaged,
    }


class DataWaitWarning:
    """Compares a loader's figures from log to log; warns at most once until it is restarted."""

    def __init__(self, loader: Loader) -> None:
        self.loader, self.may_warn = loader, True
        self.before: Stats | None = None  # the first interval contains the loader's start and is not judged

    def restart(self) -> None:
        """Count from now on."""
        self.before, self.may_warn = self.loader.stats(), True

    def check_wait(self, wait_percent: float, warn: Callable[[str], None]) -> None:
        """Warn if training waited for data for more than MOST_WAIT_PERCENT of the time since the last call."""
        before, now = self.before, self.loader.stats()
        self.before = now
        if before and self.may_warn and wait_percent > MOST_WAIT_PERCENT:
            self.may_warn = False
            remedy = find_remedy(now.since(before), self.loader.placement.side)
            warn(f"warning: training waited for data {wait_percent:.0f}% of the time, most likely for {remedy}")


def find_remedy(interval: Stats, side: DecoderSide) -> str:
    """Return the loader's most likely bottleneck, and what to try against it."""
    if side == "gpu" and interval.read_seconds < interval.wait_seconds:
        # A GPU decodes after the producer has queued its work: the producer's clocks do not show that time.
        return GPU_DECODING
    slowest = max(REMEDIES, key=lambda name: getattr(interval, name))
    if slowest == "read_seconds" and interval.remote_images:
        return f"the network: the cache is at {math.floor(100 * interval.cached_share)}%, {NETWORK}"
    return REMEDIES[slowest]
