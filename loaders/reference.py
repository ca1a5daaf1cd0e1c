"""The reference backend: Pillow, short and readable, the definition of what the others must produce."""

import io
import time
from collections.abc import Collection, Iterable, Iterator

import numpy as np
import torch
from PIL import Image

from loaders.augment_pillow import FUNCTIONS, augment
from loaders.backend import Backend, Pixels
from loaders.blame import blame, explain_shortage
from loaders.plan import Plan
from loaders.reader import Encoded
from loaders.upload import allocate_host, upload


class ReferenceBackend(Backend):
    """Executes plans one image after the other on the CPU."""

    @classmethod
    def lowered(cls, decodes_on_gpu: bool) -> Collection[int]:
        return FUNCTIONS

    def decode(self, pairs: Iterable[tuple[Plan, Encoded]]) -> Iterator[Pixels]:
        for plan, encoded in pairs:
            started = time.perf_counter()
            try:
                images = [render(encoded.images[i], plan, i) for i in range(len(encoded.images))]
            except Exception as error:  # Pillow's decoders raise nearly anything on damaged bytes
                raise blame([(plan, encoded)], find_failing, error, str(error)) from error
            self.release(encoded)
            self.counters.decode_seconds += time.perf_counter() - started
            host_BHWC = allocate_host((len(images), plan.size, plan.size, 3), torch.uint8, self.spec.device)
            np.stack(images, out=host_BHWC.numpy())
            yield Pixels(plan, upload(host_BHWC, self.spec.device).permute(0, 3, 1, 2))


def render(encoded: np.ndarray, plan: Plan, i: int) -> np.ndarray:
    """Image `i` of a plan: uint8 [size, size, 3], RGB. The EXIF orientation is ignored, as by torchvision."""
    top, left, height, width = map(int, plan.windows_B4[i])
    resized_height, resized_width = map(int, plan.resized_B2[i])
    crop_top, crop_left = map(int, plan.crops_B2[i])
    with Image.open(io.BytesIO(encoded.tobytes())) as opened:
        if left + width > opened.width or top + height > opened.height:
            raise ValueError(f"it has {opened.width} x {opened.height} pixels, fewer than its index says")
        image = opened.convert("RGB").crop((left, top, left + width, top + height))
    image = image.resize((resized_width, resized_height), Image.Resampling.BILINEAR)
    image = image.crop((crop_left, crop_top, crop_left + plan.size, crop_top + plan.size))
    if plan.flips_B[i]:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(augment(image, plan, i))


def find_failing(plan: Plan, encoded: Encoded) -> list[int]:
    """The places of the images of a batch that cannot be rendered."""
    return [i for i in range(len(encoded.images)) if not _renders(encoded.images[i], plan, i)]


def _renders(encoded: np.ndarray, plan: Plan, i: int) -> bool:
    try:
        render(encoded, plan, i)
    except Exception as error:  # see decode
        if shortage := explain_shortage(error):
            raise shortage from error
        return False
    return True
