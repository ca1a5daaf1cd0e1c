"""A short real training with train/main.py: resolution grows, it evaluates and saves, is killed, resumed and finished.

The same command runs twice. The first process is killed (SIGKILL) as soon as a checkpoint exists. The second one has
to resume from a checkpoint and to finish the run. Last, train/evaluate.py scores the result.
"""

import json
import math
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

from gpu.cases import Figures, Job
from gpu.smoke import import_dali, read_stderr, stderr_size
from worker import BENCHMARKS

from prep.curves import METRICS
from prep.dataset import read_manifest
from prep.errors import InputError
from prep.json_lines import read_json_lines
from train.checkpoint import list_checkpoints, newest_complete, read_meta
from train.config import CHECKPOINTS, STARTS

CHECKOUT = BENCHMARKS.parent
RECIPE, MODEL = "tiny_imagenet", "resnet10t"
VALIDATION = "validation"
MOST_BATCH, SIZE_STEP, GROWTH = 64, 32, 64  # images; pixels; pixels from the first resolution to the last
SAVES, EVALUATIONS = 8, 2  # per run
SECONDS_BETWEEN_LOOKS = 0.01
MOST_APART = 2  # images that evaluate.py may score differently: its batches differ, and bf16 rounds


def train_and_resume(job: Job) -> Figures:
    """Yield the outcome of each check, and the run's figures.

    Raises:
        InputError: one of the commands failed; the message has its last line.
    """
    run, job = Path(job["run"]), complete_job(job)

    # Train until the first checkpoint, then kill the process.
    command = build_command(job)
    shutil.rmtree(run, ignore_errors=True)
    started = time.perf_counter()
    status = run_until_checkpoint(command, run)
    clocks = [read_meta(path)["clock"] for path in list_checkpoints(run / CHECKPOINTS)]
    checks: dict[str, bool] = {"killed while it trained": status == -signal.SIGKILL}
    result: dict[str, Any] = {"checks": checks}
    result |= {"killed_after_seconds": time.perf_counter() - started, "checkpoints_then": clocks}
    yield result

    # Run the same command again: it has to resume and to finish.
    run_command(command)
    result["finished_after_seconds"] = time.perf_counter() - started
    result |= describe_run(job, run, checks)
    yield result

    # Score the result with the other command.
    result["evaluation"] = evaluate_run(job, run, checks)
    result["evaluated_after_seconds"] = time.perf_counter() - started
    result["failed_checks"] = [name for name, holds in checks.items() if not holds]
    yield result


def complete_job(job: Job) -> Job:
    """Return a job with the number of images, the split to validate on, and the loader's backend.

    Validation uses the training images if the dataset has no validation split. Pillow decodes if DALI cannot be
    imported.
    """
    data = Path(job["data"])
    has_validation = (data / VALIDATION / "manifest.json").exists()
    return job | {
        "num_images": read_manifest(data / job["split"]).num_images,
        "validation": VALIDATION if has_validation else job["split"],
        "backend": find_backend(),
    }


def build_command(job: Job) -> list[str]:
    """Return the command of a run over some epochs of the photographs: a tiny recipe that logs and saves often."""
    # Resolution grows by GROWTH pixels; the batch is at most MOST_BATCH, so that the run has enough steps.
    epochs, size = job["epochs"], max(2 * SIZE_STEP, job["size"] // SIZE_STEP * SIZE_STEP)
    options: dict[str, Any] = {
        "data.root": job["data"],
        "data.train": job["split"],
        "data.validation": job["validation"],
        "run.dir": job["run"],
        "run.log-every": job["num_images"],
        "run.save-every": epochs / SAVES,
        "run.evaluate-every": epochs / EVALUATIONS,
        "run.spot": "off",
        "model.name": MODEL,
        "epochs": epochs,
        "batch-size": min(MOST_BATCH, job["batch_size"]),
        "amp": job["amp"],
        "optim.warmup-epochs": epochs / 10,
        "transform.size": size,
        "transform.first-size": max(SIZE_STEP, size - GROWTH),
        "transform.grow": f"{epochs / 4} {epochs / 2}",
        "evaluation.size": size,
        "evaluation.resize": round(size * 256 / 224),
        "device": job["device"],
        "loader.backend": job["backend"],
    }
    words = [word for name, value in options.items() for word in (f"--{name}", *str(value).split())]
    return [sys.executable, str(CHECKOUT / "train" / "main.py"), RECIPE, *words]


def find_backend() -> str:
    """Return the loader's backend: dali if it can be imported, otherwise reference."""
    with suppress(InputError):
        import_dali()
        return "dali"
    return "reference"


def run_until_checkpoint(command: list[str], run: Path) -> int:
    """Start a run, kill it as soon as a checkpoint exists; return its exit status.

    Raises:
        InputError: it ended before that.
    """
    log_start = stderr_size()
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=sys.stderr, cwd=CHECKOUT)
    try:
        while not list_checkpoints(run / CHECKPOINTS):
            if process.poll() is not None:
                raise InputError(f"train/main.py ended before its first checkpoint: {last_line(log_start)}")
            time.sleep(SECONDS_BETWEEN_LOOKS)
    finally:
        process.kill()
    return process.wait()


