"""`python -m gpu.repeated JOB`: prepared images under new keys, as often as it takes to reach a wanted number.

A few hundred images would all stay in a processor's cache or be the same batches again; their copies lie apart on
disk and in the page cache, as those of a whole ImageNet do. They go through the real preparation command.
"""

import os
import shutil
from pathlib import Path
from typing import Any

from answer import Job, answer
from feeding.formats import write_folder
from stores import prepare

from prep.dataset import InputError, Split


def repeat(job: Job) -> dict[str, Any]:
    """Shards in `out`, made with `options` of prep/shard.py; what is there already from before is replaced."""
    out, source = Path(job["out"]), Path(job["out"]).with_suffix(".source")
    for folder in (out, source):
        shutil.rmtree(folder, ignore_errors=True)
    split = Split(job["data"], job["split"])
    num_copies = -(-job["num_images"] // len(split))
    for label in range(len(split.class_names)):  # those without an image too: the model is to be as large
        (source / job["split"] / f"{label:04d}").mkdir(parents=True)
    write_folder([str(path) for path in split.shard_paths], source / job["split"], 1)
    link_copies(source, num_copies)
    prepare(source, out, job["options"])
    shutil.rmtree(source)
    made = Split(out, job["split"])
    if len(made) != num_copies * len(split):
        raise InputError(f"{out} has {len(made):,} images, not {num_copies} times {len(split):,}: see its ledger.jsonl")
    return {"num_images": len(made), "copies": num_copies, "mean_bytes": round(float(made.column("size").mean()))}


def link_copies(folder: Path, num_copies: int) -> None:
    """Every image under `num_copies` names, without its bytes a second time."""
    for path in sorted(folder.rglob("*.jpg")):
        for number in range(1, num_copies):
            os.link(path, path.with_name(f"{path.stem}_{number:05d}.jpg"))


if __name__ == "__main__":
    answer(repeat)
