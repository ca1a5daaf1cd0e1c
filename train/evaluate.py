"""`torchrun train/evaluate.py CHECKPOINT --data DIR`: exact top-1, top-5 and loss of a model and its EMA.

CHECKPOINT is a run folder (its newest whole checkpoint is taken) or one checkpoint's folder.
"""

import argparse
import copy
import json
from pathlib import Path

from loaders import InputError, LoaderConfig, Split, World, build_loader, select
from loaders.backends import BACKENDS
from loaders.normalize import Normalize
from train.checkpoint import META, find_fault, load_weights, newest_whole, read_meta
from train.command import exit_with
from train.dist import join_world
from train.model import build_model
from train.recipe import Recipe
from train.run_folder import CHECKPOINTS
from train.step import autocast
from train.validate import Scores, validate


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="train/evaluate.py", description=__doc__)
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT")
    parser.add_argument("--data", type=Path, help="prepared dataset (default: the one it was trained on)")
    parser.add_argument("--split", help="default: the recipe's validation split")
    parser.add_argument("--batch-size", type=int, default=64, help="images a step and process (default: 64)")
    parser.add_argument("--backend", choices=list(BACKENDS), default="dali")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    return parser.parse_args()


def main() -> None:
    """Evaluate and print one JSON object from rank 0."""
    arguments = parse_arguments()
    path = find_checkpoint(arguments.checkpoint)
    recipe = Recipe.from_dict(read_meta(path)["recipe"])
    whole = Split(arguments.data or recipe.data.root, arguments.split or recipe.data.validation)
    split = select(whole, classes=recipe.data.classes)
    with join_world(arguments.device) as world:
        scores = evaluate_checkpoint(path, recipe, split, arguments, world)
        if world.rank == 0:
            figures = {name: sums.to_dict() for name, sums in scores.items()}
            print(json.dumps({"checkpoint": str(path), "num_processes": world.size, **figures}, indent=1))


def find_checkpoint(path: Path) -> Path:
    """The checkpoint that a user means by a run folder or a checkpoint's own folder.

    Raises:
        InputError: there is none, or it is damaged.
    """
    if (path / META).exists():
        if fault := find_fault(path):
            raise InputError(f"{path} is damaged ({fault}): take another checkpoint")
        return path
    newest, _ = newest_whole(path / CHECKPOINTS)
    if newest is None:
        raise InputError(
            f"{path} holds no whole checkpoint: give a run folder of train/main.py or one of its step_ folders"
        )
    return newest


def evaluate_checkpoint(
    path: Path, recipe: Recipe, split: Split, arguments: argparse.Namespace, world: World
) -> dict[str, Scores]:
    """Scores of a checkpoint's model and EMA on a split."""
    model = build_model(recipe.model, len(split.class_names), world.device)
    models = {"model": model, "ema": copy.deepcopy(model)}
    load_weights(path, models["model"], models["ema"])
    config = LoaderConfig(backend=arguments.backend)
    loader = build_loader(split, recipe.evaluation, arguments.batch_size * world.size, world, config=config)
    normalize = Normalize(recipe.model.mean, recipe.model.std).to(world.device)
    return validate(models, normalize, loader, autocast(recipe, world.device), world)


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        exit_with(error)
