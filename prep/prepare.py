"""Preparing a split: which shards are missing, who writes them, and the files that close the split."""

import ctypes
import fcntl
import json
import multiprocessing
import os
import shutil
import signal
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from prep.dataset import (
    LEDGER,
    MANIFEST,
    SAMPLES,
    InputError,
    Manifest,
    Options,
    Shard,
    read_manifest,
    write_samples,
    write_whole,
)
from prep.progress import Meter
from prep.shards import WORK_FOLDER, ShardJob, write_shard
from prep.source import Source

JOB = "job.json"
PR_SET_PDEATHSIG = 1  # linux/prctl.h


def prepare_split(source: Source, split: str, out: Path, options: Options, num_workers: int) -> Manifest:
    """Write one split to `out/split`, or go on where an earlier run of the same job stopped.

    The bytes depend on the source and the options alone. A split that is whole is left as it is, but for
    shards that went missing or changed size, which are written anew.

    Raises:
        InputError: the source is unusable, or the folder holds other data or was begun with other options.
    """
    folder, work = out / split, out / split / WORK_FOLDER
    check_folder(source, split, folder, options)
    source.check(split)
    jobs = list(_jobs(source, split, folder, options))
    work.mkdir(parents=True, exist_ok=True)
    with _locked(work):
        before = read_manifest(folder) if (folder / MANIFEST).exists() else None
        write_whole(work / JOB, json.dumps(_describe(source, split, options)).encode())
        _write_missing(jobs, before, num_workers)
        manifest = before or _close_split(source, options, jobs)
        _check_rewritten(folder, before)
        shutil.rmtree(work)
    write_timm_info(out)
    return manifest


def check_folder(source: Source, split: str, folder: Path, options: Options) -> None:
    """Raises InputError where `folder` holds anything but (part of) this very job's output."""
    wanted = _describe(source, split, options)
    if (folder / MANIFEST).exists():
        manifest = read_manifest(folder)
        found = {"split": manifest.split, **asdict(manifest.source), **asdict(manifest.options)}
    elif (folder / WORK_FOLDER / JOB).exists():
        found = json.loads((folder / WORK_FOLDER / JOB).read_text())
    elif folder.exists() and any(p.name != WORK_FOLDER for p in folder.iterdir()):
        raise InputError(f"{folder} holds other files: choose another --out or empty it")
    else:
        return
    for name in wanted:
        if found.get(name) != wanted[name]:
            raise InputError(
                f"{folder} was begun with {name} {found.get(name)}, not {wanted[name]}: "
                "give it as before, choose another --out, or delete the folder"
            )


def _describe(source: Source, split: str, options: Options) -> dict[str, Any]:
    return {"split": split, **asdict(source.origin), **asdict(options)}


def _jobs(source: Source, split: str, folder: Path, options: Options) -> Iterator[ShardJob]:
    num_rows = source.num_rows[split] if options.limit is None else min(options.limit, source.num_rows[split])
    for number, start in enumerate(range(0, num_rows, options.images_per_shard)):
        stop = min(start + options.images_per_shard, num_rows)
        rows, num_classes = source.rows(split, start, stop), len(source.class_names)
        yield ShardJob(rows, start, stop - start, num_classes, options.decode_check, split, number, folder)


