"""The peers, each as its own documentation shows it, and the bound: a plain copy.

They read parquet directly with pyarrow, one row group at a time: the fastest of the simple ways that were tried.
Each function imports what it needs, so that this module can be imported in every peer's environment.
"""

import multiprocessing
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from marks import note_first_image

NUM_WORKERS = 2
ROWS_PER_READ = 100  # one row group, as Hugging Face writes them for images


def read_file(path: str) -> Iterator[tuple[bytes, int]]:
    """Yield the images of a parquet file with their labels, as pairs, which LitData writes faster than dictionaries."""
    import pyarrow.parquet as pq  # noqa: PLC0415

    note_first_image()
    for batch in pq.ParquetFile(path).iter_batches(ROWS_PER_READ, columns=["image.bytes", "label"]):
        images, labels = batch.column("image").field(0).to_pylist(), batch.column("label").to_pylist()
        yield from zip(images, labels, strict=True)


def list_files(job: dict[str, Any]) -> list[str]:
    """Return the source's parquet files, in order."""
    return [str(path) for path in sorted(Path(job["source"]).rglob("*.parquet"))]


def litdata(job: dict[str, Any]) -> Iterator[None]:
    """Run LitData's `optimize` over the files; the worker processes start within the timed call."""
    from litdata import optimize  # noqa: PLC0415 # pyright: ignore[reportMissingImports]

    files = list_files(job)
    yield
    optimize(read_file, files, job["out"], chunk_bytes="64MB", num_workers=NUM_WORKERS, verbose=False)
    yield


def mosaic(job: dict[str, Any]) -> Iterator[None]:
    """Run MosaicML's parallel conversion: one MDSWriter per process, each in its own folder, then merge the index."""
    from streaming.base.util import merge_index  # noqa: PLC0415 # pyright: ignore[reportMissingImports]

    files = list_files(job)
    with multiprocessing.Pool(NUM_WORKERS) as pool:
        # Make sure that all worker processes have started before the clock does.
        pool.map(time.sleep, [0.1] * NUM_WORKERS, chunksize=1)
        tasks = [(str(Path(job["out"], str(i))), files[i::NUM_WORKERS]) for i in range(NUM_WORKERS)]
        yield
        pool.map(write_mds, [task for task in tasks if task[1]], chunksize=1)
        merge_index(job["out"], keep_local=True)
        yield
        pool.close()
        pool.join()


def write_mds(task: tuple[str, list[str]]) -> None:
    """Write one process's share of the files."""
    from streaming import MDSWriter  # noqa: PLC0415 # pyright: ignore[reportMissingImports]

    out, files = task
    with MDSWriter(out=out, columns={"jpeg": "bytes", "cls": "int"}) as writer:
        for path in files:
            for jpeg, label in read_file(path):
                writer.write({"jpeg": jpeg, "cls": label})


def copy(job: dict[str, Any]) -> Iterator[None]:
    """Copy the source's files one after another, with fsync."""
    files = list_files(job)
    yield
    Path(job["out"]).mkdir()
    note_first_image()
    for path in files:
        target = Path(job["out"]) / Path(path).name
        shutil.copyfile(path, target)
        with target.open("rb") as file:
            os.fsync(file.fileno())
    yield
