"""Whatever surrounds a network's tensors in a checkpoint, the right set is found or the checkpoint is refused."""

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prep.errors import InputError
from prep.weight_files import INERT_TYPES, read_content
from prep.weights import describe_network, find_closest, find_weights, guess_weights, rank_keys

SHAPES = {
    "conv1.weight": (2, 1),
    "bn1.running_mean": (2,),
    "bn1.num_batches_tracked": (),
    "layer1.0.conv1.weight": (2, 2),
    "fc.weight": (3, 2),
    "fc.bias": (3,),
}
Weights = dict[str, torch.Tensor]


def make_weights(value: float) -> Weights:
    return {
        name: torch.tensor(1) if name.endswith("tracked") else torch.full(shape, value)
        for name, shape in SHAPES.items()
    }


NETWORK = describe_network(make_weights(0.0), ["fc"])

# Keys with and without a word for averages, and for things that are not weights.
ORDINARY_KEYS = st.sampled_from(["model", "state_dict", "net", "weights", "student", "state", "m1", "x y"])
AVERAGED_KEYS = st.sampled_from(["ema", "model_ema", "modelEMA", "swa_model", "averaged", "StochasticWeightAveraging"])
OTHER_KEYS = st.sampled_from(["loss_fn", "opt", "exp1", "importance", "best_loss_model"])
OPTIMIZER_KEYS = st.sampled_from(["optimizer", "exp_avg", "exp_avg_sq", "grads", "momentum_buffer"])
PREFIXES = st.lists(
    st.sampled_from(["module", "_orig_mod", "model", "net", "backbone", "timm_model", "a1"]), max_size=3
)
INNER = st.sampled_from(["", "_fsdp_wrapped_module.", "_orig_mod.", "module._checkpoint_wrapped_module."])
EXTRAS = st.dictionaries(
    st.sampled_from(["epoch", "args", "best_acc1", "lr_scheduler", "loss", "history"]),
    st.sampled_from([3, 0.5, "text", None, [1, 2], {"a": {"b": 1}}, torch.tensor(0.5), [torch.zeros(2)]]),
)


@st.composite
def wrapped_sets(draw: st.DrawFn, keys: st.SearchStrategy[str], value: float) -> tuple[list[str], Weights]:
    """Keys to a dictionary, and a set of weights of one value in it under a random prefix."""
    path = [*draw(st.lists(ORDINARY_KEYS, max_size=2)), draw(keys), *draw(st.lists(ORDINARY_KEYS, max_size=1))]
    prefix, inner = "".join(f"{part}." for part in draw(PREFIXES)), draw(INNER)
    drop_counter = draw(st.booleans())
    weights = {
        prefix + name.replace("layer1.", f"layer1.{inner}"): tensor
        for name, tensor in make_weights(value).items()
        if not (drop_counter and name.endswith("tracked"))
    }
    return path, weights | ({"loss_fn.weight": torch.ones(3)} if draw(st.booleans()) else {})


def insert(content: dict[str, Any], path: list[str], weights: Weights) -> bool:
    """Put a set at a path; return False if something else is there already."""
    for key in path[:-1]:
        content = content.setdefault(key, {})
        if not isinstance(content, dict) or any(isinstance(each, torch.Tensor) for each in content.values()):
            return False
    return content.setdefault(path[-1], weights) is weights


