"""`python train/curves.py RUN... --out curves.png`: plot accuracy, loss and learning rate of several runs together."""

import argparse
from pathlib import Path

from prep.curves import Line, Panel, draw_panels, read_metrics
from prep.errors import run

PANELS = (
    Panel("EMA top-1", "percent", (Line("validation", "ema_top1", "EMA"),)),
    Panel(
        "Accuracy", "top-1, percent", (Line("train", "top1", "train", ":"), Line("validation", "top1", "validation"))
    ),
    Panel("Learning rate", "", (Line("train", "lr", "lr"),)),
    Panel("Loss", "nats", (Line("train", "loss", "train", ":"), Line("validation", "loss", "validation"))),
)


def main() -> None:
    """Read the runs, draw them, print the path."""
    parser = argparse.ArgumentParser(prog="train/curves.py", description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run folders of train/main.py")
    parser.add_argument("--out", type=Path, default=Path("curves.png"), metavar="PNG")
    arguments = parser.parse_args()
    runs = {folder.name: read_metrics(folder) for folder in arguments.runs}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    draw_panels(PANELS, runs, arguments.out)
    print(f"curves of {len(arguments.runs)} run(s): {arguments.out}")


if __name__ == "__main__":
    run(main)
