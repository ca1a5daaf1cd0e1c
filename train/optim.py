"""Build the optimizer, SGD or any of timm's; schedules, which make the learning rate a function of progress alone.

`sgd` is built here, with torch's fused kernel. Every other name goes to timm's `create_optimizer_v2`. docs/models.md
lists the names. For each of them two things were tested: a step that is skipped, and a resume that gives the same bits.
"""

import ast
import difflib
import inspect
import math
from collections.abc import Callable
from typing import Any, get_args

import torch
from timm.optim import create_optimizer_v2, get_optimizer_info, list_optimizers, param_groups_weight_decay
from torch import nn

from prep.errors import InputError
from train.config import LrScaling, OptimConfig, ScheduleKind

LR_BATCH_SIZE = 256  # learning rates are given for this batch, and scale linearly (Goyal et al., arXiv 1706.02677)

LOOKAHEAD = "lookahead_"  # timm's prefix for slow weights over any other optimizer
FUSED = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW)  # they skip a step with bad gradients on the device
OPTIONAL = ("momentum", "nesterov", "decoupled", "betas", "eps", "options")  # fields that only some optimizers use
NOT_OPTIONS = ("params", "lr", "weight_decay", "momentum", "betas", "eps")  # set by other fields, or not at all
NEVER = ("differentiable", "maximize", "capturable", "verbose")  # not for training, or not with a schedule
FOREIGN = {"apex.": "NVIDIA's apex", "bitsandbytes.": "bitsandbytes"}  # optimizers that timm passes on, by package
REFUSED = {
    "adahessian": "needs second derivatives, which a step here does not compute",
    "kron": "needs the package opt_einsum, and draws random numbers that differ between the processes of a run",
}


def build_optimizer(model: nn.Module, config: OptimConfig, batch_size: int = LR_BATCH_SIZE) -> torch.optim.Optimizer:
    """Build the optimizer over groups with and without weight decay.

    Tensors of one dimension (norms, biases) get no weight decay, whatever their names, unless `config.decay_all` says
    so. For optimizers other than sgd, as in timm, neither do tensors that the model itself excludes (`no_weight_decay`:
    position embeddings, class tokens).

    Args:
        batch_size: over all processes. Optimizers with decoupled or corrected weight decay compare each learning rate
            with the peak.
    """
    if config.name == "sgd":
        # Fused: one kernel for all tensors, which by itself skips a step if a gradient is not finite.
        groups = param_groups_weight_decay(model, config.weight_decay, weight_decay_exclude_1d=not config.decay_all)
        options = {"momentum": config.momentum, "nesterov": config.nesterov, **parse_options(config)}
        kind = DecoupledSgd if config.decoupled else torch.optim.SGD
        optimizer = kind(groups, lr=peak_lr(config, batch_size), **{"fused": True, **options})
    else:
        # timm's optimizers; the fields that were left at their defaults stay the optimizer's own.
        options = parse_options(config)
        if config.betas:
            options["betas"] = config.betas
        if config.eps is not None:
            options["eps"] = config.eps
        if _find_info(config.name).opt_class in FUSED and "foreach" not in options:
            options.setdefault("fused", True)
        optimizer = create_optimizer_v2(
            model,
            opt=config.name,
            lr=peak_lr(config, batch_size),
            weight_decay=config.weight_decay,
            momentum=config.momentum,  # timm drops it if the optimizer has none
            filter_bias_and_bn=not config.decay_all,
            **options,
        )
    if isinstance(optimizer, torch.optim.SGD) and optimizer.defaults["momentum"]:
        # torch 2.15 leaves the momentum uninitialized if the very first step is skipped.
        for parameter in (each for group in optimizer.param_groups for each in group["params"]):
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


