"""`torchrun train/evaluate.py CHECKPOINT --data DIR [--out FOLDER]`: the exact accuracy of a model and its EMA.

CHECKPOINT is a run folder (its newest complete checkpoint is used) or one checkpoint's folder. A summary is printed;
with --out it is also written, with tables of the images, classes, confusions and calibration (docs/evaluating.md).
"""

import argparse
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loaders.config import parse_root
from loaders.plan import EvalTransform
from prep.calibration import expected_calibration_error
from prep.errors import InputError, run
from train.config import DataConfig, Recipe

if TYPE_CHECKING:
    from loaders import Split, World
    from loaders.placement import Choice
    from train.predictions import Predictions

# Torch and DALI are imported inside the functions that need them, so that --help and a wrong flag are answered at once.

BACKENDS = ("dali", "reference")  # loaders.backends.BACKENDS without `synthetic`, which shows other images


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="train/evaluate.py", description=__doc__)
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT")
    parser.add_argument("--data", help="prepared dataset: a folder, or a URL (default: the one it was trained on)")
    parser.add_argument(
        "--cache", default="", metavar="DIR", help="of a dataset in a bucket, as --data.cache in training"
    )
    parser.add_argument("--split", help="default: the recipe's validation split")
    parser.add_argument("--model", choices=("ema", "model", "both"), default="both", help="default: both")
    parser.add_argument("--size", type=int, help="pixels of the square that the model sees (default: the recipe's)")
    parser.add_argument("--resize", type=int, help="pixels of the short side before cropping (default: in proportion)")
    parser.add_argument("--flip", action="store_true", help="mean of the logits of each image and its mirror image")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="folder for the summary and its tables")
    parser.add_argument("--batch-size", type=int, default=64, help="images per step and process (default: 64)")
    parser.add_argument("--backend", choices=BACKENDS, default="dali")
    parser.add_argument("--placement", default="auto", help="where images are decoded: auto, cpu or gpu")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    return parser.parse_args()


def main() -> None:
    """Evaluate; print one JSON object on rank 0."""
    arguments = parse_arguments()

    from loaders import LoaderConfig, open_splits, select  # noqa: PLC0415
    from train.dist import join_world, resolve_on_rank0  # noqa: PLC0415
    from train.loader_settings import agree_on_placement  # noqa: PLC0415
    from train.predictions import write_tables  # noqa: PLC0415
    from train.preemption import watch_launcher  # noqa: PLC0415

    watch_launcher()
    with join_world(arguments.device) as world:
        # Find the checkpoint. During a run each process could find another newest one, so all use rank 0's.
        path, meta = resolve_on_rank0(lambda: find_newest(arguments.checkpoint), world)
        recipe = Recipe.from_dict(meta["recipe"])
        recipe = replace(recipe, evaluation=choose_transform(recipe.evaluation, arguments.size, arguments.resize))

        # Open the split, and check that the results can be written.
        root, cache = find_data(recipe.data, arguments.data, arguments.cache)
        (complete_split,) = open_splits(root, [arguments.split or recipe.data.validation], cache, world)
        split = select(complete_split, classes=recipe.data.classes)
        make_folder(arguments.out)

        # Evaluate. CPU and GPU decode with small differences, so rank 0's choice applies to all and is recorded.
        placement = agree_on_placement(LoaderConfig(arguments.backend, placement=arguments.placement), world)
        predictions = evaluate_checkpoint(path, recipe, split, arguments, placement, world)

        # Write and print the results.
        if world.rank == 0:
            facts = {"checkpoint": str(path), "clock": meta["clock"], "files": meta["files"]} | placement.to_dict()
            summary = {**facts, **describe_evaluation(recipe, split, arguments, world), **summarize(predictions)}
            if arguments.out is not None:
                write_tables(arguments.out, split, predictions, summary)
            print(json.dumps(summary, indent=1))


def find_data(usual: DataConfig, data: str | None, cache: str) -> tuple[str | Path, str]:
    """Return the dataset and its cache: as given, else those of the training."""
    if data is None:
        return usual.root, cache or usual.cache
    root = parse_root(data)
    return root, cache or (usual.cache if root == usual.root else "")


def find_newest(path: Path) -> tuple[Path, dict[str, Any]]:
    """Return the checkpoint that a user means by a path, and its meta.json."""
    from train.checkpoint import find_checkpoint, read_meta  # noqa: PLC0415

    checkpoint = find_checkpoint(path)
    return checkpoint, read_meta(checkpoint)


def choose_transform(usual: EvalTransform, size: int | None, resize: int | None) -> EvalTransform:
    """Return the recipe's evaluation transform, or one of another size; without `resize` the crop's share is kept."""
    size = size or usual.size
    return EvalTransform(size, resize or size * usual.resize // usual.size)


def make_folder(path: Path | None) -> None:
    """Create the folder for the results before they are computed; raise InputError if that is impossible."""
    try:
        if path is not None:
            path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{path} cannot be created as a folder ({error.strerror}): choose another --out") from error


def evaluate_checkpoint(
    path: Path, recipe: Recipe, split: "Split", arguments: argparse.Namespace, placement: "Choice", world: "World"
) -> "dict[str, Predictions]":
    """Return the chosen models' predictions for a split on rank 0, nothing on other ranks."""
    from loaders import build_loader  # noqa: PLC0415
    from loaders.batch import Normalize  # noqa: PLC0415
    from train.checkpoint import restore_models  # noqa: PLC0415
    from train.compile import set_precision  # noqa: PLC0415
    from train.predictions import to_predictions  # noqa: PLC0415
    from train.step import autocast, check_amp  # noqa: PLC0415
    from train.validate import Mirrored, collect_predictions  # noqa: PLC0415

    # The models.
    set_precision(recipe.speed)
    check_amp(recipe, world.device)
    models = restore_models(path, recipe, len(split.class_names), world.device)
    if arguments.model != "both":
        models = {arguments.model: models[arguments.model]}
    if arguments.flip:
        models = {name: Mirrored(model) for name, model in models.items()}

    # One pass over the data.
    loader = build_loader(split, recipe.evaluation, arguments.batch_size * world.size, world, config=placement)
    normalize = Normalize(recipe.model.mean, recipe.model.std).to(world.device)
    slots_SC = collect_predictions(models, normalize, loader, autocast(recipe, world.device), world)
    return {} if slots_SC is None else to_predictions(list(models), slots_SC.cpu().numpy(), split.column("label"))


def describe_evaluation(
    recipe: Recipe, split: "Split", arguments: argparse.Namespace, world: "World"
) -> dict[str, Any]:
    """Return the data and the settings of the evaluation."""
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


def summarize(predictions: "Mapping[str, Predictions]") -> dict[str, dict[str, float]]:
    """Return the figures of each model, by name."""
    return {
        name: {**each.scores().to_dict(), "ece_percent": expected_calibration_error(each.bins())}
        for name, each in predictions.items()
    }


if __name__ == "__main__":
    run(main)
