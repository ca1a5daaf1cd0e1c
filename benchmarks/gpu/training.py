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
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from answer import Job
from gpu.crew import CHECKOUT
from gpu.own_log import OwnLog
from gpu.smoke import find_dali
from gpu.worker import Report

from prep.curves import METRICS
from prep.dataset import read_manifest
from prep.errors import InputError
from train.checkpoint import list_checkpoints, newest_complete, read_meta
from train.config import CHECKPOINTS, STARTS

RECIPE, MODEL = "tiny_imagenet", "resnet10t"
VALIDATION = "validation"
MOST_BATCH, SIZE_STEP, GROWTH = 64, 32, 64  # images; pixels; pixels from the first resolution to the last
SAVES, EVALUATIONS = 8, 2  # per run
SECONDS_BETWEEN_LOOKS = 0.01
MOST_APART = 2  # images that evaluate.py may score differently: its batches differ, and bf16 rounds


@dataclass(frozen=True)
class Plan:
    """The run: its command, and the values that it is checked against."""

    command: list[str]
    run: Path
    data: Path
    validation: str  # split
    total_images: int
    log_every: int  # images
    batch_size: int


def train_and_resume(job: Job, report: Report) -> dict[str, Any]:
    """Return the outcome of each check, and the run's figures.

    Raises:
        InputError: one of the commands failed; the message has its last line.
    """
    # Train until the first checkpoint, then kill the process.
    plan = plan_run(job)
    shutil.rmtree(plan.run, ignore_errors=True)
    started = time.perf_counter()
    status = run_until_checkpoint(plan)
    clocks = [read_meta(path)["clock"] for path in list_checkpoints(plan.run / CHECKPOINTS)]
    result: dict[str, Any] = {"checks": {"killed while it trained": status == -signal.SIGKILL}}
    result |= {"killed_after_seconds": time.perf_counter() - started, "checkpoints_then": clocks}
    report(result)

    # Run the same command again: it has to resume and to finish.
    run_command(plan.command)
    result["finished_after_seconds"] = time.perf_counter() - started
    result |= describe_run(plan, result["checks"])
    report(result)

    # Score the result with the other command.
    result["evaluation"] = evaluate_run(job, plan, result["checks"])
    result["evaluated_after_seconds"] = time.perf_counter() - started
    result["failed_checks"] = [name for name, holds in result["checks"].items() if not holds]
    return result


def plan_run(job: Job) -> Plan:
    """Return a run over some epochs of the photographs; Pillow decodes if DALI is missing."""
    # Sizes: resolution grows by GROWTH pixels; the batch is at most MOST_BATCH, so that the run has enough steps.
    data, run = Path(job["data"]), Path(job["run"])
    validation = VALIDATION if (data / VALIDATION / "manifest.json").exists() else job["split"]
    num_images, batch_size = read_manifest(data / job["split"]).num_images, min(MOST_BATCH, job["batch_size"])
    epochs, size = job["epochs"], max(2 * SIZE_STEP, job["size"] // SIZE_STEP * SIZE_STEP)
    first = max(SIZE_STEP, size - GROWTH)

    # The command: a tiny recipe, changed so that it logs, saves and evaluates often.
    options: dict[str, Any] = {
        "data.root": data,
        "data.train": job["split"],
        "data.validation": validation,
        "run.dir": run,
        "run.log-every": num_images,
        "run.save-every": epochs / SAVES,
        "run.evaluate-every": epochs / EVALUATIONS,
        "run.spot": "off",
        "model.name": MODEL,
        "epochs": epochs,
        "batch-size": batch_size,
        "amp": job["amp"],
        "optim.warmup-epochs": epochs / 10,
        "transform.size": size,
        "transform.first-size": first,
        "transform.grow": f"{epochs / 4} {epochs / 2}",
        "evaluation.size": size,
        "evaluation.resize": round(size * 256 / 224),
        "device": job["device"],
        "loader.backend": find_backend(job),
    }
    words = [word for name, value in options.items() for word in (f"--{name}", *str(value).split())]
    command = [sys.executable, str(CHECKOUT / "train" / "main.py"), RECIPE, *words]
    return Plan(command, run, data, validation, round(epochs * num_images), num_images, batch_size)


def find_backend(job: Job) -> str:
    """Return the loader's backend: dali if it can be imported, else reference."""
    try:
        find_dali(job, lambda _: None)
    except InputError:
        return "reference"
    return "dali"


def run_until_checkpoint(plan: Plan) -> int:
    """Start the run, kill it as soon as a checkpoint exists; return its exit status.

    Raises:
        InputError: it ended before that.
    """
    log = OwnLog()
    process = subprocess.Popen(plan.command, stdin=subprocess.DEVNULL, stdout=sys.stderr, cwd=CHECKOUT)
    try:
        while not list_checkpoints(plan.run / CHECKPOINTS):
            if process.poll() is not None:
                raise InputError(f"train/main.py ended before its first checkpoint: {last_line(log)}")
            time.sleep(SECONDS_BETWEEN_LOOKS)
    finally:
        process.kill()
    return process.wait()


def run_command(command: list[str]) -> str:
    """Run a command to its end; return its standard output.

    Raises:
        InputError: it failed.
    """
    log = OwnLog()
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, check=False)
    sys.stderr.write(done.stdout)
    sys.stderr.flush()
    if done.returncode:
        name = Path(command[1]).name
        raise InputError(f"train/{name} ended with status {done.returncode}: {last_line(log)}")
    return done.stdout