def run_command(command: list[str]) -> str:
    """Run a command to its end; return its standard output.

    Raises:
        InputError: it failed.
    """
    log_start = stderr_size()
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, check=False)
    print(done.stdout, end="", file=sys.stderr, flush=True)
    if done.returncode:
        name = Path(command[1]).name
        raise InputError(f"train/{name} ended with status {done.returncode}: {last_line(log_start)}")
    return done.stdout


def last_line(log_start: int) -> str:
    """Return the last line that was written to standard error."""
    return next(iter(reversed(read_stderr(log_start).strip().splitlines())), "nothing on standard error")[:300]


def describe_run(job: Job, run: Path, checks: dict[str, bool]) -> dict[str, Any]:
    """Return the figures of a run that has ended; add its conditions to `checks`."""
    # Read what the run wrote: its starts, its metrics and its newest checkpoint.
    starts, entries = read_json_lines(run / STARTS).entries, read_json_lines(run / METRICS).entries
    training = [entry for entry in entries if entry["kind"] == "train"]
    path, damaged = newest_complete(run / CHECKPOINTS)
    meta: dict[str, Any] = read_meta(path) if path else {"clock": 0}
    gaps = [after - before for before, after in pairwise([0, *(entry["clock"] for entry in training)])]

    # Conditions of a run that was killed once and resumed. It logs once per epoch.
    checks["resumed from a checkpoint"] = len(starts) == 2 and starts[1]["clock"] > 0
    checks["every checkpoint is whole"] = path is not None and not damaged
    checks["the clock is complete"] = meta["clock"] >= round(job["epochs"] * job["num_images"])
    checks["metrics without a gap or a repeat"] = all(0 < gap < 2 * job["num_images"] for gap in gaps)
    checks["every loss is finite"] = all(math.isfinite(entry["loss"]) for entry in entries)
    checks["the placement is in the checkpoint"] = meta.get("placement", {}).get("placement") in ("cpu", "gpu")
    return {
        "clock": meta["clock"],
        "resumed_at": starts[-1]["clock"],
        "placement": meta.get("placement"),
        "first_loss": training[0]["loss"],
        "last_loss": training[-1]["loss"],
        "images_per_second": training[-1]["images_per_second"],
        "data_wait_percent": training[-1]["data_wait_percent"],
        "validation": next((entry for entry in reversed(entries) if entry["kind"] == "validation"), {}),
    }


def evaluate_run(job: Job, run: Path, checks: dict[str, bool]) -> dict[str, Any]:
    """Return the scores of the run's newest checkpoint by train/evaluate.py; they have to agree with the run's own."""
    words = [str(run), "--data", job["data"], "--split", job["validation"], "--device", job["device"]]
    words += ["--backend", job["backend"]]
    scores = json.loads(run_command([sys.executable, str(CHECKOUT / "train" / "evaluate.py"), *words]))
    (*_, own) = (entry for entry in read_json_lines(run / METRICS).entries if entry["kind"] == "validation")
    num_images = scores["model"]["num_images"]
    apart = [abs(scores[name]["top1"] - own[metric]) for name, metric in (("model", "top1"), ("ema", "ema_top1"))]
    close = max(apart) <= 100 * MOST_APART / num_images + 1e-6
    checks["evaluate.py agrees"] = own["num_images"] == num_images and close
    return {name: scores[name] for name in ("model", "ema")}
