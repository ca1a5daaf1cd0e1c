"""The settings that a search tries: those that change the loader's speed, each with its values in order.

A placement is where images are decoded: "cpu", or "gpu" on a CUDA device with the backend `dali`. Some settings have an
effect under one placement only (the share of the GPU's hardware JPEG decoder), so each placement has its own table.
"""

from dataclasses import dataclass, replace
from typing import Any

from loaders import World
from loaders.config import LoaderConfig, default_num_threads, share_cores
from loaders.placement import DEFAULT_DECODE, DecoderSide
from prep.errors import InputError

THREADS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
BATCHES_AHEAD = (1, 2, 3, 4, 6, 8)
HW_DECODER_LOADS = (0.0, 0.3, 0.65, 0.9, 0.99)  # 0.65 is nvImageCodec's default, 0.99 MLPerf's on H100
DECODES = ("roi", "full")
TRUTHS = (False, True)
# The order in which a search moves the settings: those with the largest effect first.
ORDER = ("placement", "hw_decoder_load", "num_threads", "decode", "batches_ahead", "pin_threads")

Values = dict[str, tuple[Any, ...]]  # of each setting, in order


@dataclass(frozen=True)
class Space:
    """The values to try, by placement. Every neighbour of a configuration of the space is in the space too."""

    tables: dict[DecoderSide, Values]
    start: LoaderConfig  # its values are in every table, except its decode

    @property
    def names(self) -> tuple[str, ...]:
        """The settings that have several values, in the order in which a search moves them."""
        known = {name for table in self.tables.values() for name in table}
        known |= {"placement"} if len(self.tables) > 1 else set()
        return tuple(name for name in ORDER if name in known)

    def find_values(self, name: str, placement: DecoderSide) -> tuple[Any, ...]:
        """Return the values of a setting under a placement; none for a setting that has no effect there."""
        return tuple(self.tables) if name == "placement" else self.tables[placement].get(name, ())

    def find_neighbour(self, config: LoaderConfig, name: str, step: int) -> LoaderConfig | None:
        """Return `config` with one setting moved by `step` values in its list; None beyond the list's ends."""
        assert config.placement != "auto", "a search moves between explicit settings"
        values = self.find_values(name, config.placement)
        place = values.index(getattr(config, name)) + step if values else -1
        if not 0 <= place < len(values):
            return None
        if name == "placement":
            return self.move(config, values[place])
        return replace(config, **{name: values[place]})

    def move(self, config: LoaderConfig, placement: DecoderSide) -> LoaderConfig:
        """Return `config` under another placement.

        Its decode becomes that placement's default. A value that is not tried there is replaced by the start's value.
        """
        moved = replace(config, placement=placement, decode=DEFAULT_DECODE[placement])
        others = [name for name in self.names if name not in ("placement", "decode")]
        strange = [name for name in others if getattr(moved, name) not in self.find_values(name, placement)]
        return replace(moved, **{name: getattr(self.start, name) for name in strange})


def find_space(start: LoaderConfig, world: World) -> Space:
    """Return the values that a search from `start` tries.

    Args:
        start: placement and decode are resolved: neither is "auto".

    Raises:
        InputError: the backend has nothing to tune.
    """
    if start.backend == "synthetic":
        raise InputError("the backend synthetic returns the same batch endlessly: tune dali or reference")
    can_move = start.backend == "dali" and world.device.type == "cuda"
    placements: tuple[DecoderSide, ...] = ("cpu", "gpu") if can_move else ("cpu",)
    return Space({placement: _build_table(start, placement, world) for placement in placements}, start)


def _build_table(start: LoaderConfig, placement: DecoderSide, world: World) -> Values:
    """Return the values to try under one placement, with the start's own value among them."""
    table: Values = {"num_threads": find_threads(world, placement), "batches_ahead": BATCHES_AHEAD}
    if start.backend == "dali":
        table["pin_threads"] = TRUTHS
    if placement == "gpu":
        table["hw_decoder_load"] = HW_DECODER_LOADS
    table = {name: _with(values, name, start, world) for name, values in table.items()}
    return table | ({"decode": find_decodes(start, placement)} if start.backend == "dali" else {})


def find_decodes(start: LoaderConfig, placement: DecoderSide) -> tuple[str, ...]:
    """Return the ways to decode that are tried.

    On a GPU, "roi" is tried only if the search starts with it: it is reported to end the process by a segmentation
    fault (nvImageCodec issue 55, on H100), and a search that crashes loses all its results.
    """
    starts_with_roi = (start.placement, start.decode) == ("gpu", "roi")
    return DECODES if placement == "cpu" or starts_with_roi else ("full",)


def find_threads(world: World, placement: DecoderSide) -> tuple[int, ...]:
    """Return the numbers of threads to try; 0 replaces the default number.

    If the CPU decodes, at most the cores of this process: more threads may look as fast when the loader runs alone, but
    training needs those cores. If a GPU decodes, up to twice as many, since the threads sometimes wait for it.
    """
    cores, usual = len(share_cores(world)), default_num_threads(world)
    most = 2 * cores if placement == "gpu" else cores
    return tuple(0 if number == usual else number for number in sorted({*THREADS, usual}) if number <= most)


def _with(values: tuple[Any, ...], name: str, start: LoaderConfig, world: World) -> tuple[Any, ...]:
    """Return the values with the start's value inserted in order, or in place of the value that means the same."""
    own, usual = getattr(start, name), default_num_threads(world) if name == "num_threads" else 0
    if own in values:
        return values
    others = [value for value in values if (value or usual) != own]
    return tuple(sorted([*others, own], key=lambda value: value or usual))
