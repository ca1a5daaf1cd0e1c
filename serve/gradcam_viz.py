"""`python serve/gradcam_viz.py --checkpoint_path PATH --validation_img_path DIR`: a gallery of a model's mistakes.

PATH is a folder written by train/export.py, any trainer's file of weights (.pth, .pth.tar, .ckpt, .safetensors), or a
model on the hub, hf-hub:OWNER/NAME. DIR is a split of shards, a folder with one folder of images per class, or the val/
folder of tiny-imagenet-200. --output_path ends in .png, .jpg, .webp or .pdf; rows that do not fit into one picture go
into several. The accuracy is measured first. Nothing is drawn for a model that is not better than chance, or not as
good as its artifact records.
"""

# ruff: noqa: PLC0415 - torch and matplotlib take seconds to import, so `main` does it after the flags were parsed

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from prep.errors import InputError, positive_count, print_lines, run, seed_number, warn
from serve.class_names import add_match_flag
from serve.device import add_device_flag, choose_device
from serve.gallery_files import check_numbered, check_suffix, describe_left, write_gallery
from serve.map_methods import METHODS, make_map_maker
from serve.selection import ORDERS, Choice

if TYPE_CHECKING:
    from serve.artifact import Served
    from serve.pictures import Source


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="serve/gradcam_viz.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "--checkpoint_path",
        type=Path,
        required=True,
        metavar="PATH",
        help="exported artifact, weights of any trainer, or hf-hub:OWNER/NAME",
    )
    add("--validation_img_path", type=Path, required=True, metavar="DIR", help="labelled images")
    add(
        "--output_path",
        type=Path,
        default=Path("output/gradcam_comparison.png"),
        metavar="FILE",
        help="file to write (default: output/gradcam_comparison.png)",
    )
    add("--method", choices=METHODS, default="gradcam", help="of the maps (default: gradcam); docs/serving.md explains")
    add("--num_classes", type=positive_count, help="of the model (default: that of its weights)")
    add("--num_show", type=positive_count, default=20, help="rows (default: 20)")
    add("--select", choices=ORDERS, default="confidence", help="which rows come first (default: confidence)")
    add("--all", action="store_true", help="after the mistakes, also show right predictions")
    add("--true_class", metavar="CLASS", help="show only images of this class: its name or number")
    add("--predicted_class", metavar="CLASS", help="show only images predicted as this class")
    add("--limit", type=positive_count, metavar="N", help="measure on N images drawn at random (default: all)")
    add_match_flag(parser)
    add("--seed", type=seed_number, default=0, help="for everything that is drawn at random (default: 0)")
    add("--anyway", action="store_true", help="draw a model that fails the check, with the warning in the picture")
    add_bare_flags(parser)
    add("--workers", type=positive_count, metavar="N", help="threads that decode images (default: one per CPU)")
    add_device_flag(parser)
    return parser.parse_args()


def add_bare_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags for weights without an artifact."""
    group = parser.add_argument_group("weights without an artifact")
    add = group.add_argument
    add("--model", help="timm's name of the network (default: recognised by its tensors)")
    add("--weights", metavar="KEY", help="which weights of a checkpoint with several sets, e.g. model_ema")
    add("--size", type=positive_count, help="pixels of the square that the network sees (default: 224)")
    add("--resize", type=positive_count, help="pixels of the short side before cropping (default: 8/7 of --size)")
    add("--crop_pct", type=float, metavar="SHARE", help="--size as a share of the short side, instead of --resize")
    add("--mean", type=float, nargs=3, metavar=("R", "G", "B"), help="of the channels (default: ImageNet's)")
    add("--std", type=float, nargs=3, metavar=("R", "G", "B"), help="of the channels (default: ImageNet's)")
    add("--interpolation", choices=("bilinear", "bicubic"), help="of resizing (default: bilinear)")


def main() -> None:
    """Measure the model; draw the gallery, or refuse to."""
    arguments = parse_arguments()
    from serve.outputs import check_file

    # Find what cannot be written, and a device that is missing, before the model is loaded.
    check_file(arguments.output_path, "--output_path")
    check_suffix(arguments.output_path)
    check_numbered(arguments.output_path)
    device = choose_device(arguments.device)
    from serve.accuracy_check import find_source_doubts
    from serve.class_matching import Sample
    from serve.gallery import complete_caption, make_caption, make_rows
    from serve.image_sources import open_matched
    from serve.predict import choose_rows, count_hits, predict_rows
    from serve.selection import select_predictions

    # Load the model and open the pictures; all flags are checked before the model runs.
    served = load_model(arguments)
    served.model.to(device)
    sample = Sample(arguments.seed, arguments.limit, arguments.workers, show_progress=True)
    source = open_matched(served, arguments.validation_img_path, arguments.match, sample)
    choice = make_choice(arguments, source)
    cam = make_map_maker(arguments.method, served.model, served.preprocessing.crop)

    # Measure the accuracy, and refuse to draw a model that fails the check.
    chosen = choose_rows(source.num_images, arguments.limit, arguments.seed)
    predictions = predict_rows(served, source, chosen, workers=arguments.workers, show_progress=True)
    doubts = find_source_doubts(count_hits(predictions), served, source)
    if doubts and not arguments.anyway:
        raise InputError(f"nothing was drawn: {'; '.join(doubts)}; --anyway draws it with this warning")

    # Draw the chosen rows under the measured accuracy.
    rows = make_rows(served, source, cam, select_predictions(predictions, choice))
    caption = make_caption(served, source, predictions, doubts, cam)
    files = write_gallery(rows, source.class_names, caption, arguments.output_path)
    print_lines("\n".join(complete_caption(rows, source.class_names, caption).figures))
    for doubt in doubts:
        warn(doubt)
    print(f"{len(rows)} images: {', '.join(map(str, files))}")
    if left := describe_left(arguments.output_path, files):
        print(left)


def load_model(arguments: argparse.Namespace) -> Served:
    """Return the model of the command line.

    Raises:
        InputError: the artifact or the weights are invalid, or a flag contradicts them.
    """
    from serve.loading import BareOptions, load_served

    mean, std = (None if each is None else tuple(each) for each in (arguments.mean, arguments.std))
    bare = BareOptions(
        model=arguments.model,
        num_classes=arguments.num_classes,
        resize=arguments.resize,
        crop=arguments.size,
        crop_pct=arguments.crop_pct,
        mean=mean,
        std=std,
        interpolation=arguments.interpolation,
        weights=arguments.weights,
    )
    return load_served(arguments.checkpoint_path, bare)


def make_choice(arguments: argparse.Namespace, source: Source) -> Choice:
    """Return which predictions to show; the names of classes become labels."""
    from serve.class_names import find_class

    words = (arguments.true_class, arguments.predicted_class)
    true, predicted = (None if word is None else find_class(word, source.class_names) for word in words)
    return Choice(arguments.num_show, arguments.select, arguments.all, true, predicted, arguments.seed)


if __name__ == "__main__":
    run(main, interrupted="nothing was written")