class DecoupledSgd(torch.optim.SGD):
    """SGD with decoupled weight decay, as MosaicML's DecoupledSGDW (after I. Loshchilov and F. Hutter, 1711.05101).

    Each step multiplies the weights by 1 - weight_decay * lr / peak_lr, then moves them; the momentum does not see the
    decay. So the decay follows the schedule of the learning rate, but neither its height nor the batch size: with
    half of the batch, weights decay twice as much per epoch.

    Args:
        groups: parameters with their `weight_decay`.
        lr: the peak.
        options: further arguments of torch.optim.SGD.
    """

    def __init__(self, groups: list[dict[str, Any]], lr: float, **options: Any) -> None:
        if most := [group["weight_decay"] for group in groups if not 0 <= group["weight_decay"] < 1]:
            raise ValueError(f"decoupled weight_decay must be at least 0 and less than 1, got {most[0]:g}")
        # Under the name `weight_decay` torch would add it to the gradients.
        own = [
            {**group, "decoupled_decay": group["weight_decay"], "weight_decay": 0.0, "peak_lr": lr} for group in groups
        ]
        super().__init__(own, lr=lr, **options)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Decay the weights, then move them; neither if a gradient is not finite."""
        # GradScaler gives a fused optimizer `found_inf`, a number on the device, which is not waited for. Without
        # fused kernels it does not call this function after a bad gradient.
        found_inf: torch.Tensor | None = getattr(self, "found_inf", None)
        for group in self.param_groups:
            weights = [each for each in group["params"] if each.grad is not None]
            if group["decoupled_decay"] and weights:
                kept = 1 - group["decoupled_decay"] * (group["lr"] / group["peak_lr"] if group["peak_lr"] else 1.0)
                if found_inf is None:
                    torch._foreach_mul_(weights, kept)
                else:
                    torch._foreach_mul_(weights, torch.where(found_inf > 0, 1.0, kept))
        return super().step(closure)


def check_optimizer(config: OptimConfig) -> None:
    """Check an optimizer's name and arguments by one step of a small network.

    Raises:
        InputError: unknown optimizer, one that cannot be used here, or an argument that it does not accept.
    """
    # Fields that the optimizer ignores must have their defaults.
    if config.lr_scaling not in get_args(LrScaling):
        raise InputError(f"optim.lr_scaling must be one of {', '.join(get_args(LrScaling))}, got {config.lr_scaling}")
    defaults = OptimConfig()
    for field in find_unused(config):
        if getattr(config, field) != getattr(defaults, field):
            raise InputError(describe_unused(config, field))
    info = _find_info(config.name)
    if config.betas and len(config.betas) != info.num_betas:
        raise InputError(f"optim.betas of {config.name} must be {info.num_betas} numbers, got {list(config.betas)}")

    # One step; optimizers check their arguments when they are built or first used.
    with torch.random.fork_rng(devices=[]):
        model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Flatten(), nn.Linear(2, 2))
        try:
            optimizer = build_optimizer(model, config)
            model(torch.ones(1, 1, 1, 1)).sum().backward()
            optimizer.step()
        except (ValueError, TypeError, RuntimeError, AssertionError, AttributeError) as error:
            raise InputError(f"optimizer {config.name} does not accept these settings: {_first_line(error)}") from error


def find_unused(config: OptimConfig) -> list[str]:
    """Return the fields of OptimConfig that the chosen optimizer does not use.

    Raises:
        InputError: unknown optimizer.
    """
    parameters, unused = _arguments(config.name), []
    if "momentum" not in parameters:
        unused.append("momentum")
    if config.name != "sgd":
        unused += ["nesterov", "decoupled"]
    return unused + [name for name in ("betas", "eps") if name not in parameters]


def describe_unused(config: OptimConfig, field: str) -> str:
    """Return the error for a setting that the optimizer would not use."""
    if field == "nesterov" and field in _arguments(config.name):
        return (
            f"optim.nesterov is only for sgd, and the optimizer is {config.name}: "
            f"give --optim.options nesterov=True or nesterov=False instead"
        )
    used = [name for name in ("momentum", "betas", "eps") if name not in find_unused(config)]
    uses = f"uses {', '.join(used)}" if used else "uses none of momentum, betas and eps"
    return f"optim.{field} is not used by {config.name}, which {uses}: remove it"


def parse_options(config: OptimConfig) -> dict[str, Any]:
    """Return `options` by name. Values are Python literals (True, 0.5, (0.9, 0.95)); others stay strings.

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
            raise InputError(
                f"{config.name} has no option {name}{_suggest(name, known)}; choose from {', '.join(known)}"
            )
        try:
            options[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            options[name] = value
    return options


def default_lr(name: str) -> float | None:
    """Return an optimizer's default learning rate, None if it has none."""
    default = _arguments(name)["lr"].default
    return default if isinstance(default, float) else None


def usable_optimizers() -> list[str]:
    """Return the names that `optim.name` accepts; each may have the prefix lookahead_ too."""
    return [name for name in map(str, list_optimizers()) if _find_obstacle(name) is None]


def _find_info(name: str) -> Any:
    """Return timm's description of an optimizer; raise InputError if it is unknown or cannot be used here."""
    base, names = name.removeprefix(LOOKAHEAD), list_optimizers()
    if base not in names:
        suggestion = _suggest(base.lower(), usable_optimizers())
        raise InputError(f"unknown optimizer '{name}'{suggestion} (docs/models.md lists all)")
    if reason := _find_obstacle(base):
        raise InputError(f"optimizer {name} {reason}")
    return get_optimizer_info(base)


def _find_obstacle(base: str) -> str | None:
    """Return why one of timm's optimizers cannot be used here, with what to do; None if it can."""
    own_class = get_optimizer_info(base).opt_class
    for prefix, package in FOREIGN.items():
        if isinstance(own_class, str) and own_class.startswith(prefix):
            plain = base.removeprefix("bnb").removeprefix("fused").removesuffix("8bit")
            instead = plain if plain in ("sgd", "adam", "adamw", "lamb", "lion", "novograd") else "adamw"
            return f"comes from {package}, which this project does not use: choose {instead}"
    reason = next((reason for refused, reason in REFUSED.items() if base.startswith(refused)), None)
    return f"{reason}: choose another, such as adamw or muon" if reason else None


def _arguments(name: str) -> dict[str, inspect.Parameter]:
    """Return the arguments of an optimizer's class by name."""
    return dict(inspect.signature(_find_info(name).opt_class).parameters)


def _suggest(word: str, words: list[str]) -> str:
    found = difflib.get_close_matches(word, words, n=3)
    return f"; did you mean {' or '.join(found)}?" if found else ""


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0].rstrip(".")


