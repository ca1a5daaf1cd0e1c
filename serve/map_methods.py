"""The methods of --method, by name. Command lines need the names, so it imports nothing heavy."""

# ruff: noqa: PLC0415 - torch takes seconds to import, and --help must not wait for it

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, assert_never, get_args

if TYPE_CHECKING:
    from torch import nn

    from serve.maps import MapMaker

Method = Literal["gradcam", "gradcam++", "layercam", "occlusion", "rollout"]
METHODS: tuple[Method, ...] = get_args(Method)


def make_map_maker(method: Method, model: nn.Module, size: int) -> MapMaker:
    """Return the maps of a network by a method; `size` is the side of the network's input, pixels.

    Raises:
        InputError: the method cannot explain this network; the message says why.
    """
    from serve.cam import GradCam, GradCamPlusPlus, LayerCam
    from serve.occlusion import Occlusion
    from serve.rollout import Rollout

    match method:
        case "gradcam":
            return GradCam(model, size)
        case "gradcam++":
            return GradCamPlusPlus(model, size)
        case "layercam":
            return LayerCam(model, size)
        case "occlusion":
            return Occlusion(model, size)
        case "rollout":
            return Rollout(model, size)
    assert_never(method)
