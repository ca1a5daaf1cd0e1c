"""The methods for maps: formulas against a library and against networks whose supporting place is known; refusals."""

from typing import Any, Literal

import numpy as np
import pytest
import timm
import torch
from captum.attr import Occlusion as CaptumOcclusion
from helpers.evaluations import one_thread
from hypothesis import given
from hypothesis import strategies as st
from pytorch_grad_cam import GradCAMPlusPlus, LayerCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import nn
from torch.nn import functional

from prep.errors import InputError
from serve.cam import GradCam, GradCamPlusPlus, LayerCam
from serve.map_methods import METHODS, Method, make_map_maker
from serve.maps import enlarge_maps, scale_maps
from serve.occlusion import Occlusion
from serve.rollout import Rollout, roll_out

SIDE = 64
Ours = type[GradCamPlusPlus] | type[LayerCam]


class Patches(nn.Module):
    """A network whose logit of class c is the sum of channel c over all pixels, by a stage of 8 x 8 places."""

    def __init__(self) -> None:
        super().__init__()
        self.stage = nn.AvgPool2d(8)
        self.scale = nn.Parameter(torch.tensor(10.0))
        self.feature_info = [{"module": "stage", "num_chs": 3}]

    def forward(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        return self.scale * self.stage(images_BCHW).mean((2, 3))


def draw_spot() -> torch.Tensor:
    """A picture of zeros with one place of channel 1 that is 1: row 2, column 5 of 8 x 8. [3, 64, 64]."""
    image_CHW = torch.zeros(3, SIDE, SIDE)
    image_CHW[1, 16:24, 40:48] = 1
    return image_CHW


@pytest.mark.parametrize("method", ["gradcam", "gradcam++", "layercam", "occlusion"])
def test_the_map_is_where_the_class_is(method: Method) -> None:
    with one_thread():
        maps_THW = make_map_maker(method, Patches(), SIDE)(draw_spot(), [1, 0])
    row, column = divmod(int(maps_THW[0].argmax()), SIDE)
    assert 16 <= row < 24 and 40 <= column < 48
    assert maps_THW[0][:, :24].max() < 0.05 and maps_THW[0].max() == 1
    assert not maps_THW[1].any()  # no place supports class 0


@pytest.mark.parametrize(("ours", "theirs"), [(GradCamPlusPlus, GradCAMPlusPlus), (LayerCam, LayerCAM)])
@one_thread()
def test_the_maps_are_those_of_the_library(ours: Ours, theirs: Any) -> None:
    torch.manual_seed(0)
    model: Any = timm.create_model("test_resnet", num_classes=10).eval()
    # The library adds 1e-6 to Grad-CAM++'s denominator, which the paper does not; large gradients make it negligible.
    model.get_classifier().weight.data.mul_(1e4)
    cam, image_CHW, target = ours(model, 160), torch.randn(3, 160, 160), ClassifierOutputTarget
    raw_Thw = cam.raw(image_CHW, (0, 7))
    bilinear_THW = functional.interpolate(raw_Thw[:, None], (160, 160), mode="bilinear")[:, 0]
    with theirs(model=model, target_layers=[cam.stage.module]) as library:
        for map_HW, kind in zip(bilinear_THW.numpy(), (0, 7), strict=True):
            expected_HW = library(input_tensor=image_CHW[None], targets=[target(kind)])[0]
            assert 0.01 < expected_HW.mean() < 0.9
            np.testing.assert_allclose(stretch(map_HW), stretch(expected_HW), atol=1e-4)


def stretch(map_HW: np.ndarray) -> np.ndarray:
    """Return a map scaled from its minimum to its maximum, 0 to 1, as the library does."""
    return (map_HW - map_HW.min()) / np.ptp(map_HW)


@one_thread()
def test_occlusion_is_captums_for_each_class_alone() -> None:
    torch.manual_seed(0)
    model: Any = timm.create_model("test_resnet", num_classes=10).eval()
    image_CHW = torch.randn(3, 48, 48)
    maker = Occlusion(model, 48)
    raw_Thw = maker.raw(image_CHW, (3, 8))
    assert (maker.stride, maker.square, raw_Thw.shape) == (4, 8, (2, 12, 12))
    with torch.inference_mode():
        expected_1CHW: Any = CaptumOcclusion(lambda images: model(images).log_softmax(1)).attribute(
            image_CHW[None], (3, 8, 8), strides=(1, 4, 4), target=8, perturbations_per_eval=7
        )
    torch.testing.assert_close(raw_Thw[1], expected_1CHW[0, 0, ::4, ::4].relu(), rtol=1e-3, atol=1e-6)
    assert maker.passes == 11 * 11 + 1


@pytest.mark.parametrize("size", [5, 14, 30, 65])
def test_occlusion_covers_any_size(size: int) -> None:
    image_CHW = torch.zeros(3, size, size)
    image_CHW[:, -1, -1] = 5  # the last pixel, in a place that the edge cuts off
    linear = nn.Linear(3, 2)
    nn.init.constant_(linear.weight[:1], 1)
    nn.init.constant_(linear.weight[1:], -1)
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear)
    with one_thread():
        maps_THW = Occlusion(model, size)(image_CHW, [0])
    assert maps_THW.shape == (1, size, size) and maps_THW[0, -1, -1] == 1