def peak_lr(config: OptimConfig, batch_size: int) -> float:
    """Return the highest learning rate of a run with this batch size."""
    if config.lr_scaling == "none":
        return config.lr
    if config.lr_scaling == "sqrt":
        return config.lr * math.sqrt(batch_size / LR_BATCH_SIZE)
    return config.lr * batch_size / LR_BATCH_SIZE


def cosine(progress: float) -> float:
    """Decay from 1 to 0 along half a cosine (SGDR, arXiv 1608.03983, without restarts)."""
    return 0.5 * (1 + math.cos(math.pi * progress))


def linear(progress: float) -> float:
    """Decay linearly from 1 to 0, as in FFCV's recipes."""
    return 1 - progress


SCHEDULES: dict[ScheduleKind, Callable[[float], float]] = {"cosine": cosine, "linear": linear}


def lr_factor(progress: float, warmup: float, schedule: ScheduleKind = "cosine") -> float:
    """Return the learning rate as a share of its peak.

    Args:
        progress: share of the run that is done, 0 to 1.
        warmup: share of the run over which the rate rises linearly from 0; then the schedule begins.
    """
    progress = min(progress, 1.0)
    if progress < warmup or warmup == 1:
        return progress / warmup
    return SCHEDULES[schedule]((progress - warmup) / (1 - warmup))


def set_lr(optimizer: torch.optim.Optimizer, lr: float | torch.Tensor) -> None:
    """Set the learning rate of every group; a tensor [] is read when the optimizer's kernels run."""
    for group in optimizer.param_groups:
        group["lr"] = lr
