"""Freeze parts of a network: their weights and running statistics stay as they are.

The parts have the same names in every network: `stem`, then `1`, `2`, ... for the stages (blocks, in a transformer), as
timm groups its layers, and `body` for everything but the classifier. Even while the rest trains, a
frozen part computes as in evaluation: BatchNorm uses its running statistics and does not change them. Its parameters
need no gradient, so autograd does not compute any for them, DDP does not exchange them and the optimizer does not have
them. With `--run.from`, the frozen parts of the EMA begin as that run's EMA and move towards the model's.
"""

from types import MethodType
from typing import Any

from timm.models._manipulate import group_with_matcher  # timm.models exports it for parameters alone
from torch import nn

from prep.errors import InputError

BODY, STEM = "body", "stem"


def freeze_parts(model: nn.Module, parts: tuple[str, ...], name: str) -> None:
    """Freeze parts of a model. Call this before the optimizer is built.

    Args:
        name: of the model, for the error line.

    Raises:
        InputError: it has no such part, or nothing would be left to train.
    """
    if not parts:
        return
    found = find_parts(model)
    if unknown := [part for part in parts if part not in found]:
        known = f"one or more of {', '.join(found)}" if found else "another --model.name, or no --model.freeze"
        raise InputError(f"{name} has no part {unknown[0]} to freeze: give {known}")
    frozen = {tensor for part in parts for tensor in found[part]}

    # Parameters: no gradients.
    for tensor_name, parameter in model.named_parameters():
        parameter.requires_grad_(parameter.requires_grad and tensor_name not in frozen)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise InputError(f"--model.freeze {' '.join(parts)} leaves nothing of {name} to train: remove a part")

    # Modules with nothing but frozen tensors: always as in evaluation.
    for prefix, module in model.named_modules():
        tensors = [f"{prefix}.{each}" if prefix else each for each in module.state_dict()]
        if tensors and frozen.issuperset(tensors):
            setattr(module, "train", MethodType(stay_in_evaluation, module))  # noqa: B010  (pyright: it is a method)
    model.train(model.training)


def stay_in_evaluation(module: nn.Module, mode: bool = True) -> nn.Module:
    """Replace `train` of a frozen module, which its parents call: set it to evaluation mode, whatever `mode`.

    A copy of the module has it too, bound to the copy.
    """
    return nn.Module.train(module, mode=False)


def find_head(model: nn.Module) -> tuple[str, ...]:
    """Return the prefixes of the names of a classifier's tensors; a model may have two classifiers (distillation)."""
    config: Any = getattr(model, "pretrained_cfg", None) or {}
    found = config.get("classifier") or ()
    return tuple(f"{name}." for name in ([found] if isinstance(found, str) else found))


def find_parts(model: nn.Module) -> dict[str, list[str]]:
    """Return the names of the tensors (parameters and buffers) of each part, without the classifier's.

    {} for a model whose classifier timm does not name; only `body` for one whose layers timm does not group.
    """
    names, head = list(model.state_dict()), find_head(model)
    body = [name for name in names if not name.startswith(head)]
    if len(body) == len(names):
        return {}

    # timm's groups in the order of computation; the last ones hold the classifier, and norms or convolutions before it.
    matcher: Any = getattr(model, "group_matcher", None)
    parts: dict[str, list[str]] = {}
    if matcher is not None:
        groups: dict[int, list[str]] = group_with_matcher(iter(model.state_dict().items()), matcher(coarse=True))
        for number, group in sorted(groups.items()):
            if not set(group) <= set(body):
                break
            parts[str(number) if number else STEM] = group
    return {**parts, BODY: body}
