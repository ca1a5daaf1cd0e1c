"""`torchrun train/evaluate.py CHECKPOINT --data DIR [--out FOLDER]`: exactly how good a model and its EMA are.

CHECKPOINT is a run folder (its newest whole checkpoint is taken) or one checkpoint's folder. A summary is printed;
--out takes it too, with tables of the images, classes, confusions and calibration (docs/evaluating.md).
"""

import argparse
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from loaders import EvalTransform, LoaderConfig, Split, World, build_loader, select
from loaders.backends import BACKENDS
from loaders.normalize import Normalize
from loaders.placement import Choice
from prep.calibration import expected_calibration_error
from prep.errors import InputError, run
from train.checkpoint import read_meta
from train.config import Recipe
from train.dist import join_world
from train.launcher import watch_launcher
from train.outcomes import Outcomes, to_outcomes
from train.restore import find_checkpoint, restore
from train.score_files import write_files
from train.speed import set_precision
from train.step import autocast, check_amp
from train.tuned import agree_on_placement, resolve_on_rank_0
from train.validate import Mirrored, judge_images


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="train/evaluate.py", description=__doc__)
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT")
    parser.add_argument("--data", type=Path, help="prepared dataset (default: the one it was trained on)")
    parser.add_argument("--split", help="default: the recipe's validation split")
    parser.add_argument("--model", choices=("ema", "model", "both"), default="both", help="default: both")
    parser.add_argument("--size", type=int, help="pixels of the square that the model sees (default: the recipe's)")
    parser.add_argument("--resize", type=int, help="pixels of the short side before cropping (default: in proportion)")
    parser.add_argument("--flip", action="store_true", help="mean of the logits of each image and its mirror image")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="for the summary and its tables")
    parser.add_argument("--batch-size", type=int, default=64, help="images a step and process (default: 64)")
    parser.add_argument("--backend", choices=[name for name in BACKENDS if name != "synthetic"], default="dali")
    parser.add_argument("--placement", default="auto", help="where images are decoded: auto, cpu or gpu")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    return parser.parse_args()


def main() -> None:
    """Evaluate; print one JSON object from rank 0."""
    arguments = parse_arguments()
    watch_launcher()
    with join_world(arguments.device) as world:
        # Of a run in progress every process could find another checkpoint to be the newest: rank 0's holds for all.
        path, meta = resolve_on_rank_0(lambda: find_newest(arguments.checkpoint), world)
        recipe = Recipe.from_dict(meta["recipe"])
        recipe = replace(recipe, evaluation=choose_transform(recipe.evaluation, arguments.size, arguments.resize))
        whole = Split(arguments.data or recipe.data.root, arguments.split or recipe.data.validation)
        split = select(whole, classes=recipe.data.classes)
        make_folder(arguments.out)
        # The sides decode with small differences: rank 0's choice holds for all, and stands in the results.
        placement = agree_on_placement(LoaderConfig(arguments.backend, placement=arguments.placement), world)
        outcomes = evaluate_checkpoint(path, recipe, split, arguments, placement, world)
        if world.rank == 0:
            facts = {"checkpoint": str(path), "clock": meta["clock"], "files": meta["files"]} | placement.to_dict()
            summary = {**facts, **describe(recipe, split, arguments, world), **summarise(outcomes)}
            if arguments.out is not None:
                write_files(arguments.out, split, outcomes, summary)
            print(json.dumps(summary, indent=1))


def find_newest(path: Path) -> tuple[Path, dict[str, Any]]:
    """Return the checkpoint that is meant, and its meta.json."""
    checkpoint = find_checkpoint(path)
    return checkpoint, read_meta(checkpoint)


def choose_transform(usual: EvalTransform, size: int | None, resize: int | None) -> EvalTransform:
    """The recipe's evaluation transform or another; the share that the crop takes stays unless both are given."""
    size = size or usual.size
    return EvalTransform(size, resize or size * usual.resize // usual.size)


def make_folder(path: Path | None) -> None:
    """Raises InputError where the results could not be written, before they are computed."""
    try:
        if path is not None:
            path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{path} cannot be made a folder ({error.strerror}): choose another --out") from error


def evaluate_checkpoint(
    path: Path, recipe: Recipe, split: Split, arguments: argparse.Namespace, placement: Choice, world: World
) -> dict[str, Outcomes]:
    """What the chosen models of a checkpoint say of each image of a split: on rank 0, nothing elsewhere."""
    set_precision(recipe.speed)
    check_amp(recipe, world.device)
    models = restore(path, recipe, len(split.class_names), world.device)
    if arguments.model != "both":
        models = {arguments.model: models[arguments.model]}
    if arguments.flip:
        models = {name: Mirrored(model) for name, model in models.items()}
    loader = build_loader(split, recipe.evaluation, arguments.batch_size * world.size, world, config=placement)
    normalize = Normalize(recipe.model.mean, recipe.model.std).to(world.device)
    verdicts_SC = judge_images(models, normalize, loader, autocast(recipe, world.device), world)
    return {} if verdicts_SC is None else to_outcomes(list(models), verdicts_SC.cpu().numpy(), split.column("label"))


def describe(recipe: Recipe, split: Split, arguments: argparse.Namespace, world: World) -> dict[str, Any]:
    """What was evaluated, and how."""
    source = split.manifest.source
    return {
        "data": {"source": source.name, "revision": source.revision, "split": split.folder.name},
        "size": recipe.evaluation.size,
        "resize": recipe.evaluation.resize,
        "flip": arguments.flip,
        "backend": arguments.backend,
        "amp": recipe.amp,
        "num_processes": world.size,
    }


def summarise(outcomes: Mapping[str, Outcomes]) -> dict[str, dict[str, float]]:
    """The figures of each model."""
    return {
        name: {**each.scores().to_dict(), "ece_percent": expected_calibration_error(each.bins())}
        for name, each in outcomes.items()
    }


if __name__ == "__main__":
    run(main)
