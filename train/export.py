"""`python train/export.py CHECKPOINT --out DIR [--scores FILE]`: a checkpoint's weights as timm and the hub take them.

DIR/  model.safetensors  config.json   what `timm.create_model("local-dir:DIR", pretrained=True)` loads
      README.md                        the model card
      artifact.json                    what a server needs beside: accuracy, preprocessing, class names, golden logits
CHECKPOINT is a run folder (its newest whole checkpoint is taken) or one checkpoint's folder.
"""

import argparse
import json
from pathlib import Path

import timm
import torch
from safetensors import safe_open
from timm.models import get_pretrained_cfg, save_for_hf
from torch import nn

from prep.errors import InputError, run
from prep.files import sha256_of_file, write_folder
from train.artifact import describe_for_servers, describe_for_timm, golden_logits
from train.card import write_card
from train.checkpoint import read_meta
from train.config import Recipe
from train.measured import FILES
from train.provenance import Provenance, trace
from train.restore import find_checkpoint, restore

WEIGHTS, CONFIG, CARD, ARTIFACT = "model.safetensors", "config.json", "README.md", "artifact.json"


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="train/export.py", description=__doc__)
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="new, empty or an earlier export")
    parser.add_argument("--model", choices=list(FILES), default="ema", help="which weights (default: ema)")
    parser.add_argument("--scores", type=Path, metavar="FILE", help="scores.json of train/evaluate.py")
    parser.add_argument(
        "--data", type=Path, help="prepared dataset (default: the one it was trained on, if it is here)"
    )
    return parser.parse_args()


def main() -> None:
    """Export; say where, and what was not known."""
    arguments = parse_arguments()
    out = arguments.out.absolute()
    replaces = check_out(out)
    path = find_checkpoint(arguments.checkpoint)
    meta = read_meta(path)
    recipe = Recipe.from_dict(meta["recipe"])
    num_classes = count_classes(path, recipe)
    facts = trace(meta, arguments.model, num_classes, arguments.data, arguments.scores)
    model = restore(path, recipe, num_classes, torch.device("cpu"))[arguments.model]
    check_finite(model, path / FILES[arguments.model])
    write_export(out, model.to(memory_format=torch.contiguous_format).eval(), facts)  # pyright: ignore[reportCallIssue]
    print(f"{arguments.model} of {path}: {arguments.out}{' (the earlier export was replaced)' if replaces else ''}")
    if facts.class_names is None:
        print(f"without class names and source: {recipe.data.root} is not here, --data DIR gives another place")
    if facts.accuracy is None:
        print("without accuracy: this checkpoint was not evaluated, --scores FILE takes what train/evaluate.py finds")


def check_out(out: Path) -> bool:
    """Whether there is an earlier export.

    Raises:
        InputError: there is something else, which must not be deleted.
    """
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise InputError(f"{out} is no folder: choose another --out")
    found = {path.name for path in out.iterdir()} if out.exists() else set()
    others = found - {WEIGHTS, CONFIG, CARD, ARTIFACT} if ARTIFACT in found else found
    if others:
        raise InputError(f"{out} holds {min(others)}, which is no part of an earlier export: choose another --out")
    return bool(found)


def count_classes(path: Path, recipe: Recipe) -> int:
    """The number of classes that a checkpoint's weights tell apart."""
    config = get_pretrained_cfg(recipe.model.name)
    classifier = config.classifier if config else None
    first = classifier if isinstance(classifier, str) else next(iter(classifier or ()), "fc")
    with safe_open(path / FILES["ema"], "pt") as weights:
        return weights.get_slice(f"{first}.weight").get_shape()[0]


def check_finite(model: nn.Module, path: Path) -> None:
    """Raises InputError where a weight or a running statistic is infinite or no number."""
    for name, tensor in model.state_dict().items():
        if not tensor.isfinite().all():
            raise InputError(f"{path}: {name} is not finite, so neither is what it computes: take another checkpoint")


def write_export(out: Path, model: nn.Module, facts: Provenance) -> None:
    """Write all files beside `out`, see that timm loads them, and give the folder its name."""
    model.pretrained_cfg = describe_for_timm(model, facts.recipe)  # pyright: ignore[reportArgumentType]
    names = {"label_names": list(facts.class_names)} if facts.class_names else {}
    with write_folder(out) as partial:
        save_for_hf(model, str(partial), model_config=names, safe_serialization=True)
        (partial / WEIGHTS).chmod((partial / CONFIG).stat().st_mode)  # safetensors makes it readable by its owner alone
        check_loads(partial, model, facts.recipe)
        artifact = describe_for_servers(model, facts, sha256_of_file(partial / WEIGHTS))
        (partial / ARTIFACT).write_text(json.dumps(artifact, indent=1) + "\n")
        (partial / CARD).write_text(write_card(facts))


def check_loads(folder: Path, model: nn.Module, recipe: Recipe) -> None:
    """What timm makes of the folder computes the same bits."""
    loaded = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    assert torch.equal(golden_logits(loaded, recipe), golden_logits(model, recipe)), f"{folder} loads as another model"


if __name__ == "__main__":
    run(main)
