"""The command of the project that the gallery comes from, as its users have it: their file, folders and flags."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from helpers.served import run_here
from PIL import Image
from torch import nn

from serve.loading import BareOptions, load_served
from serve.pictures import decode_image
from serve.preprocess import show_crop, to_tensor

NUM_FOLDERS, NUM_OUTPUTS = 200, 1000
SIZE = 32  # pixels; the command's own 224 would take minutes here
WNIDS = [f"n{9000000 + 7 * number:08d}" for number in range(NUM_FOLDERS)]


@pytest.fixture(scope="module")
def tiny_imagenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tiny-imagenet-200/valid: 200 folders by WordNet id, each with one flat picture of its own colour."""
    folder = tmp_path_factory.mktemp("data") / "tiny-imagenet-200" / "valid"
    colours_NC = np.random.default_rng(0).integers(0, 256, (NUM_FOLDERS, 3), np.uint8)
    for wnid, colour in zip(WNIDS, colours_NC, strict=True):
        (folder / wnid).mkdir(parents=True)
        stripes_HWC = np.zeros((64, 64, 3), np.uint8)
        stripes_HWC[:, :] = colour
        stripes_HWC[:: 2 + int(colour[0]) % 7] = colour[::-1]
        Image.fromarray(stripes_HWC).save(folder / wnid / f"{wnid}_0.JPEG", quality=95)
    return folder


@pytest.fixture(scope="module")
def checkpoint(tiny_imagenet: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """model_best.pth.tar as imagenet/main.py of pytorch/examples saves it, of torchvision's resnet50.

    The last layer separates the pictures' features by ridge regression, so that it is better than chance; outputs
    without pictures are never the highest.
    """
    torch.manual_seed(0)
    model: Any = torchvision.models.resnet50(weights=None, num_classes=NUM_OUTPUTS)
    bare = BareOptions(resize=SIZE * 8 // 7, crop=SIZE)
    path = tmp_path_factory.mktemp("run") / "model_best.pth.tar"
    torch.save(model.state_dict(), path)
    preprocessing = load_served(path, bare).preprocessing
    pictures = [decode_image(each.read_bytes()) for each in sorted(tiny_imagenet.glob("*/*.JPEG"))]
    images_BCHW = torch.stack(
        [to_tensor(show_crop(each, preprocessing), preprocessing) for each in pictures if each is not None]
    )
    body = nn.Sequential(*list(model.children())[:-1], nn.Flatten())
    with torch.no_grad():
        for module in model.modules():  # statistics of these pictures, as training would have
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 1.0
        body.train()(images_BCHW)
        features_BF = body.eval()(images_BCHW).double()
        centred_BF = features_BF - features_BF.mean(0)
        targets_BK = torch.eye(NUM_FOLDERS, NUM_OUTPUTS, dtype=torch.float64)
        gram_BB = centred_BF @ centred_BF.T + 1e-3 * torch.eye(NUM_FOLDERS, dtype=torch.float64)
        weight_KF = (centred_BF.T @ torch.linalg.solve(gram_BB, targets_BK)).T
        model.fc.weight.copy_(weight_KF)
        model.fc.bias.copy_(-weight_KF @ features_BF.mean(0))
        model.fc.bias[NUM_FOLDERS:] = -1.0
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    weights = nn.DataParallel(model).state_dict()
    content = {"epoch": 90, "arch": "resnet50", "state_dict": weights, "best_acc1": torch.tensor(61.0)}
    torch.save({**content, "optimizer": optimizer.state_dict(), "scheduler": {"last_epoch": 89}}, path)
    return path


def list_flags(checkpoint: Path, images: Path, out: Path) -> list[object]:
    """The reference's flags; --size alone is added."""
    flags = ["--num_classes", NUM_OUTPUTS, "--checkpoint_path", checkpoint, "--validation_img_path", images]
    return [*flags, "--num_show", 20, "--output_path", out / "gradcam_comparison.png", "--size", SIZE]


def test_the_reference_command_loads_its_checkpoint(
    checkpoint: Path, tiny_imagenet: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    served = load_served(checkpoint, BareOptions(num_classes=NUM_OUTPUTS, crop=SIZE))
    assert served.notes[0] == "network: resnet50, as model_best.pth.tar records"
    assert served.notes[1] == "weights: state_dict, prefix module. of model_best.pth.tar"
    pictures = [decode_image(each.read_bytes()) for each in sorted(tiny_imagenet.glob("*/*.JPEG"))[:20]]
    images_BCHW = torch.stack(
        [to_tensor(show_crop(each, served.preprocessing), served.preprocessing) for each in pictures if each]
    )
    with torch.inference_mode():
        hits = (served.model(images_BCHW).argmax(1) == torch.arange(20)).float().mean()
    assert hits > 0.5


def test_the_reference_command_ends_to_end(
    checkpoint: Path, tiny_imagenet: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_here("serve/gradcam_viz.py", *list_flags(checkpoint, tiny_imagenet, tmp_path), "--all")
    said = capsys.readouterr().out
    assert "top-1" in said and "of 200 images" in said and "network: resnet50, as model_best.pth.tar records" in said
    with Image.open(tmp_path / "gradcam_comparison.png") as picture:
        assert picture.height > 20 * SIZE


def test_the_reference_command_with_another_number_of_classes_is_one_line(
    checkpoint: Path, tiny_imagenet: Path, tmp_path: Path
) -> None:
    flags = list_flags(checkpoint, tiny_imagenet, tmp_path)
    flags[1] = 200
    with pytest.raises(SystemExit, match=r"has 1,000 classes, expected 200: set --num_classes 1000"):
        run_here("serve/gradcam_viz.py", *flags)
