"""Steps that are captured as CUDA graphs train as others do.

On a CPU `helpers/recorder.py` stands for the graphs: it repeats recorded operations on recorded memory.
"""

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from helpers.recorder import capture_on_cpu
from helpers.steps import build_step, random_batch, small, tensors
from torch import nn

from loaders import Batch, World
from prep.errors import InputError
from train import batch_augment, graphs, step
from train.batch_augment import Mix
from train.compile import SpeedConfig, set_precision
from train.config import EraseConfig, MixConfig, OptimConfig, Recipe
from train.graphs import check_graphs, explain_no_graphs, uses_graphs
from train.metrics import Sums
from train.model import build_model
from train.optim import build_optimizer
from train.step import Step, check_step, new_state, warm_up

CPU = torch.device("cpu")


@pytest.fixture
def captures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Capture graphs on the CPU."""
    monkeypatch.setattr(step, "uses_graphs", lambda config, device: config.graph)
    monkeypatch.setattr(graphs, "capture_graph", capture_on_cpu)
    monkeypatch.setattr(graphs, "new_pool", lambda: None)


@pytest.fixture
def rounded_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Round learning rates and shares of Mixup to float32, in which a graph reads them, so that the bits are the same.

    Otherwise they differ by rounding, which a few steps can make large.
    """
    factor, draw = step.lr_factor, batch_augment.draw_mix

    def draw_rounded(*words: Any) -> Mix:
        mix = draw(*words)
        return replace(mix, share=float(np.float32(mix.share)))

    monkeypatch.setattr(step, "lr_factor", lambda *words: round(256 * factor(*words)) / 256)
    monkeypatch.setattr(batch_augment, "draw_mix", draw_rounded)


def batches(num_batches: int, times: tuple[int, ...] = (3,)) -> Iterator[Batch]:
    """Yield batches of 16-pixel images that are repeated `times` in each direction, one factor after the other."""
    for number in range(num_batches):
        batch, factor = random_batch(16 * number), times[number % len(times)]
        images_BCHW = batch.images_BCHW.repeat(1, 1, factor, factor)
        yield replace(batch, images_BCHW=images_BCHW.contiguous(memory_format=torch.channels_last))


def train_both_ways(recipe: Recipe, data: list[Batch], network: nn.Module | None = None) -> list[dict[str, Any]]:
    """Train without and with graphs on the same batches; return the states afterwards, and what was logged."""
    ends = []
    for graph in (False, True):
        taken = build_step(replace(recipe, speed=replace(recipe.speed, graph=graph)), network=network)
        assert (taken.graphs is not None) is graph
        sums = Sums.zero(CPU)
        for batch in data:
            taken(batch, sums)
        scaler = taken.state.scaler.state_dict()
        more = {"sums": sums.loss_and_hits, "scale": torch.tensor([scaler["scale"], scaler["_growth_tracker"]])}
        more |= {"bad steps": taken.guard.num_in_a_row.clone(), "images": torch.tensor(sums.num_images)}
        more |= {"lr": torch.tensor([group["lr"] for group in taken.state.optimizer.param_groups])}
        ends.append(tensors(taken) | more)
    return ends


def assert_same(ends: list[dict[str, Any]]) -> None:
    one, other = ends
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


@pytest.mark.usefixtures("captures", "rounded_numbers")
@pytest.mark.parametrize("amp", ["none", "bf16"])
@pytest.mark.parametrize("microbatch", [0, 4])
def test_the_same_bits_with_and_without_graphs(amp: Any, microbatch: int) -> None:
    """Twenty steps: weights, EMA, momentum, running statistics, the logged sums."""
    recipe = small(amp=amp, speed=SpeedConfig(microbatch=microbatch), optim=OptimConfig(lr=0.5))
    assert_same(train_both_ways(recipe, list(batches(20))))


@pytest.mark.usefixtures("captures", "rounded_numbers")
@pytest.mark.parametrize(
    "changes",
    [
        {"erase": EraseConfig(probability=1.0)},
        {"optim": OptimConfig(lr=0.5, weight_decay=0.125, decoupled=True), "ema_every": 3},
        {"model": replace(small().model, drop_path=0.5)},  # random numbers inside of the network
        {"model": replace(small().model, freeze=("stem",))},
    ],
    ids=["erasing", "decoupled decay", "stochastic depth", "frozen stem"],
)
def test_whatever_a_recipe_adds(changes: dict[str, Any]) -> None:
    assert_same(train_both_ways(small(amp="none", **changes), list(batches(6))))


