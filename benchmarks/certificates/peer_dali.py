# pyright: reportAttributeAccessIssue=false, reportCallIssue=false, reportArgumentType=false, reportGeneralTypeIssues=false
# (DALI builds its operators at run time; its stubs do not know them)
"""Take keys and labels from DALI's own reader of our shards, which shuffles in `initial_fill`; decode nothing."""

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
from certificates.job import Job
from nvidia.dali import fn, pipeline_def

from prep.dataset import Split

READER = "reader"


def take_images(job: Job) -> Iterator[dict[str, np.ndarray]]:
    """Yield complete epochs of one rank, batch by batch, without DALI's padding (LastBatchPolicy.PARTIAL)."""
    split = Split(job.data, job.split)
    rows = {key: row for row, key in enumerate(split.samples.column("key").to_pylist())}
    pipeline = build_pipeline(job, split)
    pipeline.build()
    size_padded = pipeline.reader_meta(READER)["epoch_size_padded"]
    each = job.batch_size // job.size
    for epoch in range(job.epochs):
        shard = (job.rank + epoch) % job.size  # in each epoch a rank reads the next part of the data
        left = (shard + 1) * len(split) // job.size - shard * len(split) // job.size
        for _ in range(-(-(size_padded // job.size) // each)):
            encoded, labels = pipeline.run()
            taken = min(each, left)
            left -= taken
            yield {
                "rows": np.array([rows.get(read_key(encoded[i]), -1) for i in range(taken)], np.int64),
                "labels": np.array([int(bytes(np.array(labels[i]))) for i in range(taken)], np.int64),
                "epochs": np.full(taken, epoch),
            }


def build_pipeline(job: Job, split: Split) -> Any:
    """Build a pipeline of the reader alone, as DALI's documentation recommends for complete epochs."""
    threads = job.threads or len(os.sched_getaffinity(0))

    @pipeline_def(batch_size=job.batch_size // job.size, num_threads=threads, device_id=None)
    def graph() -> Any:
        encoded, labels = fn.readers.webdataset(
            paths=list(map(str, split.shard_paths)),
            index_paths=[str(path.with_suffix(".idx")) for path in split.shard_paths],
            ext=["jpg", "cls"],
            missing_component_behavior="error",
            random_shuffle=True,
            initial_fill=job.buffer,
            seed=job.seed,
            pad_last_batch=True,  # without it some samples are missing and others come twice
            shard_id=job.rank,
            num_shards=job.size,
            name=READER,
        )
        return encoded, labels

    return graph()


def read_key(encoded: Any) -> str:
    """Return an image's key from the source that DALI reports: TAR:OFFSET:KEY.jpg."""
    return encoded.source_info().rpartition(":")[2].partition(".")[0]
