"""Jobs of ranks in tests: train and log, consume data that is being damaged, measure themselves. See `ranks.py`."""

import ctypes
import gc
import hashlib
import json
import logging
import os
import random
import runpy
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
import torch.distributed as dist

import loaders.dali  # noqa: F401  (before ranks are forked)
from loaders import (
    Batch,
    EvalTransform,
    Loader,
    LoaderConfig,
    Sampling,
    Split,
    TrainTransform,
    World,
    build_loader,
    open_splits,
    order,
    reader,
    through,
    windows,
)
from prep.files import write_whole
from train.dist import all_gather_objects

TRAIN, EVAL = TrainTransform(size=24), EvalTransform(size=24, resize=28)
STATE = "state.json"
FEW_CONNECTIONS = 8  # to the tests' S3 server: more would have to wait for so long that they are given up
left_open: list[Iterator[Batch]] = []

pa.array([0]).to_numpy()  # imports pandas, which takes a second
torch.set_num_threads(1)
through.CONNECTIONS = FEW_CONNECTIONS


class PeerLostError(Exception):
    """Another rank ended, and the connection to it with it."""


@contextmanager
def join(rank: int, size: int, folder: Path) -> Iterator[World]:
    """This rank's place in a process group that meets in a file of `folder`."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size)
    try:
        meet()  # no rank may end while another is still connecting to it
        yield World(rank, size, local_rank=rank, local_size=size)
    finally:
        dist.destroy_process_group()


def meet(value: int = 0) -> int:
    """Wait for all ranks, as DDP's gradients do at each step; return the sum of their values."""
    total = torch.tensor(value)
    try:
        dist.all_reduce(total)
    except RuntimeError as error:
        raise PeerLostError from error
    return int(total)


def train(world: World, group: Path, *, data: list[str], loader: dict[str, Any], until: int | None) -> None:
    """Train from the saved state on, if there is one, and log each image; `until` None: until it is killed.

    As the trainer does, rank 0 saves every few batches, with what all ranks have found damaged.

    Args:
        data: the dataset, the split, and for a bucket the cache.
    """
    if loader["order"] == "blocks":
        make_blocks_small()
    (split,) = open_splits(data[0], [data[1]], data[2] if len(data) > 2 else None, world)
    sampling = Sampling(loader["seed"], loader["order"])
    batches = build_loader(split, TRAIN, loader["batch_size"], world, sampling, LoaderConfig(loader["backend"]))
    state = group.parent / STATE
    if state.exists():
        batches.load_state_dict(json.loads(state.read_text()))
    with open(group / f"log-{world.rank}", "ab", buffering=0) as log:
        for number, batch in enumerate(batches, start=1):
            entry = {"position": batch.position, "images": describe_images(batches, batch)}
            log.write(json.dumps(entry).encode() + b"\n")
            meet()
            if number % loader["save_every"] == 0:
                batches.quarantine.add_keys(all_gather_objects(batches.quarantine.keys(), world))
                if world.rank == 0:
                    write_whole(state, json.dumps(batches.state_dict()).encode())
            if until is not None and batches.position >= until:
                return


def make_blocks_small() -> None:
    """Make small blocks, so that the digits have 12 groups of blocks in an epoch; with one it would be `shuffle`."""
    order.BLOCK_IMAGES, order.GROUP_BLOCKS, reader.WINDOW_IMAGES, windows.WINDOW_IMAGES = 16, 8, 128, 128


def describe_images(loader: Loader, batch: Batch) -> list[list[Any]]:
    """Return for each image its key, window, flip and label, and a digest of its pixels."""
    plan = loader.plan(batch.position)
    assert plan.rows_B.tolist() == batch.rows_B.tolist()
    keys, windows, flips = loader.split.keys(plan.rows_B), plan.windows_B4.tolist(), plan.flips_B.tolist()
    pixels = [image_CHW.numpy().tobytes() for image_CHW in batch.images_BCHW.contiguous()]
    digests = [hashlib.sha256(image).hexdigest() for image in pixels]
    return [list(image) for image in zip(keys, windows, flips, batch.labels_B.tolist(), digests, strict=True)]


def harm_in_place(path: Path, seed: int) -> str:
    """Flip one bit, write random bytes over some others, or cut the end off; what was done."""
    draw, size = random.Random(f"{path.name} {seed}"), path.stat().st_size  # not the draws that chose the file
    kind, at = draw.choice(("flip", "overwrite", "cut")), draw.randrange(size)
    if kind == "cut":
        os.truncate(path, at)
        return f"{path.name} cut at {at:,} of {size:,}"
    with path.open("r+b") as file:
        file.seek(at)
        if kind == "flip":
            byte = file.read(1)[0] ^ 1 << draw.randrange(8)
            harmed = bytes([byte])
        else:
            harmed = draw.randbytes(min(size - at, int(2 ** draw.uniform(0, 16))))
        file.seek(at)
        file.write(harmed)
    return f"{path.name} {kind} {len(harmed):,} at {at:,} of {size:,}"


