"""Which tensors of a file do not fit a network is found for any two sets of names and shapes."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prep.errors import InputError
from prep.weights import COUNTER, check_finite, describe_misfit

NAMES = ("conv1.weight", "bn1.weight", f"bn1.{COUNTER}", "fc.weight", "fc.bias")
SHAPES = st.sampled_from([(), (2,), (2, 3)])
TENSORS = st.dictionaries(st.sampled_from(NAMES), SHAPES).map(
    lambda shapes: {name: torch.zeros(shape) for name, shape in shapes.items()}
)


@given(TENSORS, TENSORS)
def test_a_misfit_names_every_difference_and_nothing_else(
    own: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]
):
    words = dict(each.split(": ", 1) for each in describe_misfit(own, theirs).split("; ") if each)
    missing = sorted(name for name in own if name not in theirs and not name.endswith(COUNTER))
    assert words.pop("missing", "").split(" and ")[0] == ", ".join(missing[:4])
    unknown = sorted(name for name in theirs if name not in own)
    assert words.pop("unknown", "").split(" and ")[0] == ", ".join(unknown[:4])
    reshaped = sorted(name for name in own if name in theirs and own[name].shape != theirs[name].shape)
    found = words.pop("of another shape", "")
    assert found.count(" for (") == min(len(reshaped), 4) and all(name in found for name in reshaped[:4]) and not words


def test_a_module_loads_what_fits() -> None:
    """The counters that may be missing keep their values."""
    model = torch.nn.BatchNorm2d(3)
    weights = {name: tensor + 1 for name, tensor in model.state_dict().items() if not name.endswith(COUNTER)}
    assert describe_misfit(model.state_dict(), weights) == ""
    model.load_state_dict(weights)
    assert int(model.state_dict()[COUNTER]) == 0 and torch.equal(model.weight, torch.full((3,), 2.0))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_not_finite_are_refused_by_name(bad: float) -> None:
    check_finite({"a": torch.ones(2), "n": torch.tensor(3)}, "FILE")
    with pytest.raises(InputError, match="FILE: b contains NaN or infinity: use other weights"):
        check_finite({"a": torch.ones(2), "b": torch.tensor([1.0, bad])}, "FILE")
