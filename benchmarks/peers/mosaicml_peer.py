# pyright: reportMissingImports=false
"""MosaicML Streaming: StreamingDataset with torch's DataLoader over its own shards, MDS, which MDSWriter writes."""

import json
import multiprocessing
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from peers.job import NUM_WRITERS, Job, list_source, read_dictionaries, read_parquet
from streaming import MDSWriter, StreamingDataset
from streaming.base.util import merge_index
from torch.utils.data import DataLoader


class Images(StreamingDataset):
    """The documented way to transform: a subclass that decodes the stored bytes."""

    def __init__(self, job: Job, decode: Any) -> None:
        super().__init__(local=job.data, shuffle=True, batch_size=job.batch_size)
        self.decode = decode

    def __getitem__(self, at: Any) -> tuple[Any, int]:
        sample = super().__getitem__(at)
        return self.decode(sample["jpeg"]), sample["label"]


def read(job: Job) -> Iterator[Any]:
    """Yield uint8 NCHW batches."""
    from peers.torchvision_peer import build_decoder  # noqa: PLC0415 - the writer does not need torchvision

    yield None
    images = Images(job, build_decoder(job))
    loader = DataLoader(
        images, batch_size=job.batch_size, num_workers=job.workers, persistent_workers=True, drop_last=True
    )
    while True:
        for batch, _ in loader:
            yield batch


def write_format(shards: list[str], out: Path, workers: int) -> None:
    """Write the images of our shards as MDS."""
    with MDSWriter(out=str(out), columns={"jpeg": "bytes", "label": "int"}) as writer:
        for path in shards:
            for sample in read_dictionaries(path):
                writer.write(sample)


def write(job: dict[str, Any]) -> Iterator[int | None]:
    """Convert in parallel: one MDSWriter per process, each in its own folder, then merge the index."""
    files, out = list_source(job), Path(job["out"])
    with multiprocessing.Pool(NUM_WRITERS) as pool:
        # Make sure that all worker processes have started before the clock does.
        pool.map(time.sleep, [0.1] * NUM_WRITERS, chunksize=1)
        tasks = [(str(out / str(i)), files[i::NUM_WRITERS]) for i in range(NUM_WRITERS)]
        yield None
        pool.map(write_share, [task for task in tasks if task[1]], chunksize=1)
        merge_index(str(out), keep_local=True)
        yield None
        pool.close()
        pool.join()

    # Count the samples in the merged index, except those of missing shard files.
    shards = json.loads((out / "index.json").read_text())["shards"]
    yield sum(shard["samples"] for shard in shards if (out / shard["raw_data"]["basename"]).is_file())


def write_share(task: tuple[str, list[str]]) -> None:
    """Write one process's share of the files."""
    out, files = task
    with MDSWriter(out=out, columns={"jpeg": "bytes", "cls": "int"}) as writer:
        for path in files:
            for jpeg, label in read_parquet(path):
                writer.write({"jpeg": jpeg, "cls": label})
