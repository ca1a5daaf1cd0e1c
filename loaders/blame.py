"""Naming the image that a decoder failed on: DALI ends its pipeline without saying which it was."""

import io
from collections.abc import Sequence

from PIL import Image

from loaders.plan import Plan
from loaders.reader import Encoded
from prep.dataset import InputError

MOST_CHARACTERS = 500


class DecodeError(InputError):
    """Images of these rows of the sample index cannot be decoded."""

    def __init__(self, rows: list[int], message: str) -> None:
        super().__init__(message)
        self.rows = rows


def explain_decode_error(pairs: Sequence[tuple[Plan, Encoded]], error: Exception) -> DecodeError:
    """The error for batches that a decoder had begun: each image is decoded alone, in full, to find the culprits."""
    rows = {int(plan.rows_B[i]) for plan, encoded in pairs for i in range(len(encoded.images)) if not _ok(encoded, i)}
    if rows:
        return DecodeError(sorted(rows), f"images {sorted(rows)} cannot be decoded")
    said = " ".join(str(error).split())[:MOST_CHARACTERS]
    return DecodeError([], f"decoding failed, though Pillow decodes each image of the batch: {said}")


def _ok(encoded: Encoded, i: int) -> bool:
    try:
        with Image.open(io.BytesIO(encoded.images[i].tobytes())) as image:
            image.load()
    except Exception:  # Pillow's decoders raise nearly anything on damaged bytes
        return False
    return True
