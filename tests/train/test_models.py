"""Networks are built for the resolutions they will see; one that cannot run is refused in a line of good advice."""

import os
import re
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
from torch import nn

from loaders import EvalTransform, TrainTransform, World
from prep.errors import InputError
from prep.errors import InputError as ServeError
from serve.weights import build_network, build_network_for_weights
from train.config import ModelConfig, Sizes
from train.model import build_model, check_name, size_options
from train.pretrained import resolve_tag
from train.recipe import demo, fast_16
from train.step import check_gradients

CPU = torch.device("cpu")
MORE_OPTIONS: list[tuple[str, Sizes, dict[str, Any]]] = []
REFUSED_SIZES = [("test_maxvit", 100), ("test_vit", 60)]
if os.environ.get("PENSTOCK_SOAK_FAMILIES"):
    MORE_OPTIONS += [
        ("swin_tiny_patch4_window7_224", Sizes((64,), 96), {"img_size": 64, "dynamic_img_size": True}),
        ("xcit_nano_12_p16_224", Sizes((64,), 96), {"img_size": 64}),  # it interpolates without being told to
    ]
    REFUSED_SIZES += [("inception_v3", 64), ("eva02_tiny_patch14_224", 64), ("halonet26t", 64), ("levit_128s", 8)]


def refusal(name: str, sizes: Sizes, **settings: Any) -> str:
    with pytest.raises(InputError) as refused:
        build_model(ModelConfig(name, **settings), 10, CPU, sizes)
    line = str(refused.value)
    assert "\n" not in line and name in line
    return line


@pytest.mark.parametrize(
    ("name", "sizes", "options"),
    [
        ("resnet18", Sizes((160, 192), 256), {}),
        ("vit_tiny_patch16_224", Sizes((224,), 224), {"img_size": 224}),
        ("vit_tiny_patch16_224", Sizes((64,), 64), {"img_size": 64}),
        ("vit_tiny_patch16_224", Sizes((32, 64), 64), {"img_size": 64, "dynamic_img_size": True}),
        ("vit_tiny_patch16_224", Sizes((64,), 96), {"img_size": 64, "dynamic_img_size": True}),
        ("test_coatnet", Sizes((64,), 64), {"img_size": 64}),
        *MORE_OPTIONS,
    ],
)
def test_timm_is_told_the_resolutions_where_weights_depend_on_them(
    name: str, sizes: Sizes, options: dict[str, Any]
) -> None:
    assert size_options(ModelConfig(name), sizes) == options
    model = build_model(ModelConfig(name), 10, CPU, sizes).eval()
    with torch.inference_mode():
        for size in {*sizes.train, sizes.evaluate}:
            assert model(torch.zeros(1, 3, size, size)).shape == (1, 10)


def test_a_recipe_knows_its_resolutions() -> None:
    assert fast_16().image_sizes() == Sizes((160, 192), 256)
    grows = TrainTransform(size=128, first_size=64, grow=(2, 6))
    recipe = replace(demo(), epochs=8, transform=grows, evaluation=EvalTransform(144, 160))
    assert recipe.image_sizes(1) == Sizes((64, 96, 128), 144, 1)
    stopped_early = replace(recipe, epochs=3)  # still the weights of 128 pixels: those of a run that continues to 8
    assert stopped_early.image_sizes().main == 128


def test_trying_a_model_does_not_change_its_first_weights() -> None:
    torch.manual_seed(5)
    tried = build_model(ModelConfig("test_resnet"), 10, CPU, Sizes((48,), 80)).state_dict()
    torch.manual_seed(5)
    plain = build_model(ModelConfig("test_resnet"), 10, CPU).state_dict()
    assert all(torch.equal(tensor, plain[name]) for name, tensor in tried.items())


def test_position_embeddings_are_timms_at_every_resolution() -> None:
    """At another resolution than the weights' a model computes what timm makes of the weights for that resolution."""
    torch.manual_seed(0)
    config = ModelConfig("test_vit2")
    model: Any = build_model(config, 10, CPU, Sizes((64,), 128)).eval()
    nn.init.normal_(model.pos_embed)  # large ones, so that a wrong place is seen
    weights = model.state_dict()
    for size in (64, 128):
        resampled: Any = build_model(config, 10, CPU, Sizes((size,), size)).eval()
        filtered = timm.models.vision_transformer.checkpoint_filter_fn(dict(weights), resampled)
        resampled.load_state_dict(filtered)
        images_BCHW = torch.randn(2, 3, size, size)
        with torch.inference_mode():
            torch.testing.assert_close(model(images_BCHW), resampled(images_BCHW), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "size"), REFUSED_SIZES)
