"""Capture a training step as CUDA graphs: the GPU runs all its kernels without waiting for Python to launch them.

A ResNet-50 step launches about 1,000 kernels, which takes Python an estimated 15 to 25 ms. With 256 images of 224
pixels the GPU works longer than that; with 88 or 128 pixels it waits. A replayed graph is one launch.

A graph repeats the captured kernels with the captured numbers and addresses. So everything that changes from step to
step is a tensor that lies at the same address: the images after augmentation (Python decides about Mixup and erasing,
so these stay outside), the labels, the share of Mixup, the learning rate. Dropout and stochastic depth draw from
torch's generator, whose seed a replay reads. Per resolution there are up to three graphs:

    first    the forward and backward passes of a batch's first part (`--speed.microbatch`)
    later    the same for each later part, whose gradients are added to those of the first one
    update   the gradient scaler, the optimizer, and the rollback after a loss that is not finite

The EMA, the clock and everything else stay outside. The graphs of all resolutions share one pool of memory.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from loaders import World
from prep.errors import InputError
from train.batch_augment import Mix, Part
from train.checkpoint import TrainState
from train.compile import WITHOUT_CUDA_GRAPHS, SpeedConfig
from train.config import Recipe
from train.metrics import Sums
from train.optim import parse_options, set_lr

WARM_UP_STEPS = 3  # steps before the capture: kernels are compiled and loaded, cuDNN has chosen its algorithms

Replay = Callable[[], None]


# The decision.


def uses_graphs(config: SpeedConfig, device: torch.device) -> bool:
    """Return True if steps are captured as graphs."""
    return config.graph and device.type == "cuda"


def explain_no_graphs(config: SpeedConfig, device: torch.device) -> str | None:
    """Return one line that says why no graphs are captured although they were asked for; None otherwise."""
    if not config.graph or uses_graphs(config, device):
        return None
    return "speed.graph: CUDA graphs need an NVIDIA GPU, so each operation of a step is launched by itself"


def check_graphs(recipe: Recipe, num_processes: int) -> None:
    """Check whether the steps of a recipe can be captured, on any device, so that a recipe does not depend on it.

    Raises:
        InputError: they cannot.
    """
    if not recipe.speed.graph:
        return
    instead = "give --speed.no-graph"
    if num_processes > 1:
        raise InputError(f"--speed.graph needs one process, got {num_processes}: {instead}")
    if recipe.speed.compile in WITHOUT_CUDA_GRAPHS:
        other = WITHOUT_CUDA_GRAPHS[recipe.speed.compile]
        raise InputError(
            f"--speed.graph needs a --speed.compile that records no CUDA graphs itself, got {recipe.speed.compile}: "
            f"{instead} or --speed.compile {other}"
        )
    if recipe.optim.name != "sgd" or not parse_options(recipe.optim).get("fused", True):
        given = " ".join([recipe.optim.name, *recipe.optim.options])
        raise InputError(f"--speed.graph needs --optim.name sgd with its fused kernel, got {given}: {instead}")


# Capture and replay.


class Capturable(Protocol):
    """What graphs need of a `train.step.Step`, which imports this module."""

    recipe: Recipe
    state: TrainState
    world: World
    slots: range  # of this process in each batch
    num_parts: int
    guard: Any

    def forward_backward(self, part: Part, sums: Sums) -> torch.Tensor:
        """Add the gradients of a part; return its loss."""
        ...

    def update(self, is_finite: torch.Tensor) -> None:
        """Move the weights."""
        ...


@dataclass
class Captured:
    """The graphs of one resolution, and the tensors that they read and write."""

    part: Part  # images, labels and share of Mixup
    first: Replay
    later: Replay
    update: Replay


class StepGraphs:
    """Captures a step at each resolution, and replays it."""

    def __init__(self, step: Capturable) -> None:
        self.step, device = step, step.world.device
        self.parts: dict[int, Part] = {}  # by resolution in pixels: the tensors into which each part is copied
        self.captured: dict[int, Captured] = {}
        self.pool = new_pool()
        # Read and written by the graphs of every resolution.
        self.lr = torch.zeros((), device=device)
        self.share = torch.ones((), device=device)  # of Mixup
        self.sums = Sums.zero(device)  # loss and hits of one step; its number of images is not used
        self.loss_sum = torch.zeros((), device=device)  # of the parts; not finite if one of them is not
        config = step.recipe.mix
        self.mixes = config.mixup > 0 or config.cutmix > 0

    def replay(self, parts: Iterable[Part], lr: float, sums: Sums) -> None:
        """Train on the parts of a batch; add their loss and hits to `sums`."""
        # Each part is augmented when the loop asks for it; then it is copied to where the graphs read it.
        captured = None
        for number, part in enumerate(parts):
            captured = captured or self.capture(part.images_BCHW.shape[-1])
            captured.part.images_BCHW.copy_(part.images_BCHW)
            captured.part.labels_B.copy_(part.labels_B)
            self.share.fill_(part.mix.share)  # pyright: ignore[reportArgumentType]  (a number, outside of the capture)
            (captured.later if number else captured.first)()
            sums.num_images += len(part.labels_B)
        assert captured is not None
        set_lr(self.step.state.optimizer, lr)  # for logs; the graphs read `self.lr`
        self.lr.fill_(lr)
        captured.update()
        sums.loss_and_hits += self.sums.loss_and_hits

    def warm_up(self, size: int) -> None:
        """Run steps on images of `size` pixels before they are captured: kernels are compiled, algorithms chosen.

        Changes neither weights nor running statistics nor the state of torch's generator.
        """
        self.parts[size] = self._make_part(size)
        with self._keep_generators():
            self._run_on_nan(self.parts[size])

    def capture(self, size: int) -> Captured:
        """Return the graphs for images of `size` pixels; capture them at the first call.

        No other thread may wait for the whole GPU meanwhile, as DALI's do: that would end the capture.

        Raises:
            InputError: the network cannot be captured, for example because its `forward` reads a value from the GPU.
        """
        if size not in self.captured:
            if size not in self.parts:
                self.warm_up(size)
            try:
                with self._keep_generators():
                    self.captured[size] = self._capture(self.parts[size])
            except RuntimeError as error:
                # Where a capture fails, torch's clean-up may raise a second error in place of the first.
                lines = [" ".join(f"{each}".split()) for each in (error.__context__, error) if each is not None]
                if not any("captur" in line for line in lines):
                    raise
                name = self.step.recipe.model.name
                raise InputError(
                    f"--speed.graph needs a network that CUDA graphs can capture, got {name} ({lines[0][:200]}): "
                    "give --speed.no-graph"
                ) from error
        return self.captured[size]

    def _keep_generators(self) -> AbstractContextManager[None]:
        """Return a context after which torch's generators are as before."""
        device = self.step.world.device
        return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])

    def _make_part(self, size: int) -> Part:
        """Return the tensors into which each part is copied. Until then the images are NaN."""
        device, num_images = self.step.world.device, len(self.step.slots) // self.step.num_parts
        images_BCHW = torch.full((num_images, 3, size, size), torch.nan, device=device)
        labels_B = torch.zeros(num_images, dtype=torch.int64, device=device)
        mix = Mix(self.share) if self.mixes else Mix()
        # Every part has is_last=True, because a single process has no other gradients to average with.
        return Part(images_BCHW.contiguous(memory_format=torch.channels_last), labels_B, mix, is_last=True)

    def _run_on_nan(self, part: Part) -> None:
        """Run complete steps on NaN images, which change no weights: the optimizer skips them, `Guard` rolls back.

        What such a step does change is restored: the counters, and the scale that fp16 lowers.
        """
        step, scaler = self.step, self.step.state.scaler
        scaler.scale(torch.zeros((), device=step.world.device))  # creates its tensors outside of the graphs
        counters = [each for each in step.state.model.buffers() if not each.is_floating_point()]
        scale = [each for each in (scaler._scale, scaler._growth_tracker) if each is not None]
        changed = [*counters, step.guard.num_in_a_row, *scale]
        before = [each.clone() for each in changed]
        with on_side_stream(step.world.device):
            for _ in range(WARM_UP_STEPS):
                self._run_first(part)
                if step.num_parts > 1:
                    self._run_later(part)
                self._run_update()
        for each, value in zip(changed, before, strict=True):
            each.copy_(value)

    def _capture(self, part: Part) -> Captured:
        """Capture the graphs in the order in which they are replayed, because they share memory."""
        first = capture_graph(lambda: self._run_first(part), self.pool)
        later = capture_graph(lambda: self._run_later(part), self.pool) if self.step.num_parts > 1 else first
        update = capture_graph(self._run_update, self.pool)
        return Captured(part, first, later, update)

    # What is captured.

    def _run_first(self, part: Part) -> None:
        self.step.guard.save_statistics()
        self.sums.loss_and_hits.zero_()
        self.loss_sum.copy_(self.step.forward_backward(part, self.sums))

    def _run_later(self, part: Part) -> None:
        self.loss_sum += self.step.forward_backward(part, self.sums)

    def _run_update(self) -> None:
        optimizer = self.step.state.optimizer
        lr = optimizer.param_groups[0]["lr"]
        set_lr(optimizer, self.lr)
        self.step.update(self.loss_sum.isfinite())
        set_lr(optimizer, lr)


def new_pool() -> Any:
    """Return a new pool of memory for graphs."""
    return torch.cuda.graph_pool_handle()


@contextmanager
def on_side_stream(device: torch.device) -> Iterator[None]:
    """Launch on another stream, as torch asks for before a capture; on a CPU do nothing."""
    if device.type != "cuda":
        yield
        return
    stream, current = torch.cuda.Stream(device), torch.cuda.current_stream(device)
    stream.wait_stream(current)
    with torch.cuda.stream(stream):
        yield
    current.wait_stream(stream)


def capture_graph(function: Callable[[], None], pool: Any) -> Replay:
    """Capture what a function launches on the GPU, without running it; return a function that runs it."""
    graph = torch.cuda.CUDAGraph()
    # Threads of the loader use the GPU at the same time: only errors of this thread end the capture.
    with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
        function()
    return graph.replay
