"""The time that a search may take, the same on every rank."""

import time
from collections.abc import Callable

from loaders import World
from train.dist import from_rank_0


class Budget:
    """Counts from when it is made."""

    def __init__(self, seconds: float, world: World, clock: Callable[[], float] = time.perf_counter) -> None:
        self.seconds, self.world, self.clock = seconds, world, clock
        self.started = clock()

    def spent(self) -> float:
        """Seconds since then, on rank 0."""
        return from_rank_0(self.clock() - self.started, self.world)

    def has(self, seconds: float) -> bool:
        """Whether so much is left."""
        return self.spent() + seconds <= self.seconds