def test_a_size_that_cannot_be_trained_is_refused_with_sizes_that_can(name: str, size: int) -> None:
    line = refusal(name, Sizes((size,), size))
    assert f"does not train at {size} pixels" in line
    advised = [int(word) for word in line.rpartition("one of ")[2].split(", ")]
    assert advised and size not in advised
    for other in advised:
        size_options(ModelConfig(name), Sizes((other,), other))


def test_a_size_that_cannot_be_evaluated_is_refused_with_one_that_can() -> None:
    line = refusal("test_vit_relpos", Sizes((64,), 96))
    assert "cannot be evaluated at 96" in line
    advised = int(re.findall(r"--evaluation\.size (\d+)", line)[0])
    size_options(ModelConfig("test_vit_relpos"), Sizes((64,), advised))


def test_a_resolution_that_cannot_grow_is_refused() -> None:
    line = refusal("test_vit_relpos", Sizes((32, 64), 64))
    assert line.endswith("cannot train at 32 before (Input height (32) doesn't match model (64).): give "
                         "--transform.first-size 64")  # fmt: skip


def test_one_image_at_once_is_refused_where_batchnorm_needs_more() -> None:
    line = refusal("resnet18", Sizes((32,), 32, images_at_once=1))
    assert "with one image at once: give a larger --batch-size" in line
    size_options(ModelConfig("resnet18"), Sizes((32,), 32, images_at_once=2))
    size_options(ModelConfig("resnet18"), Sizes((64,), 64, images_at_once=1))  # 2 x 2 places are enough


@pytest.mark.parametrize("output", [[torch.zeros(2, 7)], (torch.zeros(2, 7), torch.zeros(2, 7)), torch.zeros(2, 3)])
def test_a_network_that_gives_no_logits_is_refused(output: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Other(nn.Module):
        def forward(self, images_BCHW: torch.Tensor) -> Any:
            return output

    monkeypatch.setattr(timm, "create_model", lambda *_, **__: Other())
    size_options.cache_clear()
    try:
        line = refusal("test_nfnet", Sizes((64,), 64))
    finally:
        size_options.cache_clear()
    assert "not one tensor of logits" in line or "not one logit per class" in line
    assert line.endswith("choose another --model.name")


def test_a_name_with_a_tag_is_refused_and_the_advice_names_the_weights() -> None:
    with pytest.raises(InputError, match=r"resnet50\.a1_in1k names pretrained weights \(a1_in1k\)") as refused:
        check_name("resnet50.a1_in1k")
    advised = re.search(r"give --model\.name (\S+) --model\.pretrained (\S+)$", str(refused.value))
    assert advised
    check_name(advised[1])
    assert resolve_tag(advised[1], advised[2]) == "a1_in1k"


@pytest.mark.parametrize("name", ["resnet5O", "vit_tiny_patch16_224_in21k", "hf-hub:timm/resnet50", "local-dir:x", ""])
def test_a_name_that_timm_does_not_list_is_refused(name: str) -> None:
    with pytest.raises(InputError, match=f"timm has no model {re.escape(name)}"):
        check_name(name)


def test_stochastic_depth_that_a_model_does_not_have_is_refused() -> None:
    assert refusal("vgg11", Sizes((32,), 32), drop_path=0.1).endswith("give --model.drop-path 0")


def test_parameters_without_gradients_are_refused_in_several_processes_alone() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[0](torch.ones(1, 2)).sum().backward()
    step: Any = SimpleNamespace(state=SimpleNamespace(model=model), recipe=demo(), world=World(size=2))
    with pytest.raises(InputError, match=r"does not use 1\.weight and others in training"):
        check_gradients(step)
    step.world = World()
    check_gradients(step)


@pytest.mark.parametrize(
    "args",
    [{"img_size": "64"}, {"img_size": 1 << 20}, {"depth": 3}, {"dynamic_img_size": 1}, {"blur_first": 1}],
)
def test_arguments_that_no_export_writes_are_refused_by_a_server(args: dict[str, Any]) -> None:
    with pytest.raises(ServeError, match="export the model again"):
        build_network("vit_tiny_patch16_224", 10, args)


def test_bare_weights_are_served_at_the_size_that_is_given() -> None:
    for name in ("vit_tiny_patch16_224", "resnet18", "efficientformer_l1"):
        model = build_network_for_weights(name, 10, 96 if name != "efficientformer_l1" else 224, {})
        with torch.inference_mode():
            assert model.eval()(torch.zeros(1, 3, 96, 96) if "eff" not in name else torch.zeros(1, 3, 224, 224)).shape
