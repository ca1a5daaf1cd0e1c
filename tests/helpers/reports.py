"""A report's page from predictions that are made up, over pictures that are drawn; for tests of the page alone."""

import argparse
import io
import runpy
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image

from helpers.commands import CHECKOUT
from serve.artifact import Served
from serve.cam import GradCam
from serve.pictures import Encoded, Source
from serve.predict import Prediction
from serve.preprocess import Preprocessing
from serve.report_page import Measured, write_page

SIDE = 16  # pixels of the network's input
PER_CLASS = 4


def write_sample_page(class_names: tuple[str, ...], notes: tuple[str, ...] = (), doubts: tuple[str, ...] = ()) -> str:
    """Return a page about a network without training, with every part of a report."""
    num_classes = len(class_names)
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=num_classes).eval()
    served = Served(model, "test_resnet", num_classes, Preprocessing(20, SIDE), class_names, None, notes)
    measured = Measured(served, draw_source(class_names), make_predictions(num_classes), doubts)
    entries = [
        {
            "kind": kind,
            "epoch": epoch,
            "top1": 10 * epoch,
            "ema_top1": 12 * epoch,
            "loss": 3 / epoch,
            "ema_loss": 2 / epoch,
        }
        for kind in ("train", "validation")
        for epoch in (1, 2, 3)
    ]
    arguments = argparse.Namespace(
        artifact=Path("export"), data=Path("images"), device="cpu", seed=0, num_show=3, limit=None
    )
    command = runpy.run_path(str(CHECKOUT / "serve" / "report.py"), run_name="report")
    return write_page(command["make_page"](arguments, measured, GradCam(model, SIDE), entries))


def draw_source(class_names: tuple[str, ...]) -> Source:
    """Return pictures of noise, four of each class."""
    generator = np.random.default_rng(0)
    content = io.BytesIO()
    Image.fromarray(generator.integers(0, 256, (24, 24, 3), dtype=np.uint8)).save(content, "PNG")
    rows = range(PER_CLASS * len(class_names))

    def read(wanted):
        for row in rows:
            if row in wanted:
                yield Encoded(row, f"{row}.png", row // PER_CLASS, content.getvalue())

    return Source("drawn", class_names, len(rows), read)


def make_predictions(num_classes: int) -> list[Prediction]:
    """Return four predictions per class: class 0 is never right, class 1 once in four, and so on up to always."""
    return [
        Prediction(row, f"{row}.png", label, guess, 0.4 + 0.1 * (row % 5), 0.2, in_top5=row % 2 == 0 or guess == label)
        for row in range(PER_CLASS * num_classes)
        for label in [row // PER_CLASS]
        for guess in [label if row % PER_CLASS < label % (PER_CLASS + 1) else (label + 1) % num_classes]
    ]
