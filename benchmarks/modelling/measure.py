"""Measure the cases in a worker: rates, time by kind of kernel, bandwidth and matmul, errors of the fused kernels.

The second half builds the steps that are timed. Each is a function without arguments that does one training step on
the same batch.
"""

import gc
import os
import sys
import tempfile
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from modelling.cases import DONE, FAILED, WRONG, Case, Outcome, describe_excess
from modelling.kernel_errors import measure_errors
from modelling.step_profile import LONGEST_NAME, describe_profile
from record import GIB, describe_origin, summarize
from stages import Setting, make_step
from timing import read_clock, time_repetitions, warm_up
from torch import nn
from torch.nn import functional
from worker_main import describe_error, describe_versions

from loaders import Batch, World
from loaders.batch import Normalize
from prep.errors import InputError
from train.compile import SpeedConfig, set_precision
from train.config import OptimConfig
from train.fused import fuse
from train.metrics import Sums
from train.optim import build_optimizer
from train.step import AMP_TYPES

Take = Callable[[], None]  # does one step

SCRIPT = "benchmarks/gpu_model.py"
CACHES = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")
FIRST_STEPS = 3  # these include autotuning, compilation and the recording of CUDA graphs
COPIED_BYTES, MATRIX_SIZE = 1 << 31, 8192
SMALL_COPIED_BYTES, SMALL_MATRIX_SIZE = 1 << 24, 256  # on a CPU
NUM_CLASSES = 1000
SMALL_LR = 1e-3  # labels are random, so a larger rate could make the weights infinite
LABEL_SMOOTHING = 0.1
SMALL = {"layers": (1, 1, 1, 1), "channels": (8, 8, 8, 8)}  # blocks, and channels within them, of each stage


@dataclass(frozen=True)
class Timing:
    """The length and number of a case's repetitions."""

    seconds: float  # approximate length of a repetition
    repetitions: int


def answer_cases(job: dict[str, Any]) -> Generator[dict[str, Any], dict[str, Any], None]:
    """Yield the origin of the record, then the outcome of each case that is sent (the entry of a worker).

    Raises:
        InputError: torch cannot use the GPU.
    """
    if job["device"] == "cuda" and not torch.cuda.is_available():
        raise InputError(
            f"an NVIDIA GPU is here but torch {torch.__version__}, built for CUDA {torch.version.cuda}, cannot use it: "
            "update the driver or install a matching torch, or choose --device cpu"
        )
    os.environ.update(dict.fromkeys(CACHES, tempfile.gettempdir()))  # empty, so that compilation is measured
    world = World(device=torch.device(job["device"], 0) if job["device"] == "cuda" else torch.device("cpu"))
    timing = Timing(job["seconds"], job["repetitions"])
    set_precision(SpeedConfig())
    request = yield describe_start(job["arguments"], world)
    while True:
        started = time.perf_counter()
        outcome = measure_outcome(Case(**request), timing, world)
        request = yield outcome | {"seconds": round(time.perf_counter() - started, 2)}


def describe_start(arguments: list[str], world: World) -> dict[str, Any]:
    """Return the origin of the record; `arguments` are those of the user."""
    sys.argv[1:] = arguments  # describe_origin writes them as the record's command
    versions = {"cuda": torch.version.cuda, **describe_versions(["triton"])}
    if world.device.type == "cuda":
        versions["cudnn"] = str(torch.backends.cudnn.version())
    return describe_origin(SCRIPT, world, **{name: version for name, version in versions.items() if version})


def measure_outcome(case: Case, timing: Timing, world: World) -> Outcome:
    """Return the outcome of a case, also if it raises an error.

    `is_broken` in the outcome means that this process can no longer use the device, as after an illegal memory access.
    """
    measures: dict[str, Callable[[Case, Timing, World], dict[str, Any]]] = {
        "machine": measure_machine,
        "check": measure_kernel_errors,
        "rate": measure_rate,
    }
    try:
        release_memory(world.device)
        result = measures[case.kind](case, timing, world)
    except Exception as error:  # any error: the other cases continue
        outcome: Outcome = {"status": FAILED, "result": None, "reason": describe_error(error)}
        # Does the device still work? After a capture that failed, torch's generator does not.
        try:
            read_clock(world)
        except RuntimeError:
            outcome["is_broken"] = True
        if case.graph:
            outcome["is_broken"] = True
        return outcome
    reason = describe_excess(result)
    return {"status": WRONG if reason else DONE, "result": result, "reason": reason or None}


def measure_rate(case: Case, timing: Timing, world: World) -> dict[str, Any]:
    """Return images/s of a training step, the seconds until it was ready, peak memory and, if wanted, the profile.

    Ready means: the network is built, cuDNN has chosen its algorithms, kernels are compiled and graphs are captured.
    """
    # Build the step and get it ready.
    started = time.perf_counter()
    take = build_take(case, world.device)
    for _ in range(FIRST_STEPS):
        take()
    seconds_ready = read_clock(world) - started

    # Time it.
    on_gpu = world.device.type == "cuda"
    num_steps = warm_up(take, timing.seconds, world)
    seconds = time_repetitions(take, num_steps, timing.repetitions, world)
    result = {
        "images_per_second": summarize([case.batch_size * num_steps / each for each in seconds]),
        "steps_a_repetition": num_steps,
        "seconds_ready": round(seconds_ready, 2),
        "memory_gib": torch.cuda.max_memory_allocated() / GIB if on_gpu else None,
    }

    # Profile it afterwards, because profiling slows it down.
    if case.profiled:
        try:
            result["profile"] = describe_profile(take, on_gpu)
        except RuntimeError as error:  # a driver may forbid profiling; the rates are valid without it
            result["profile_failure"] = f"{error}"[:LONGEST_NAME]
    return result


