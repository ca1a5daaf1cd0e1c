"""What a model said of each image of a split, and what follows from it: scores, classes, confusions, calibration.

Between `train/validate.py`, which judges batches, and `train/score_files.py`, which writes files.
N images in the index's order, K classes, M models.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from prep.calibration import Bin, sort_into_bins
from train.validate import NUM_FACTS, NUM_VERDICTS, PADDING, Scores


@dataclass(frozen=True)
class Outcomes:
    """One model's verdicts on a whole split."""

    labels_N: np.ndarray  # int64
    damaged_N: np.ndarray  # bool: not decodable, so counted as wrong, whatever the guess on the black image shown
    guesses_N: np.ndarray  # int64
    confidences_N: np.ndarray  # float32, softmax of the guess
    in_top5_N: np.ndarray  # bool
    losses_N: np.ndarray  # float32, nats

    def hits(self) -> np.ndarray:
        """Whether the guess counts as right, bool [N]."""
        return (self.guesses_N == self.labels_N) & ~self.damaged_N

    def top5_hits(self) -> np.ndarray:
        """Whether one of five guesses counts as right, bool [N]."""
        return self.in_top5_N & ~self.damaged_N

    def scores(self) -> Scores:
        """The sums; added up in the index's order, so that they do not depend on the number of processes."""
        return Scores(
            num_images=len(self.labels_N),
            num_damaged=int(self.damaged_N.sum()),
            num_top1=int(self.hits().sum()),
            num_top5=int(self.top5_hits().sum()),
            loss_sum=float(self.losses_N.sum(dtype=np.float64)),
        )

    def bins(self) -> list[Bin]:
        """The bins of calibration, damaged images left out: what was guessed there says nothing of the model."""
        return sort_into_bins(self.confidences_N[~self.damaged_N], self.hits()[~self.damaged_N])

    def class_hits(self, num_classes: int) -> np.ndarray:
        """Images, top-1 hits and top-5 hits of each class, int64 [K, 3]."""
        chosen = (np.ones_like(self.damaged_N), self.hits(), self.top5_hits())
        return np.stack([np.bincount(self.labels_N[each_N], minlength=num_classes) for each_N in chosen], axis=1)

    def confusions(self, num_classes: int, most: int) -> list[tuple[int, int, int]]:
        """The most frequent (label, wrong guess, images), damaged images left out; equally frequent ones by label."""
        wrong_N = (self.guesses_N != self.labels_N) & ~self.damaged_N
        pairs_P, counts_P = np.unique((self.labels_N * num_classes + self.guesses_N)[wrong_N], return_counts=True)
        order_P = np.argsort(-counts_P, kind="stable")[:most]
        columns = (pairs_P[order_P] // num_classes, pairs_P[order_P] % num_classes, counts_P[order_P])
        return list(zip(*(column.tolist() for column in columns), strict=True))


def to_outcomes(names: Sequence[str], verdicts_SC: np.ndarray, labels_N: np.ndarray) -> dict[str, Outcomes]:
    """Sort what `judge_images` gathered into the index's order, padding left out.

    Args:
        names: of the models, in the order of the columns.
        verdicts_SC: float64, a line a slot.
        labels_N: of the split.
    """
    verdicts_SC = verdicts_SC[verdicts_SC[:, 0] != PADDING]
    verdicts_NC = verdicts_SC[verdicts_SC[:, 0].argsort()]
    assert np.array_equal(verdicts_NC[:, 0], np.arange(len(labels_N))), "not every image once"
    damaged_N, outcomes = verdicts_NC[:, 1] > 0, {}
    for number, name in enumerate(names):
        first = NUM_FACTS + number * NUM_VERDICTS
        guesses_N, confidences_N, in_top5_N, losses_N = verdicts_NC[:, first : first + NUM_VERDICTS].T
        outcomes[name] = Outcomes(
            labels_N=labels_N.astype(np.int64),
            damaged_N=damaged_N,
            guesses_N=guesses_N.astype(np.int64),
            confidences_N=confidences_N.astype(np.float32),
            in_top5_N=in_top5_N > 0,
            losses_N=losses_N.astype(np.float32),
        )
    return outcomes
