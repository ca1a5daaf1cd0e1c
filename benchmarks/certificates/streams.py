"""Take images from a loader, as one rank of a world: Penstock as training uses it, and peers that shuffle in a buffer.

Peers read keys and labels from the same shards and decode nothing; they yield complete epochs.
"""

import hashlib
import importlib
import json
import os
import random
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from certificates.epochs import OURS, Arrays, Job, Span
from worker_main import Answers, Progress

from loaders import Batch, Loader, LoaderConfig, Split, TrainTransform, World, build_loader
from loaders.order import Sampling
from loaders.world import resolve_device

SHARDS_SHUFFLED = 100  # at a time; the number in webdataset's documentation
READER = "reader"


def write_images(fields: dict[str, Any]) -> Answers:
    """Take all images of a job, given as its fields, and write their arrays; report the number of images meanwhile."""
    job = Job(**fields)
    job = replace(job, spans=tuple(Span(*span) for span in job.spans))  # JSON has made lists of them
    parts: list[Arrays] = []
    for part in LOADERS[job.loader](job):
        parts.append(part)
        yield Progress(len(part["rows"]))
    joined: dict[str, Any] = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    np.savez(job.out, **joined)
    yield "written"


def take_ours(job: Job) -> Iterator[Arrays]:
    """Yield the batches of all spans, as training gets them; write the state that is wanted."""
    split, loader = Split(job.data, job.split), None
    for span in job.spans:
        loader = open_loader(job, split, span)
        with closing(iter(loader)) as batches:  # pyright: ignore[reportArgumentType]  (a generator)
            for batch in batches:
                yield describe_batch(job, loader, batch)
                if loader.position >= span.stop:
                    break
    if job.state_out and job.rank == 0 and loader is not None:
        Path(job.state_out).write_text(json.dumps(loader.state_dict()))


def open_loader(job: Job, split: Split, span: Span) -> Loader:
    """Return the loader at the span's start. An image that cannot be decoded is an error, never replaced silently."""
    world = World(job.rank, job.num_ranks, job.rank, job.num_ranks, resolve_device(job.device))
    backend = "dali" if span.decoded else "synthetic"
    how = {"placement": job.placement, "decode": job.decode, "num_threads": job.threads}
    config = LoaderConfig(backend, most_damaged=0, **how)
    loader = build_loader(split, TrainTransform(job.size), job.batch_size, world, Sampling(job.seed), config)
    state = {**loader.state_dict(), "position": span.start}
    loader.load_state_dict(json.loads(Path(job.state_in).read_text()) if job.state_in else state)
    return loader


def describe_batch(job: Job, loader: Loader, batch: Batch) -> Arrays:
    """Return a batch's rows, labels and positions; if wanted, digests of its images, and the kept images.

    Kept images come as the loader gave them, with the rows, windows and flips that were planned for them.
    """
    positions_B = batch.position + np.array(loader.slots)
    images_BHWC = batch.images_BCHW.permute(0, 2, 3, 1)
    part = {
        "rows": batch.rows_B,
        "labels": batch.labels_B.cpu().numpy(),
        "positions": positions_B,
        "epochs": positions_B // len(loader.split),
    }
    if job.digests:
        pixels_BHWC = images_BHWC.contiguous().cpu().numpy()
        part["digests"] = np.array([hashlib.sha256(image_HWC).hexdigest() for image_HWC in pixels_BHWC])
    if job.kept:
        plan, places_K = loader.plan(batch.position), np.flatnonzero(np.isin(positions_B, job.kept))
        part["kept_rows"] = batch.rows_B[places_K]
        part["kept_images"] = images_BHWC[torch.from_numpy(places_K).to(images_BHWC.device)].cpu().numpy()
        part["kept_windows"], part["kept_flips"] = plan.windows_B4[places_K], plan.flips_B[places_K]
    return part