def measure_machine(case: Case, timing: Timing, world: World) -> dict[str, Any]:
    """Return the device's bandwidth (bytes read plus bytes written by a copy) and its matmul rate in bf16."""
    on_gpu, device = world.device.type == "cuda", world.device
    size, side = (COPIED_BYTES, MATRIX_SIZE) if on_gpu else (SMALL_COPIED_BYTES, SMALL_MATRIX_SIZE)
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    left, right = (torch.randn(side, side, device=device).to(torch.bfloat16) for _ in range(2))

    def copy_array() -> None:
        target.copy_(source)

    def multiply_matrices() -> None:
        _ = left @ right

    # A repetition is a tenth as long as that of a network.
    rates = []
    for take, work in ((copy_array, 2 * size), (multiply_matrices, 2 * side**3)):
        num_steps = warm_up(take, timing.seconds / 10, world)
        seconds = time_repetitions(take, num_steps, timing.repetitions, world)
        rates.append(summarize([work * num_steps / each / 1e12 for each in seconds]))
    return {
        "copy_terabytes_per_second": rates[0],
        "matmul_teraflops": rates[1],
        "copied_bytes": size,
        "matrix_size": side,
    }


def measure_kernel_errors(case: Case, timing: Timing, world: World) -> dict[str, Any]:
    """Return the errors of the fused kernels, and their limits."""
    return measure_errors(case.amp, world.device)


def release_memory(device: torch.device) -> None:
    """Release the memory and compiled code of earlier cases and reset the peak, so that all begin in the same state."""
    if "torch._dynamo" in sys.modules:  # the line would import the compiler, which takes seconds
        torch.compiler.reset()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def build_take(case: Case, device: torch.device) -> Take:
    """Return the step of a case."""
    torch.manual_seed(0)
    images_BCHW = torch.randint(0, 256, (case.batch_size, 3, case.size, case.size), dtype=torch.uint8, device=device)
    images_BCHW = images_BCHW.contiguous(memory_format=torch.channels_last)
    labels_B = torch.randint(0, NUM_CLASSES, (case.batch_size,), device=device)
    if case.ours:
        return build_our_take(case, images_BCHW, labels_B)
    return build_bare_take(case, images_BCHW, labels_B)


def build_bare_take(case: Case, images_BCHW: torch.Tensor, labels_B: torch.Tensor) -> Take:
    """Return a step of normalization, autocast forward, loss, backward and SGD, and nothing else."""
    device, amp = images_BCHW.device, AMP_TYPES[case.amp]
    model = build_network(case, device)
    optimizer = build_optimizer(model, OptimConfig(lr=SMALL_LR))
    normalize = Normalize().to(device)
    if case.compile != "none":
        model.compile(mode=case.compile, dynamic=False)

    def take() -> None:
        optimizer.zero_grad()
        with torch.no_grad():
            inputs_BCHW = normalize(images_BCHW)
        with torch.autocast(device.type, amp, enabled=amp != torch.float32):
            logits_BK = model(inputs_BCHW)
            loss = functional.cross_entropy(logits_BK, labels_B, label_smoothing=LABEL_SMOOTHING)
        loss.backward()
        optimizer.step()

    return take


def build_network(case: Case, device: torch.device) -> nn.Module:
    """Return a network of timm in channels_last, initialized on the device, in training mode."""
    options: dict[str, Any] = SMALL if case.is_small else {}
    with device:
        model = timm.create_model(case.network, pretrained=False, num_classes=NUM_CLASSES, **options)
    model = model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    return (fuse(model) if case.fused else model).train()


def build_our_take(case: Case, images_BCHW: torch.Tensor, labels_B: torch.Tensor) -> Take:
    """Return the step of `train/step.py`, with all operations that training does with a batch."""
    world = World(device=images_BCHW.device)
    setting = Setting(
        batch_size=case.batch_size,
        size=case.size,
        model=case.network,
        amp=case.amp,
        compile=case.compile,  # pyright: ignore[reportArgumentType]  (one of its modes)
        fused="on" if case.fused else "off",
        graph=case.graph,
        run_dir=Path(tempfile.gettempdir()),
    )
    step, sums = make_step(setting, case.batch_size, NUM_CLASSES, world), Sums.zero(world.device)
    valid_B = torch.ones_like(labels_B, dtype=torch.bool)
    rows_B = np.arange(case.batch_size, dtype=np.int64)
    batch = Batch(images_BCHW, labels_B, valid_B, ~valid_B, 0, rows_B)
    return lambda: step(batch, sums)
