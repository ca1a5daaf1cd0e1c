"""The time that a search may take, the same on every rank."""

import time
from collections.abc import Callable

from loaders import World
from train.dist import broadcast_from_rank0


class Budget:
    """A time limit that starts when the object is made."""

    def __init__(self, seconds: float, world: World, clock: Callable[[], float] = time.perf_counter) -> None:
        self.seconds, self.world, self.clock = seconds, world, clock
        self.started = clock()

    def spent(self) -> float:
        """Return the seconds since the start, as rank 0 measured them."""
        return broadcast_from_rank0(self.clock() - self.started, self.world)

    def has(self, seconds: float) -> bool:
        """Return True if at least `seconds` are left."""
        return self.spent() + seconds <= self.seconds
