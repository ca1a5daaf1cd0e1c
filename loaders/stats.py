"""Where a loader's time goes. `Counters` is what its parts add to, `Stats` what `loader.stats()` tells."""

import dataclasses
import time
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Counters:
    """Sums since the loader was made; each field is written by one thread."""

    started: float = field(default_factory=time.perf_counter)
    num_batches: int = 0  # handed to the consumer
    queue_seconds: float = 0.0
    wait_seconds: float = 0.0  # of a GPU; on the CPU it is `queue_seconds`
    take_seconds: float = 0.0
    read_seconds: float = 0.0
    read_bytes: int = 0
    decode_seconds: float = 0.0
    copy_seconds: float = 0.0

    def sums(self) -> dict[str, Any]:
        """Those of its fields that `Stats` has too."""
        return {name: value for name, value in vars(self).items() if name != "started"}


@dataclass(frozen=True)
class Stats:
    """A loader's figures, of one process. `now.since(before)` gives those of an interval."""

    seconds: float  # that the figures cover
    num_batches: int  # handed to the consumer
    wait_seconds: float  # training waited for a batch: what the loader costs it; on a GPU measured there
    queue_seconds: float  # the consumer's thread waited in the queue; on a GPU it may do so while the GPU works
    take_seconds: float  # the consumer's own work to take them
    read_seconds: float  # the producer waited for storage
    read_bytes: int  # of encoded images
    decode_seconds: float  # the producer waited for pixels; on a GPU, to queue the work for them
    copy_seconds: float  # the producer made labels and masks, and sent them to the device
    queue_depth: int  # batches that are ready now
    batches_ahead: int  # planned and not yet taken, now
    num_damaged: int  # images known that cannot be decoded, now

    @property
    def bytes_per_second(self) -> float:
        """Read from storage, or from the page cache."""
        return self.read_bytes / self.seconds if self.seconds else 0.0

    def since(self, before: "Stats") -> "Stats":
        """The sums of the time between the two; what is said of now stays."""
        sums = ("num_batches", "read_bytes", *(f.name for f in dataclasses.fields(self) if "seconds" in f.name))
        return dataclasses.replace(self, **{name: getattr(self, name) - getattr(before, name) for name in sums})