@pytest.mark.usefixtures("captures", "rounded_numbers")
@pytest.mark.parametrize("loss", ["cross_entropy", "bce"])
def test_mixup_with_a_share_that_changes_from_step_to_step(loss: Any) -> None:
    """Some batches are cut, others mixed; after the first epoch of 5 steps the share is 1."""
    recipe = small(amp="none", loss=loss, mix=MixConfig(mixup=0.4, cutmix=1.0, until=1), epochs=20)
    assert_same(train_both_ways(recipe, list(batches(8))))


@pytest.mark.usefixtures("captures", "rounded_numbers")
def test_two_resolutions_in_turn_use_their_own_graphs() -> None:
    assert_same(train_both_ways(small(amp="none"), list(batches(6, times=(2, 3)))))


class Overflowing(nn.Module):
    """A network whose output is infinite for images that are white everywhere."""

    def __init__(self) -> None:
        super().__init__()
        first = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.body, self.head = first, nn.Linear(8, 10)

    def forward(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        scale = torch.where(images_BCHW.mean() > 2, torch.inf, 1.0)
        return self.head(self.body(images_BCHW)) * scale


@pytest.mark.usefixtures("captures", "rounded_numbers")
@pytest.mark.parametrize("amp", ["none", "fp16"])
@pytest.mark.parametrize("microbatch", [0, 4])
def test_a_loss_that_is_not_finite_changes_nothing_but_the_counters(amp: Any, microbatch: int) -> None:
    data = list(batches(5))
    data[2].images_BCHW.fill_(255)
    data[3].images_BCHW[12:].fill_(255)  # only the last part
    torch.manual_seed(0)
    network = Overflowing()
    ends = train_both_ways(small(amp=amp, speed=SpeedConfig(microbatch=microbatch)), data, network)
    assert_same(ends)
    assert ends[1]["scale"].isfinite().all() and ends[1]["model head.weight"].isfinite().all()
    scale = 2.0 ** (16 - (2 if microbatch and amp == "fp16" else 1)) if amp == "fp16" else 1.0
    assert ends[1]["scale"][0] == scale


@pytest.mark.usefixtures("captures")
@pytest.mark.parametrize("amp", ["none", "fp16"])
def test_capturing_changes_nothing(amp: Any) -> None:
    recipe = small(amp=amp, speed=SpeedConfig(graph=True), epochs=8)
    growing = replace(recipe.transform, size=32, first_size=16, grow=(2, 4))
    taken = build_step(replace(recipe, transform=growing))
    assert taken.graphs is not None
    before, state = tensors(taken), torch.get_rng_state()
    warm_up(taken)
    assert list(taken.graphs.captured) == [32, 16]  # the largest first: they share memory
    assert torch.equal(torch.get_rng_state(), state)
    for name, tensor in tensors(taken).items():
        assert torch.equal(tensor, before[name]), name
    assert int(taken.guard.num_in_a_row) == 0 and taken.state.clock == 0
    assert taken.state.scaler.get_scale() == (2.0**16 if amp == "fp16" else 1.0)
    assert all(each.grad is None for each in taken.state.model.parameters())
    rates = [group["lr"] for group in taken.state.optimizer.param_groups]
    assert all(isinstance(rate, float) for rate in rates)  # a checkpoint holds numbers


@pytest.mark.usefixtures("captures")
def test_the_stand_in_keeps_numbers_and_memory_as_a_graph_does() -> None:
    """So that the tests above would fail for a step with a number from Python, or with memory that is replaced."""
    rate, memory, total = [1.0], torch.ones(3), torch.zeros(3)

    def add() -> None:
        total.add_(memory * rate[0])

    replay = graphs.capture_graph(add, None)
    assert torch.equal(total, torch.zeros(3))  # capturing restores
    replay()
    rate[0] = 5.0  # not seen by the graph
    memory.fill_(2.0)  # seen
    replay()
    assert total.tolist() == [3.0, 3.0, 3.0]
    memory = torch.full((3,), 100.0)  # other memory, not seen
    replay()
    assert total.tolist() == [5.0, 5.0, 5.0]
    with pytest.raises(RuntimeError, match="not permitted while capturing"):
        graphs.capture_graph(lambda: print(float(total.sum())), None)


class Reading(nn.Module):
    """A network whose `forward` reads a number from the device."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 10)

    def forward(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        means_B3 = images_BCHW.mean(dim=(2, 3))
        return self.head(means_B3 if float(means_B3.sum()) > 0 else -means_B3)


@pytest.mark.usefixtures("captures")
def test_a_network_that_cannot_be_captured_is_one_line() -> None:
    taken = build_step(small(amp="none", speed=SpeedConfig(graph=True)), network=Reading())
    with pytest.raises(
        InputError, match=r"CUDA graphs can capture, got resnet10t \(operation not .*no-graph$"
    ) as caught:
        taken(random_batch(0), Sums.zero(CPU))
    assert "\n" not in str(caught.value)


# The decision.


def test_without_a_gpu_one_line_says_that_operations_are_launched_one_by_one() -> None:
    assert not uses_graphs(SpeedConfig(graph=True), CPU) and uses_graphs(SpeedConfig(graph=True), torch.device("cuda"))
    assert not uses_graphs(SpeedConfig(), torch.device("cuda"))
    line = explain_no_graphs(SpeedConfig(graph=True), CPU)
    assert line == "speed.graph: CUDA graphs need an NVIDIA GPU, so each operation of a step is launched by itself"
    assert explain_no_graphs(SpeedConfig(), CPU) is None
    assert explain_no_graphs(SpeedConfig(graph=True), torch.device("cuda")) is None


@pytest.mark.parametrize(
    ("changes", "num_processes", "complaint"),
    [
        ({}, 2, r"needs one process, got 2: give --speed.no-graph"),
        (
            {"speed": SpeedConfig(graph=True, compile="reduce-overhead")},
            1,
            r"records no CUDA graphs itself, got reduce-overhead: .*--speed.compile default",
        ),
        ({"optim": OptimConfig(name="adamw")}, 1, r"with its fused kernel, got adamw: give --speed.no-graph"),
        ({"optim": OptimConfig(options=("fused=False",))}, 1, r"fused kernel, got sgd fused=False: give"),
    ],
)
def test_steps_that_cannot_be_captured_are_refused(changes: dict[str, Any], num_processes: int, complaint: str) -> None:
    recipe = replace(small(speed=SpeedConfig(graph=True)), **changes)
    with pytest.raises(InputError, match=complaint) as caught:
        check_step(recipe, World(size=num_processes))
    assert "\n" not in str(caught.value)
    check_graphs(replace(recipe, speed=SpeedConfig()), num_processes)


def test_a_share_may_be_a_tensor() -> None:
    assert Mix(torch.ones(())).is_mixed and Mix(0.5).is_mixed and not Mix().is_mixed


# On a GPU.


def take_steps(recipe: Recipe, device: torch.device, num_steps: int = 8) -> dict[str, torch.Tensor]:
    """Warm up, then train at two resolutions in turn; the state afterwards."""
    torch.manual_seed(recipe.seed)
    model = build_model(recipe.model, 10, device)
    state = new_state(recipe, model, copy.deepcopy(model), build_optimizer(model, recipe.optim, recipe.batch_size))
    taken, sums = Step(recipe, state, 1600, World(device=device)), Sums.zero(device)
    warm_up(taken)
    for batch in batches(num_steps, times=(2, 4)):
        images_BCHW = batch.images_BCHW.to(device, memory_format=torch.channels_last)
        taken(replace(batch, images_BCHW=images_BCHW, labels_B=batch.labels_B.to(device)), sums)
    return tensors(taken) | {"sums": sums.loss_and_hits}


@pytest.mark.gpu
@pytest.mark.parametrize("amp", ["none", "bf16", "fp16"])
@pytest.mark.parametrize("microbatch", [0, 4])
def test_graphs_on_a_gpu_train_as_eager_steps_do(amp: Any, microbatch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs an NVIDIA GPU")
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", torch.backends.cudnn.benchmark)  # restored afterwards
    recipe = small(amp=amp, epochs=8, mix=MixConfig(mixup=0.2), speed=SpeedConfig(tf32=False, microbatch=microbatch))
    recipe = replace(recipe, transform=replace(recipe.transform, size=64, first_size=32, grow=(2, 4)))
    set_precision(recipe.speed)
    both = (replace(recipe, speed=replace(recipe.speed, graph=graph)) for graph in (True, False))
    ours, theirs = (take_steps(each, torch.device("cuda", 0)) for each in both)
    before = take_steps(recipe, torch.device("cuda", 0), num_steps=0)
    for name, tensor in theirs.items():
        # Compared with the way that a tensor has moved, so that a wrong learning rate shows.
        moved = (tensor.double() - before[name].double()).norm().clamp(min=1e-6)
        distance = (ours[name].double() - tensor.double()).norm() / moved
        assert distance < 0.2, (name, float(distance))
