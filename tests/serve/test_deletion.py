"""The deletion test tells a map of what the network uses from one that shows another place."""

import torch
from helpers.evaluations import one_thread
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from serve.artifact import Served
from serve.deletion import GRID, SHARE, choose_warmest, measure_deletion
from serve.preprocess import Preprocessing

SIDE = 56


class Reds(nn.Module):
    """A network whose logits are sums over channels, so that class 0 is what is red."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.02))

    def forward(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        return self.scale * images_BCHW.sum((2, 3))


def make_map(top: int, left: int) -> torch.Tensor:
    map_HW = torch.zeros(SIDE, SIDE)
    map_HW[top : top + 16, left : left + 16] = 1
    return map_HW


@one_thread()
def test_only_a_map_of_the_right_place_is_convincing() -> None:
    served = Served(Reds().eval(), "reds", 3, Preprocessing(SIDE, SIDE))
    image_CHW = torch.zeros(3, SIDE, SIDE)
    image_CHW[0, 24:40, 8:24] = 1
    right = measure_deletion(served, image_CHW, 0, make_map(24, 8), seed=0)
    wrong = measure_deletion(served, image_CHW, 0, make_map(0, 40), seed=0)
    assert right is not None and wrong is not None
    assert right.before == wrong.before > 0.98
    assert abs(right.warmest - 1 / 3) < 1e-3 and right.elsewhere > 0.6 and right.is_convincing
    assert wrong.warmest == wrong.before and not wrong.is_convincing
    assert measure_deletion(served, image_CHW, 0, make_map(24, 8), seed=0) == right
    assert measure_deletion(served, image_CHW, 0, torch.zeros(SIDE, SIDE), seed=0) is None


@given(st.integers(2, 80), st.integers(2, 80), st.floats(0, 1), st.integers(0, 2**31))
def test_the_warmest_places_are_hidden_and_at_most_a_fifth(height: int, width: int, bare: float, seed: int) -> None:
    map_HW = torch.rand(height, width, generator=torch.Generator().manual_seed(seed))
    map_HW[: round(bare * height)] = 0
    hidden_gg = choose_warmest(map_HW)
    side = min(GRID, height, width)
    assert hidden_gg.shape == (side, side) and hidden_gg.sum() <= max(1, round(SHARE * side * side))
    means_gg = nn.functional.adaptive_avg_pool2d(map_HW[None], side)[0]
    assert not hidden_gg[means_gg == 0].any()
    if hidden_gg.any() and not hidden_gg.all():
        assert means_gg[hidden_gg].min() >= means_gg[~hidden_gg].max() or hidden_gg.sum() == (means_gg > 0).sum()