@given(
    raw=st.lists(wrapped_sets(ORDINARY_KEYS, 1.0), max_size=2),
    averaged=st.lists(wrapped_sets(AVERAGED_KEYS, 2.0), max_size=2),
    others=st.lists(wrapped_sets(OTHER_KEYS, 3.0), max_size=2),
    moments=st.lists(wrapped_sets(OPTIMIZER_KEYS, 5.0), max_size=2),
    extras=EXTRAS,
    has_second=st.booleans(),
)
def test_the_set_of_the_best_rank_is_found(
    raw: list[tuple[list[str], Weights]],
    averaged: list[tuple[list[str], Weights]],
    others: list[tuple[list[str], Weights]],
    moments: list[tuple[list[str], Weights]],
    extras: dict[str, Any],
    has_second: bool,
) -> None:
    content: dict[str, Any] = dict(extras)
    placed = [path for path, weights in raw + averaged + others + moments if insert(content, path, weights)]
    has_raw, has_averaged, has_other = (any(path in placed for path, _ in group) for group in (raw, averaged, others))
    if has_second:  # a second average with other values: no choice is right
        content["ema2"] = make_weights(4.0)
    best = 2.0 if has_averaged else 1.0 if has_raw else 3.0 if has_other else None
    if has_second and has_averaged:
        with pytest.raises(InputError, match=r"FILE holds different weights that fit equally.*ema2"):
            find_weights(content, NETWORK, "FILE")
        return
    best = 4.0 if has_second else best
    found = find_weights(content, NETWORK, "FILE")
    if best is None:
        assert found is None
        return
    assert found is not None and found.weights.keys() >= SHAPES.keys() - {"bn1.num_batches_tracked"}
    for name, tensor in found.weights.items():
        assert tensor.shape == SHAPES[name] and (tensor.ndim == 0 or bool((tensor == best).all())), name


@given(
    weights=wrapped_sets(ORDINARY_KEYS, 1.0),
    changed=st.sampled_from(sorted(SHAPES.keys() - {"bn1.num_batches_tracked"})),
    how=st.sampled_from(["missing", "renamed", "reshaped", "further"]),
)
def test_a_set_that_does_not_fit_exactly_is_not_found(
    weights: tuple[list[str], Weights], changed: str, how: str
) -> None:
    _, tensors = weights
    key = next(name for name in tensors if name.endswith(changed.rpartition(".")[2]) and changed[:2] in name)
    tensor = tensors.pop(key)
    if how == "renamed":
        tensors[f"{key}_new"] = tensor
    elif how == "reshaped":
        tensors[key] = torch.zeros(7, 5, 5)
    elif how == "further":
        tensors |= {key: tensor, f"{key.rpartition('.')[0]}.lora": torch.ones(2)}
    found = find_weights({"model": tensors}, NETWORK, "FILE")
    assert found is None or found.others, "only tensors outside of the prefix may be left, and they are reported"


@pytest.mark.parametrize(
    ("keys", "rank"),
    [
        (("model",), 1),
        (("model_ema",), 0),
        (("EMA", "state_dict"), 0),
        (("EMA", "training_model"), 2),
        (("model_without_ema",), 2),
        (("non_ema",), 2),
        (("avgpool_model", "schema", "emanuel"), 1),
        (("backup",), 2),
        (("best_loss_model",), 3),
        (("exp1_model",), 3),
        (("optimizer", "ema"), 4),
        (("exp_avg",), 4),
    ],
)
def test_words_in_keys_rank_sets_of_weights(keys: tuple[str, ...], rank: int) -> None:
    assert rank_keys(keys) == rank


def test_a_complete_set_is_never_dropped_because_of_its_key() -> None:
    content = {"min_loss_state_dict": make_weights(1.0), "optimizer": {"exp_avg": make_weights(2.0)}}
    found = find_weights(content, NETWORK, "FILE")
    assert found is not None and found.label == "min_loss_state_dict"
    assert found.notes == ("weights: min_loss_state_dict of FILE; the file also holds optimizer.exp_avg, not used",)
    content["model"] = make_weights(3.0)
    found = find_weights(content, NETWORK, "FILE")
    assert found is not None and found.label == "model"
    assert "also holds min_loss_state_dict, optimizer.exp_avg, not used" in found.notes[0]
    for label, value in (("min_loss_state_dict", 1.0), ("optimizer.exp_avg", 2.0)):
        found = find_weights(content, NETWORK, "FILE", label)
        assert found is not None and bool((found.weights["fc.bias"] == value).all())
    with pytest.raises(InputError, match="different weights that fit equally, best_loss and last_loss: save one"):
        find_weights({"best_loss": make_weights(1.0), "last_loss": make_weights(2.0)}, NETWORK, "FILE")
    assert guess_weights({"min_loss_state_dict": make_weights(1.0)}, Path("FILE")).keys() == SHAPES.keys()


