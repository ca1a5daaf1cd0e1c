"""The parts of evaluation by hand: transforms, mirror images, calibration, counts of a batch, refusals."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.commands import free_port
from helpers.evaluations import CPU, save, tiny_recipe
from helpers.ranks import Ranks
from helpers.train_runs import PATIENCE, assert_ended
from torch import nn
from torch.nn import functional

from loaders import Batch, EvalTransform
from prep.calibration import expected_calibration_error, sort_into_bins
from prep.errors import InputError
from train.checkpoint import find_checkpoint, restore_models
from train.evaluate import choose_transform, make_folder
from train.model import build_model
from train.validate import Mirrored, sum_scores, to_scores


@pytest.mark.parametrize(
    ("size", "resize", "expected"),
    [(None, None, (224, 256)), (256, None, (256, 292)), (None, 224, (224, 224)), (288, 288, (288, 288))],
)
def test_the_crops_share_stays_unless_both_are_given(
    size: int | None, resize: int | None, expected: tuple[int, int]
) -> None:
    assert choose_transform(EvalTransform(224, 256), size, resize) == EvalTransform(*expected)


def test_results_that_could_not_be_written_are_refused_before_they_are_computed(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file cannot be created as a folder .*choose another --out"):
        make_folder(tmp_path / "file")


def test_a_run_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no complete checkpoint"):
        find_checkpoint(tmp_path)


def test_mirrored_is_the_mean_of_both_logits() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 6, 5))
    images = torch.rand(2, 3, 4, 6)
    mirrored = torch.from_numpy(np.ascontiguousarray(images.numpy()[..., ::-1]))
    torch.testing.assert_close(Mirrored(model)(images), torch.stack([model(images), model(mirrored)]).mean(0))


def test_calibration_by_hand() -> None:
    confidences = np.array([1 / 15, 0.5, 0.52, 1.0, 0.0], np.float32)
    bins = sort_into_bins(confidences, np.array([True, True, False, True, False]))
    assert [(n, each.num_images) for n, each in enumerate(bins) if each.num_images] == [(0, 1), (1, 1), (7, 2), (14, 1)]
    # float32 rounds 1/15 up, into the second bin; in the eighth one of two is right at 0.51 on average
    assert expected_calibration_error(bins) == pytest.approx(100 * ((1 - 1 / 15) + 2 * 0.01) / 5, rel=1e-5)
    assert expected_calibration_error(sort_into_bins(confidences[:0], np.array([], bool))) == 0


def _batch(labels: list[int], valid: list[bool], damaged: list[bool] | None = None) -> Batch:
    images, damaged_B = torch.zeros(len(labels), 3, 2, 2, dtype=torch.uint8), torch.zeros(len(labels), dtype=torch.bool)
    damaged_B = torch.tensor(damaged) if damaged else damaged_B
    return Batch(images, torch.tensor(labels), torch.tensor(valid), damaged_B, 0, np.arange(len(labels)))


def test_padding_is_not_counted_even_where_its_logits_are_not_numbers() -> None:
    logits = torch.arange(6.0).repeat(4, 1)  # guesses: 5, 4, 3, 2, 1
    logits[3] = torch.nan
    sums = to_scores(sum_scores(logits, _batch([5, 1, 0, 5], [True, True, True, False])).tolist())
    assert (sums.num_images, sums.num_top1, sums.num_top5) == (3, 1, 2)
    expected = functional.cross_entropy(logits[:3], torch.tensor([5, 1, 0]), reduction="sum").item()
    assert sums.loss_sum == pytest.approx(expected, rel=1e-6)


def test_a_damaged_image_counts_and_is_never_a_hit() -> None:
    logits = torch.eye(6)[:3]  # guesses: 0, 1, 2, all right
    sums = to_scores(sum_scores(logits, _batch([0, 1, 2], [True] * 3, [False, True, False])).tolist())
    assert (sums.num_images, sums.num_damaged, sums.num_top1, sums.num_top5) == (3, 1, 2, 2)


def test_a_padded_image_that_claims_to_be_valid_changes_the_count() -> None:
    logits = torch.eye(4, 6)
    right, wrong = (
        sum_scores(logits, _batch([0, 1, 2, 3], [True, True, True, last])).tolist() for last in (False, True)
    )
    assert (right[:3], wrong[:3]) == ([3, 0, 3], [4, 0, 4])


def test_fewer_classes_than_five_guesses() -> None:
    sums = sum_scores(torch.eye(3), _batch([0, 2, 2], [True] * 3)).tolist()
    assert sums[:4] == [3, 0, 2, 3]


def test_of_a_run_in_progress_all_processes_evaluate_one_checkpoint(
    trainers: Ranks, digits: Path, tmp_path: Path
) -> None:
    """A later process finds a newer checkpoint, or none of those that the first one found."""
    recipe, model = tiny_recipe(digits), build_model(tiny_recipe(digits).model, 10, CPU)
    path = save(tmp_path / "run", recipe, model, model)
    flags = ["--data", str(digits), "--backend", "reference", "--device", "cpu"]
    arguments = [[str(path), *flags], [str(tmp_path / "deleted"), *flags]]
    group = trainers.start("evaluate-newest", 2, tmp_path / "groups", arguments=arguments, port=free_port())
    assert_ended(trainers.wait(PATIENCE), 0)
    assert json.loads((group / "stdout-0").read_text())["checkpoint"] == str(path)
    (path / "ema.safetensors").unlink()
    with pytest.raises(InputError, match=r"can no longer be read .*start again to use a newer one"):
        restore_models(path, recipe, 10, CPU)
