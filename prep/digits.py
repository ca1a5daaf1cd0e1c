"""`python prep/digits.py --out DIR`: scikit-learn's digits as a Hugging Face dataset folder, for the demo and tests.

1,797 real scans of handwritten digits (UCI, 8x8 pixels, 17 grey levels) that are part of scikit-learn. A fixed
stratified fifth is the validation split. They are stored as 32x32 grey JPEGs.
"""

import argparse
import io
from pathlib import Path
from typing import TYPE_CHECKING

from prep.errors import run

if TYPE_CHECKING:
    import numpy as np

SIDE, QUALITY = 32, 95  # pixels, and JPEG quality
NUM_GREY_LEVELS = 17
CLASS_NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


def write_digits(out: Path) -> None:
    """Write `out/data/train-....parquet` and `out/data/validation-....parquet` with the columns image and label."""
    # These imports cost two seconds of CPU, which `--help` must not wait for.
    import datasets  # noqa: PLC0415
    import numpy as np  # noqa: PLC0415
    from sklearn.datasets import load_digits  # noqa: PLC0415
    from sklearn.model_selection import train_test_split  # noqa: PLC0415

    # Split the rows.
    scans, labels = load_digits(return_X_y=True)
    rows = np.arange(len(labels))
    train, validation = train_test_split(rows, test_size=0.2, stratify=labels, random_state=0)

    # Encode the images and write one table per split.
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=CLASS_NAMES)})
    datasets.disable_progress_bars()
    (out / "data").mkdir(parents=True, exist_ok=True)
    for split, chosen in (("train", train), ("validation", validation)):
        images = [{"bytes": _encode(scans[row].reshape(8, 8)), "path": f"digit_{row:04d}.jpg"} for row in chosen]
        table = datasets.Dataset.from_dict({"image": images, "label": labels[chosen]}, features=features)
        table.to_parquet(out / "data" / f"{split}-00000-of-00001.parquet")


def _encode(scan_HW: "np.ndarray") -> bytes:
    """Return a scan with values from 0 to 16 as a grey JPEG."""
    import numpy as np  # noqa: PLC0415
    from PIL import Image  # noqa: PLC0415

    grey = np.round(scan_HW * (255 / (NUM_GREY_LEVELS - 1))).astype(np.uint8)
    encoded = io.BytesIO()
    Image.fromarray(grey).resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(encoded, "JPEG", quality=QUALITY)
    return encoded.getvalue()


def main() -> None:
    """Write the digits to the folder given on the command line."""
    parser = argparse.ArgumentParser(prog="prep/digits.py", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("data/digits-source"), metavar="DIR", help="folder to write")
    write_digits(parser.parse_args().out)


if __name__ == "__main__":
    run(main, interrupted="run the same command again to continue")
