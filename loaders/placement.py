"""Choose where images are decoded: on the CPU or on a GPU, independently of where the model trains.

    placement   decoder          resize, flip, augment     way to the model's GPU
    cpu         DALI, CPU        torch and Pillow, CPU     pinned uint8 memory, asynchronous copy
    gpu         DALI, nvJPEG     DALI's graph, GPU         none: the pixels are made there

The pixels of `cpu` are identical to those of a machine without a GPU, bit by bit. `gpu` differs by the rounding of
nvJPEG. A later `hybrid` would decode a share of each batch on each side; the side of an image must then depend on its
position in the stream alone, so that neither the number of processes nor a resumed run changes a pixel.
"""

from dataclasses import dataclass, replace
from typing import Literal

from loaders.backends import Backend, find_backend
from loaders.config import DecodeKind, LoaderConfig, default_num_threads, share_cores
from loaders.tuned import apply_tuned
from loaders.world import World
from prep.errors import InputError

DecoderSide = Literal["cpu", "gpu"]

# CPU time per ImageNet image of decoding, resizing and flipping at 224 pixels: benchmarks/records/peers.json.
CPU_SECONDS_PER_IMAGE = 1.374e-3
# With this many cores per process or more, `auto` decodes on the CPU for GPUs that are not in GPUS_THAT_DECODE:
# 6 / 1.374 ms = 4,400 images/s if that scales. Not measured on such GPUs.
MIN_CORES_FOR_CPU = 6
# Compute capabilities of the GPUs for which `auto` decodes on the GPU: H100 and H200, which have JPEG engines. An H200
# trained 1.38 times as fast with them as with 16 decoding cores (benchmarks/records/h200/rates.json). Other GPUs were
# not measured; `throughput.py` without --tune compares training with both placements.
GPUS_THAT_DECODE = ((9, 0),)
# A GPU decodes full images: decoding of regions is reported to crash the process on some GPUs (nvImageCodec 0.9), and
# was not faster on an H200.
DEFAULT_DECODE: dict[DecoderSide, DecodeKind] = {"cpu": "roi", "gpu": "full"}


@dataclass(frozen=True)
class Choice:
    """A placement, the reason for it, and the loader's resolved settings."""

    config: LoaderConfig  # placement and decode are explicit, `tuned` is applied
    side: DecoderSide
    reason: str
    warning: str = ""  # one line if the placement works but may be slow

    def __str__(self) -> str:
        return f"images are decoded on the {self.side.upper()} ({self.reason})"

    def to_dict(self) -> dict[str, str]:
        """Return placement, reason and decode, for a record or a checkpoint."""
        return {"placement": self.side, "reason": self.reason, "decode": self.config.decode}


def choose_placement(config: LoaderConfig, world: World) -> Choice:
    """Resolve a loader's settings for this process: tuned settings, placement and decode.

    An explicit placement wins, then the one in the file of tuned settings. With `auto` and a model on a GPU, the GPU
    decodes if its kind is in GPUS_THAT_DECODE; otherwise the CPU does if this process has at least MIN_CORES_FOR_CPU
    cores.

    Raises:
        InputError: a setting is out of range, or the backend or this machine does not have the placement.
    """
    resolved = apply_tuned(config, world)
    resolved.check()
    backend = find_backend(resolved.backend)
    side, reason = _choose_side(config, resolved, world, backend)
    decode = DEFAULT_DECODE[side] if resolved.decode == "auto" else resolved.decode
    resolved = replace(resolved, placement=side, decode=decode)
    needs_cores = side == "cpu" and world.device.type == "cuda" and backend.reads
    return Choice(resolved, side, reason, _warn_of_few_cores(resolved, world) if needs_cores else "")


def _choose_side(
    requested: LoaderConfig, resolved: LoaderConfig, world: World, backend: type[Backend]
) -> tuple[DecoderSide, str]:
    """Return where to decode, and the reason, which records and checkpoints store.

    Args:
        requested: the user's settings.
        resolved: the same after `apply_tuned`.
    """
    has_gpu = world.device.type == "cuda"
    if resolved.placement == "gpu" and not has_gpu:
        raise InputError(
            "placement gpu needs a GPU, but this process runs on the CPU: set --loader.placement auto or --device cuda"
        )
    if not backend.reads:
        return ("gpu" if has_gpu else "cpu"), f"the backend {resolved.backend} decodes nothing"

    # An explicit placement, from the user or from the tuned file.
    if resolved.placement != "auto":
        if resolved.placement not in backend.placements:
            raise InputError(
                f"the backend {resolved.backend} cannot decode on a GPU: "
                "set --loader.placement cpu or --loader.backend dali"
            )
        return resolved.placement, f"from {requested.tuned}" if requested.placement == "auto" else "as asked for"

    # auto.
    if not has_gpu:
        return "cpu", "the model is on the CPU too"
    if "gpu" not in backend.placements:
        return "cpu", f"the backend {resolved.backend} cannot decode on a GPU"
    return _choose_side_for_gpu(world)


def _choose_side_for_gpu(world: World) -> tuple[DecoderSide, str]:
    """Return where to decode for a model on a GPU if nothing was asked for, and the reason."""
    cores = len(share_cores(world))
    if find_capability(world) in GPUS_THAT_DECODE:
        return "gpu", "an H100 or H200 decodes faster than its CPU"
    if cores >= MIN_CORES_FOR_CPU:
        return "cpu", f"this process has {cores} cores, at least {MIN_CORES_FOR_CPU}"
    return "gpu", f"this process has {cores} cores, fewer than {MIN_CORES_FOR_CPU}"


def find_capability(world: World) -> tuple[int, int] | None:
    """Return the compute capability of the process's GPU; None if torch sees no GPU, as in tests with a stand-in."""
    import torch  # noqa: PLC0415  (settings are checked without it)

    return torch.cuda.get_device_capability(world.device) if torch.cuda.is_available() else None


def _warn_of_few_cores(config: LoaderConfig, world: World) -> str:
    """Return a line with the expected rate if the CPU may decode too slowly for a GPU; an empty string if not."""
    cores = min(len(share_cores(world)), config.num_threads or default_num_threads(world))
    if cores >= MIN_CORES_FOR_CPU:
        return ""
    advice = "use more cores" if config.backend != "dali" else "use more cores, or --loader.placement gpu"
    return (
        f"placement cpu has {cores} cores in this process and will decode about {cores / CPU_SECONDS_PER_IMAGE:,.0f} "
        f"images/s ({MIN_CORES_FOR_CPU} cores or more are recommended): if the GPU trains faster than that, {advice}"
    )
