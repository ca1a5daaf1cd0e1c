"""`python serve/gradcam_viz.py --checkpoint_path PATH --validation_img_path DIR`: what a model gets wrong, and why.

PATH: what train/export.py wrote, or weights of timm's or torch's (.pth, .pth.tar, .safetensors; then --model says of
which network). DIR: a split of shards, a folder with a folder of images a class, or tiny-imagenet-200's val/.
Accuracy is measured first; nothing is drawn of a model that is no better than chance, or not as good as it says.
"""

import argparse
import sys
from pathlib import Path

import torch

from prep.errors import InputError, positive_count, run
from serve.artifact import DEFAULT_ARCHITECTURE, Served, load_artifact, load_bare
from serve.cam import GradCam
from serve.choose import ORDERS, Choice, choose, find_class
from serve.explain import explain, write_caption
from serve.gallery import draw_gallery
from serve.honesty import find_doubts
from serve.images import open_images
from serve.judge import choose_rows, count_hits, judge
from serve.preprocess import Preprocessing
from serve.source import Source

BARE_FLAGS = ("model", "size", "resize")  # an artifact says these itself


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="serve/gradcam_viz.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--checkpoint_path", type=Path, required=True, metavar="PATH", help="an exported artifact, or weights")
    add("--validation_img_path", type=Path, required=True, metavar="DIR", help="labelled images")
    add("--output_path", type=Path, default=Path("output/gradcam_comparison.png"), metavar="PNG")
    add("--num_classes", type=positive_count, help="of the model (default: the artifact's; 1000 for bare weights)")
    add("--num_show", type=positive_count, default=20, help="rows (default: 20)")
    add("--select", choices=ORDERS, default="confidence", help="which come first (default: confidence)")
    add("--all", action="store_true", help="after the mistakes those that it gets right")
    add("--true_class", metavar="CLASS", help="of this class alone: its name or number")
    add("--predicted_class", metavar="CLASS", help="taken for this class alone")
    add("--limit", type=positive_count, metavar="N", help="measure on N images drawn at random (default: all)")
    add("--seed", type=int, default=0, help="of what is drawn at random (default: 0)")
    add("--anyway", action="store_true", help="draw a model that should not be, with the warning in the picture")
    add("--model", help=f"architecture of bare weights (default: {DEFAULT_ARCHITECTURE})")
    add("--size", type=positive_count, help="pixels of the square that bare weights see (default: 224)")
    add("--resize", type=positive_count, help="pixels of the short side before cropping (default: 8/7 of --size)")
    return parser.parse_args()


def main() -> None:
    """Load, measure, refuse or draw; say where."""
    arguments = parse_arguments()
    served = load(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    served.model.to(device)
    source = open_images(arguments.validation_img_path, served.num_classes, served.class_names)
    choice = make_choice(arguments, source)
    cam = GradCam(served.model, served.preprocessing.crop)
    verdicts = judge(served, source, choose_rows(source.num_images, arguments.limit, arguments.seed))
    doubts = find_doubts(count_hits(verdicts), served.num_classes, served.recorded)
    if doubts and not arguments.anyway:
        raise InputError(f"nothing was drawn: {'; '.join(doubts)}; --anyway draws it with this warning")
    rows = explain(served, source, cam, choose(verdicts, choice))
    caption = write_caption(served, source, verdicts, doubts, cam)
    arguments.output_path.parent.mkdir(parents=True, exist_ok=True)
    draw_gallery(rows, source.class_names, caption).save(arguments.output_path, format="PNG")
    for line in (*caption.figures, *(f"warning: {doubt}" for doubt in doubts)):
        print(line, file=sys.stderr if line.startswith("warning") else sys.stdout)
    print(f"{len(rows)} images: {arguments.output_path}")


def load(arguments: argparse.Namespace) -> Served:
    """The model of the command line.

    Raises:
        InputError: it cannot be trusted, or flags contradict what it says of itself.
    """
    path: Path = arguments.checkpoint_path
    if not path.is_dir():
        size = arguments.size or 224
        preprocessing = Preprocessing(arguments.resize or size * 8 // 7, size)
        return load_bare(path, arguments.model or DEFAULT_ARCHITECTURE, arguments.num_classes or 1000, preprocessing)
    given = [f"--{name}" for name in BARE_FLAGS if getattr(arguments, name) is not None]
    served = load_artifact(path)
    if given:
        raise InputError(f"{path} says itself what {', '.join(given)} would: leave it out")
    if arguments.num_classes not in (None, served.num_classes):
        raise InputError(f"{path} tells {served.num_classes:,} classes apart: leave --num_classes out")
    return served


def make_choice(arguments: argparse.Namespace, source: Source) -> Choice:
    """What to show."""
    words = (arguments.true_class, arguments.predicted_class)
    true, predicted = (None if word is None else find_class(word, source.class_names) for word in words)
    return Choice(arguments.num_show, arguments.select, arguments.all, true, predicted, arguments.seed)


if __name__ == "__main__":
    run(main, interrupted="nothing was written")