def test_a_misfit_is_described_with_the_checkpoints_number_of_classes() -> None:
    weights = make_weights(1.0) | {"fc.weight": torch.zeros(9, 2), "fc.bias": torch.zeros(9)}
    closest = find_closest({"model": weights | {"aux.weight": torch.zeros(2)}}, NETWORK)
    assert closest is not None and closest.list_surplus() == ["aux.weight"]
    assert closest.describe() == "closest: model: unknown: aux.weight"
    del weights["conv1.weight"]
    closest = find_closest(weights | {"aux.weight": torch.zeros(2)}, NETWORK)
    assert closest is not None and closest.list_surplus() == []
    assert closest.describe() == "missing: conv1.weight; unknown: aux.weight"
    closest = find_closest(make_weights(1.0) | {"fc.bias": torch.zeros(9)}, NETWORK)
    assert closest is not None and closest.describe() == "of another shape: fc.bias (9,) for (3,)"


def test_a_content_that_contains_itself_ends() -> None:
    content: dict[str, Any] = {"model": make_weights(1.0)}
    content["self"] = content
    found = find_weights(content, NETWORK, "FILE")
    assert found is not None and found.label == "model"


def test_the_classes_of_a_classifier_agree() -> None:
    weights = make_weights(1.0) | {"fc.weight": torch.zeros(9, 2)}
    assert find_weights(weights, NETWORK, "FILE") is None
    assert find_weights(weights | {"fc.bias": torch.zeros(9)}, NETWORK, "FILE") is not None


def test_names_of_an_unknown_network_lose_what_wraps_them() -> None:
    weights = {f"model.module.{name}": tensor for name, tensor in make_weights(1.0).items()}
    content = {"optimizer": {"exp_avg": make_weights(3.0)}, "state_dict": weights, "epoch": torch.tensor(1)}
    assert guess_weights(content, Path("FILE")).keys() == SHAPES.keys()
    with pytest.raises(InputError, match="FILE holds several sets of weights, a and b"):
        guess_weights({"a": make_weights(1.0), "b": make_weights(2.0)}, Path("FILE"))


# Files


class Caller:
    """Calls a function when it is unpickled without care."""

    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call[0], self.call[1:]


@pytest.mark.parametrize("place", ["value", "key", "wrapped"])
@pytest.mark.parametrize("function", [os.system, os.mkdir, eval, exec, getattr, np.load, torch.load, print])
def test_a_pickle_never_calls_a_function(tmp_path: Path, function: Any, place: str) -> None:
    marker, path = tmp_path / "ran", tmp_path / "w.pth"
    argument = f"mkdir {marker}" if function is os.system else f"__import__('os').mkdir({str(marker)!r})"
    caller = Caller(function, str(marker) if function is os.mkdir else argument)
    content: Any = {"value": {"model": caller}, "key": {caller: 1}, "wrapped": {"n": np.float64(1), "m": [caller]}}
    torch.save(content[place], path)
    with pytest.raises(InputError, match=r"nothing in it was run \(.*\): give a file of torch\.save") as refused:
        read_content(path)
    assert not marker.exists() and "\n" not in str(refused.value)


def test_types_without_effect_are_never_created(tmp_path: Path) -> None:
    """Their names stand for a class that does nothing, even with the arguments of a stranger."""
    path = tmp_path / "w.pth"
    for name in INERT_TYPES:
        module, _, attribute = name.rpartition(".")
        # GLOBAL, a tuple of one string, REDUCE, an empty state, BUILD.
        body = f"c{module}\n{attribute}\n(X\1\0\0\0xtR}}b.".encode()
        torch.save({}, path)
        with zipfile.ZipFile(path) as archive:
            members = {each: archive.read(each) for each in archive.namelist()}
        with zipfile.ZipFile(path, "w") as archive:
            for member, content in members.items():
                archive.writestr(member, b"\x80\x02" + body if member.endswith("data.pkl") else content)
        assert type(read_content(path)).__name__ == "Inert", name


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors", "w.bin"])
@given(content=st.binary(max_size=200) | st.builds(lambda end: pickle.dumps({"a": 1})[:-end], st.integers(1, 10)))
def test_any_bytes_are_weights_or_one_line(tmp_path_factory: pytest.TempPathFactory, name: str, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / name
    path.write_bytes(content)
    try:
        read_content(path)
    except InputError as error:
        assert str(path) in str(error) and "\n" not in str(error)
