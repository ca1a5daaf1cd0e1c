"""The chosen pictures with their maps, and the figures that stand above them.

Between `serve/choose.py` and `serve/gallery.py`, for the commands that draw.
"""

from collections.abc import Sequence

from PIL import Image

from prep.errors import InputError
from serve.artifact import Served
from serve.cam import GradCam
from serve.gallery import Caption, Row, to_row
from serve.honesty import count_recorded, describe
from serve.judge import Verdict, count_hits
from serve.preprocess import show_crop, to_tensor
from serve.source import Source, decode


def explain(served: Served, source: Source, cam: GradCam, chosen: list[Verdict]) -> list[Row]:
    """The chosen pictures, read again, with their maps, in the order chosen."""
    crops = read_crops(served, source, chosen)
    tensors = {row: to_tensor(crop, served.preprocessing) for row, crop in crops.items()}
    return [to_row(each, crops[each.row], cam(tensors[each.row], (each.guess, each.label))) for each in chosen]


def read_crops(served: Served, source: Source, chosen: Sequence[Verdict]) -> dict[int, Image.Image]:
    """What the network saw of some pictures, by their rows.

    Raises:
        InputError: one cannot be decoded any more.
    """
    crops: dict[int, Image.Image] = {}
    for encoded in source.read({each.row for each in chosen}):
        picture = decode(encoded.content)
        if picture is None:
            raise InputError(f"{encoded.key} could be decoded a moment ago and cannot now: run the same command again")
        crops[encoded.row] = show_crop(picture, served.preprocessing)
    return crops


def write_caption(served: Served, source: Source, verdicts: list[Verdict], doubts: list[str], cam: GradCam) -> Caption:
    """The figures, as they were measured."""
    count = count_hits(verdicts)
    top5 = 100 * sum(each.in_top5 for each in verdicts) / len(verdicts)
    figures = [f"measured on {source.name}: top-1 {describe(count)}, top-5 {top5:.2f}%"]
    if served.recorded is not None:
        recorded = describe(count_recorded(served.recorded))
        figures.append(f"recorded by the artifact on {served.recorded.split}: top-1 {recorded}")
    num_damaged = sum(each.guess < 0 for each in verdicts)
    if num_damaged:
        figures.append(f"{num_damaged:,} images cannot be decoded and count as wrong")
    stage = cam.stage
    figures.append(
        f"maps: Grad-CAM of {stage.name}, {stage.height} x {stage.width} places, each from 0 to its own highest"
    )
    return Caption(served.name, figures, doubts)
