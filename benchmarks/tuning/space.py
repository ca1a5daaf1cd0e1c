"""What there is to try: the settings that change a loader's speed, each with its values in order."""

from dataclasses import replace
from typing import Any

from loaders import InputError, LoaderConfig, World
from loaders.config import default_num_threads, share_cores

THREADS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
BATCHES_AHEAD = (1, 2, 3, 4, 6, 8)
HW_DECODER_LOADS = (0.0, 0.3, 0.65, 0.9, 0.99)  # 0.65 is nvImageCodec's default, 0.99 MLPerf's on H100
DECODES, TRUTHS = ("roi", "full"), (False, True)

Space = dict[str, tuple[Any, ...]]


def find_space(start: LoaderConfig, world: World) -> Space:
    """The values to try of each setting, the weightiest setting first; the values of `start` are among them.

    Raises:
        InputError: the backend has none.
    """
    if start.backend == "synthetic":
        raise InputError("the backend synthetic makes one batch for ever: tune dali or reference")
    space: Space = {"num_threads": find_threads(world), "batches_ahead": BATCHES_AHEAD}
    if start.backend == "dali":
        on_gpu = {"hw_decoder_load": HW_DECODER_LOADS} if world.device.type == "cuda" else {}
        space = {"num_threads": space.pop("num_threads"), "decode": DECODES, **on_gpu, **space, "pin_threads": TRUTHS}
    return {name: _with(values, name, start, world) for name, values in space.items()}


def find_threads(world: World) -> tuple[int, ...]:
    """Numbers of threads; 0 stands in the place of the default's.

    On a CPU not more than this process's cores: measured alone they may look as good, but training wants those cores.
    On a GPU up to twice as many: they wait for it now and then.
    """
    cores, usual = len(share_cores(world)), default_num_threads(world)
    most = 2 * cores if world.device.type == "cuda" else cores
    return tuple(0 if number == usual else number for number in sorted({*THREADS, usual}) if number <= most)


def neighbours(config: LoaderConfig, name: str, values: tuple[Any, ...], step: int) -> LoaderConfig | None:
    """The configuration with the value of one setting that stands `step` places further; None at the end."""
    place = values.index(getattr(config, name)) + step
    return replace(config, **{name: values[place]}) if 0 <= place < len(values) else None


def _with(values: tuple[Any, ...], name: str, start: LoaderConfig, world: World) -> tuple[Any, ...]:
    """The values with the one that a search starts from, in its place or at it."""
    own, usual = getattr(start, name), default_num_threads(world) if name == "num_threads" else 0
    if own in values:
        return values
    others = [value for value in values if (value or usual) != own]
    return tuple(sorted([*others, own], key=lambda value: value or usual))
