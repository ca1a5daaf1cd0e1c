"""`python benchmarks/serving.py`: seconds from a visitor's file to the whole answer of `serve/app.py`, on the CPU.

An untrained network computes as long as a trained one, so none is needed: --model says which, --size at how many
pixels. The picture is generated, a photograph's size and as hard to decode as noise. Each repetition opens and decodes
the file, computes the five surest classes and the map of each, and writes the page's HTML. One JSON record goes to
stdout, a line for people to stderr.
"""

import argparse
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from record import describe_origin, publish, say, summarize

from prep.errors import InputError, exit_with
from serve.app_answer import answer, prepare
from serve.app_page import write_answer
from serve.app_photo import open_photo
from serve.artifact import DEFAULT_ARCHITECTURE, Served
from serve.cam import GradCam
from serve.preprocess import Preprocessing
from serve.weights import build

LEAST_REPETITIONS, WARMUP = 5, 2
PHOTO = (4000, 3000)  # pixels, of a phone
NUM_CLASSES = 1000
LIMIT_SECONDS = 1.0  # that the app promises


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="benchmarks/serving.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", default=DEFAULT_ARCHITECTURE, help=f"timm's name (default: {DEFAULT_ARCHITECTURE})")
    add("--size", type=int, default=224, help="pixels of the square that it sees (default: 224)")
    add("--photo", type=int, nargs=2, default=PHOTO, metavar=("W", "H"), help="pixels (default: 4000 3000)")
    add("--repetitions", type=int, default=9, help="default: 9, least: 5")
    add("--out", type=Path, metavar="FILE", help="write the record here too")
    return parser.parse_args()


def write_photo(size: tuple[int, int], path: Path) -> None:
    """A JPEG of soft noise, the same at every call: about a byte for four pixels, as cameras write them."""
    noise = Image.frombytes("L", (512, 512), torch.rand(512 * 512).mul(255).byte().numpy().tobytes())
    noise.resize(size, Image.Resampling.BICUBIC).convert("RGB").save(path, "JPEG", quality=92)


def measure(served: Served, cam: GradCam, path: Path) -> dict[str, float]:
    """Seconds of one answer: to the decoded picture, from there to the last map, and the whole with its HTML."""
    started = time.perf_counter()
    photo = open_photo(path)
    opened = time.perf_counter()
    found = answer(served, cam, photo)
    answered = time.perf_counter()
    write_answer(found, answered - started)
    whole = time.perf_counter() - started
    return {"decode_seconds": opened - started, "answer_seconds": answered - opened, "whole_seconds": whole}


def repeat(served: Served, path: Path, repetitions: int) -> dict[str, Any]:
    """All repetitions after the warm-up."""
    cam = prepare(served)
    runs = [measure(served, cam, path) for _ in range(WARMUP + repetitions)][WARMUP:]
    return {name: summarize([run[name] for run in runs]) for name in runs[0]}


def main() -> None:
    """Build, measure, report."""
    arguments = parse_arguments()
    if arguments.repetitions < LEAST_REPETITIONS:
        raise InputError(f"{arguments.repetitions} repetitions show no spread: take {LEAST_REPETITIONS} or more")
    torch.manual_seed(0)
    model = build(arguments.model, NUM_CLASSES).eval()
    preprocessing = Preprocessing(arguments.size * 8 // 7, arguments.size)
    preprocessing.check()
    with tempfile.TemporaryDirectory(prefix="penstock-") as temporary:
        path = Path(temporary) / "photo.jpg"
        write_photo(tuple(arguments.photo), path)
        photo = {"pixels": list(arguments.photo), "size_bytes": path.stat().st_size}
        timed = repeat(Served(model, arguments.model, NUM_CLASSES, preprocessing), path, arguments.repetitions)
    record = {
        "what": "serving",
        "model": {"name": arguments.model, "size": arguments.size, "num_classes": NUM_CLASSES, "weights": "untrained"},
        "photo": photo,
        **timed,
        "limit_seconds": LIMIT_SECONDS,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "threads": torch.get_num_threads(),
        **describe_origin("benchmarks/serving.py"),
    }
    publish(record, arguments.out)
    parts = {name: timed[f"{name}_seconds"]["median"] for name in ("whole", "decode", "answer")}
    words = f"{parts['whole']:.2f} s in all: decoded in {parts['decode']:.2f}, answered in {parts['answer']:.2f}"
    say(f"{arguments.model} at {arguments.size}: {words}")


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        exit_with(InputError(str(error)))
