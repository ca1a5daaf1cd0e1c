"""`python train/export.py CHECKPOINT --out DIR [--onnx] [--torch-export]`: export a checkpoint for timm and the hub.

DIR/  model.safetensors  config.json   loaded by `timm.create_model("local-dir:DIR", pretrained=True)`; with
                                       --model.blur-first by the lines in README.md
      README.md                        the model card
      artifact.json                    for servers: accuracy, preprocessing, class names, golden logits
      model.onnx                       with --onnx: for ONNX Runtime, TensorRT, OpenVINO and others, without PyTorch
      model.pt2                        with --torch-export: loaded by `torch.export.load`, without timm
CHECKPOINT is a run folder (its newest complete checkpoint is used) or one checkpoint's folder.
"""

import argparse
import json
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prep.errors import InputError, run
from prep.files import sha256_of_file, write_folder
from prep.weights import check_finite
from train.config import Recipe

if TYPE_CHECKING:
    from torch import nn

    from train.artifact import Provenance
    from train.portable import Kind, PortableFile
    from train.real_images import RealImages

# Torch and timm are imported inside the functions that need them, so that --help and a wrong flag are answered at once.

WEIGHTS, CONFIG, CARD, ARTIFACT = "model.safetensors", "config.json", "README.md", "artifact.json"
CARD_SHA256 = "card_sha256"  # key in ARTIFACT
PORTABLE: "dict[Kind, str]" = {
    "onnx": "model.onnx",
    "torch_export": "model.pt2",
}  # written on request, by key in ARTIFACT


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="train/export.py", description=__doc__)
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="new, empty or an earlier export")
    parser.add_argument("--model", choices=("ema", "model"), default="ema", help="which weights (default: ema)")
    parser.add_argument("--scores", type=Path, metavar="FILE", help="scores.json of train/evaluate.py")
    parser.add_argument("--data", help="prepared dataset, folder or URL (default: the one it was trained on, if here)")
    parser.add_argument("--onnx", action="store_true", help="also write model.onnx, compared on real images")
    parser.add_argument("--torch-export", action="store_true", help="also write model.pt2, compared on real images")
    return parser.parse_args()


def main() -> None:
    """Export; print the folder, what was compared, and what is missing."""
    arguments = parse_arguments()
    kinds: dict[Kind, str] = {kind: name for kind, name in PORTABLE.items() if getattr(arguments, kind)}
    out = arguments.out.absolute()
    replaces, earlier = check_out(out), list_portable(out)
    removed: list[Kind] = [kind for kind, name in PORTABLE.items() if kind not in kinds and name in earlier]
    if "onnx" in kinds:
        import_onnx()

    import torch  # noqa: PLC0415

    from train.artifact import FILES, describe_for_timm, trace  # noqa: PLC0415
    from train.checkpoint import find_checkpoint, read_meta, restore_models  # noqa: PLC0415
    from train.real_images import read_real_images  # noqa: PLC0415

    # Find the checkpoint and what is known about it.
    path = find_checkpoint(arguments.checkpoint)
    meta = read_meta(path)
    recipe = Recipe.from_dict(meta["recipe"])
    num_classes = count_classes(path, recipe)
    facts = trace(meta, arguments.model, num_classes, arguments.data, arguments.scores)

    # Load the weights and write the export.
    model = restore_models(path, recipe, num_classes, torch.device("cpu"))[arguments.model]
    check_finite(model.state_dict(), path / FILES[arguments.model])
    model = model.to(memory_format=torch.contiguous_format).eval()  # pyright: ignore[reportCallIssue]
    config = describe_for_timm(model, recipe)
    model.pretrained_cfg = config  # pyright: ignore[reportArgumentType]
    images = read_real_images(recipe, config, arguments.data) if kinds else None
    portable = write_export(out, model, facts, kinds, images)

    # Say what was written and what is missing.
    print(f"{arguments.model} of {path}: {arguments.out}{' (the earlier export was replaced)' if replaces else ''}")
    for kind in removed:
        print(f"{PORTABLE[kind]} of the earlier export was removed: --{kind.replace('_', '-')} writes it again")
    for file in portable:
        print(file.describe_comparison())
    if images is not None and images.note:
        print(images.note)
    if facts.class_names is None:
        print(f"without class names and source: {recipe.data.root} is not here; --data gives another path")
    if facts.accuracy is None:
        print("without accuracy: this checkpoint was not evaluated; --scores FILE adds results of train/evaluate.py")


