"""Take keys and labels from webdataset over our shards, with its shuffle buffer; decode nothing."""

import os
import random
from collections.abc import Iterator

import numpy as np
from certificates.job import Job
from webdataset.compat import WebDataset
from webdataset.shardlists import split_by_node

from prep.dataset import Split

SHARDS_SHUFFLED = 100  # at a time; the number in its documentation


def take_images(job: Job) -> Iterator[dict[str, np.ndarray]]:
    """Yield complete epochs of one rank. Shards are reordered in each epoch (detshuffle), which is not its default."""
    os.environ.update(RANK=str(job.rank), WORLD_SIZE=str(job.size))  # webdataset reads these variables of torchrun
    split = Split(job.data, job.split)
    rows = {key: row for row, key in enumerate(split.samples.column("key").to_pylist())}
    samples = WebDataset(
        list(map(str, split.shard_paths)),
        nodesplitter=split_by_node,
        shardshuffle=SHARDS_SHUFFLED,
        detshuffle=True,
        seed=job.seed,
        empty_check=False,  # a rank may have no shard
    ).shuffle(job.buffer, rng=random.Random(f"{job.seed} {job.rank}"))
    for epoch in range(job.epochs):
        pairs = [(rows.get(sample["__key__"], -1), int(sample["cls"])) for sample in samples]  # pyright: ignore[reportGeneralTypeIssues]
        taken_M2 = np.array(pairs, np.int64).reshape(-1, 2)
        yield {"rows": taken_M2[:, 0], "labels": taken_M2[:, 1], "epochs": np.full(len(taken_M2), epoch)}