def last_line(log: OwnLog) -> str:
    """Return the last line that was written to standard error."""
    return next(iter(reversed(log.read().strip().splitlines())), "nothing on standard error")[:300]


def describe_run(plan: Plan, checks: dict[str, bool]) -> dict[str, Any]:
    """Return the figures of a run that has ended; add its conditions to `checks`."""
    # Read what the run wrote: its starts, its metrics and its newest checkpoint.
    starts, entries = (read_lines(plan.run / name) for name in (STARTS, METRICS))
    training = [entry for entry in entries if entry["kind"] == "train"]
    path, damaged = newest_complete(plan.run / CHECKPOINTS)
    meta: dict[str, Any] = read_meta(path) if path else {"clock": 0}
    clocks = [0, *(entry["clock"] for entry in training)]
    gaps = [after - before for before, after in pairwise(clocks)]

    # Conditions of a run that was killed once and resumed.
    checks["resumed from a checkpoint"] = len(starts) == 2 and starts[1]["clock"] > 0
    checks["every checkpoint is whole"] = path is not None and not damaged
    checks["the clock is complete"] = meta["clock"] >= plan.total_images
    checks["metrics without a gap or a repeat"] = all(0 < gap < 2 * plan.log_every for gap in gaps)
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


def evaluate_run(job: Job, plan: Plan, checks: dict[str, bool]) -> dict[str, Any]:
    """Return the scores of the run's newest checkpoint by train/evaluate.py; they have to agree with the run's own."""
    words = [str(plan.run), "--data", str(plan.data), "--split", plan.validation, "--device", job["device"]]
    words += ["--backend", find_backend(job)]
    scores = json.loads(run_command([sys.executable, str(CHECKOUT / "train" / "evaluate.py"), *words]))
    entries = [entry for entry in read_lines(plan.run / METRICS) if entry["kind"] == "validation"]
    num_images = scores["model"]["num_images"]
    apart = [
        abs(scores[name]["top1"] - entries[-1][metric]) for name, metric in (("model", "top1"), ("ema", "ema_top1"))
    ]
    checks["evaluate.py agrees"] = entries[-1]["num_images"] == num_images and (
        max(apart) <= 100 * MOST_APART / num_images + 1e-6
    )
    return {name: scores[name] for name in ("model", "ema")}


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the entries of a file with one JSON object per line."""
    return [json.loads(line) for line in path.read_text().splitlines()]
