"""What tests of restart shards share: JPEGs of all subsamplings, and whether they can be transcoded here."""

import cv2
import numpy as np
import pytest

from prep.errors import InputError
from prep.restarts import find_jpegtran, find_transcoder


def why_not(find: object) -> str:
    """Return why a transcoder is missing; empty if it is there."""
    try:
        assert callable(find)
        find()
    except InputError as error:
        return str(error)
    return ""


CAN_TRANSCODE = not why_not(find_transcoder)
needs_transcoder = pytest.mark.skipif(not CAN_TRANSCODE, reason=why_not(find_transcoder))
needs_jpegtran = pytest.mark.skipif(bool(why_not(find_jpegtran)), reason="needs the program jpegtran")

SAMPLINGS = {
    "4:4:4": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444,
    "4:2:2": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_422,
    "4:2:0": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420,
    "4:4:0": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_440,
    "4:1:1": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_411,
}
KINDS = (*SAMPLINGS, "grey")
MCUS = dict(zip(KINDS, [(8, 8), (16, 8), (16, 16), (8, 16), (32, 8), (8, 8)], strict=True))  # width, height


def make_jpeg(kind: str, width: int, height: int, *, seed: int = 0, interval: int = 0, quality: int = 90) -> bytes:
    """Return a JPEG of noise on a ramp; `interval` is its restart interval in MCUs, 0 for none."""
    y, x = np.mgrid[:height, :width]
    ramp = np.stack([x * 3 + y, y * 2, 200 - x], axis=-1)
    noise = np.random.default_rng(seed).integers(0, 60, (height, width, 3))
    pixels = ((ramp + noise) % 256).astype(np.uint8)
    options = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_RST_INTERVAL, interval]
    if kind == "grey":
        pixels = pixels[..., 0]
    else:
        options += [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, SAMPLINGS[kind]]
    return cv2.imencode(".jpg", pixels, options)[1].tobytes()
