"""Where a loader's time goes: plain sums that any reader may take the difference of."""

from dataclasses import dataclass


@dataclass
class Stats:
    """Totals since the loader was made; each field is written by one thread."""

    num_batches: int = 0  # handed to the consumer
    wait_seconds: float = 0.0  # the consumer waited for a batch
    read_seconds: float = 0.0  # the producer waited for storage
    read_bytes: int = 0
    decode_seconds: float = 0.0  # the producer waited for decoded images