def make_bright_watcher(pool: Literal["token", "avg"]) -> Any:
    """A transformer of one block of 4 x 4 patches whose class token attends to the brightest patch alone."""
    model: Any = timm.models.VisionTransformer(
        img_size=SIDE, patch_size=16, embed_dim=8, depth=1, num_heads=1, num_classes=2, qkv_bias=True,
        norm_layer=nn.Identity, global_pool=pool, class_token=pool == "token",
    ).eval()  # fmt: skip
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    nn.init.constant_(model.patch_embed.proj.weight[0], 1 / 256)  # feature 0 is the patch's brightness
    attention = model.blocks[0].attn
    attention.qkv.bias.data[0] = 50.0  # each query asks for feature 0
    attention.qkv.weight.data[8, 0] = 1.0  # a key is feature 0
    return model


@pytest.mark.parametrize("pool", ["token", "avg"])
@one_thread()
def test_rollout_is_where_the_attention_goes(pool: Literal["token", "avg"]) -> None:
    image_CHW = torch.zeros(3, SIDE, SIDE)
    image_CHW[:, 16:32, 48:64] = 1  # row 1, column 3 of 4 x 4
    model = make_bright_watcher(pool)
    raw_Thw = Rollout(model, SIDE).raw(image_CHW, [0, 1])
    assert torch.equal(raw_Thw[0], raw_Thw[1]) and raw_Thw.shape == (2, 4, 4)
    # Half of the output is the residual connection: the class token itself, or the mean of the 16 places.
    expected_hw = torch.full((4, 4), 0.0 if pool == "token" else 1 / 32)
    expected_hw[1, 3] += 0.5
    torch.testing.assert_close(raw_Thw[0], expected_hw, rtol=0, atol=1e-4)
    assert all(block.attn.fused_attn for block in model.blocks) and not model.blocks[0].attn.attn_drop._forward_hooks


@one_thread()
def test_rollout_multiplies_the_attention_of_all_blocks() -> None:
    torch.manual_seed(0)
    model: Any = timm.create_model("test_vit", num_classes=5, img_size=SIDE).eval()
    image_CHW, seen = torch.randn(3, SIDE, SIDE), []
    handles = [
        block.attn.qkv.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
        for block in model.blocks
    ]
    with torch.inference_mode():
        model(image_CHW[None])  # with fused attention
    for handle in handles:
        handle.remove()
    rolled_NN = np.eye(17)
    for block, qkv in zip(model.blocks, seen, strict=True):
        query_HNC, key_HNC, _ = qkv.reshape(17, 3, block.attn.num_heads, -1).permute(1, 2, 0, 3)
        weights_NN = (query_HNC @ key_HNC.transpose(1, 2) * block.attn.scale).softmax(-1).mean(0).double().numpy()
        rolled_NN = (0.5 * weights_NN + 0.5 * np.eye(17)) @ rolled_NN
    found_hw = Rollout(model, SIDE).raw(image_CHW, [0])[0]
    np.testing.assert_allclose(found_hw.numpy(), rolled_NN[0, 1:].reshape(4, 4), rtol=1e-4)


def test_uniform_attention_has_no_map() -> None:
    with one_thread():
        assert not Rollout(make_bright_watcher("token"), SIDE)(torch.zeros(3, SIDE, SIDE), [0]).any()


