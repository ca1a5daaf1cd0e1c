"""A map shows where the network found a class: against the paper's formula, and where only one place has it."""

import os
from typing import Any

import numpy as np
import pytest
import timm
import torch
from helpers.evaluations import one_thread
from torch import nn
from torch.nn import functional

from prep.errors import InputError
from serve.cam import GradCam, find_stage

SIDE, HALF, NUM_KINDS = 96, 48, 4
NUM_SEEDS = int(os.environ.get("PENSTOCK_SOAK_QUADRANTS", "1"))
CNNS = (
    "resnet10t",
    "test_efficientnet",
    "test_convnext",
    "test_byobnet",
    "test_nfnet",
    "densenet121",
    "mobilenetv3_small_050",
)


def draw_quadrants(count: int, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Faint noise with a texture in one random quadrant: float32 [B, 3, 96, 96], the texture's kind, the quadrant."""
    images_BCHW = rng.normal(0, 0.2, (count, 3, SIDE, SIDE)).astype(np.float32)
    kinds_B, quadrants_B = rng.integers(NUM_KINDS, size=count), rng.integers(4, size=count)
    row, column = np.mgrid[:HALF, :HALF]
    waves = [np.sign(np.sin(angle)) for angle in (row / 1.5, column / 1.5, (row + column) / 2, (row - column) / 2)]
    for image_CHW, kind, quadrant in zip(images_BCHW, kinds_B, quadrants_B, strict=True):
        image_CHW[:, *quarter(quadrant)] += waves[kind]
    return torch.from_numpy(images_BCHW), torch.from_numpy(kinds_B), torch.from_numpy(quadrants_B)


def quarter(quadrant: int) -> tuple[slice, slice]:
    top, left = HALF * (quadrant // 2), HALF * (quadrant % 2)
    return slice(top, top + HALF), slice(left, left + HALF)


@pytest.fixture(scope="module", params=range(NUM_SEEDS))
def texture_model(request: pytest.FixtureRequest) -> nn.Module:
    """A small network that distinguishes the textures, with a last stage of 12 x 12 places."""
    rng = np.random.default_rng(request.param)
    torch.manual_seed(request.param)
    model = timm.create_model("test_resnet", num_classes=NUM_KINDS, output_stride=8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)
    with one_thread():
        for _ in range(30):
            images_BCHW, kinds_B, _ = draw_quadrants(16, rng)
            optimizer.zero_grad()
            functional.cross_entropy(model(images_BCHW), kinds_B).backward()
            optimizer.step()
    return model.eval()


@one_thread()
def test_the_map_is_on_what_shows_the_class(texture_model: nn.Module) -> None:
    images_BCHW, kinds_B, quadrants_B = draw_quadrants(40, np.random.default_rng(1))
    with torch.inference_mode():
        right_B = texture_model(images_BCHW).argmax(1) == kinds_B
    assert right_B.float().mean() >= 0.95
    cam, shares = GradCam(texture_model, SIDE), []
    for image_CHW, kind, quadrant in zip(images_BCHW, kinds_B.tolist(), quadrants_B.tolist(), strict=True):
        (map_HW,) = cam(image_CHW, [kind])
        shares.append((map_HW[quarter(quadrant)].sum() / map_HW.sum()).item())
    assert np.mean(shares) >= 0.8
    assert np.median(shares) >= 0.8


def by_the_paper(model: nn.Module, layer: nn.Module, image_CHW: torch.Tensor, kinds: tuple[int, ...]) -> torch.Tensor:
    """Equations 1 and 2 of arXiv 1610.02391, written down again: [T, h, w]."""
    seen: list[torch.Tensor] = []

    def note(_module: nn.Module, _inputs: Any, output: torch.Tensor) -> None:
        seen.append(output)

    handle = layer.register_forward_hook(note)
    logits_K = model(image_CHW[None])[0]
    handle.remove()
    maps = []
    for kind in kinds:
        (slopes,) = torch.autograd.grad(logits_K[kind], seen[0], retain_graph=True)
        maps.append((slopes.mean((2, 3), keepdim=True) * seen[0]).sum(1)[0].relu())
    return torch.stack(maps).detach()


@pytest.mark.parametrize("name", ["of textures", "resnet50d"])
@one_thread()
def test_the_map_is_the_papers_formula(texture_model: nn.Module, name: str) -> None:
    torch.manual_seed(0)
    model: Any = texture_model if name == "of textures" else timm.create_model(name, num_classes=NUM_KINDS).eval()
    image_CHW = draw_quadrants(1, np.random.default_rng(2))[0][0]
    cam, kinds = GradCam(model, SIDE), model(image_CHW[None])[0].argsort(descending=True).tolist()[:2]
    found_THW = cam.raw(image_CHW, kinds)
    assert found_THW.max() > 0
    expected_THW = by_the_paper(model, cam.stage.module, image_CHW, kinds)
    scale = expected_THW.max().item()
    torch.testing.assert_close(found_THW / scale, expected_THW / scale, rtol=1e-4, atol=1e-5)


@one_thread()
def test_a_map_is_from_0_to_1_at_the_pictures_size(texture_model: nn.Module) -> None:
    maps_THW = GradCam(texture_model, SIDE)(torch.randn(3, SIDE, SIDE), (0, 1, 2, 3))
    assert maps_THW.shape == (4, SIDE, SIDE)
    assert maps_THW.min() >= 0 and not maps_THW.isnan().any()
    for map_HW in maps_THW:
        assert map_HW.max() == 1 or map_HW.abs().max() == 0


@pytest.mark.parametrize("name", CNNS)
def test_many_networks_have_maps(name: str) -> None:
    torch.manual_seed(0)
    model: Any = timm.create_model(name, num_classes=5).eval()
    with one_thread():
        maps_THW = GradCam(model, SIDE).raw(torch.randn(3, SIDE, SIDE), (0, 4))
    assert maps_THW.dim() == 3 and maps_THW.shape[0] == 2 and 4 <= maps_THW.shape[1] <= 24


class Patches(nn.Module):
    """Means of patches of 8 pixels, as a transformer gives them: [B, tokens, C] or [B, h, w, C]."""

    def __init__(self, num_others: int, as_tokens: bool) -> None:
        super().__init__()
        self.num_others, self.as_tokens = num_others, as_tokens

    def forward(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        places_BHWC = functional.avg_pool2d(images_BCHW, 8).permute(0, 2, 3, 1)
        if not self.as_tokens:
            return places_BHWC
        return functional.pad(places_BHWC.flatten(1, 2), (0, 0, self.num_others, 0))


class Transformer(nn.Module):
    """Logits are the mean of each channel over all places."""

    def __init__(self, num_others: int, as_tokens: bool) -> None:
        super().__init__()
        self.stage, self.head = Patches(num_others, as_tokens), nn.Linear(3, 3, bias=False)
        nn.init.eye_(self.head.weight)
        self.feature_info, self.num_prefix_tokens = [{"module": "stage", "num_chs": 3}], num_others

    def forward(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        return self.head(self.stage(images_BCHW).flatten(1, -2).mean(1))


@pytest.mark.parametrize(("num_others", "as_tokens"), [(0, True), (1, True), (5, True), (0, False)])
def test_a_map_of_tokens_is_where_the_places_are(num_others: int, as_tokens: bool) -> None:
    image_CHW = torch.zeros(3, SIDE, SIDE)
    image_CHW[1, 8:16, 72:80] = 1  # row 1, column 9 of 12 x 12 patches
    cam = GradCam(Transformer(num_others, as_tokens), SIDE)
    assert (cam.stage.height, cam.stage.width) == (12, 12)
    maps_THW = cam.raw(image_CHW, (0, 1))
    assert not maps_THW[0].any()
    assert maps_THW[1].nonzero().tolist() == [[1, 9]]


def test_stages_that_do_not_exist_are_replaced_by_the_last_feature_map() -> None:
    parts: list[nn.Module] = [nn.Conv2d(3, 8, 3, padding=1) for _ in range(3)]
    model: Any = nn.Sequential(nn.Conv2d(3, 3, 1), *parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    model[2], model[3] = nn.Conv2d(8, 16, 2, 2), nn.Conv2d(16, 8, 2, 2)
    model.feature_info = [{"module": "stages.0", "num_chs": 8}]
    stage = GradCam(model, 32).stage
    assert (stage.name, stage.height, stage.is_declared) == ("3", 8, False)
    assert "Grad-CAM of 3 (the last module with a feature map, as timm names no usable stage)" in (
        GradCam(model, 32).describe()
    )
    with pytest.raises(InputError, match=r"no stage of Sequential gives a feature map .* --method occlusion"):
        GradCam(model, 8)


@pytest.mark.parametrize(
    ("name", "stage"),
    [
        ("test_vit", ("blocks.4", "tokens")),  # it looks at its class token: not the last of six blocks
        ("test_vit2", ("blocks.7", "tokens")),
        ("swin_tiny_patch4_window7_224", ("layers.2", "channels last")),
    ],
)
@one_thread()
def test_transformers_have_maps(name: str, stage: tuple[str, str]) -> None:
    torch.manual_seed(0)
    model: Any = timm.create_model(name, num_classes=5, img_size=64).eval()
    cam = GradCam(model, 64)
    maps_THW = cam.raw(torch.randn(3, 64, 64), (0, 4))
    assert (cam.stage.name, cam.stage.layout) == stage
    assert maps_THW.shape == (2, cam.stage.height, cam.stage.width) and min(maps_THW.shape[1:]) >= 4
    assert maps_THW.isfinite().all() and maps_THW.any()


def test_a_size_that_a_network_cannot_see_is_refused() -> None:
    with one_thread(), pytest.raises(InputError, match="does not accept pictures of 64 pixels"):
        find_stage(timm.create_model("test_vit_relpos", num_classes=5).eval(), 64)


def test_stages_that_the_logits_do_not_look_at_are_refused() -> None:
    model: Any = Transformer(1, as_tokens=True)
    model.forward = lambda images_BCHW: model.head(
        model.stage(images_BCHW)[:, 0]
    )  # the class token, which sees no place
    with pytest.raises(InputError, match="no stage of Transformer gives a feature map that reaches the logits"):
        GradCam(model, SIDE)


@pytest.mark.parametrize(
    ("name", "size", "stage"),
    [
        ("resnet50d", 224, ("layer4", 7, 7)),
        ("resnet18", 64, ("layer3", 4, 4)),
        ("resnet10t", 32, ("layer2", 4, 4)),
        ("resnet10t", 8, ("act1", 4, 4)),
        ("resnet10t", 4, ("act1", 2, 2)),
    ],
)
def test_small_pictures_are_explained_where_they_still_have_places(
    name: str, size: int, stage: tuple[Any, ...]
) -> None:
    model: Any = timm.create_model(name, num_classes=5).eval()
    with one_thread():
        found = find_stage(model, size)
    assert (found.name, found.height, found.width) == stage


def test_a_network_without_stages_is_refused() -> None:
    with pytest.raises(InputError, match="has no feature_info"):
        find_stage(nn.Sequential(nn.Conv2d(3, 4, 3)), SIDE)
