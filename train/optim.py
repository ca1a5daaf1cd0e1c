"""The optimizer and its schedules: SGD or any of timm's optimizers; the learning rate is a function of progress alone.

`sgd` is built here, on torch's fused kernel. Every other name goes to timm's `create_optimizer_v2`. docs/models.md
lists the names, and what was tried of each: a step that is skipped, and a resume that gives the same bits.
"""

import ast
import difflib
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from timm.optim import create_optimizer_v2, get_optimizer_info, list_optimizers, param_groups_weight_decay
from torch import nn

from prep.errors import InputError

LR_BATCH_SIZE = 256  # learning rates are given for this batch, and scale linearly (Goyal et al., arXiv 1706.02677)

ScheduleKind = Literal["cosine", "linear"]
LrScaling = Literal["linear", "sqrt", "none"]

LOOKAHEAD = "lookahead_"  # prefix of timm's: slow weights over any other optimizer
FUSED = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW)  # they skip a step with bad gradients on the device
OPTIONAL = ("momentum", "nesterov", "betas", "eps", "options")  # fields that mean something for some optimizers alone
NOT_OPTIONS = ("params", "lr", "weight_decay", "momentum", "betas", "eps")  # other fields set these, or nothing may
NEVER = ("differentiable", "maximize", "capturable", "verbose")  # not for training, or not with a schedule
FOREIGN = {"apex.": "NVIDIA's apex", "bitsandbytes.": "bitsandbytes"}  # packages of optimizers that timm passes on
REFUSED = {
    "adahessian": "needs second derivatives, which a step here does not compute",
    "kron": "needs the package opt_einsum, and draws random numbers that differ between the processes of a run",
}


@dataclass(frozen=True)
class OptimConfig:
    """SGD with Nesterov momentum, or another optimizer; linear warm-up, then down to zero."""

    name: str = "sgd"  # or any that timm.optim.list_optimizers() names and docs/models.md lists
    lr: float = 0.1  # peak, for a batch of 256
    lr_scaling: LrScaling = "linear"  # of lr with the batch; timm's train.py takes sqrt for lamb and ada...
    momentum: float = 0.9  # of optimizers that take it
    nesterov: bool = True  # of sgd; elsewhere it is an option, or part of the name
    betas: tuple[float, ...] = ()  # of optimizers that take them; none: the optimizer's own
    eps: float | None = None  # of optimizers that take it; none: the optimizer's own
    options: tuple[str, ...] = ()  # further arguments of the optimizer, each NAME=VALUE
    weight_decay: float = 1e-4  # not on norms and biases
    warmup_epochs: float = 5.0
    schedule: ScheduleKind = "cosine"  # half a cosine to zero; or a straight line


def build_optimizer(model: nn.Module, config: OptimConfig, batch_size: int = LR_BATCH_SIZE) -> torch.optim.Optimizer:
    """Build the optimizer over groups with and without weight decay.

    Tensors of one dimension (norms, biases) are not decayed, whatever their names. For optimizers other than sgd, as in
    timm, neither are those that the model itself excludes (`no_weight_decay`: position embeddings, class tokens).

    Args:
        batch_size: of all processes. Optimizers with corrected weight decay compare each learning rate with the peak.
    """
    if config.name == "sgd":
        # Fused: one kernel for all tensors, which itself passes over a step whose gradients are not finite.
        groups = param_groups_weight_decay(model, config.weight_decay)
        options = {"momentum": config.momentum, "nesterov": config.nesterov, **parse_options(config)}
        optimizer = torch.optim.SGD(groups, lr=config.lr, **{"fused": True, **options})
    else:
        options = parse_options(config)
        if config.betas:
            options["betas"] = config.betas
        if config.eps is not None:
            options["eps"] = config.eps
        if _find(config.name).opt_class in FUSED and "foreach" not in options:
            options.setdefault("fused", True)
        optimizer = create_optimizer_v2(
            model,
            opt=config.name,
            lr=peak_lr(config, batch_size),
            weight_decay=config.weight_decay,
            momentum=config.momentum,  # timm drops it where the optimizer has none
            **options,
        )
    if isinstance(optimizer, torch.optim.SGD) and optimizer.defaults["momentum"]:
        # torch 2.15 leaves them as they come from the allocator where the very first step is skipped
        for parameter in model.parameters():
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def check_optimizer(config: OptimConfig) -> None:
    """Check an optimizer's name and arguments by taking a step of a small network.

    Raises:
        InputError: no such optimizer, one that cannot be used here, or an argument that it does not take.
    """
    if config.lr_scaling not in get_args(LrScaling):
        raise InputError(f"optim.lr_scaling must be one of {', '.join(get_args(LrScaling))}, got {config.lr_scaling}")
    defaults = OptimConfig()
    for field in find_unused(config):
        if getattr(config, field) != getattr(defaults, field):
            raise InputError(describe_unused(config, field))
    info = _find(config.name)
    if config.betas and len(config.betas) != info.num_betas:
        raise InputError(f"optim.betas of {config.name} must be {info.num_betas} numbers, got {list(config.betas)}")
    with torch.random.fork_rng(devices=[]):
        model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Flatten(), nn.Linear(2, 2))
        try:
            optimizer = build_optimizer(model, config)
            model(torch.ones(1, 1, 1, 1)).sum().backward()
            optimizer.step()
        except (ValueError, TypeError, RuntimeError, AssertionError, AttributeError) as error:
            raise InputError(f"optimizer {config.name} does not take these settings: {_first_line(error)}") from error