@given(st.integers(1, 4), st.integers(2, 6), st.integers(0, 2**31))
def test_rolled_out_rows_sum_to_one(num_blocks: int, num_tokens: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    blocks = [torch.rand(num_tokens, num_tokens, generator=generator).softmax(-1) for _ in range(num_blocks)]
    rolled_NN = roll_out(blocks)
    assert (rolled_NN >= 0).all()
    torch.testing.assert_close(rolled_NN.sum(1), torch.ones(num_tokens), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "size", "method", "words"),
    [
        (
            "test_resnet",
            64,
            "rollout",
            "ResNet has no attention that can be read",
        ),
        ("test_convnext", 64, "rollout", "ConvNeXt has no attention that can be read"),
        ("test_maxvit", 160, "rollout", "MaxxVit has no global attention in one row of blocks"),
        ("test_vit3", 160, "rollout", "VisionTransformer pools its tokens by another attention"),
        ("test_vit_relpos", 64, "rollout", "VisionTransformerRelPos does not accept pictures of 64 pixels"),
        ("test_vit_relpos", 64, "occlusion", "VisionTransformerRelPos does not accept pictures of 64 pixels"),
        ("test_vit_relpos", 64, "layercam", "VisionTransformerRelPos does not accept pictures of 64 pixels"),
    ],
)
@one_thread()
def test_what_a_method_cannot_explain_is_refused(name: str, size: int, method: Method, words: str) -> None:
    with pytest.raises(InputError, match=words):
        make_map_maker(method, timm.create_model(name, num_classes=5).eval(), size)


class Windows(nn.Module):
    """A block with the parts of timm's attention, which attends within windows."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.fused_attn, self.attn_drop, self.shape = True, nn.Identity(), shape

    def forward(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        self.attn_drop(torch.full(self.shape, 1 / self.shape[-1]))
        return images_BCHW


class Attending(nn.Module):
    """A classifier with one such block."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.blocks, self.scale = nn.ModuleList([block]), nn.Parameter(torch.ones(1))

    def forward(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        return self.scale * self.blocks[0](images_BCHW).mean((2, 3))


@pytest.mark.parametrize("shape", [(4, 2, 4, 4), (1, 2, 16, 4), (1, 2, 15, 15)])  # windows, fewer keys, no square
def test_attention_that_is_not_global_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"Attending has no global attention \(its blocks attend"):
        Rollout(Attending(Windows(*shape)), SIDE)
    assert Rollout(Attending(Windows(1, 2, 16, 16)), SIDE).side == 4


@pytest.mark.parametrize("method", [each for each in METHODS if each != "rollout"])
def test_what_is_no_classifier_is_refused(method: Method) -> None:
    model: Any = Patches()
    plain = model.forward
    model.forward = lambda images: plain(images)[:, None]  # an encoder: [B, tokens, C]
    with pytest.raises(InputError, match=r"Patches returns \[1, 1, 3\], expected one logit per class"):
        make_map_maker(method, model, SIDE)


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ("gradcam", "Grad-CAM of stage, 8 x 8 places, each scaled from 0 to its own maximum; warm places hold"),
        ("occlusion", "occlusion by squares of 10 pixels in steps of 5"),
    ],
)
def test_a_method_says_what_it_shows(method: Method, words: str) -> None:
    maker = make_map_maker(method, Patches(), SIDE)
    assert words in maker.describe() and maker.has_classes


@given(st.integers(2, 7), st.sampled_from([3, 5, 7, 31]), st.integers(0, 2**31))
def test_an_enlarged_map_has_the_raw_values_at_the_centres(side: int, ratio: int, seed: int) -> None:
    raw_Thw = torch.rand(2, side, side, generator=torch.Generator().manual_seed(seed)) - 0.2
    large_THW = enlarge_maps(raw_Thw, side * ratio, side * ratio)
    centres_Thw = large_THW[:, ratio // 2 :: ratio, ratio // 2 :: ratio]
    torch.testing.assert_close(centres_Thw, raw_Thw.relu(), rtol=1e-5, atol=1e-5)
    assert large_THW.min() >= 0
    assert (large_THW.amax((1, 2)) <= raw_Thw.amax((1, 2)).relu() + 1e-6).all()
    assert scale_maps(large_THW).max() <= 1


def test_an_enlarged_map_has_no_kinks() -> None:
    spot_Thw = torch.zeros(1, 7, 7)
    spot_Thw[0, 3, 3] = 1
    profile_W = enlarge_maps(spot_Thw, 7 * 31, 7 * 31)[0, 108]
    bends_W = profile_W.diff().diff().abs()
    bilinear_W = functional.interpolate(spot_Thw[:, None], (217, 217), mode="bilinear")[0, 0, 108]
    assert bends_W[100:116].max() < 0.2 * bilinear_W.diff().diff().abs().max()  # at the top of the spot


def test_grad_cam_stays_the_default_interface() -> None:
    assert METHODS[0] == "gradcam" and isinstance(make_map_maker("gradcam", Patches(), SIDE), GradCam)