def consume(world: World, group: Path, *, root: str, loader: dict[str, Any], harm: dict[str, Any]) -> None:
    """An evaluation pass and two epochs of training, as DDP would take them.

    Args:
        loader: backend, order and most_damaged.
        harm: the `file` of the split that rank 0 damages before batch `moment`, if that is one, and with which `seed`.
    """
    logging.basicConfig(format="warning: %(message)s", stream=sys.stderr)
    split, config = Split(root, "validation"), LoaderConfig(loader["backend"], most_damaged=loader["most_damaged"])
    labels_N = torch.tensor(split.column("label").tolist())
    meet()  # all have opened it
    evaluation = build_loader(split, EVAL, 60, world, config=config)
    training = build_loader(split, TRAIN, 60, world, Sampling(harm["seed"], loader["order"]), config)
    batches, num_valid = chain(evaluation, islice(training, 2 * len(training))), 0
    for number in range(len(evaluation) + 2 * len(training)):
        if world.rank == 0 and number == harm["moment"]:
            print(harm_in_place(split.folder / harm["file"], harm["seed"]), flush=True)
        batch = next(batches)
        assert torch.equal(batch.labels_B, labels_N[batch.rows_B])
        num_valid += int(batch.valid_B.sum())
        meet()
        if number == len(evaluation) - 1:
            assert meet(num_valid) == len(split)
    assert next(batches, None) is None


def measure(world: World, group: Path, *, root: str, backend: str, use: str, num_epochs: int) -> None:
    """Use a loader for some epochs, and write down after each what the process holds."""
    split, config = Split(root, "validation"), LoaderConfig(backend)
    levels: list[dict[str, int]] = []
    for _ in USES[use](split, config, num_epochs):
        level, given_up = read_level(), time.monotonic() + 1
        lowest = min((level["threads"] for level in levels), default=0)
        while levels and level["threads"] > lowest and time.monotonic() < given_up:
            level = read_level()  # a thread that was joined is there for a moment longer
        levels.append(level)
    (group / "levels.json").write_text(json.dumps(levels))


def _train_on(split: Split, config: LoaderConfig, num_epochs: int) -> Iterator[None]:
    loader = build_loader(split, TRAIN, 60, config=config)
    batches = iter(loader)
    for _ in range(num_epochs):
        for _ in range(len(loader)):
            next(batches)
        yield


def _evaluate(split: Split, config: LoaderConfig, num_epochs: int) -> Iterator[None]:
    loader = build_loader(split, EVAL, 60, config=config)
    for _ in range(num_epochs):
        for _ in loader:
            pass
        yield


def _begin_and_break(split: Split, config: LoaderConfig, num_epochs: int) -> Iterator[None]:
    for _ in range(num_epochs):
        for _ in build_loader(split, TRAIN, 60, config=config):
            break
        yield


Use = Callable[[Split, LoaderConfig, int], Iterator[None]]
USES: dict[str, Use] = {"train": _train_on, "evaluate": _evaluate, "begin-and-break": _begin_and_break}


def read_level() -> dict[str, int]:
    """Return this process's anonymous memory in KiB, open files and threads."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # or what is freed stays, and hides as much that is lost later
    lines = Path("/proc/self/status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    return {
        "memory": int(fields["RssAnon"].split()[0]),
        "files": len(os.listdir("/proc/self/fd")),
        "threads": int(fields["Threads"]),
    }


def run_script(rank: int, size: int, group: Path, *, script: str, arguments: list[str], port: int) -> None:
    """Run a command as one of torchrun's processes, but without a launcher that ends the others when one has ended."""
    take_place(rank, size, port)
    run_as_main(script, arguments)


def run_command(rank: int, size: int, group: Path, *, script: str, arguments: list[str]) -> None:
    """Run a command alone, as a shell starts it."""
    assert (rank, size) == (0, 1) and group.is_dir()
    run_as_main(script, arguments)


def run_as_main(script: str, arguments: list[str]) -> None:
    """Run a script as Python does: its folder comes first in the path."""
    sys.argv = [script, *arguments]
    sys.path.insert(0, str(Path(script).parent))
    runpy.run_path(script, run_name="__main__")


def leave_open(rank: int, size: int, group: Path, *, root: str, backend: str) -> None:
    """End in the middle of an epoch, with the loader's threads at work."""
    batches = iter(build_loader(Split(root, "validation"), TRAIN, 60, config=LoaderConfig(backend)))
    next(batches)
    left_open.append(batches)  # until the interpreter ends


def take_place(rank: int, size: int, port: int) -> None:
    """Know what torchrun tells its processes."""
    places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in places.items()}, MASTER_ADDR="localhost")


def _joined(job: Callable[..., None]) -> Callable[..., None]:
    """A job of a process group's ranks."""

    def run(rank: int, size: int, group: Path, **arguments: Any) -> None:
        with join(rank, size, group) as world:
            job(world, group, **arguments)

    return run


JOBS: dict[str, Callable[..., None]] = {
    "train": _joined(train),
    "consume": _joined(consume),
    "measure": _joined(measure),
    "script": run_script,
    "command": run_command,
    "leave-open": leave_open,
}
