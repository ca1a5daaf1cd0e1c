"""`python benchmarks/ingredients.py --source DIR --work DIR`: add a recipe's ingredients one at a time.

On a part of Tiny ImageNet with a small network, so that a run takes one to two minutes on one core. `train/main.py`
trains every arm on the same shards with the same number of images, once for each seed. An arm has the ingredients of
all arms before it. `--timm TRAIN_PY` also trains with timm's own script and the same hyperparameters. Each finished run
is one line of WORK/runs.jsonl: start the command again to continue. One JSON record goes to stdout.
"""

import argparse
import json
import os
import shutil
import subprocess
from pathlib import Path
from statistics import fmean
from typing import Any

from ingredient_arms import (
    CLASSES,
    COMMON,
    EPOCHS,
    IMAGES_PER_CLASS,
    MODEL,
    RATES,
    SIZE,
    TIMM,
    VALIDATION_PER_CLASS,
    Arm,
    build_command,
    list_arms,
)
from record import describe_origin, print_progress, publish, summarize
from stores import CHECKOUT, prepare_shards
from tiny_subset import write_subset

from prep.curves import read_metrics
from prep.errors import InputError, run
from prep.json_lines import read_json_lines

RUNS = "runs.jsonl"  # in the work folder
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


def read_result(name: str, work: Path) -> dict[str, float]:
    """Return the last top-1 of the model, and of its EMA if it has one, from the folder of a finished run."""
    if name == TIMM:
        lines = (work / "run" / "timm" / "summary.csv").read_text().splitlines()
        last = dict(zip(lines[0].split(","), lines[-1].split(","), strict=True))
        return {"model": float(last["eval_top1"])}
    entry = [each for each in read_metrics(work / "run") if each["kind"] == "validation"][-1]
    return {"model": entry["top1"], "ema": entry["ema_top1"]}


def train_missing(arms: dict[str, Arm], work: Path, timm: Path | None) -> None:
    """Run what runs.jsonl does not have yet, seed by seed, one process with one thread at a time.

    Raises:
        InputError: a run failed.
    """
    done = {(each["name"], each["seed"]) for each in read_runs(work, arms)}
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(CHECKOUT)}
    for name, arm in arms.items():
        for seed in (each for each in arm.seeds if (name, each) not in done):
            if name == TIMM and timm is None:
                continue
            shutil.rmtree(work / "run", ignore_errors=True)
            ended = subprocess.run(
                build_command(name, arm, seed, work, timm), env=environment, capture_output=True, text=True, check=False
            )
            if ended.returncode:
                raise InputError(f"{name}, seed {seed}, failed: {ended.stderr.strip().splitlines()[-1:]}")
            line = {"name": name, "seed": seed, "flags": arm.flags, **read_result(name, work)}
            with (work / RUNS).open("a") as file:
                file.write(json.dumps(line) + "\n")
            print_progress(str({key: value for key, value in line.items() if key != "flags"}))


def read_runs(work: Path, arms: dict[str, Arm]) -> list[dict[str, Any]]:
    """Return the finished runs of the arms as they are now; runs with other flags do not count."""
    runs = read_json_lines(work / RUNS, "name", "seed", "flags").entries
    return [each for each in runs if each["name"] in arms and tuple(each["flags"]) == arms[each["name"]].flags]


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="benchmarks/ingredients.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "--source", type=Path, required=True, metavar="DIR", help="Tiny ImageNet in parquet, as on the Hugging Face hub"
    )
    add("--work", type=Path, required=True, metavar="DIR", help="folder for shards and finished runs")
    add("--timm", type=Path, metavar="TRAIN_PY", help="timm's train.py, of the installed version of timm")
    add("--only", nargs="+", metavar="NAME", help="only the arms whose names contain one of these")
    add("--out", type=Path, metavar="FILE", help="also write the record to this file")
    return parser.parse_args()


def prepare(source: Path, work: Path) -> None:
    """Write the shards of the part of Tiny ImageNet on which all arms train, unless they exist."""
    if not (work / "shards" / "_info.json").exists():
        images_per_class = {"train": IMAGES_PER_CLASS, "validation": VALIDATION_PER_CLASS}
        write_subset(source, work / "images", CLASSES, images_per_class)
        prepare_shards(work / "images", work / "shards", ["--images-per-shard", "500"])
        shutil.rmtree(work / "images")


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
                **{
                    f"top1_{kind}": {"mean": fmean(values), **summarize(values)}
                    for kind in ("model", "ema")
                    if (values := [each[kind] for each in found if kind in each])
                },
            }
    return {
        "what": "ingredients",
        "dataset": {"name": "tiny-imagenet", "num_images": CLASSES * IMAGES_PER_CLASS, "label": "not ImageNet"},
        "num_validation_images": CLASSES * VALIDATION_PER_CLASS,
        "model": MODEL,
        "epochs": EPOCHS,
        "flags_of_all": " ".join(COMMON),
        "method": METHOD,
        "arms": figures,
        **describe_origin("benchmarks/ingredients.py"),
    }


def format_record(record: dict[str, Any]) -> str:
    """Return the record as lines for the terminal."""
    from reports.ingredients import format_top1  # noqa: PLC0415

    return "\n".join(
        f"{name:<28}{each['relative_work']:>6.2f} of the work  "
        + "  ".join(
            f"{kind} {format_top1(each[f'top1_{kind}'])}" for kind in ("model", "ema") if f"top1_{kind}" in each
        )
        for name, each in record["arms"].items()
    )


def main() -> None:
    """Prepare, train what is missing, publish the record."""
    arguments = parse_arguments()
    arms = list_arms(arguments.only)
    if not arms:
        raise InputError(f"--only must name parts of {', '.join(list_arms())}, got {' '.join(arguments.only)}")
    arguments.work.mkdir(exist_ok=True, parents=True)
    prepare(arguments.source, arguments.work)
    train_missing(arms, arguments.work, arguments.timm)
    record = build_record(arms, read_runs(arguments.work, arms))
    publish(record, arguments.out)
    print_progress(format_record(record))


if __name__ == "__main__":
    run(main)
