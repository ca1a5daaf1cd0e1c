"""Grad-CAM, Grad-CAM++ and LayerCAM: maps of the places in a picture that support a class.

Each multiplies the feature map of a stage by weights from the gradient of the class's logit, and sums over channels.
`serve/gallery.py`, the report and the app draw the maps. T is the number of classes, C that of channels, H and W are
the crop's side, h and w the side of the stage's feature map in places.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from serve.maps import Maps
from serve.stages import find_stage


class GradCam(Maps):
    """Maps by Grad-CAM: R. R. Selvaraju et al., arXiv 1610.02391, as captum computes it."""

    name = "Grad-CAM"
    meaning = "warm places hold features that raise the class's logit, weighted by their mean gradient"

    def __init__(self, model: nn.Module, size: int) -> None:
        """Find the stage; `size` is the side of the network's input, pixels."""
        from captum.attr import LayerGradCam  # noqa: PLC0415 - only commands that draw maps need it

        super().__init__(model)
        self.stage = find_stage(model, size)
        self.attribution = LayerGradCam(model, self.stage.module)

    def describe(self) -> str:
        """Return the method, its stage, the number of places, and what the maps show."""
        stage = self.stage
        assumed = "" if stage.is_declared else " (the last module with a feature map, as timm names no usable stage)"
        return (
            f"maps: {self.name} of {stage.name}{assumed}, {stage.height} x {stage.width} places, each scaled from 0 "
            f"to its own maximum; {self.meaning}"
        )

    def raw(self, image_CHW: torch.Tensor, classes: Sequence[int]) -> torch.Tensor:
        """Return the maps of the paper, at the stage's own resolution and scale: float32 [T, h, w], 0 or more."""
        if self.stage.layout != "channels first":  # captum assumes that the second dimension is the channels
            features_TChw, gradients_TChw = self.differentiate(image_CHW, classes)
            return (gradients_TChw.mean((2, 3), keepdim=True) * features_TChw).sum(1).relu().cpu()
        images_TCHW, targets_T = self._repeat(image_CHW, classes)
        maps_T1hw: Any = self.attribution.attribute(images_TCHW, targets_T, relu_attributions=True)
        return maps_T1hw[:, 0].detach().cpu()

    def differentiate(self, image_CHW: torch.Tensor, classes: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the stage's feature maps, and the gradient of each class's logit at them: both [T, C, h, w]."""
        seen: list[torch.Tensor] = []
        handle = self.stage.module.register_forward_hook(lambda _module, _inputs, output: seen.append(output))  # pyright: ignore[reportArgumentType]
        images_TCHW, targets_T = self._repeat(image_CHW, classes)
        try:
            with torch.enable_grad():
                chosen_T1 = self.model(images_TCHW).gather(1, targets_T[:, None])
        finally:
            handle.remove()
        (gradients,) = torch.autograd.grad(chosen_T1.sum(), seen)
        return self.stage.to_maps(seen[0].detach()), self.stage.to_maps(gradients)

    def _repeat(self, image_CHW: torch.Tensor, classes: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the picture once per class, and the classes, on the network's device."""
        images_TCHW = image_CHW.to(self.device).expand(len(classes), -1, -1, -1).clone().requires_grad_()
        return images_TCHW, torch.tensor(list(classes), device=self.device)


class GradCamPlusPlus(GradCam):
    """Maps by Grad-CAM++: A. Chattopadhay et al., arXiv 1710.11063, for the exponential of the logit."""

    name = "Grad-CAM++"
    meaning = (
        "warm places hold features that raise the class's logit; a small object among several counts as much as a large"
    )

    def raw(self, image_CHW: torch.Tensor, classes: Sequence[int]) -> torch.Tensor:
        """Return the maps of the paper, at the stage's own resolution and scale: float32 [T, h, w], 0 or more."""
        features_TChw, gradients_TChw = self.differentiate(image_CHW, classes)
        # Equation 19: alpha = s^2 / (2 s^2 + sum(features) s^3), with numerator and denominator divided by s^2. Only
        # gradients above 0 count. A sum below 0, of a network without ReLU, counts as 0: the paper assumes features of
        # at least 0, for which alpha is between 0 and 1/2.
        rises_TChw = gradients_TChw.relu()
        alphas_TChw = 1 / (2 + features_TChw.sum((2, 3), keepdim=True).relu() * rises_TChw)
        weights_TC11 = (alphas_TChw * rises_TChw).sum((2, 3), keepdim=True)
        return (weights_TC11 * features_TChw).sum(1).relu().cpu()


class LayerCam(GradCam):
    """Maps by LayerCAM: P.-T. Jiang et al., IEEE Transactions on Image Processing 30, 2021."""

    name = "LayerCAM"
    meaning = "warm places hold features that raise the class's logit there, each place weighted by its own gradient"

    def raw(self, image_CHW: torch.Tensor, classes: Sequence[int]) -> torch.Tensor:
        """Return the maps of the paper, at the stage's own resolution and scale: float32 [T, h, w], 0 or more."""
        features_TChw, gradients_TChw = self.differentiate(image_CHW, classes)
        return (gradients_TChw.relu() * features_TChw).sum(1).relu().cpu()
