"""The confusion matrix of a report: a table of numbers for few classes, a heat map for many. K classes.

For `serve/report_page.py`. The heat map is transparent where nothing was counted, so that it fits a light and a dark
page; a script tells the cell under the pointer from the list of mistakes, which the page holds as well.
"""

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from PIL import Image

from serve.templates import to_data_uri

MOST_IN_TABLE = 30  # classes; more do not fit next to each other
SIDE = 900  # of the heat map, pixels, if its cells can be that large
RIGHT, WRONG = (24, 139, 130), (214, 78, 60)  # readable on white and on black
FAINTEST = 0.5  # opacity of the smallest share above 0


@dataclass(frozen=True)
class Cell:
    """A number in the table, and its share of the row's pictures, 0 to 1."""

    count: int
    share: float
    is_right: bool


@dataclass(frozen=True)
class Matrix:
    """A confusion matrix as a table or, for more than `MOST_IN_TABLE` classes, as a picture."""

    num_classes: int
    rows: Sequence[tuple[str, Sequence[Cell]]] = ()  # (class, its cells)
    uri: str = ""
    mistakes: Markup | str = ""  # JSON of the script: [label, guess, count, label, guess, count, …]


def make_matrix(matrix_KK: np.ndarray, class_names: Sequence[str]) -> Matrix:
    """Return the matrix as the page shows it."""
    num_classes = len(matrix_KK)
    shares_KK = matrix_KK / np.maximum(1, matrix_KK.sum(1, keepdims=True))
    if num_classes > MOST_IN_TABLE:
        uri = to_data_uri(draw_heat_map(shares_KK), "PNG")
        return Matrix(
            num_classes, uri=uri, mistakes=Markup(json.dumps(list_mistakes(matrix_KK), separators=(",", ":")))
        )
    rows = [
        (
            name,
            [
                Cell(int(count), round(float(share), 3), label == guess)
                for guess, (count, share) in enumerate(zip(counts_K, shares_K, strict=True))
            ],
        )
        for label, (name, counts_K, shares_K) in enumerate(zip(class_names, matrix_KK, shares_KK, strict=True))
    ]
    return Matrix(num_classes, rows)


def list_mistakes(matrix_KK: np.ndarray) -> list[int]:
    """Return label, guess and count of each cell off the diagonal that is not 0, in one flat list."""
    wrong_KK = matrix_KK * ~np.eye(len(matrix_KK), dtype=bool)
    labels, guesses = np.nonzero(wrong_KK)
    return np.stack([labels, guesses, wrong_KK[labels, guesses]], 1).ravel().tolist()


def draw_heat_map(shares_KK: np.ndarray) -> bytes:
    """Return a PNG of the shares of each row: the diagonal in one colour, mistakes in another, opaque where large.

    A cell of a large matrix is smaller than a pixel of a phone, so each one also fills the empty cells around it.
    """
    num_classes = len(shares_KK)
    is_diagonal_KK = np.eye(num_classes, dtype=bool)
    right_KK, wrong_KK = shares_KK * is_diagonal_KK, shares_KK * ~is_diagonal_KK
    scale = max(1, SIDE // num_classes)
    if scale == 1:
        right_KK, wrong_KK = _spread(right_KK), _spread(wrong_KK)

    # Where both were spread to, the mistake is shown; the diagonal itself stays.
    is_wrong_KK = (wrong_KK > 0) & ~(is_diagonal_KK & (right_KK > 0))
    shown_KK = np.where(is_wrong_KK, wrong_KK, right_KK)
    alpha_KK = np.where(shown_KK > 0, FAINTEST + (1 - FAINTEST) * np.sqrt(shown_KK), 0)
    pixels_KKC = np.empty((num_classes, num_classes, 4), np.uint8)
    pixels_KKC[..., :3] = np.where(is_wrong_KK[..., None], WRONG, RIGHT)
    pixels_KKC[..., 3] = np.rint(255 * alpha_KK)
    pixels_KKC[pixels_KKC[..., 3] == 0] = 0
    enlarged = pixels_KKC.repeat(scale, 0).repeat(scale, 1)
    content = io.BytesIO()
    Image.fromarray(enlarged).save(content, "PNG", optimize=True)
    return content.getvalue()


def _spread(values_KK: np.ndarray) -> np.ndarray:
    """Return the largest of each cell and its eight neighbours."""
    padded = np.pad(values_KK, 1)
    size = len(values_KK)
    return np.max([padded[top : top + size, left : left + size] for top in range(3) for left in range(3)], 0)
