"""Answer pictures one at a time, for the page and for `POST /predict` together.

One picture keeps all cores busy, and a large one needs 0.7 GB while it is processed. Every `Answerer` of a process
therefore takes the same lock before it opens a file. Gradio's queue alone is not enough: when an event is cancelled,
Gradio starts the next one while the thread of the first still computes.

h and w are the places of the Grad-CAM stage, 7 x 7 for a ResNet at 224 pixels.
"""

import threading
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np

from serve.app.answer import Answer, answer_photo, compute_map, make_cam, name_class, rank_classes, warm_up
from serve.app.uploads import open_photo
from serve.artifact import Served
from serve.preprocess import show_crop, to_tensor


class FairLock:
    """A lock that threads get in the order in which they asked for it; use it in a `with` statement.

    `threading.Lock` gives no order, so a busy page could keep `POST /predict` waiting, or the reverse.
    """

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._is_taken = False
        self._waiting: deque[threading.Lock] = deque()  # one per waiting thread, released when its turn comes

    def __enter__(self) -> None:
        with self._guard:
            if not self._is_taken:
                self._is_taken = True
                return
            turn = threading.Lock()
            turn.acquire()
            self._waiting.append(turn)
        turn.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._guard:
            if self._waiting:
                self._waiting.popleft().release()  # it stays taken, now by that thread
            else:
                self._is_taken = False


ONE_AT_A_TIME = FairLock()  # of this process


@dataclass(frozen=True)
class ClassScore:
    """One class of a classification."""

    label: int
    name: str
    probability: float  # softmax, 0 to 1
    map_hw: np.ndarray | None = None  # Grad-CAM at the stage's own resolution, 0 to 1


@dataclass(frozen=True)
class Classification:
    """The predicted classes of one picture, for `POST /predict`; without the picture and the HTML of `Answer`."""

    scores: tuple[ClassScore, ...]  # the most likely class first
    notes: tuple[str, ...]
    seconds: float  # from the encoded file to the last score or map


class Answerer:
    """A model that answers pictures, one at a time in this process."""

    def __init__(self, served: Served) -> None:
        """Find the Grad-CAM stage, and answer a grey picture, because the first answer is slower than the others."""
        self.served = served
        with ONE_AT_A_TIME:
            self._cam = make_cam(served)
            warm_up(served, self._cam)

    def answer_file(self, path: Path) -> Answer:
        """Open a file and return the page's answer to it; wait until earlier pictures are answered.

        Opening is part of the turn, so that two large pictures are never in memory at the same time.

        Raises:
            InputError: the file is not a picture, is damaged or too large; the message is for the visitor.
        """
        with ONE_AT_A_TIME:
            return answer_photo(self.served, self._cam, open_photo(path))

    def classify(self, file: BinaryIO, with_maps: bool = False) -> Classification:
        """Return the five most likely classes of an encoded picture; wait until earlier pictures are answered.

        Args:
            file: the encoded picture.
            with_maps: also compute the Grad-CAM map of each class, [h, w], scaled to its own maximum.

        Raises:
            InputError: as `answer_file`.
        """
        with ONE_AT_A_TIME:
            started = time.perf_counter()
            photo = open_photo(file)
            image_CHW = to_tensor(show_crop(photo.picture, self.served.preprocessing), self.served.preprocessing)
            scores = tuple(
                ClassScore(
                    label,
                    name_class(self.served, label),
                    probability,
                    compute_map(self._cam, image_CHW, label) if with_maps else None,
                )
                for label, probability in rank_classes(self.served, image_CHW)
            )
            return Classification(scores, (*self.served.notes, *photo.notes), time.perf_counter() - started)
