"""Attention rollout: how much of each place of the picture reaches a transformer's output by attention.

S. Abnar and W. Zuidema, arXiv 2005.00928. It multiplies the attention of all blocks, each averaged with the identity
for the residual connection. The map of a picture is the same for every class. N is the number of
tokens, T that of classes, h and w the number of patches along the sides.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from prep.errors import InputError
from serve.maps import Maps, classify, enlarge_maps, scale_maps

ADVICE = "--method rollout needs a transformer such as ViT or DeiT; use --method gradcam"
UNIFORM = 0.01  # of a map's maximum: a smaller difference between its places shows nothing


class Rollout(Maps):
    """Maps by attention rollout, for timm's transformers whose blocks all attend to all tokens."""

    name = "attention rollout"
    has_classes = False

    def __init__(self, model: nn.Module, size: int) -> None:
        """Find the attention of each block; `size` is the side of the network's input, pixels.

        Raises:
            InputError: the network has no global attention; the message says why.
        """
        super().__init__(model)
        self.blocks = find_attention(model)
        self.num_prefix_tokens = int(getattr(model, "num_prefix_tokens", 0))
        self.uses_class_token = self.num_prefix_tokens > 0 and getattr(model, "global_pool", "token") == "token"
        self.side = self._measure_side(size)

    def describe(self) -> str:
        """Return the method, the number of blocks and of places, and what the maps show."""
        end = "class token" if self.uses_class_token else "mean of the places"
        return (
            f"maps: attention rollout through {len(self.blocks)} blocks, {self.side} x {self.side} places, each scaled "
            f"from its own minimum to its own maximum; warm places reach the {end} by attention; all classes have "
            "the same map"
        )

    def raw(self, image_CHW: torch.Tensor, classes: Sequence[int]) -> torch.Tensor:
        """Return the share of the output that comes from each place, float32 [T, h, w], the same for all classes."""
        rolled_NN = roll_out(self._record_attention(image_CHW))
        # The output is the class token, otherwise the mean of the places, without class and register tokens.
        output_N = rolled_NN[0] if self.uses_class_token else rolled_NN[self.num_prefix_tokens :].mean(0)
        map_hw = output_N[self.num_prefix_tokens :].reshape(self.side, self.side)
        return map_hw.expand(len(classes), -1, -1).cpu()

    def __call__(self, image_CHW: torch.Tensor, classes: Sequence[int]) -> torch.Tensor:
        """Return maps for display, float32 [T, H, W]: enlarged, each scaled from its minimum to its maximum, 0 to 1.

        Every place has a share; without subtracting the least one, the maps would be nearly uniform. A map whose values
        differ by less than a hundredth of their maximum is 0 everywhere.
        """
        maps_Thw = self.raw(image_CHW, classes)
        lowest_T11, highest_T11 = maps_Thw.amin((1, 2), keepdim=True), maps_Thw.amax((1, 2), keepdim=True)
        rises_Thw = torch.where(highest_T11 - lowest_T11 > UNIFORM * highest_T11, maps_Thw - lowest_T11, 0)
        return scale_maps(enlarge_maps(rises_Thw, image_CHW.shape[-2], image_CHW.shape[-1]))

    def _record_attention(self, image_CHW: torch.Tensor) -> list[torch.Tensor]:
        """Return each block's attention for one picture, the mean over its heads: float32 [N, N], rows sum to 1.

        The matrix of a block whose attention is not global is empty.
        """
        seen: list[torch.Tensor] = []

        def record(_module: nn.Module, _inputs: Any, output: torch.Tensor) -> None:
            is_whole = output.dim() == 4 and len(output) == 1  # windows are a larger batch
            seen.append(output[0].float().mean(0) if is_whole else torch.zeros(0, 0))

        handles = [block.attn_drop.register_forward_hook(record) for block in self.blocks]
        try:
            with without_fusion(self.blocks), torch.inference_mode():
                classify(self.model, image_CHW[None].to(self.device))
        finally:
            for handle in handles:
                handle.remove()
        return seen

    def _measure_side(self, size: int) -> int:
        """Return the number of places along the side, and check that each block's attention is global."""
        name = type(self.model).__name__
        attention = self._record_attention(torch.zeros(3, size, size))
        shapes = {tuple(each.shape) for each in attention}
        num_tokens = attention[0].shape[-1] if attention else 0
        num_places = num_tokens - self.num_prefix_tokens
        side = math.isqrt(max(0, num_places))
        is_global = len(attention) == len(self.blocks) and shapes == {(num_tokens, num_tokens)}
        if not is_global or side == 0 or side * side != num_places or not _is_attention(attention):
            raise InputError(
                f"{name} has no global attention (its blocks attend within windows, channels or fewer tokens): {ADVICE}"
            )
        return side


def find_attention(model: nn.Module) -> list[Any]:
    """Return the attention module of each block, in order; each has timm's `fused_attn` and `attn_drop`.

    Raises:
        InputError: the network has no attention, or not one for each of its blocks.
    """
    name = type(model).__name__
    found: list[Any] = [
        module for module in model.modules() if hasattr(module, "fused_attn") and hasattr(module, "attn_drop")
    ]
    if not found:
        raise InputError(f"{name} has no attention that can be read: {ADVICE}")
    if getattr(model, "attn_pool", None) is not None:
        raise InputError(f"{name} pools its tokens by another attention, which rollout does not include: {ADVICE}")
    blocks = getattr(model, "blocks", None)
    if not isinstance(blocks, nn.Sequential | nn.ModuleList) or len(blocks) != len(found):
        raise InputError(f"{name} has no global attention in one row of blocks: {ADVICE}")
    return found


@contextmanager
def without_fusion(modules: Sequence[Any]) -> Iterator[None]:
    """Compute attention in separate steps, so that its weights can be read; the fused kernel does not return them."""
    before = [module.fused_attn for module in modules]
    try:
        for module in modules:
            module.fused_attn = False
        yield
    finally:
        for module, was_fused in zip(modules, before, strict=True):
            module.fused_attn = was_fused


def roll_out(attention_LNN: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the product over L blocks of (attention + identity) / 2, the last block first: float32 [N, N].

    Row i is the share of each token of the input in token i of the output. Rows sum to 1.
    """
    rolled_NN = torch.eye(attention_LNN[0].shape[0], device=attention_LNN[0].device)
    for block_NN in attention_LNN:
        rolled_NN = (block_NN + torch.eye(len(block_NN), device=block_NN.device)) @ rolled_NN / 2
    return rolled_NN


def _is_attention(attention_LNN: Sequence[torch.Tensor]) -> bool:
    """Return True if all weights are 0 or more and each token's sum to 1; other kinds give other numbers."""
    return all(bool((each >= 0).all() and ((each.sum(-1) - 1).abs() < 1e-3).all()) for each in attention_LNN)