def import_onnx() -> None:
    """Import what ONNX needs besides torch, before anything slow; raise ModuleNotFoundError if a package is missing."""
    for name in ("onnx", "onnxscript", "onnxruntime"):
        import_module(name)


def check_out(out: Path) -> bool:
    """Return True if `out` holds an earlier export.

    Raises:
        InputError: it holds something else, which must not be deleted.
    """
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise InputError(f"{out} is not a folder: choose another --out")
    found = {path.name for path in out.iterdir()} if out.exists() else set()
    others = found - {WEIGHTS, CONFIG, CARD, ARTIFACT, *list_portable(out)} if ARTIFACT in found else found
    if others:
        raise InputError(f"{out} holds {min(others)}, which is not part of an earlier export: choose another --out")
    card_sha256 = read_artifact(out).get(CARD_SHA256)  # exports of earlier versions do not record it
    if CARD in found and card_sha256 not in (None, sha256_of_file(out / CARD)):
        raise InputError(f"{out / CARD} was changed since it was exported: choose another --out, or move the file away")
    return bool(found)


def read_artifact(folder: Path) -> dict[str, Any]:
    """Return the content of artifact.json in an earlier export; empty if it cannot be read."""
    try:
        return dict(json.loads((folder / ARTIFACT).read_bytes()))
    except (OSError, ValueError, TypeError):
        return {}


def list_portable(folder: Path) -> list[str]:
    """Return the names of files of PORTABLE in an earlier export, as it wrote them.

    A file of such a name that artifact.json does not record is the user's own, made with another tool.
    """
    artifact = read_artifact(folder)
    try:
        recorded = {kind: artifact[kind]["sha256"] for kind in PORTABLE if artifact.get(kind)}
    except (TypeError, KeyError):
        return []
    paths = {kind: folder / name for kind, name in PORTABLE.items() if (folder / name).is_file()}
    return [path.name for kind, path in paths.items() if recorded.get(kind) == sha256_of_file(path)]


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


def write_export(
    out: Path, model: "nn.Module", facts: "Provenance", kinds: "Mapping[Kind, str]", images: "RealImages | None"
) -> "list[PortableFile]":
    """Write all files, check that they load; `out` appears, or is replaced, only when all of that succeeded.

    Args:
        model: with the export's `pretrained_cfg`.
        kinds: the files of PORTABLE to write.
        images: to compare these files with the model; None if there are no such files.

    Returns:
        What is known about these files.
    """
    from timm.models import save_for_hf  # noqa: PLC0415

    from train.artifact import (  # noqa: PLC0415
        describe_for_runtimes,
        describe_for_servers,
        describe_labels,
        list_model_args,
    )
    from train.card import write_card  # noqa: PLC0415
    from train.portable import write_portable  # noqa: PLC0415

    with write_folder(out) as partial:
        # For timm.
        arguments, labels = list_model_args(facts.recipe), describe_labels(facts.class_names)
        save_for_hf(model, str(partial), model_config=labels, model_args=arguments, safe_serialization=True)
        # safetensors makes its file readable by the owner alone.
        (partial / WEIGHTS).chmod((partial / CONFIG).stat().st_mode)
        check_loads(partial, model, facts.recipe)
        weights_sha256 = sha256_of_file(partial / WEIGHTS)

        # For other runtimes.
        portable: dict[Kind, PortableFile] = {}
        if images is not None:
            portable = write_portable(partial, kinds, model, images, describe_for_runtimes(facts, weights_sha256))

        # For servers and readers.
        (partial / CARD).write_text(write_card(facts, portable), encoding="utf-8")
        artifact = describe_for_servers(model, facts, weights_sha256, portable)
        artifact[CARD_SHA256] = sha256_of_file(partial / CARD)
        (partial / ARTIFACT).write_text(json.dumps(artifact, indent=1) + "\n")

        # Check again, because `out` may have got other files since.
        check_out(out)
    return list(portable.values())


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
