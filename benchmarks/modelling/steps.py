"""The training steps that are timed: each is a function without arguments that does one step on the same batch."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from modelling.cases import Case
from stages.setting import Setting
from stages.stepping import make_step
from torch import nn
from torch.nn import functional

from loaders import Batch, World
from loaders.batch import Normalize
from train.config import OptimConfig
from train.metrics import Sums
from train.optim import build_optimizer
from train.step import AMP_TYPES

Take = Callable[[], None]
NUM_CLASSES = 1000
SMALL_LR = 1e-3  # labels are random, so a larger rate could make the weights infinite
LABEL_SMOOTHING = 0.1
SMALL = {"layers": (1, 1, 1, 1), "channels": (8, 8, 8, 8)}  # blocks, and channels within them, of each stage
CAPTURE_STEPS = 3  # before a step is captured as a CUDA graph


def build_take(case: Case, device: torch.device) -> Take:
    """Return the step of a case."""
    torch.manual_seed(0)
    images_BCHW = torch.randint(0, 256, (case.batch_size, 3, case.size, case.size), dtype=torch.uint8, device=device)
    images_BCHW = images_BCHW.contiguous(memory_format=torch.channels_last)
    labels_B = torch.randint(0, NUM_CLASSES, (case.batch_size,), device=device)
    if case.ours:
        return build_our_take(case, images_BCHW, labels_B)
    take = build_bare_take(case, images_BCHW, labels_B)
    return capture(take) if case.graph else take


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
    if case.fused:
        from modelling.fused_networks import fuse_resnet  # noqa: PLC0415  (Triton, which a CPU may lack)

        model = fuse_resnet(model)
    return model.train()


def build_our_take(case: Case, images_BCHW: torch.Tensor, labels_B: torch.Tensor) -> Take:
    """Return the step of `train/step.py`, with all operations that training does with a batch."""
    world = World(device=images_BCHW.device)
    setting = Setting(
        batch_size=case.batch_size,
        size=case.size,
        model=case.network,
        amp=case.amp,
        compile=case.compile,  # pyright: ignore[reportArgumentType]  (one of its modes)
        run_dir=Path(os.environ.get("TORCHINDUCTOR_CACHE_DIR", tempfile.gettempdir())),
    )
    step, sums = make_step(setting, case.batch_size, NUM_CLASSES, world), Sums.zero(world.device)
    valid_B = torch.ones_like(labels_B, dtype=torch.bool)
    rows_B = np.arange(case.batch_size, dtype=np.int64)
    batch = Batch(images_BCHW, labels_B, valid_B, ~valid_B, 0, rows_B)
    return lambda: step(batch, sums)


def capture(take: Take) -> Take:
    """Return a step that replays all kernels of another one as a single CUDA graph."""
    # PyTorch requires that the warm-up steps before a capture run on a separate stream.
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(CAPTURE_STEPS):
            take()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        take()
    return graph.replay
