"""Pictures of a run for TensorBoard: what the network is trained on, and what it gets wrong. Rank 0's first ones."""

import torch

from loaders import Batch, Split
from train.journal import Journal
from train.step import Step

NUM_PICTURES = 16


def show_augmented(journal: Journal, step: Step, batch: Batch) -> None:
    """The first images of a training batch, as the network sees them."""
    if journal.speaks:
        journal.show("train/augmented", step.preview(batch, NUM_PICTURES), batch.position)


@torch.inference_mode()
def show_mistakes(journal: Journal, step: Step, batch: Batch, split: Split) -> None:
    """The first images of a validation batch that the averaged model gets wrong, and a line about each.

    The model must be in evaluation mode.
    """
    if not journal.speaks:
        return
    with step.amp:
        logits_BK = step.state.ema(step.augment.normalize(batch.images_BCHW))
    confidences_B, guesses_B = logits_BK.float().softmax(dim=1).max(dim=1)
    wrong_B = (guesses_B != batch.labels_B) & batch.valid_B
    wrong = torch.nonzero(wrong_B)[:NUM_PICTURES, 0]
    names, keys = split.class_names, split.keys(batch.rows_B[wrong.cpu().numpy()])
    columns = (tensor_B[wrong].tolist() for tensor_B in (batch.labels_B, guesses_B, confidences_B))
    lines = [
        f"{key}: {names[label]}, taken for {names[guess]} ({confidence:.0%})"
        for key, label, guess, confidence in zip(keys, *columns, strict=True)
    ]
    journal.show("validation/mistakes", batch.images_BCHW[wrong], step.state.clock, lines)
