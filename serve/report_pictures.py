"""The pictures of a report: examples of the confusions, and the gallery of mistakes with their maps, as WebP.

For `serve/report_page.py`. The pictures are read again here; while the model is measured, none is kept.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from serve.artifact import Served
from serve.cam import GradCam
from serve.gallery import TILE, make_rows, overlay_map, read_crops, to_tile
from serve.pictures import Source
from serve.predict import Prediction
from serve.report_counts import find_confusions
from serve.selection import Choice, select_predictions
from serve.templates import to_data_uri

NUM_PAIRS, NUM_EXAMPLES = 12, 4  # confusions, and pictures of each
THUMBNAIL = 112  # pixels; shown at half of that
QUALITY = 82  # of WebP: 5 to 12 KB for a tile of a photograph


@dataclass(frozen=True)
class Picture:
    """A picture in the page."""

    uri: str
    words: str  # describe it to a reader who cannot see it
    size: int  # side in pixels


@dataclass(frozen=True)
class Pair:
    """One confusion, with pictures of it."""

    label: str  # name of the true class
    guess: str  # name of the predicted class
    num_images: int
    examples: Sequence[Picture]


@dataclass(frozen=True)
class Bar:
    """A class with the model's confidence in it."""

    heading: str
    name: str
    percent: float
    is_right: bool


@dataclass(frozen=True)
class Mistake:
    """One row of the gallery."""

    key: str
    pictures: Sequence[tuple[str, Picture]]  # (caption, picture)
    bars: Sequence[Bar]


def make_pairs(served: Served, source: Source, predictions: Sequence[Prediction]) -> list[Pair]:
    """Return the most frequent confusions with what the model saw of the most confident ones."""
    names = source.class_names

    # Read the pictures of all pairs in one pass over the data.
    confusions = find_confusions(predictions, NUM_PAIRS)
    shown = [each for confusion in confusions for each in confusion.predictions[:NUM_EXAMPLES]]
    crops = read_crops(served, source, shown)
    return [
        Pair(
            names[confusion.label],
            names[confusion.guess],
            len(confusion.predictions),
            [
                encode_picture(
                    crops[each.row],
                    f"{names[each.label]}, predicted {names[each.guess]} with {100 * each.confidence:.0f}%",
                    THUMBNAIL,
                )
                for each in confusion.predictions[:NUM_EXAMPLES]
            ],
        )
        for confusion in confusions
    ]


def make_gallery(
    served: Served, source: Source, cam: GradCam, predictions: Sequence[Prediction], choice: Choice
) -> list[Mistake]:
    """Return the most confident mistakes with their maps; an empty list without mistakes."""
    if all(each.is_right or each.guess < 0 for each in predictions):
        return []
    mistakes = []
    for row in make_rows(served, source, cam, select_predictions(predictions, choice)):
        prediction = row.prediction
        assert row.other_HW is not None  # every row is a mistake
        guess, true = source.class_names[prediction.guess], source.class_names[prediction.label]
        pictures = [
            ("What the model saw", encode_picture(row.crop, f"{true}, as the model saw it")),
            (
                "Map of its guess",
                encode_picture(overlay_map(row.crop, row.predicted_HW), f"places that support {guess}"),
            ),
            (
                "Map of the true class",
                encode_picture(overlay_map(row.crop, row.other_HW), f"places that support {true}"),
            ),
        ]
        bars = [
            Bar("Predicted", guess, 100 * prediction.confidence, False),
            Bar("True class", true, 100 * prediction.true_confidence, True),
        ]
        mistakes.append(Mistake(prediction.key, pictures, bars))
    return mistakes


def describe_maps(cam: GradCam) -> str:
    """Return what the maps of the gallery are, in words."""
    stage = cam.stage
    return (
        f"The maps show which places support a class: Grad-CAM of {stage.name}, {stage.height} × {stage.width} places. "
        "Each map is scaled from 0 to its own maximum, so strengths of two maps cannot be compared."
    )


def encode_picture(picture: Image.Image, words: str, side: int = TILE) -> Picture:
    """Return a square picture for the page; small ones are enlarged without smoothing or loss, so that pixels show."""
    is_small = picture.width < TILE // 2
    tile = to_tile(picture)
    if side != TILE:
        tile = tile.resize((side, side), Image.Resampling.NEAREST if is_small else Image.Resampling.LANCZOS)
    content = io.BytesIO()
    tile.save(content, "WEBP", quality=QUALITY, lossless=is_small)
    return Picture(to_data_uri(content.getvalue(), "WEBP"), words, side)
