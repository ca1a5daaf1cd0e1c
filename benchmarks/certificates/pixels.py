"""The certificate that images belong to their rows: a sample's pixels, compared with Pillow's from the same files.

It uses no code of the loaders: it reads the bytes from the tars at the index's offsets and checks their sha256.
"""

import hashlib
import io

import numpy as np
from certificates.collect import Arrays
from certificates.verdict import Certificate
from gpu.parity import MOST, MOST_SUBSAMPLED
from PIL import Image

from loaders import Split

NAME = "pixels are those of the rows"


def certify_pixels(arrays: Arrays, split: Split, decodes_on_gpu: bool) -> Certificate:
    """Compare each kept image with its own file, and with the file of another image, which must differ clearly.

    Args:
        arrays: rows [K], uint8 images [K, size, size, 3], windows [K, 4] and flips [K], as kept by ours.py.
        split: the split that the images come from.
        decodes_on_gpu: a GPU decoded them, so the limit is larger.
    """
    rows_K, images_KHWC = arrays["kept_rows"], arrays["kept_images"].astype(np.int64)
    if not len(rows_K):
        return Certificate(NAME, None, "nothing was decoded: give a higher --limit", "", "")

    # Read the files; their digests must be those of the index.
    contents = [read_jpeg(split, int(row)) for row in rows_K]
    digests = split.samples.column("sha256")
    named = zip(contents, rows_K, strict=True)
    foreign = sum(hashlib.sha256(each).digest() != digests[int(row)].as_py() for each, row in named)

    # Crop and scale them with Pillow, then measure the mean difference from the own file and from another one.
    geometry = zip(contents, arrays["kept_windows"], arrays["kept_flips"], strict=True)
    right_KHWC = np.stack([render(*each, images_KHWC.shape[1]) for each in geometry]).astype(np.int64)
    own_K = np.abs(images_KHWC - right_KHWC).mean((1, 2, 3))
    other_K = np.abs(images_KHWC - np.roll(right_KHWC, 1, axis=0)).mean((1, 2, 3))

    limit = MOST_SUBSAMPLED if decodes_on_gpu else MOST
    return Certificate(
        NAME,
        bool(own_K.max() <= limit and not foreign),
        f"{len(rows_K):,} images: worst differs by {own_K.max():.3f} of 255 on average; "
        f"from another's by {np.median(other_K):.0f} (median)" + f"; {foreign} files not the index's" * bool(foreign),
        "equal except for rounding",
        f"≤ {limit:g} per pixel: filters and decoders round differently (docs/LOG.md, parity)",
        {
            "num_images": len(rows_K),
            "worst_mean_difference": float(own_K.max()),
            "median_to_another": float(np.median(other_K)),
            "foreign_files": foreign,
        },
    )


def read_jpeg(split: Split, row: int) -> bytes:
    """Return an image's encoded bytes."""
    with split.shard_paths[split.column("shard")[row]].open("rb") as tar:
        tar.seek(split.column("offset")[row])
        return tar.read(split.column("size")[row])


def render(content: bytes, window: np.ndarray, flip: bool, size: int) -> np.ndarray:
    """Return a window (top, left, height, width) as Pillow scales it: uint8 [size, size, 3]."""
    top, left, height, width = map(int, window)
    with Image.open(io.BytesIO(content)) as opened:
        image = opened.convert("RGB").crop((left, top, left + width, top + height))
    image = image.resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else image)
