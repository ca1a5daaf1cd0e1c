"""Where images are decoded: on the CPU or on a GPU, independently of where the model trains.

    placement   decoder          resize, flip, augment     way to the model's GPU
    cpu         DALI, CPU        torch and Pillow, CPU     pinned uint8 memory, asynchronous copy
    gpu         DALI, nvJPEG     DALI's graph, GPU         none: the pixels are made there

The pixels of `cpu` are those of a machine without a GPU, bit by bit. `gpu` differs by the rounding of nvJPEG.
A later `hybrid` would decode a share of each batch on each side; the share of an image must then follow from its
position in the stream alone, so that neither the number of processes nor a resumed run changes a pixel.
"""

from dataclasses import dataclass, replace
from typing import Literal

from loaders.backend import Backend
from loaders.backends import find_backend
from loaders.batch import World
from loaders.config import DecodeKind, LoaderConfig, default_num_threads, share_cores
from loaders.tuned import settle
from prep.errors import InputError

DecoderSide = Literal["cpu", "gpu"]

# CPU time per ImageNet image of decoding, resizing and flipping at 224 pixels: benchmarks/records/peers.json.
CPU_SECONDS_PER_IMAGE = 1.374e-3
# `auto` decodes on the CPU from this many cores of a process on: 6 / 1.374 ms = 4,400 images/s, more than the
# 2,800 to 3,500 images/s of ResNet-50 in eager PyTorch on the fastest GPU of today.
MIN_CORES_FOR_CPU = 6
# Whole images on a GPU: decoding of regions is reported to end the process on some GPUs (nvImageCodec 0.9).
DEFAULT_DECODE: dict[DecoderSide, DecodeKind] = {"cpu": "roi", "gpu": "full"}


@dataclass(frozen=True)
class Choice:
    """A placement that was chosen, why, and the loader's settings that follow from it."""

    config: LoaderConfig  # placement and decode are explicit, `tuned` is applied
    side: DecoderSide
    reason: str
    warning: str = ""  # one line, where the placement works but may be slow

    def __str__(self) -> str:
        return f"images are decoded on the {self.side.upper()} ({self.reason})"

    def to_dict(self) -> dict[str, str]:
        """Return the choice for a record or a checkpoint: placement, reason and decode."""
        return {"placement": self.side, "reason": self.reason, "decode": self.config.decode}


def choose_placement(config: LoaderConfig, world: World) -> Choice:
    """Resolve a loader's settings for this process: tuned settings, placement and decode.

    An explicit placement wins, then the one in the file of tuned settings. Otherwise a model on a GPU is fed by the
    CPU where this process has at least 6 cores, else by the GPU.

    Raises:
        InputError: the settings are out of range, or the backend or this machine lacks the placement.
    """
    settled = settle(config, world)
    settled.check()
    backend = find_backend(settled.backend)
    side, reason = _choose_side(config, settled, world, backend)
    decode = DEFAULT_DECODE[side] if settled.decode == "auto" else settled.decode
    resolved = replace(settled, placement=side, decode=decode)
    needs_cores = side == "cpu" and world.device.type == "cuda" and backend.reads
    return Choice(resolved, side, reason, _warn_of_few_cores(resolved, world) if needs_cores else "")


def _choose_side(
    asked: LoaderConfig, settled: LoaderConfig, world: World, backend: type[Backend]
) -> tuple[DecoderSide, str]:
    """Return where to decode, and the reason."""
    has_gpu, cores = world.device.type == "cuda", len(share_cores(world))
    if settled.placement == "gpu" and not has_gpu:
        raise InputError(
            "placement gpu needs a GPU, and this process runs on the CPU: take --loader.placement auto or --device cuda"
        )
    if not backend.reads:
        return ("gpu" if has_gpu else "cpu"), f"the backend {settled.backend} decodes nothing"
    if settled.placement != "auto":
        if settled.placement not in backend.placements:
            raise InputError(
                f"the backend {settled.backend} cannot decode on a GPU: "
                "take --loader.placement cpu or --loader.backend dali"
            )
        return settled.placement, f"from {asked.tuned}" if asked.placement == "auto" else "as asked for"
    if not has_gpu:
        return "cpu", "the model is on the CPU too"
    if "gpu" not in backend.placements:
        return "cpu", f"the backend {settled.backend} cannot decode on a GPU"
    if cores >= MIN_CORES_FOR_CPU:
        return "cpu", f"this process has {cores} cores, at least {MIN_CORES_FOR_CPU}"
    return "gpu", f"this process has {cores} cores, fewer than {MIN_CORES_FOR_CPU}"


def _warn_of_few_cores(config: LoaderConfig, world: World) -> str:
    """Return a line with the expected rate where the CPU may not decode fast enough for a GPU."""
    cores = min(len(share_cores(world)), config.num_threads or default_num_threads(world))
    if cores >= MIN_CORES_FOR_CPU:
        return ""
    advice = "use more cores" if config.backend != "dali" else "use more cores, or --loader.placement gpu"
    return (
        f"placement cpu has {cores} cores in this process and will decode about {cores / CPU_SECONDS_PER_IMAGE:,.0f} "
        f"images/s ({MIN_CORES_FOR_CPU} cores or more are recommended): if the GPU trains faster than that, {advice}"
    )
