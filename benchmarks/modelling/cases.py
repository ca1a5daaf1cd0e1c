"""The cases of `gpu_model.py`, the most important first. This module does not import torch, so --list is fast."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatchcase
from typing import Any, Literal

from prep.errors import InputError

Outcome = dict[str, Any]  # status, seconds, reason, settings, result
DONE, WRONG, FAILED, CRASHED, HUNG, CUT, SKIPPED = "done", "wrong", "failed", "crashed", "hung", "cut", "skipped"
# Sizes of the rehearsal on a CPU. Triton's interpreter needs milliseconds for the work of one GPU thread block.
SMALL_BATCH_SIZE, SMALL_SIZE = 2, 32
SMALL_NETWORK = "resnet10t"  # for our own step, which cannot shrink a network of timm
START_LIMIT = 20.0  # seconds that any case may take, besides 4 times its expected time
SLOWER_ON_A_CPU = 20.0  # times


@dataclass(frozen=True)
class Case:
    """One measurement.

    With `ours` the step is that of `train/step.py` with its EMA, guard and metrics. Otherwise it is a bare step:
    normalization, autocast forward, loss, backward, SGD as in training. The bare step does not scale
    gradients in fp16.
    """

    name: str
    kind: Literal["machine", "check", "rate"]  # bandwidth and matmul; the fused kernels' errors; images/s of a step
    expected_seconds: float  # on an H100, estimated; the case is not started with less time left
    network: str = "resnet50"  # a model of timm
    size: int = 224  # pixels
    batch_size: int = 256
    amp: str = "bf16"
    is_small: bool = False  # one block of a few channels in each stage
    compile: str = "none"  # a mode of torch.compile
    ours: bool = False
    fused: bool = False  # BatchNorm + ReLU (+ addition) by the kernels of train/fused.py
    graph: bool = False  # the whole step as CUDA graphs, only with `ours`
    profiled: bool = False  # time by kind of kernel
    needs: str = ""  # a case that must be done first

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that the record stores next to the result; empty if the case has no network."""
        left_out = {"name", "kind", "expected_seconds", "needs"}
        return {key: value for key, value in asdict(self).items() if key not in left_out} if self.kind == "rate" else {}

    def limit_seconds(self, on_gpu: bool) -> float:
        """Return the time after which the case counts as hung."""
        return (START_LIMIT + 4 * self.expected_seconds) * (1 if on_gpu else SLOWER_ON_A_CPU)

    def resized(self, batch_size: int | None, size: int | None, on_gpu: bool) -> "Case":
        """Return the case with the wanted batch size and pixels; on a CPU also with a small network, as a rehearsal."""
        if self.kind != "rate":
            return self
        if on_gpu:
            return replace(self, batch_size=batch_size or self.batch_size, size=size or self.size)
        small = replace(self, batch_size=batch_size or SMALL_BATCH_SIZE, size=size or SMALL_SIZE)
        return replace(small, network=SMALL_NETWORK) if self.ours else replace(small, is_small=True)


def list_cases() -> list[Case]:
    """Return all cases, the most important first.

    Those up to 160 and 88 pixels fit into a little more than one minute on an H100. cuDNN tries its algorithms once for
    each shape and type, so a case is faster after another one of the same shapes; the expected times assume that.
    """
    # Resolutions of progressive training, with as many images as keep a GPU busy.
    sizes = {160: 512, 88: 1024}
    eager = [Case(f"eager-{size}-bf16", "rate", 6, size=size, batch_size=each) for size, each in sizes.items()]
    fused = [
        Case(f"fused-{size}-bf16", "rate", 3, size=size, batch_size=each, fused=True, needs="check-bf16")
        for size, each in sizes.items()
    ]
    ours: dict[str, Any] = {"ours": True, "needs": "check-bf16", "fused": True}
    return [
        Case("machine", "machine", 2),
        Case("eager-224-bf16", "rate", 8, profiled=True),
        Case("eager-224-fp16", "rate", 6, amp="fp16"),
        Case("ours-224-bf16", "rate", 3, ours=True),
        Case("check-bf16", "check", 4),
        Case("ours-fused-224-bf16", "rate", 3, **ours),
        Case("fused-224-bf16", "rate", 3, fused=True, profiled=True, needs="check-bf16"),
        Case("ours-resnet50d-224-bf16", "rate", 5, network="resnet50d", ours=True),
        Case("ours-fused-resnet50d-224-bf16", "rate", 3, network="resnet50d", **ours),
        # With 256 images of 88 pixels the CPU may be slower at launching kernels than the GPU at running them.
        Case("ours-88-bf16-b256", "rate", 5, size=88, ours=True),
        Case("ours-fused-88-bf16-b256", "rate", 3, size=88, **ours),
        Case("ours-fused-88-bf16-b256-graph", "rate", 4, size=88, graph=True, **ours),
        Case("ours-fused-224-bf16-graph", "rate", 4, graph=True, **ours),
        *eager,
        *fused,
        Case("check-fp16", "check", 4, amp="fp16"),
        Case("fused-224-fp16", "rate", 4, amp="fp16", fused=True, needs="check-fp16"),
        Case("ours-88-bf16-b256-graph", "rate", 4, size=88, ours=True, graph=True),
        Case("compile-224-bf16-default", "rate", 45, compile="default", profiled=True),
        Case("compile-224-bf16-reduce-overhead", "rate", 45, compile="reduce-overhead"),
        Case("ours-fused-224-bf16-compile", "rate", 45, compile="default", **ours),
        Case("compile-224-fp16-default", "rate", 45, amp="fp16", compile="default"),
        Case("compile-224-bf16-max-autotune", "rate", 150, compile="max-autotune"),
    ]


def choose_cases(patterns: Sequence[str]) -> list[Case]:
    """Return the cases with a name that matches a pattern (no pattern: all), and those that they need, in order.

    Raises:
        InputError: a pattern matches no case.
    """
    cases = list_cases()
    wanted = {case.name for case in cases if not patterns}
    for pattern in patterns:
        fitting = [case for case in cases if fnmatchcase(case.name, pattern)]
        if not fitting:
            raise InputError(f"unknown case {pattern}: --list names all cases")
        wanted |= {name for case in fitting for name in (case.name, case.needs)}
    return [case for case in cases if case.name in wanted]


def describe_excess(result: dict[str, Any]) -> str:
    """Return the errors that are above their limits or not a number, in words; "" if there are none."""
    limits = result.get("limits", {})
    return ", ".join(
        f"{name} is off by {error:.1e} in {result['type']}, {limits[name]:.1e} is allowed"
        for name, error in result.get("errors", {}).items()
        if not error <= limits[name]
    )