def take_webdataset(job: Job) -> Iterator[Arrays]:
    """Yield webdataset's epochs. Shards are reordered in each epoch (detshuffle), which is not its default."""
    from webdataset.compat import WebDataset  # noqa: PLC0415
    from webdataset.shardlists import split_by_node  # noqa: PLC0415

    os.environ.update(RANK=str(job.rank), WORLD_SIZE=str(job.num_ranks))  # webdataset reads these variables of torchrun
    split = Split(job.data, job.split)
    rows = number_keys(split)
    samples: Any = WebDataset(
        list(map(str, split.shard_paths)),
        nodesplitter=split_by_node,
        shardshuffle=SHARDS_SHUFFLED,
        detshuffle=True,
        seed=job.seed,
        empty_check=False,  # a rank may have no shard
    ).shuffle(job.buffer, rng=random.Random(f"{job.seed} {job.rank}"))
    for epoch in range(job.epochs):
        yield as_arrays([(rows.get(each["__key__"], -1), int(each["cls"])) for each in samples], epoch)


def take_dali(job: Job) -> Iterator[Arrays]:
    """Yield the epochs of DALI's own reader, batch by batch, without its padding (LastBatchPolicy.PARTIAL)."""
    split = Split(job.data, job.split)
    rows, batch_size = number_keys(split), job.batch_size // job.num_ranks
    pipeline = build_reader(job, split, batch_size)
    pipeline.build()
    size_padded = pipeline.reader_meta(READER)["epoch_size_padded"]
    for epoch in range(job.epochs):
        shard = (job.rank + epoch) % job.num_ranks  # in each epoch a rank reads the next part of the data
        left = (shard + 1) * len(split) // job.num_ranks - shard * len(split) // job.num_ranks
        for _ in range(-(-(size_padded // job.num_ranks) // batch_size)):
            encoded, labels = pipeline.run()
            taken = min(batch_size, left)
            left -= taken
            # DALI reports an image's source as TAR:OFFSET:KEY.jpg, and its label as the bytes of KEY.cls.
            keys = [encoded[i].source_info().rpartition(":")[2].partition(".")[0] for i in range(taken)]
            found = [(rows.get(key, -1), int(bytes(np.array(labels[i])))) for i, key in enumerate(keys)]
            yield as_arrays(found, epoch)


def build_reader(job: Job, split: Split, batch_size: int) -> Any:
    """Build a pipeline of the reader alone, as DALI's documentation recommends for complete epochs."""
    dali: Any = importlib.import_module("nvidia.dali")  # its stubs do not know operators, which are built at run time

    @dali.pipeline_def(batch_size=batch_size, num_threads=job.threads or len(os.sched_getaffinity(0)), device_id=None)
    def graph() -> Any:
        encoded, labels = dali.fn.readers.webdataset(
            paths=list(map(str, split.shard_paths)),
            index_paths=[str(path.with_suffix(".idx")) for path in split.shard_paths],
            ext=["jpg", "cls"],
            missing_component_behavior="error",
            random_shuffle=True,
            initial_fill=job.buffer,
            seed=job.seed,
            pad_last_batch=True,  # without it some samples are missing and others come twice
            shard_id=job.rank,
            num_shards=job.num_ranks,
            name=READER,
        )
        return encoded, labels

    return graph()


def number_keys(split: Split) -> dict[str, int]:
    """Return the row of each key in the sample index."""
    return {key: row for row, key in enumerate(split.samples.column("key").to_pylist())}


def as_arrays(found: list[tuple[int, int]], epoch: int) -> Arrays:
    """Return the arrays of images of one epoch, given as rows (-1: not in the index) and labels."""
    found_M2 = np.array(found, np.int64).reshape(-1, 2)
    return {"rows": found_M2[:, 0], "labels": found_M2[:, 1], "epochs": np.full(len(found_M2), epoch)}


LOADERS = {OURS: take_ours, "webdataset": take_webdataset, "dali-reader": take_dali}
