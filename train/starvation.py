"""A training loop that waits for its loader is told so, with the next thing to try."""

from collections.abc import Callable

from loaders import Loader, Stats
from loaders.placement import DecoderSide

MOST_PERCENT = 5.0  # of its time that training may wait for data
SMALLER = "smaller images (prep/shard.py --max-side 500 --quality 90)"
GPU_DECODING = f"decoding on the GPU: --loader.placement cpu, another --loader.hw-decoder-load, or {SMALLER}"
REMEDIES = {
    "read_seconds": "storage: copy the shards to a local NVMe, or give --data.order blocks",
    "decode_seconds": f"decoding: more --loader.num-threads, with a GPU --loader.placement gpu, or {SMALLER}",
    "copy_seconds": "sending labels to the device: more --loader.batches-ahead",
}


class Starvation:
    """Looks at a loader's figures from log to log, and speaks up at most once until it is restarted."""

    def __init__(self, loader: Loader) -> None:
        self.loader, self.may_speak = loader, True
        self.before: Stats | None = None  # the first interval holds the loader's start: nothing is said of it

    def restart(self) -> None:
        """Look at what comes from now on."""
        self.before, self.may_speak = self.loader.stats(), True

    def look(self, wait_percent: float, say: Callable[[str], None]) -> None:
        """Say so where training has waited too long for data since the last look, for `wait_percent` of the time."""
        before, now = self.before, self.loader.stats()
        self.before = now
        if before and self.may_speak and wait_percent > MOST_PERCENT:
            self.may_speak = False
            remedy = advise(now.since(before), self.loader.placement.side)
            say(f"warning: training waited for data {wait_percent:.0f}% of the time, most likely for {remedy}")


def advise(interval: Stats, side: DecoderSide) -> str:
    """Return what the loader's producer most likely waited for, and what to try against it."""
    if side == "gpu" and interval.read_seconds < interval.wait_seconds:
        # A GPU decodes after the producer has queued its work: the producer's clocks do not show that time.
        return GPU_DECODING
    return REMEDIES[max(REMEDIES, key=lambda name: getattr(interval, name))]
