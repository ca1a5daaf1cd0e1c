"""Statistics: how much time the loader spends where. `Counters` is written by its parts, `Stats` is for the user."""

import dataclasses
import time
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Counters:
    """Sums since the loader was made, in the fields of `Stats`. Each field is written by only one thread."""

    started: float = field(default_factory=time.perf_counter)
    num_batches: int = 0
    queue_seconds: float = 0.0
    wait_seconds: float = 0.0  # of a GPU; on the CPU it is `queue_seconds`
    take_seconds: float = 0.0
    read_seconds: float = 0.0
    read_bytes: int = 0
    image_bytes: int = 0
    decode_bytes: int = 0
    decode_seconds: float = 0.0
    copy_seconds: float = 0.0
    remote_images: int = 0
    remote_bytes: int = 0
    cached_share: float = 1.0

    def sums(self) -> dict[str, Any]:
        """Return the fields that `Stats` has too."""
        return {name: value for name, value in vars(self).items() if name != "started"}


@dataclass(frozen=True)
class Stats:
    """Statistics of the loader of one process. `now.since(before)` gives those of an interval."""

    seconds: float  # length of the interval
    num_batches: int  # batches passed to the consumer
    wait_seconds: float  # training waited for a batch: the cost of the loader; with a GPU, measured on the GPU
    queue_seconds: float  # the consumer's thread waited for the queue; with a GPU, the GPU may work meanwhile
    take_seconds: float  # the consumer's own work to receive batches
    read_seconds: float  # the producer waited for storage
    read_bytes: int  # read from shards, from their segments' lengths, or from the bucket
    decode_seconds: float  # the producer waited for pixels; on a GPU, until the work for them was queued
    copy_seconds: float  # the producer made labels and masks, and copied them to the device
    queue_depth: int  # batches ready now
    batches_ahead: int  # batches planned and not yet consumed now
    num_damaged: int  # images known now that cannot be decoded
    remote_images: int = 0  # of the images read, those that came from the bucket and not from the cache
    remote_bytes: int = 0
    cached_share: float = 1.0  # share of the split's bytes in the cache now; 1 for a dataset in a folder
    image_bytes: int = 0  # of the complete images; more than `read_bytes` if images are spliced (loaders/splice.py)
    decode_bytes: int = 0  # passed to the decoder

    @property
    def bytes_per_second(self) -> float:
        """Bytes read per second, from storage or the page cache."""
        return self.read_bytes / self.seconds if self.seconds else 0.0

    def since(self, before: "Stats") -> "Stats":
        """Return the sums of the interval between the two; fields that describe the present keep their value."""
        counts = ("num_batches", "read_bytes", "image_bytes", "decode_bytes", "remote_images", "remote_bytes")
        sums = (*counts, *(f.name for f in dataclasses.fields(self) if "seconds" in f.name))
        return dataclasses.replace(self, **{name: getattr(self, name) - getattr(before, name) for name in sums})
