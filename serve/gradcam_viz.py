"""`python serve/gradcam_viz.py --checkpoint_path PATH --validation_img_path DIR`: a gallery of a model's mistakes.

PATH is a folder written by train/export.py, or a file of weights of timm or torch (.pth, .pth.tar, .safetensors; then
--model names the network). DIR is a split of shards, a folder with one folder of images per class, or the val/ folder
of tiny-imagenet-200. The accuracy is measured first. Nothing is drawn for a model that is not better than chance, or
not as good as its artifact records.
"""

# ruff: noqa: PLC0415 - torch and matplotlib take seconds to import, so `main` does it after the flags were parsed

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from prep.errors import InputError, positive_count, run
from serve import DEFAULT_ARCHITECTURE
from serve.selection import ORDERS, Choice

if TYPE_CHECKING:
    from serve.artifact import Served
    from serve.pictures import Source

BARE_FLAGS = ("model", "size", "resize")  # an artifact records these


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="serve/gradcam_viz.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--checkpoint_path", type=Path, required=True, metavar="PATH", help="an exported artifact, or weights")
    add("--validation_img_path", type=Path, required=True, metavar="DIR", help="labelled images")
    add(
        "--output_path",
        type=Path,
        default=Path("output/gradcam_comparison.png"),
        metavar="PNG",
        help="file to write (default: output/gradcam_comparison.png)",
    )
    add("--num_classes", type=positive_count, help="of the model (default: the artifact's; 1000 for bare weights)")
    add("--num_show", type=positive_count, default=20, help="rows (default: 20)")
    add("--select", choices=ORDERS, default="confidence", help="which rows come first (default: confidence)")
    add("--all", action="store_true", help="after the mistakes, also show right predictions")
    add("--true_class", metavar="CLASS", help="show only images of this class: its name or number")
    add("--predicted_class", metavar="CLASS", help="show only images predicted as this class")
    add("--limit", type=positive_count, metavar="N", help="measure on N images drawn at random (default: all)")
    add("--seed", type=int, default=0, help="for everything that is drawn at random (default: 0)")
    add("--anyway", action="store_true", help="draw a model that fails the check, with the warning in the picture")
    add("--model", help=f"architecture of bare weights (default: {DEFAULT_ARCHITECTURE})")
    add("--size", type=positive_count, help="pixels of the square that bare weights see (default: 224)")
    add("--resize", type=positive_count, help="pixels of the short side before cropping (default: 8/7 of --size)")
    return parser.parse_args()


def main() -> None:
    """Measure the model; draw the gallery, or refuse to."""
    arguments = parse_arguments()
    import torch

    from serve.accuracy_check import find_doubts
    from serve.cam import GradCam
    from serve.gallery import draw_gallery, make_caption, make_rows
    from serve.image_sources import open_images
    from serve.predict import choose_rows, count_hits, predict_rows
    from serve.selection import select_predictions

    # Load the model and open the pictures; all flags are checked before the model runs.
    served = load_model(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    served.model.to(device)
    source = open_images(arguments.validation_img_path, served.num_classes, served.class_names)
    choice = make_choice(arguments, source)
    cam = GradCam(served.model, served.preprocessing.crop)

    # Measure the accuracy, and refuse to draw a model that fails the check.
    predictions = predict_rows(served, source, choose_rows(source.num_images, arguments.limit, arguments.seed))
    doubts = find_doubts(count_hits(predictions), served.num_classes, served.recorded)
    if doubts and not arguments.anyway:
        raise InputError(f"nothing was drawn: {'; '.join(doubts)}; --anyway draws it with this warning")

    # Draw the chosen rows under the measured accuracy.
    rows = make_rows(served, source, cam, select_predictions(predictions, choice))
    caption = make_caption(served, source, predictions, doubts, cam)
    arguments.output_path.parent.mkdir(parents=True, exist_ok=True)
    draw_gallery(rows, source.class_names, caption).save(arguments.output_path, format="PNG")
    for line in (*caption.figures, *(f"warning: {doubt}" for doubt in doubts)):
        print(line, file=sys.stderr if line.startswith("warning") else sys.stdout)
    print(f"{len(rows)} images: {arguments.output_path}")


def load_model(arguments: argparse.Namespace) -> Served:
    """Return the model of the command line.

    Raises:
        InputError: the artifact or the weights are invalid, or a flag contradicts the artifact.
    """
    from serve.artifact import load_artifact, load_bare
    from serve.preprocess import Preprocessing

    path: Path = arguments.checkpoint_path
    if not path.is_dir():
        size = arguments.size or 224
        preprocessing = Preprocessing(arguments.resize or size * 8 // 7, size)
        return load_bare(path, arguments.model or DEFAULT_ARCHITECTURE, arguments.num_classes or 1000, preprocessing)
    given = [f"--{name}" for name in BARE_FLAGS if getattr(arguments, name) is not None]
    served = load_artifact(path)
    if given:
        raise InputError(f"{path} already records {', '.join(given)}: remove the flag{'s' * (len(given) > 1)}")
    if arguments.num_classes not in (None, served.num_classes):
        raise InputError(f"{path} has {served.num_classes:,} classes: remove --num_classes")
    return served


def make_choice(arguments: argparse.Namespace, source: Source) -> Choice:
    """Return which predictions to show; the names of classes become labels."""
    from serve.class_names import find_class

    words = (arguments.true_class, arguments.predicted_class)
    true, predicted = (None if word is None else find_class(word, source.class_names) for word in words)
    return Choice(arguments.num_show, arguments.select, arguments.all, true, predicted, arguments.seed)


if __name__ == "__main__":
    run(main, interrupted="nothing was written")
