"""The stage of evaluation: the model and its EMA on batches of the evaluation transform, as after each epoch."""

from collections.abc import Iterator
from types import TracebackType

import torch
from stages.stage import Stage
from stages.stepping import Feed, Feeding

from loaders import Loader
from loaders.plan import Plan
from train.step import Step
from train.validate import iterate_logits, sum_scores

EVALUATE = "evaluate"


class EndlessEvaluation(Loader):
    """An evaluation loader that starts again at the end of the split, without a pause."""

    def _plans(self, position: int) -> Iterator[Plan]:
        while True:
            yield from super()._plans(position)
            position = 0


class Evaluating(Feeding):
    """Evaluate batch after batch. Afterwards the models are in training mode."""

    def __init__(self, feed: Feed, step: Step) -> None:
        super().__init__(feed, EVALUATE)
        self.models = {"model": step.state.model, "ema": step.state.ema}
        self.batches = iterate_logits(self.models, step.augment.normalize, feed, step.amp, self.world)
        self.sums_M5 = torch.zeros(len(self.models), 5, dtype=torch.float64, device=self.world.device)

    def __enter__(self) -> Stage:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        for model in self.models.values():
            model.train()

    @torch.inference_mode()
    def take(self) -> None:
        batch, logits_MBK = next(self.batches)
        self.sums_M5 += torch.stack([sum_scores(logits_BK, batch) for logits_BK in logits_MBK])
