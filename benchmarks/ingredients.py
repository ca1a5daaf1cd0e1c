"""Add a recipe's ingredients one at a time, on a part of Tiny ImageNet with a small network (`prove.py ingredients`).

A run takes one to two minutes on one core. `train/main.py` trains every arm on the same shards with the same number of
images, once for each seed; an arm has the ingredients of all arms before it. timm's own script trains with the same
hyperparameters. Each finished run is one line of WORK/runs.jsonl and is not repeated.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from options import refuse_start
from peers.formats import prepare_shards
from record import describe_left, describe_origin, print_progress, summarize
from worker import last_line

from prep.curves import read_metrics
from prep.errors import InputError, run
from prep.json_lines import read_json_lines

CHECKOUT = Path(__file__).resolve().parent.parent
RUNS = "runs.jsonl"  # in the work folder
CLASSES, IMAGES_PER_CLASS, VALIDATION_PER_CLASS = 40, 75, 50
EPOCHS, BATCH_SIZE, SIZE, MODEL = 6, 64, 48, "resnet10t"
TIMM = "timm's train.py"
COMMON = (  # flags of train/main.py in every arm
    *("tiny_imagenet", "--device", "cpu", "--amp", "bf16", "--model.name", MODEL),
    *("--epochs", str(EPOCHS), "--batch-size", str(BATCH_SIZE), "--optim.warmup-epochs", "1"),
    *("--transform.size", str(SIZE), "--evaluation.size", str(SIZE), "--evaluation.resize", str(SIZE)),
    *("--run.evaluate-every", "inf", "--run.save-every", "inf", "--run.log-every", "6000"),
    *("--loader.num-threads", "1", "--ema-half-life", "1280", "--ema-every", "4"),  # the EMA: 20 steps, 4 of them
)
LEARNING_RATE = "0.4"  # for a batch of 256, the best of RATES
RATES = ("0.2", "0.4", "0.8")  # tried with the baseline and with BCE, one seed each
GROW = ("--transform.first-size", "24", "--transform.grow", "2.4", "4.8", "--transform.size-step", "8")
TWICE = ("--epochs", "12", "--optim.warmup-epochs", "2", "--transform.grow", "4.8", "9.6")
BCE = ("--loss", "bce", "--model.prior-bias")
BLUR = ("--model.blur-first",)
# A step of coupled decay shrinks weights by lr * 5e-4 / (1 - momentum) in the long run. The same at the peak:
# 0.1 (0.4 for 256 images, at 64) * 5e-4 / (1 - 0.9).
DECAY = ("--optim.decoupled", "--optim.decay-all", "--optim.weight-decay", "5e-4")
METHOD = (
    f"the first {IMAGES_PER_CLASS} training images and all validation images of the first {CLASSES} classes",
    "an arm has the ingredients of all arms before it, the same number of images, and the same seeds",
    "top1_model, top1_ema: percent of the validation images after the last epoch, over the seeds; the EMA does not "
    "change the model, so the two show what it adds",
    "the seed sets the first weights, the order of the images and the crops",
    f"the learning rate of all arms was chosen among {', '.join(RATES)} with the baseline and another seed; the arms "
    "named tuning show what other rates give",
    "relative_work: pixels of the training images, compared with a fixed size",
    "timm's train.py: the network, shards, hyperparameters and image count of the baseline; own random numbers",
)


@dataclass(frozen=True)
class Arm:
    """What is trained: the flags that differ from COMMON, and the seeds."""

    flags: tuple[str, ...]
    seeds: tuple[int, ...] = (0, 1, 2)


def list_arms(wanted: tuple[str, ...] = ()) -> dict[str, Arm]:
    """Return the arms by name, in the order in which they run; only those whose names contain one of `wanted`, if any.

    Raises:
        InputError: no arm's name contains a word of `wanted`.
    """
    arms = {f"tuning: cross-entropy, lr {each}": Arm(("--optim.lr", each), (7,)) for each in RATES}
    arms |= {f"tuning: BCE, lr {each}": Arm((*BCE, "--optim.lr", each), (7,)) for each in RATES}
    flags: tuple[str, ...] = ("--optim.lr", LEARNING_RATE)
    arms[TIMM] = Arm(flags)
    for name, added in {
        "baseline": (),
        "+ growing resolution": GROW,
        "+ BCE, prior bias": BCE,
        "+ blur first": BLUR,
        "+ decoupled decay of all": DECAY,
    }.items():
        flags = (*flags, *added)
        arms[name] = Arm(flags)
    arms["growing resolution alone, twice the images"] = Arm(("--optim.lr", LEARNING_RATE, *GROW, *TWICE))
    found = {name: arm for name, arm in arms.items() if not wanted or any(each in name for each in wanted)}
    if not found:
        raise InputError(f"--only must name parts of {', '.join(arms)}, got {' '.join(wanted)}")
    return found


def build_command(name: str, arm: Arm, seed: int, work: Path, timm: Path | None) -> list[str]:
    """Return the command line of one run."""
    shards, out = str(work / "shards"), str(work / "run")
    if name != TIMM:
        script = str(CHECKOUT / "train" / "main.py")
        folders = ("--data.root", shards, "--run.dir", out)
        return [sys.executable, script, *COMMON, *arm.flags, "--seed", str(seed), *folders]
    # The flags of timm's train.py that mean the same.
    rate, size = float(arm.flags[arm.flags.index("--optim.lr") + 1]) * BATCH_SIZE / 256, str(SIZE)
    return [
        *(sys.executable, str(timm), "--data-dir", shards, "--output", out, "--experiment", "timm"),
        *("--dataset", "wds/tiny", "--train-split", "train", "--val-split", "validation", "--device", "cpu"),
        *("--model", MODEL, "--num-classes", str(CLASSES), "--input-size", "3", size, size, "--crop-pct", "1.0"),
        *("--amp", "--amp-dtype", "bfloat16", "--channels-last", "--workers", "1", "--seed", str(seed)),
        *("--epochs", str(EPOCHS), "--batch-size", str(BATCH_SIZE), "--val-interval", str(EPOCHS)),
        *("--opt", "sgd", "--lr", str(rate), "--momentum", "0.9", "--weight-decay", "5e-4"),
        *("--sched", "cosine", "--sched-on-updates", "--warmup-epochs", "1", "--warmup-lr", "0", "--min-lr", "0"),
        *("--smoothing", "0.1", "--scale", "0.25", "1.0", "--color-jitter", "0", "--hflip", "0.5"),
        *("--train-interpolation", "bilinear", "--interpolation", "bilinear"),
        *("--mean", "0.485", "0.456", "0.406", "--std", "0.229", "0.224", "0.225"),
    ]


def write_subset(source: Path, out: Path, num_classes: int, images_per_class: dict[str, int]) -> None:
    """Write the first images of the first classes of a Hugging Face dataset in parquet as OUT/SPLIT/LABEL/NUMBER.JPEG.

    Args:
        num_classes: labels below it are taken, in the order of the files.
        images_per_class: how many, by split; the names of a split's files begin with its name.

    Raises:
        InputError: the source has fewer images of a class.
    """
    import pyarrow.parquet as pq  # noqa: PLC0415

    for split, wanted in images_per_class.items():
        found: Counter[int] = Counter()
        for path in sorted(source.rglob(f"{split}-*.parquet")):
            table = pq.read_table(path, columns=["image", "label"])
            for image, label in zip(table["image"].to_pylist(), table["label"].to_pylist(), strict=True):
                if label < num_classes and found[label] < wanted:
                    folder = out / split / f"{label:03}"
                    folder.mkdir(parents=True, exist_ok=True)
                    (folder / f"{found[label]:05}.JPEG").write_bytes(image["bytes"])
                    found[label] += 1
        missing = [label for label in range(num_classes) if found[label] < wanted]
        if missing:
            raise InputError(
                f"{source} must have {wanted} images of each of the first {num_classes} classes in {split}, "
                f"found {found[missing[0]]} of class {missing[0]}: give the folder of Tiny ImageNet in parquet"
            )


def run_arms(arms: dict[str, Arm], source: Path, work: Path, timm: Path | None) -> dict[str, Any]:
    """Prepare the shards on which all arms train unless they exist, train what is missing, and return the record."""
    work.mkdir(exist_ok=True, parents=True)
    if not (work / "shards" / "_info.json").exists():
        images_per_class = {"train": IMAGES_PER_CLASS, "validation": VALIDATION_PER_CLASS}
        write_subset(source, work / "images", CLASSES, images_per_class)
        prepare_shards(work / "images", work / "shards", ["--images-per-shard", "500"])
        shutil.rmtree(work / "images")
    train_missing(arms, work, timm)
    return build_record(arms, read_runs(work, arms))


def train_missing(arms: dict[str, Arm], work: Path, timm: Path | None) -> None:
    """Run what runs.jsonl does not have yet, seed by seed, one process with one thread at a time.

    Raises:
        InputError: a run failed.
    """
    done = {(each["name"], each["seed"]) for each in read_runs(work, arms)}
    runs = [(name, seed) for name, arm in arms.items() for seed in arm.seeds if name != TIMM or timm]
    missing = [each for each in runs if each not in done]
    environment, started = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(CHECKOUT)}, time.monotonic()
    for number, (name, seed) in enumerate(missing, 1):
        shutil.rmtree(work / "run", ignore_errors=True)
        command = build_command(name, arms[name], seed, work, timm)
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if ended.returncode:
            raise InputError(f"{name}, seed {seed}, failed: {last_line(ended.stderr)}")
        result = read_result(name, work)
        with (work / RUNS).open("a") as file:
            file.write(json.dumps({"name": name, "seed": seed, "flags": arms[name].flags, **result}) + "\n")
        top1 = ", ".join(f"{kind} {value:.2f}" for kind, value in result.items())
        left = describe_left(started, number, len(missing))
        print_progress(f"{name}, seed {seed}: top-1 in percent: {top1} ({left})")


def read_result(name: str, work: Path) -> dict[str, float]:
    """Return the last top-1 of the model, and of its EMA if it has one, from the folder of a finished run."""
    if name == TIMM:
        lines = (work / "run" / "timm" / "summary.csv").read_text().splitlines()
        last = dict(zip(lines[0].split(","), lines[-1].split(","), strict=True))
        return {"model": float(last["eval_top1"])}
    entry = [each for each in read_metrics(work / "run") if each["kind"] == "validation"][-1]
    return {"model": entry["top1"], "ema": entry["ema_top1"]}


def read_runs(work: Path, arms: dict[str, Arm]) -> list[dict[str, Any]]:
    """Return the finished runs of the arms as they are now; runs with other flags do not count."""
    runs = read_json_lines(work / RUNS, "name", "seed", "flags").entries
    return [each for each in runs if each["name"] in arms and tuple(each["flags"]) == arms[each["name"]].flags]


def relative_work(arm: Arm) -> float:
    """Return the pixels of an arm's training images, as a share of those of EPOCHS epochs at SIZE pixels."""
    from reports.recipes import count_work  # noqa: PLC0415

    from train.arguments import parse_command  # noqa: PLC0415

    recipe = parse_command([*COMMON, *arm.flags]).recipe
    return count_work(recipe.transform, recipe.epochs, SIZE) / EPOCHS


def build_record(arms: dict[str, Arm], runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the record: top-1 of every arm over its seeds, and all that is needed to read and to repeat it."""
    figures = {}
    for name, arm in arms.items():
        found = sorted((each for each in runs if each["name"] == name), key=lambda each: each["seed"])
        if found:
            figures[name] = {
                "flags": " ".join(arm.flags),
                "seeds": [each["seed"] for each in found],
                "relative_work": relative_work(arm),
            }
            for kind in ("model", "ema"):
                if values := [each[kind] for each in found if kind in each]:
                    figures[name][f"top1_{kind}"] = {"mean": fmean(values), **summarize(values)}
    return {
        "what": "ingredients",
        "dataset": {"name": "tiny-imagenet", "num_images": CLASSES * IMAGES_PER_CLASS, "label": "not ImageNet"},
        "num_validation_images": CLASSES * VALIDATION_PER_CLASS,
        "model": MODEL,
        "epochs": EPOCHS,
        "flags_of_all": " ".join(COMMON),
        "method": METHOD,
        "arms": figures,
        **describe_origin("benchmarks/prove.py"),
    }


if __name__ == "__main__":
    run(lambda: refuse_start("prove.py ingredients"))
