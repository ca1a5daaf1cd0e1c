"""Penstock in other people's training loops: pairs, epochs, resuming, and the ways in which users get it wrong."""

import re
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from helpers.commands import CHECKOUT, run_command
from helpers.datasets import prepare_folder
from timm.loss import LabelSmoothingCrossEntropy
from timm.optim import create_optimizer_v2
from torch.utils.data import DataLoader
from torchvision.transforms import functional as torchvision

from loaders import Epochs, EvalTransform, Sampling, Split, TrainTransform, build, build_loader
from loaders.order import epoch_order
from prep.dataset import Options
from prep.errors import InputError
from prep.preprocess import IMAGENET_MEAN, IMAGENET_STD

TRAIN, EVAL = TrainTransform(size=24), EvalTransform(size=24, resize=28)


@pytest.fixture
def training(digits: Path) -> Epochs:
    return build(digits, "train", 100, TRAIN, "uint8", seed=3)


def test_an_epoch_has_the_whole_batches_and_the_next_continues_where_it_stopped(digits: Path, training: Epochs) -> None:
    assert len(training) == 14  # of 1,437 images
    labels = torch.cat([labels for _ in range(3) for _, labels in training])
    split = Split(digits, "train")
    order = np.concatenate([epoch_order(Sampling(3), epoch, len(split)) for epoch in range(3)])
    assert labels.tolist() == split.column("label")[order[:4200]].tolist()
    training.close()


def test_epochs_that_are_interrupted_continue_too(training: Epochs) -> None:
    again = build_again(training)
    whole = [labels.tolist() for _ in range(2) for _, labels in again]
    taken = [labels.tolist() for _, labels in islice(training, 5)]
    taken += [labels.tolist() for _, labels in training]
    assert taken == whole[:19]
    training.close()
    again.close()


def build_again(epochs: Epochs) -> Epochs:
    return Epochs(build_loader(epochs.loader.split, TRAIN, 100, sampling=epochs.loader.sampling), "uint8")


def test_a_state_continues_at_the_batch_after_it(training: Epochs) -> None:
    whole = [images for images, _ in islice(build_again(training), 6)]
    list(islice(training, 4))
    resumed = build_again(training)
    resumed.load_state_dict(training.state_dict())
    images, _ = next(iter(resumed))
    assert torch.equal(images, whole[4])
    resumed.close()
    training.close()


def test_images_are_normalised_as_torchvision_does_unless_bytes_are_asked_for(digits: Path) -> None:
    (raw, labels), *_ = build(digits, "validation", 30, EVAL, "uint8", backend="reference")
    for dtype, precision in (("fp32", 1e-6), ("fp16", 2e-3), ("bf16", 2e-2)):
        (images, again), *_ = build(digits, "validation", 30, EVAL, dtype, backend="reference")
        wanted = torchvision.normalize(raw.float() / 255, list(IMAGENET_MEAN), list(IMAGENET_STD))
        torch.testing.assert_close(images.float(), wanted, rtol=0, atol=precision)
        assert images.is_contiguous(memory_format=torch.channels_last)
        assert again.tolist() == labels.tolist()
    assert raw.dtype == torch.uint8 and raw.is_contiguous(memory_format=torch.channels_last)


def test_evaluation_gives_every_image_once_and_a_short_last_batch(digits: Path) -> None:
    loader = build(digits, "validation", 50, EVAL)
    assert len(loader) == 8
    for _ in range(2):
        labels = [labels for _, labels in loader]
        assert [len(each) for each in labels] == [50] * 7 + [10]
        assert torch.cat(labels).tolist() == Split(digits, "validation").column("label").tolist()


def test_processes_share_a_pass(digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels: list[list[int]] = []
    for rank in range(2):
        for name, value in {"RANK": rank, "WORLD_SIZE": 2, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": 2}.items():
            monkeypatch.setenv(name, str(value))
        labels += [each.tolist() for _, each in build(digits, "validation", 150, EVAL, device="cpu")]
    assert [len(each) for each in labels] == [150, 30, 150, 30]
    assert labels[0] + labels[2] + labels[1] + labels[3] == Split(digits, "validation").column("label").tolist()


def test_the_split_says_which_transform_a_user_wants(digits: Path) -> None:
    assert isinstance(build(digits, "train", 8).loader.transform, TrainTransform)
    assert isinstance(build(digits, "validation", 8).loader.transform, EvalTransform)


def test_it_trains_timms_model_with_timms_optimizer_and_loss(digits: Path) -> None:
    torch.manual_seed(0)
    loader = build(digits, "train", 64, TrainTransform(size=32, scale=(0.6, 1), hflip=0))
    model = timm.create_model("resnet10t", num_classes=10).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    optimizer, loss_fn = create_optimizer_v2(model, opt="sgd", lr=0.05), LabelSmoothingCrossEntropy()
    losses = []
    for images, labels in loader:
        loss = loss_fn(model(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert len(losses) == 22
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])  # 2.3 is chance
    loader.close()


def test_a_dataloader_may_wrap_it_but_not_in_workers(digits: Path) -> None:
    loader = build(digits, "validation", 60, EVAL)
    wrapped = [labels for _, labels in DataLoader(loader, batch_size=None)]
    assert torch.cat(wrapped).tolist() == Split(digits, "validation").column("label").tolist()
    with pytest.raises(InputError, match="num_workers=0"):
        list(DataLoader(loader, batch_size=None, num_workers=1))


def test_an_unknown_dtype_or_option_is_refused(digits: Path) -> None:
    with pytest.raises(InputError, match="dtype must be one of uint8, fp32, fp16, bf16, got fp8"):
        build(digits, "train", 8, dtype="fp8")
    with pytest.raises(InputError, match="build has no option num_workers"):
        build(digits, "train", 8, num_workers=4)


def test_the_readmes_loop_runs_as_it_is_written(digits_source: Path, tmp_path: Path) -> None:
    prepare_folder(digits_source, "train", tmp_path / "few", Options(limit=16))
    readme = (CHECKOUT / "README.md").read_text()
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", readme, re.DOTALL) if "import build" in block]
    few = {"/nvme/imagenet": str(tmp_path / "few"), "256": "8"}
    smaller = {**few, "resnet50d": "resnet10t", "range(90)": "range(1)"}
    for words, ours in smaller.items():
        assert words in code
        code = code.replace(words, ours)
    script = tmp_path / "loop.py"
    script.write_text(code.replace("loader.pt", str(tmp_path / "loader.pt")))
    done = run_command(script)
    assert done.returncode == 0, done.stderr
    assert torch.load(tmp_path / "loader.pt", weights_only=True)["position"] == 16
