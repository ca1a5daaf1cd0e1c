"""Decode damaged files on a decode path: is the image named and counted as wrong, or is it used silently?

For each kind of damage, one image is damaged in a copy of the split. The real loader reads the copy in evaluation's
order, and the image is compared with the same path's output for the undamaged file. A hardware decoder reports success
when it starts, so a partly decoded image may pass: the checksums made at preparation have to find such files.
"""

import shutil
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from answer import Job
from gpu.worker import Report

from loaders import Batch, EvalTransform, Loader, LoaderConfig, Split, World, build_loader
from prep.errors import InputError
from train.dist import join_world

MOST_IMAGES = 32  # per batch: enough for a GPU to decode them together, not one by one
DAMAGED_ROW = 0  # row of the sample index
FLIPPED_EVERY, FLIPPED_BITS = 97, 0x55


def cut(encoded: bytes) -> bytes:
    """Return the first half of a JPEG."""
    return encoded[: len(encoded) // 2]


def break_header(encoded: bytes) -> bytes:
    """Return a JPEG whose first bytes are zeros."""
    return bytes(16) + encoded[16:]


def flip(encoded: bytes) -> bytes:
    """Return a JPEG with flipped bits in the second half of its entropy-coded data; its markers stay the same."""
    content = np.frombuffer(encoded, np.uint8).copy()
    places = np.arange(len(content) // 2, len(content) - 2, FLIPPED_EVERY)
    flipped = content[places] ^ FLIPPED_BITS
    # 0xFF begins a marker, or is data when 0x00 follows: leave those bytes, and do not create one.
    is_plain = (content[places] != 0xFF) & (flipped != 0xFF) & (content[places - 1] != 0xFF)
    content[places[is_plain]] = flipped[is_plain]
    return content.tobytes()


DAMAGES: dict[str, Callable[[bytes], bytes]] = {"cut at half": cut, "broken header": break_header, "flipped bits": flip}


def decode_damaged(job: Job, report: Report) -> dict[str, Any]:
    """Return the outcome of each kind of damage."""
    whole = Split(job["data"], job["split"])
    result: dict[str, Any] = {"damages": {}}
    with join_world(job["device"]) as world:
        undamaged_BCHW = decode_first(open_loader(whole, job, world)).images_BCHW.cpu()
        copy = Path(job["work"]) / "damaged"
        for name, damage in DAMAGES.items():
            loader = open_loader(copy_damaged(whole, copy, damage), job, world)
            result["damages"][name] = describe_outcome(loader, undamaged_BCHW)
            report(result)
        shutil.rmtree(copy)
    return result


def copy_damaged(split: Split, folder: Path, damage: Callable[[bytes], bytes]) -> Split:
    """Return a copy of a split with one damaged image; if that is shorter, the copy's index has the new size."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(split.folder, folder / split.folder.name)
    copied = Split(folder, split.folder.name)
    offset, size = (int(copied.column(name)[DAMAGED_ROW]) for name in ("offset", "size"))
    with copied.shard_paths[copied.column("shard")[DAMAGED_ROW]].open("r+b") as file:
        file.seek(offset)
        encoded = file.read(size)
        file.seek(offset)
        file.write(damaged := damage(encoded))
    sizes = copied.column("size").copy()
    sizes[DAMAGED_ROW] = len(damaged)
    place = copied.samples.schema.get_field_index("size")
    copied.samples = copied.samples.set_column(place, copied.samples.schema.field(place), pa.array(sizes))
    return copied


def open_loader(split: Split, job: Job, world: World) -> Loader:
    """Return a loader in evaluation's order, which counts a damaged image as wrong and continues."""
    transform, size = EvalTransform(job["size"], job["resize"]), min(MOST_IMAGES, job["batch_size"], len(split))
    return build_loader(split, transform, size, world, config=LoaderConfig(**job["loader"]))


def decode_first(loader: Loader) -> Batch:
    """Return the first batch."""
    with closing(iter(loader)) as batches:  # pyright: ignore[reportArgumentType]  (a generator)
        return next(batches)


def describe_outcome(loader: Loader, undamaged_BCHW: torch.Tensor) -> dict[str, Any]:
    """Return the outcome for the damaged image, and how far the other images of its batch have changed.

    Outcomes: `named` (found, named, counted as wrong), `silent` (used as if it were intact), `error` (the run ends
    and no image is named).
    """
    try:
        batch = decode_first(loader)
    except InputError as error:
        return {"outcome": "error", "reason": str(error)[:300]}
    apart_BCHW = (batch.images_BCHW.cpu().int() - undamaged_BCHW.int()).abs().float()
    means_B = apart_BCHW.mean((1, 2, 3))
    others_B = torch.arange(len(means_B)) != DAMAGED_ROW
    return {
        "outcome": "named" if bool(batch.damaged_B[DAMAGED_ROW]) else "silent",
        "mean_difference": means_B[DAMAGED_ROW].item(),
        "largest_of_others": int(apart_BCHW[others_B].max()),
    }
