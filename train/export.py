"""`python train/export.py CHECKPOINT --out DIR [--scores FILE]`: export a checkpoint's weights for timm and the hub.

DIR/  model.safetensors  config.json   loaded by `timm.create_model("local-dir:DIR", pretrained=True)`; with
                                       --model.blur-first by the lines in README.md
      README.md                        the model card
      artifact.json                    for servers: accuracy, preprocessing, class names, golden logits
CHECKPOINT is a run folder (its newest complete checkpoint is used) or one checkpoint's folder.
"""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prep.errors import InputError, run
from prep.files import sha256_of_file, write_folder
from prep.weights import check_finite
from train.config import Recipe

if TYPE_CHECKING:
    from torch import nn

    from train.artifact import Provenance

# Torch and timm are imported inside the functions that need them, so that --help and a wrong flag are answered at once.

WEIGHTS, CONFIG, CARD, ARTIFACT = "model.safetensors", "config.json", "README.md", "artifact.json"


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="train/export.py", description=__doc__)
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="new, empty or an earlier export")
    parser.add_argument("--model", choices=("ema", "model"), default="ema", help="which weights (default: ema)")
    parser.add_argument("--scores", type=Path, metavar="FILE", help="scores.json of train/evaluate.py")
    parser.add_argument("--data", help="prepared dataset, folder or URL (default: the one it was trained on, if here)")
    return parser.parse_args()


def main() -> None:
    """Export; print the folder and what is missing in it."""
    arguments = parse_arguments()

    import torch  # noqa: PLC0415

    from train.artifact import FILES, trace  # noqa: PLC0415
    from train.checkpoint import find_checkpoint, read_meta, restore_models  # noqa: PLC0415

    # Find the checkpoint and what is known about it.
    out = arguments.out.absolute()
    replaces = check_out(out)
    path = find_checkpoint(arguments.checkpoint)
    meta = read_meta(path)
    recipe = Recipe.from_dict(meta["recipe"])
    num_classes = count_classes(path, recipe)
    facts = trace(meta, arguments.model, num_classes, arguments.data, arguments.scores)

    # Load the weights and write the export.
    model = restore_models(path, recipe, num_classes, torch.device("cpu"))[arguments.model]
    check_finite(model.state_dict(), path / FILES[arguments.model])
    write_export(out, model.to(memory_format=torch.contiguous_format).eval(), facts)  # pyright: ignore[reportCallIssue]
    print(f"{arguments.model} of {path}: {arguments.out}{' (the earlier export was replaced)' if replaces else ''}")
    if facts.class_names is None:
        print(f"without class names and source: {recipe.data.root} is not here; --data gives another path")
    if facts.accuracy is None:
        print("without accuracy: this checkpoint was not evaluated; --scores FILE adds results of train/evaluate.py")


def check_out(out: Path) -> bool:
    """Return True if `out` holds an earlier export.

    Raises:
        InputError: it holds something else, which must not be deleted.
    """
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise InputError(f"{out} is not a folder: choose another --out")
    found = {path.name for path in out.iterdir()} if out.exists() else set()
    others = found - {WEIGHTS, CONFIG, CARD, ARTIFACT} if ARTIFACT in found else found
    if others:
        raise InputError(f"{out} holds {min(others)}, which is not part of an earlier export: choose another --out")
    return bool(found)


def count_classes(path: Path, recipe: Recipe) -> int:
    """Return the number of classes of a checkpoint's classifier."""
    from safetensors import safe_open  # noqa: PLC0415
    from timm.models import get_pretrained_cfg  # noqa: PLC0415

    from train.artifact import FILES  # noqa: PLC0415

    config = get_pretrained_cfg(recipe.model.name)
    classifier = config.classifier if config else None
    first = classifier if isinstance(classifier, str) else next(iter(classifier or ()), "fc")
    with safe_open(path / FILES["ema"], "pt") as weights:
        return weights.get_slice(f"{first}.weight").get_shape()[0]


def write_export(out: Path, model: "nn.Module", facts: "Provenance") -> None:
    """Write all files, check that they load; `out` appears, or is replaced, only when all of that succeeded."""
    from timm.models import save_for_hf  # noqa: PLC0415

    from train.artifact import describe_for_servers, describe_for_timm, list_model_args  # noqa: PLC0415
    from train.card import write_card  # noqa: PLC0415

    model.pretrained_cfg = describe_for_timm(model, facts.recipe)  # pyright: ignore[reportArgumentType]
    names = {"label_names": list(facts.class_names)} if facts.class_names else {}
    with write_folder(out) as partial:
        arguments = list_model_args(facts.recipe)
        save_for_hf(model, str(partial), model_config=names, model_args=arguments, safe_serialization=True)
        # safetensors makes its file readable by the owner alone.
        (partial / WEIGHTS).chmod((partial / CONFIG).stat().st_mode)
        check_loads(partial, model, facts.recipe)
        artifact = describe_for_servers(model, facts, sha256_of_file(partial / WEIGHTS))
        (partial / ARTIFACT).write_text(json.dumps(artifact, indent=1) + "\n")
        (partial / CARD).write_text(write_card(facts))


def check_loads(folder: Path, model: "nn.Module", recipe: Recipe) -> None:
    """Check that the model that timm loads from the folder, or that we load if it blurs, computes the same bits."""
    import timm  # noqa: PLC0415
    import torch  # noqa: PLC0415
    from safetensors.torch import load_file  # noqa: PLC0415

    from train.artifact import golden_logits  # noqa: PLC0415
    from train.model import build_model  # noqa: PLC0415

    if recipe.model.blur_first:
        num_classes: Any = model.num_classes
        loaded = build_model(recipe.model, num_classes, torch.device("cpu"), recipe.image_sizes())
        loaded.to(memory_format=torch.contiguous_format).load_state_dict(load_file(folder / WEIGHTS), strict=True)
    else:
        loaded = timm.create_model(f"local-dir:{folder}", pretrained=True)
    loaded.eval()
    assert torch.equal(golden_logits(loaded, recipe), golden_logits(model, recipe)), f"{folder} loads as another model"


if __name__ == "__main__":
    run(main)