@contextmanager
def _locked(work: Path) -> Iterator[None]:
    """One preparation a folder at a time; the lock goes with its process, however that ends."""
    with (work / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(f"{work.parent} is being written by another process: wait for it") from error
        yield


def _write_missing(jobs: list[ShardJob], manifest: Manifest | None, num_workers: int) -> None:
    """Write the shards that are not there yet, in parallel."""
    missing = [job for job in jobs if not _is_done(job, manifest)]
    num_images = sum(job.num_rows for job in jobs)
    done = num_images - sum(job.num_rows for job in missing)
    if not missing:
        return
    with Meter(jobs[0].split, num_images, done) as meter, _pool(min(num_workers, len(missing))) as pool:
        futures = {pool.submit(write_shard, job): job for job in missing}
        try:
            for future in as_completed(futures):
                _count(future, futures[future], meter)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _count(future: Future[None], job: ShardJob, meter: Meter) -> None:
    future.result()
    meter.add(job.num_rows, _record(job)["shard"]["size_bytes"])


def _pool(num_workers: int) -> ProcessPoolExecutor:
    context = multiprocessing.get_context("spawn")  # a fork would inherit the lock and threads of pyarrow
    return ProcessPoolExecutor(num_workers, context, initializer=_die_with_parent, initargs=(os.getpid(),))


def _die_with_parent(parent: int) -> None:
    """A worker must not outlive a killed parent: the next run would write the same shard beside it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def _is_done(job: ShardJob, manifest: Manifest | None) -> bool:
    path = job.folder / job.name
    if manifest is not None:
        size_bytes = {shard.name: shard.size_bytes for shard in manifest.shards}.get(job.name)
        return size_bytes is None or (path.exists() and path.stat().st_size == size_bytes)
    return job.record_path.exists() and (path.exists() or not _record(job)["shard"]["num_images"])


def _record(job: ShardJob) -> dict[str, Any]:
    return json.loads(job.record_path.read_text())


def _close_split(source: Source, options: Options, jobs: list[ShardJob]) -> Manifest:
    """Gather the shards' records into the sample index, the ledger and, last, the manifest."""
    folder, split = jobs[0].folder, jobs[0].split
    columns: dict[str, list[Any]] = {}
    ledger: list[dict[str, Any]] = []
    shards: list[Shard] = []
    for record in map(_record, jobs):
        ledger += record["ledger"]
        if not (num_images := record["shard"]["num_images"]):
            continue
        record["columns"]["shard"] = [len(shards)] * num_images
        record["columns"]["sha256"] = [bytes.fromhex(digest) for digest in record["columns"]["sha256"]]
        for name, values in record["columns"].items():
            columns.setdefault(name, []).extend(values)
        shards.append(Shard(**record["shard"]))
    if not shards:
        raise InputError(f"no image of {split} is usable ({ledger[0]['name']}: {ledger[0]['reason']}, ...)")
    write_whole(folder / LEDGER, "".join(json.dumps(entry) + "\n" for entry in ledger).encode())
    manifest = Manifest(
        split=split,
        source=source.origin,
        options=options,
        class_names=source.class_names,
        num_images=sum(shard.num_images for shard in shards),
        num_rejected=Counter(entry["event"] for entry in ledger)["rejected"],
        size_bytes=sum(columns["size"]),
        samples_sha256=write_samples(folder / SAMPLES, columns),
        shards=tuple(shards),
    )
    write_whole(folder / MANIFEST, manifest.to_json().encode())
    return manifest


def _check_rewritten(folder: Path, manifest: Manifest | None) -> None:
    """Shards written anew must be what the manifest says; another Pillow may encode a converted image otherwise."""
    for path in (folder / WORK_FOLDER).glob("*.tar.json"):
        shard = Shard(**json.loads(path.read_text())["shard"])
        if manifest is not None and shard.num_images and shard not in manifest.shards:
            raise InputError(
                f"{folder / shard.name} came out different from its manifest: delete {folder} and run again"
            )


def write_timm_info(out: Path) -> None:
    """`_info.json` beside the split folders, as timm's `wds/` reader wants it."""
    splits = {}
    for manifest in (read_manifest(path.parent) for path in sorted(out.glob(f"*/{MANIFEST}"))):
        splits[manifest.split] = {
            "name": manifest.split,
            "num_samples": manifest.num_images,
            "filenames": [f"{manifest.split}/{shard.name}" for shard in manifest.shards],
            "shard_lengths": [shard.num_images for shard in manifest.shards],
        }
    write_whole(out / "_info.json", (json.dumps({"splits": splits}, indent=1, sort_keys=True) + "\n").encode())
