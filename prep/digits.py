"""`python prep/digits.py --out DIR`: scikit-learn's digits as a Hugging Face dataset folder, for the demo and tests.

1,797 real scans of handwritten digits (UCI, 8x8 pixels, 17 grey levels) that ship inside scikit-learn. A fixed
stratified fifth is held out for validation. Stored as 32x32 grey JPEGs.
"""

import argparse
import io
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from prep.errors import run

SIDE, QUALITY = 32, 95
NUM_GREY_LEVELS = 17
CLASS_NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


def write_digits(out: Path) -> None:
    """Write `out/data/train-….parquet` and `out/data/validation-….parquet`, columns image and label."""
    import datasets  # noqa: PLC0415 - the tests' conftest imports this module, and few of its tests write digits

    scans, labels = load_digits(return_X_y=True)
    rows = np.arange(len(labels))
    train, validation = train_test_split(rows, test_size=0.2, stratify=labels, random_state=0)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=CLASS_NAMES)})
    datasets.disable_progress_bars()
    (out / "data").mkdir(parents=True, exist_ok=True)
    for split, chosen in (("train", train), ("validation", validation)):
        images = [{"bytes": _encode(scans[row].reshape(8, 8)), "path": f"digit_{row:04d}.jpg"} for row in chosen]
        table = datasets.Dataset.from_dict({"image": images, "label": labels[chosen]}, features=features)
        table.to_parquet(out / "data" / f"{split}-00000-of-00001.parquet")


def _encode(scan_HW: np.ndarray) -> bytes:
    grey = np.round(scan_HW * (255 / (NUM_GREY_LEVELS - 1))).astype(np.uint8)
    encoded = io.BytesIO()
    Image.fromarray(grey).resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(encoded, "JPEG", quality=QUALITY)
    return encoded.getvalue()


def main() -> None:
    """Write them where the command line says."""
    parser = argparse.ArgumentParser(prog="prep/digits.py", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("data/digits-source"), metavar="DIR")
    write_digits(parser.parse_args().out)


if __name__ == "__main__":
    run(main, interrupted="run the same command again to continue")
