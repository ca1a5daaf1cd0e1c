"""Write the images of a race: its source, Penstock's shards from it, and the other formats from these shards."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from peers.job import ROWS_PER_GROUP, SPLIT
from peers.registry import BETON, FOLDER, LITDATA_CHUNKS, MDS, RESTART_SHARDS, SHARDS, SMALLER_SHARDS, Reader
from worker import BENCHMARKS, FailedError, HungError, ask_once, last_line
from worker_main import Answers

from prep.errors import InputError

PREPARE = BENCHMARKS.parent / "prep" / "shard.py"
SHARDS_OPTIONS = {  # of prep/shard.py
    SHARDS: [],
    RESTART_SHARDS: ["--restarts"],
    SMALLER_SHARDS: ["--max-side", "500", "--quality", "90"],
}
OTHER_FORMATS = {  # functions that write them, with the interpreter of their reader
    FOLDER: "peers.job:write_folder",
    LITDATA_CHUNKS: "peers.litdata_peer:write_format",
    MDS: "peers.mosaicml_peer:write_format",
    BETON: "peers.ffcv_peer:write_format",
}
ROWS_PER_FILE = 1000
LONGEST_WRITE = 86_400  # seconds: only a process that hangs takes longer


def make_source(source: str, num_images: int, out: Path) -> dict[str, Any]:
    """Write the source of a race, parquet files of `num_images` images from `source`; return its facts.

    Raises:
        InputError: `source` cannot be used.
    """
    job = {"source": source, "num_images": num_images, "out": str(out)}
    try:
        return ask_once("peers.formats:write_source", job, LONGEST_WRITE)
    except HungError as error:
        raise InputError(f"the images of {source} could not be written to {out}: {error}") from error
    except FailedError as error:
        raise InputError(f"{source} cannot be used: {error}") from error


def write_source(job: dict[str, Any]) -> Answers:
    """Write parquet files to disk, in row groups as Hugging Face uses them for images; answer with their facts."""
    import datasets  # noqa: PLC0415 - in a process of its own, since it takes long to import
    import pyarrow as pa  # noqa: PLC0415
    import pyarrow.parquet as pq  # noqa: PLC0415

    from prep.resolve import open_source  # noqa: PLC0415

    source, out = open_source(job["source"]), Path(job["out"]) / "data"
    out.mkdir(parents=True)
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=list(source.class_names))}
    )
    rows, image_bytes, paths = islice(repeat_rows(source), job["num_images"]), 0, []
    while chunk := list(islice(rows, ROWS_PER_FILE)):
        image_bytes += sum(len(row["image"]["bytes"]) for row in chunk)
        paths.append(out / f"{SPLIT}-{len(paths):05d}.parquet")
        table = pa.Table.from_pylist(chunk, schema=features.arrow_schema)
        pq.write_table(table, paths[-1], row_group_size=ROWS_PER_GROUP)
    os.sync()
    source_bytes = sum(path.stat().st_size for path in paths)
    facts = {"num_images": job["num_images"], "image_bytes": image_bytes, "source_bytes": source_bytes}
    yield facts | {"name": source.origin.name}


def repeat_rows(source: Any) -> Iterator[dict[str, Any]]:
    """Yield the rows of the first split endlessly, with new names on each pass."""
    split = next(split for split, num_rows in source.num_rows.items() if num_rows)
    number = 0
    while True:
        for item in source.rows(split, 0, source.num_rows[split]):
            yield {"image": {"bytes": bytes(item.data), "path": f"{number:08d}_{item.name}"}, "label": item.label}
            number += 1


def prepare_shards(source: Path, out: Path, options: list[str]) -> None:
    """Write Penstock's shards with prep/shard.py.

    Raises:
        InputError: the source cannot be prepared.
    """
    command = [sys.executable, str(PREPARE), "--source", str(source), "--out", str(out), *options]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=LONGEST_WRITE)
    except subprocess.TimeoutExpired as error:
        raise InputError(f"the images could not be prepared: it took longer than {LONGEST_WRITE} s") from error
    if done.returncode:
        raise InputError(f"the images could not be prepared: {last_line(done.stderr)}")


def write_formats(
    readers: Iterable[Reader], pythons: dict[str, str], source: Path, work: Path, workers: int
) -> dict[str, str]:
    """Write every format that a reader needs, each in the folder of its name; return failures and their reasons.

    Deletes the source afterwards, which would only take space in the page cache.

    Raises:
        InputError: the source cannot be prepared.
    """
    wanted, failed = {reader.data: reader for reader in readers}, {}
    # Prepare the shards, always those with the original bytes: the other formats are written from them.
    for data, options in SHARDS_OPTIONS.items():
        if wanted.pop(data, None) or data == SHARDS:
            prepare_shards(source, work / data, [*options, "--workers", str(workers)])
    shutil.rmtree(source)

    # Write the other formats.
    shards = sorted(str(path) for path in (work / SHARDS / SPLIT).glob("*.tar"))
    for data, reader in wanted.items():
        (work / data).mkdir()
        job = {"entry": OTHER_FORMATS[data], "shards": shards, "out": str(work / data), "workers": workers}
        try:
            ask_once("peers.job:write_format", job, LONGEST_WRITE, pythons.get(reader.library, sys.executable))
        except FailedError as error:
            failed[data] = f"{data} could not be written: {error}"
    return failed
