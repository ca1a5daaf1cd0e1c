"""The figures that a run logs, from what it has added up."""

import torch

from loaders import Loader, World
from train.dist import add_up
from train.step import Sums
from train.validate import Scores


class Meter:
    """Rate and data wait since the last look, with the training loop's own time alone."""

    def __init__(self, loader: Loader) -> None:
        self.loader = loader
        self.restart()

    def restart(self) -> None:
        """Count from now on."""
        self.before = self.loader.stats()

    def read(self) -> dict[str, float]:
        """Images/s over all processes; what this one waited for data, and damaged images that it knows of."""
        stats = self.loader.stats().since(self.before)
        self.restart()
        return {
            "images_per_second": stats.num_batches * self.loader.batch_size / stats.seconds,
            "data_wait_percent": 100 * stats.wait_seconds / stats.seconds,
            "num_damaged": stats.num_damaged,
            **self._memory(),
        }

    def _memory(self) -> dict[str, float]:
        """The most that this process's tensors took on its GPU since the run began."""
        device = self.loader.world.device
        if device.type != "cuda":
            return {}
        return {"gpu_memory_gib": torch.cuda.max_memory_allocated(device) / 2**30}


def train_metrics(sums: Sums, meter: Meter, lr: float, world: World) -> dict[str, float]:
    """The means since the last log. The one place where training waits for the device."""
    loss, hits = add_up(sums.loss_and_hits, world).tolist()
    num_images = sums.num_images * world.size
    return {"loss": loss / num_images, "top1": 100 * hits / num_images, "lr": lr, **meter.read()}


def validation_metrics(scores: dict[str, Scores]) -> dict[str, float]:
    """The scores of the model and of its EMA as flat metrics."""
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