def find_unused(config: OptimConfig) -> list[str]:
    """Return the fields of OptimConfig that the chosen optimizer has no use for.

    Raises:
        InputError: no such optimizer.
    """
    parameters, unused = _arguments(config.name), []
    if "momentum" not in parameters:
        unused.append("momentum")
    if config.name != "sgd":
        unused.append("nesterov")
    return unused + [name for name in ("betas", "eps") if name not in parameters]


def describe_unused(config: OptimConfig, field: str) -> str:
    """Return the line that refuses a setting that the optimizer would not use."""
    if field == "nesterov" and field in _arguments(config.name):
        return (
            f"optim.nesterov is of sgd alone, and the optimizer is {config.name}: "
            f"give --optim.options nesterov=True or nesterov=False instead"
        )
    used = [name for name in ("momentum", "betas", "eps") if name not in find_unused(config)]
    takes = f"takes {', '.join(used)}" if used else "takes none of momentum, betas and eps"
    return f"optim.{field} is not used by {config.name}, which {takes}: leave it out"


def parse_options(config: OptimConfig) -> dict[str, Any]:
    """Return `options` by name, each value as Python writes it (True, 0.5, (0.9, 0.95)), else as a string.

    Raises:
        InputError: one is not NAME=VALUE, or the optimizer has no such argument.
    """
    set_by_fields = (*NOT_OPTIONS, *NEVER, *(["nesterov"] if config.name == "sgd" else []))
    known = [name for name in _arguments(config.name) if name not in set_by_fields]
    options = {}
    for option in config.options:
        name, equals, value = option.partition("=")
        if not equals:
            raise InputError(f"each of optim.options must be NAME=VALUE, got {option}")
        if name not in known:
            raise InputError(f"{config.name} has no option {name}{_near(name, known)}: choose from {', '.join(known)}")
        try:
            options[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            options[name] = value
    return options


def own_lr(name: str) -> float | None:
    """Return the learning rate that an optimizer takes where none is given, None if it names none."""
    default = _arguments(name)["lr"].default
    return default if isinstance(default, float) else None


def usable_optimizers() -> list[str]:
    """Return the names that `optim.name` takes; each may have the prefix lookahead_ too."""
    return [name for name in map(str, list_optimizers()) if _refusal(name) is None]


def _find(name: str) -> Any:
    """Return what timm knows of an optimizer; raise InputError where there is none, or none to be used here."""
    base, names = name.removeprefix(LOOKAHEAD), list_optimizers()
    if base not in names:
        raise InputError(f"there is no optimizer {name}{_near(base.lower(), usable_optimizers())}: see docs/models.md")
    if reason := _refusal(base):
        raise InputError(f"optimizer {name} {reason}")
    return get_optimizer_info(base)


def _refusal(base: str) -> str | None:
    """Return why one of timm's optimizers cannot be used here, with what to do; None if it can."""
    own_class = get_optimizer_info(base).opt_class
    for prefix, package in FOREIGN.items():
        if isinstance(own_class, str) and own_class.startswith(prefix):
            plain = base.removeprefix("bnb").removeprefix("fused").removesuffix("8bit")
            instead = plain if plain in ("sgd", "adam", "adamw", "lamb", "lion", "novograd") else "adamw"
            return f"is of {package}, which this project does not use: choose {instead}"
    reason = next((reason for refused, reason in REFUSED.items() if base.startswith(refused)), None)
    return f"{reason}: choose another, such as adamw or muon" if reason else None


def _arguments(name: str) -> dict[str, inspect.Parameter]:
    """Return the arguments of an optimizer's class by name."""
    return dict(inspect.signature(_find(name).opt_class).parameters)


def _near(word: str, words: list[str]) -> str:
    found = difflib.get_close_matches(word, words, n=3)
    return f", did you mean {' or '.join(found)}?" if found else ""


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0].rstrip(".")


def peak_lr(config: OptimConfig, batch_size: int) -> float:
    """The highest learning rate, for this batch size."""
    if config.lr_scaling == "none":
        return config.lr
    if config.lr_scaling == "sqrt":
        return config.lr * math.sqrt(batch_size / LR_BATCH_SIZE)
    return config.lr * batch_size / LR_BATCH_SIZE


def cosine(progress: float) -> float:
    """From 1 to 0 along half a cosine (SGDR, arXiv 1608.03983, without restarts)."""
    return 0.5 * (1 + math.cos(math.pi * progress))


def linear(progress: float) -> float:
    """From 1 to 0 along a straight line, as in FFCV's recipes."""
    return 1 - progress


SCHEDULES: dict[ScheduleKind, Callable[[float], float]] = {"cosine": cosine, "linear": linear}


def lr_factor(progress: float, warmup: float, schedule: ScheduleKind = "cosine") -> float:
    """The learning rate as a share of its peak.

    Args:
        progress: share of the run that is done, 0 to 1.
        warmup: share of the run over which the rate rises linearly from 0; the schedule takes the rest.
    """
    progress = min(progress, 1.0)
    if progress < warmup or warmup == 1:
        return progress / warmup
    return SCHEDULES[schedule]((progress - warmup) / (1 - warmup))


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of every group."""
    for group in optimizer.param_groups:
        group["lr"] = lr
