"""`python benchmarks/serving.py`: measure the seconds from a file to the complete answer of `serve/app.py`, on the CPU.

The network is untrained, since it computes as long as a trained one: --model names it, --size sets its input size. The
picture is generated, as large as a photograph and as hard to decode as noise. Each repetition opens and decodes the
file, computes the five most likely classes with a map for each, and writes the page's HTML. One JSON record goes to
stdout, one line to stderr.
"""

import argparse
import resource
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from record import describe_origin, print_progress, publish, summarize

from prep.errors import InputError, run

if TYPE_CHECKING:
    from serve.artifact import Served
    from serve.cam import GradCam

LEAST_REPETITIONS, WARMUP = 5, 2
MODEL = "resnet50d"  # the app's default network
PHOTO = (4000, 3000)  # pixels of a phone's photograph
NUM_CLASSES = 1000
LIMIT_SECONDS = 1.0  # the longest answer that the app promises


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="benchmarks/serving.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", default=MODEL, help=f"name of a timm model (default: {MODEL})")
    add("--size", type=int, default=224, help="input size in pixels (default: 224)")
    add("--photo", type=int, nargs=2, default=PHOTO, metavar=("W", "H"), help="pixels (default: 4000 3000)")
    add("--repetitions", type=int, default=9, help="number of timed answers, at least 5 (default: 9)")
    add("--out", type=Path, metavar="FILE", help="also write the record to this file")
    return parser.parse_args()


def write_photo(size: tuple[int, int], path: Path) -> None:
    """Write a JPEG of soft noise of (width, height) pixels, the same after the same torch seed.

    It has about one byte per four pixels, as photographs of cameras have.
    """
    import torch  # noqa: PLC0415
    from PIL import Image  # noqa: PLC0415

    noise = Image.frombytes("L", (512, 512), torch.rand(512 * 512).mul(255).byte().numpy().tobytes())
    noise.resize(size, Image.Resampling.BICUBIC).convert("RGB").save(path, "JPEG", quality=92)


def time_answer(served: "Served", cam: "GradCam", path: Path) -> dict[str, float]:
    """Return the seconds of one answer: to the decoded picture, from there to the last map, and in total with HTML."""
    from serve.app.answer import answer_photo  # noqa: PLC0415
    from serve.app.page import write_answer  # noqa: PLC0415
    from serve.app.uploads import open_photo  # noqa: PLC0415

    started = time.perf_counter()
    photo = open_photo(path)
    opened = time.perf_counter()
    found = answer_photo(served, cam, photo)
    answered = time.perf_counter()
    write_answer(found, answered - started)
    whole = time.perf_counter() - started
    return {"decode_seconds": opened - started, "answer_seconds": answered - opened, "whole_seconds": whole}


def time_answers(served: "Served", path: Path, repetitions: int) -> dict[str, Any]:
    """Return a summary of each time over all repetitions, after the warm-up."""
    from serve.app.answer import make_cam  # noqa: PLC0415

    cam = make_cam(served)
    runs = [time_answer(served, cam, path) for _ in range(WARMUP + repetitions)][WARMUP:]
    return {name: summarize([run[name] for run in runs]) for name in runs[0]}


def main() -> None:
    """Build the network, time its answers, publish the record."""
    arguments = parse_arguments()
    if arguments.repetitions < LEAST_REPETITIONS:
        raise InputError(f"--repetitions must be at least {LEAST_REPETITIONS}, got {arguments.repetitions}")

    # These imports cost seconds: --help and a refused flag must not wait for them.
    import torch  # noqa: PLC0415

    from serve.artifact import Served  # noqa: PLC0415
    from serve.preprocess import Preprocessing  # noqa: PLC0415
    from serve.weights import build_network  # noqa: PLC0415

    # Build the network and its preprocessing: the usual resize to 8/7 of the crop, as 256 for 224.
    torch.manual_seed(0)
    model = build_network(arguments.model, NUM_CLASSES).eval()
    preprocessing = Preprocessing(arguments.size * 8 // 7, arguments.size)
    preprocessing.validate()

    # Time the answers to one generated photograph.
    with tempfile.TemporaryDirectory(prefix="penstock-") as temporary:
        path = Path(temporary) / "photo.jpg"
        write_photo(tuple(arguments.photo), path)
        photo = {"pixels": list(arguments.photo), "size_bytes": path.stat().st_size}
        timed = time_answers(Served(model, arguments.model, NUM_CLASSES, preprocessing), path, arguments.repetitions)

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
    words = f"{parts['whole']:.2f} s in total: decoding {parts['decode']:.2f} s, answer {parts['answer']:.2f} s"
    print_progress(f"{arguments.model} at {arguments.size} pixels: {words}")


if __name__ == "__main__":
    run(main)
