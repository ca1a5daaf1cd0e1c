"""The stages of training that run alone, one batch at a time: storage, decoding, the loader, the model, training.

read    the plan's images in training's order, as fast as the reader delivers them; cold from storage, warm from memory
decode  encoded batches in memory become pixels through the loader's own backend; nothing is read
loader  the complete loader, up to the device
model   the training step on synthetic batches
train   the training step fed by the loader

All stages of a measurement are open together and measured in rounds, so that other load affects all alike. A stage that
is not being measured is idle: its queues are full and its threads wait.
"""

import copy
import statistics
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from itertools import cycle, islice
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from machine import available_bytes, drop_from_cache, share_resident
from record import describe_dali, describe_dataset, describe_origin, describe_placement, summarize
from timing import Stage, Window, all_gather_values, measure_window

from loaders import Batch, Loader, LoaderConfig, Stats, TrainTransform, World, build_loader
from loaders.backends import BackendSpec, Pixels
from loaders.plan import Plan
from loaders.reader import Encoded, Reader
from loaders.stats import Counters
from prep.errors import InputError
from train.compile import CompileMode, FusedKind, SpeedConfig, set_precision
from train.config import Recipe, RunConfig
from train.dist import barrier, broadcast_from_rank0
from train.fused import explain_plain, fuse_if_wanted
from train.graphs import explain_no_graphs
from train.metrics import Sums
from train.model import build_model
from train.optim import build_optimizer
from train.step import Step, new_state

READ_COLD, READ_WARM, DECODE, LOADER, MODEL, TRAIN = "read cold", "read warm", "decode", "loader", "model", "train"
STEPS = "steps"  # a mode of `open_stages` for loader, model and training, without reading and decoding alone
MOST_RESIDENT = 0.05  # share of the shards' pages in memory after dropping them, up to which reading is cold
MOST_READ_BATCHES = 2000  # of a cold window: planning more would take longer than seconds
READ_SHARE = 0.25  # of the available memory, which the images of a cold window may fill
MOST_HELD_BATCHES = 8  # different batches in memory
QUEUES = 3  # in a loader: batches that are read, decoded, ready
FIRST_STEPS = 3  # untimed steps at the start of a window of training
TOTAL_IMAGES = 10**9  # keeps the learning rate in its warm-up
BYTES = {"read": "num_bytes", "stored": "image_bytes", "decoded": "decode_bytes"}  # fields of a window

Held = list[tuple[Plan, Encoded]]  # plans with their encoded batches
Windows = dict[str, list[Window]]
Report = Callable[[str, float], None]  # gets the last result, and the share of all work that is finished


@dataclass(frozen=True)
class Setting:
    """The settings of one measurement, the same on every process."""

    batch_size: int = 64  # images per step and process
    size: int = 224  # pixels
    model: str = "resnet50d"  # name of a timm model
    amp: str = "bf16"  # an AmpKind
    compile: CompileMode = "none"
    fused: FusedKind = "auto"  # BatchNorm, ReLU and addition by Triton kernels
    graph: bool = False  # the whole step as CUDA graphs
    microbatch: int = 0  # images at once per process; 0: all
    mode: str = "all"  # stages to measure
    recipe: Recipe | None = None  # what the step does besides the fields above; None: the defaults of a recipe
    scale: float = 1.0  # of a recipe's resolutions
    full: bool = False  # of a recipe, measure also reading, decoding and the effect of changes
    dollars_per_hour: float | None = None  # price of all machines together
    dataset_name: str | None = None  # None: that of the split's source
    run_dir: Path = Path("runs/throughput")  # compiled code is cached here
    loader: LoaderConfig = field(default_factory=LoaderConfig)
    repetitions: int = 5
    seconds: float = 3.0  # approximate length of a window of a stage


# Storage.


class Reading(Stage):
    """Read with the loader's reader, with its threads and its number of batches ahead."""

    def __init__(self, name: str, loader: Loader) -> None:
        super().__init__(name, len(loader.slots), loader.world)
        self.loader, self.counters = loader, Counters()
        # The files that it reads: the shards, and their segments if the loader splices.
        split = loader.split
        self.files = list(split.shard_paths)
        if loader.whole is not None:
            self.files += [split.segments_path(shard) for shard in range(len(split.shard_paths))]
        spec = loader.make_spec()
        self.reader = loader.open_reader(spec.num_threads, spec.batches_ahead, self.counters)
        self.pairs: Iterator[tuple[Plan, Encoded]] = iter(())
        self.plans: list[Plan] = []

    def __exit__(self, *error: object) -> None:
        self.reader.__exit__(None, None, None)

    def take(self) -> None:
        _, encoded = next(self.pairs)
        self.reader.release(encoded)

    def stats(self) -> Stats:
        return Stats(seconds=0.0, queue_depth=0, batches_ahead=0, num_damaged=0, **self.counters.sums())

    def plan_some(self, num_batches: int) -> list[Plan]:
        """Return the plans of the first batches of the stream."""
        return [self.loader.plan(i * self.loader.batch_size) for i in range(num_batches)]


class ColdReading(Reading):
    """Read from storage: the shards are dropped from the page cache before each window, and this is verified.

    A window is a single pass over a number of images, since a second pass would find them in memory.
    """

    def __init__(self, loader: Loader, most_bytes: float) -> None:
        super().__init__(READ_COLD, loader)
        # A window may read at most one epoch, and no more bytes than the page cache can hold next to other data.
        bytes_per_batch = float(loader.split.column("size").mean()) * loader.batch_size
        complete = max(1, len(loader.split) // loader.batch_size)
        self.most_steps = max(1, min(complete, MOST_READ_BATCHES, int(most_bytes / bytes_per_batch)))
        self.resident = 0.0  # largest share of the shards' pages found in memory after dropping them

    def calibrate(self, seconds: float) -> None:
        """Set the number of batches of a window to what is read in `seconds`, without reading an image twice."""
        self.plans = self.plan_some(self.most_steps)
        self.rest()  # drops the shards, so that this first pass is cold too
        started, num_steps = perf_counter(), 0
        while num_steps < self.most_steps and perf_counter() - started < seconds:
            self.take()
            num_steps += 1
        self.num_steps = broadcast_from_rank0(num_steps, self.world)
        self.plans = self.plans[: self.num_steps]

    def rest(self) -> None:
        """Drop the shards from the page cache of every machine, then start the next pass."""
        barrier(self.world)
        # One process per machine drops the shards, while no other process reads.
        if self.world.local_rank == 0:
            drop_from_cache(self.files)
            self.resident = max(self.resident, share_resident(self.files))
        barrier(self.world)
        self.pairs = self.reader.read(self.plans)

    @property
    def is_cold(self) -> bool:
        """True if the shards were out of memory before each window, as rank 0 found on its machine."""
        return broadcast_from_rank0(self.resident, self.world) <= MOST_RESIDENT


class WarmReading(Reading):
    """Read the same images again and again from the page cache, which a cold window has filled."""

    def __init__(self, loader: Loader, num_batches: int) -> None:
        super().__init__(READ_WARM, loader)
        self.plans = self.plan_some(num_batches)

    def calibrate(self, seconds: float) -> None:
        """Read all images once, so that they are in memory, then calibrate."""
        self.pairs = self.reader.read(self.plans)
        for _ in self.plans:
            self.take()
        self.pairs = self.reader.read(cycle(self.plans))
        super().calibrate(seconds)

    def rest(self) -> None:
        self.pairs = self.reader.read(islice(cycle(self.plans), self.num_steps))


# Decoding.


def hold_batches(loader: Loader, *, splices: bool = True) -> Held:
    """Read the first batches of the stream into memory; their buffers are never released, so they do not change.

    Args:
        loader: of a split in a folder.
        splices: False to read complete images from restart shards too.
    """
    num_batches = max(1, min(MOST_HELD_BATCHES, len(loader.split) // loader.batch_size))
    plans = (loader.plan(i * loader.batch_size) for i in range(num_batches))
    with loader.open_reader(1, 1, Counters()) if splices else Reader(loader.split, 1, 1, Counters()) as reader:
        return list(reader.read(plans))


class Decoding(Stage):
    """Decode the batches `held` in memory, again and again: their windows, resizing, flips, augmentation."""

    def __init__(self, loader: Loader, held: Held) -> None:
        super().__init__(DECODE, len(loader.slots), loader.world)
        spec = loader.make_spec()
        self.stream = spec.stream
        backend = loader.backend(spec, _keep, Counters())
        self.pixels: Generator = backend.decode(cycle(held))  # pyright: ignore[reportAttributeAccessIssue]

    def __exit__(self, *error: object) -> None:
        with self._on_stream():
            self.pixels.close()

    def take(self) -> None:
        with self._on_stream():
            next(self.pixels)

    def _on_stream(self) -> AbstractContextManager[object]:
        """Return the context of the backend's CUDA stream; on the CPU one that does nothing."""
        return torch.cuda.stream(self.stream) if self.stream else nullcontext()


class MemoryLoader(Loader):
    """A complete loader except for storage: it gets the same few batches from memory, again and again."""

    def __init__(self, loader: Loader, held: Held) -> None:
        super().__init__(
            loader.split, loader.transform, loader.batch_size, loader.world, loader.sampling, loader.config
        )
        self.held = held

    def _decode(self, spec: BackendSpec, position: int) -> Generator[Pixels, None, None]:
        yield from self.backend(spec, _keep, self.counters).decode(cycle(self.held))


def _keep(_: Encoded) -> None:
    """Release nothing: the same buffers are decoded again."""


# The loader and the training step.


class Feed(AbstractContextManager["Feed"]):
    """One loader's stream of batches, open as long as stages take batches from it."""

    def __init__(self, loader: Loader) -> None:
        self.loader, self.batches = loader, iter(loader)

    def __exit__(self, *error: object) -> None:
        self.batches.close()  # pyright: ignore[reportAttributeAccessIssue]  (a generator)

    def __iter__(self) -> Iterator[Batch]:
        return self.batches


class Feeding(Stage):
    """Take batches as fast as they come."""

    def __init__(self, feed: Feed, name: str = LOADER) -> None:
        super().__init__(name, len(feed.loader.slots), feed.loader.world)
        self.feed = feed

    @property
    def num_ready(self) -> int:
        """Batches that an idle loader can have ready; taken within a window, they would make it too fast."""
        return QUEUES * self.feed.loader.config.batches_ahead + 2  # full queues, and two batches in progress

    def take(self) -> None:
        next(self.feed.batches)

    def rest(self) -> None:
        """Use up the batches that are ready."""
        for _ in range(self.num_ready):
            next(self.feed.batches)

    def stats(self) -> Stats:
        return self.feed.loader.stats()


class Stepping(Feeding):
    """Run a training step on each batch of a feed: the synthetic one for `model`, the loader's for `train`."""

    has_step = True

    def __init__(self, feed: Feed, step: Step) -> None:
        super().__init__(feed, TRAIN if feed.loader.backend.reads else MODEL)
        self.step, self.sums = step, Sums.zero(feed.loader.world.device)

    def take(self) -> None:
        self.step(next(self.feed.batches), self.sums)

    def rest(self) -> None:
        """Also run a few steps, during which a loader that is faster than the step gets ahead again."""
        if self.name == TRAIN:
            super().rest()
            for _ in range(FIRST_STEPS):
                self.take()


def open_synthetic(loader: Loader, size: int, batch_size: int | None = None) -> Loader:
    """Return a loader of the same batches without their pixels: noise of `size` pixels, already on the device.

    Args:
        batch_size: images over all processes; None: as many as `loader` has.
    """
    config = LoaderConfig(backend="synthetic")
    return build_loader(
        loader.split, TrainTransform(size), batch_size or loader.batch_size, loader.world, config=config
    )


def build_step(setting: Setting, loader: Loader) -> Step:
    """Return the training step as `train.fit` builds it at the start of a run."""
    return make_step(setting, loader.batch_size, len(loader.split.class_names), loader.world)


def make_step(setting: Setting, batch_size: int, num_classes: int, world: World) -> Step:
    """Return a training step for batches that need not come from a loader.

    Args:
        batch_size: images of a batch over all processes.
    """
    # The recipe with the model, batch size, precision and compile mode of the settings, at one resolution. The weights
    # are random ones: a measurement loads no files.
    base = setting.recipe or Recipe(name="throughput", epochs=100)
    recipe = replace(
        base,
        batch_size=batch_size,
        amp=setting.amp,  # pyright: ignore[reportArgumentType]  (the command line has checked it)
        model=replace(base.model, name=setting.model, pretrained="", init=None),
        transform=replace(base.transform, size=setting.size, first_size=None),
        speed=SpeedConfig(setting.compile, setting.microbatch, fused=setting.fused, graph=setting.graph),
        run=RunConfig(dir=setting.run_dir),
    )
    # Build the network, its EMA and the optimizer as at the start of a run.
    set_precision(recipe.speed)
    torch.manual_seed(recipe.seed)
    model = build_model(recipe.model, num_classes, world.device)
    ema = copy.deepcopy(model).requires_grad_(False)
    if obstacle := explain_plain(recipe.speed, world.device) or explain_no_graphs(recipe.speed, world.device):
        raise InputError(f"{obstacle}: a measurement needs what it records")
    fuse_if_wanted(model, recipe.speed, recipe.model.name, world.device)
    state = new_state(recipe, model, ema, build_optimizer(model, recipe.optim, recipe.batch_size))
    step = Step(recipe, state, TOTAL_IMAGES, world)
    if step.graphs is not None:  # before loaders start: a thread that waits for the whole GPU would end a capture
        step.graphs.capture(setting.size)
    return step


# All stages together.


@contextmanager
def open_stages(mode: str, loader: Loader, setting: Setting, step: Step | None = None) -> Iterator[list[Stage]]:
    """Yield the calibrated stages of a mode in the pipeline's order; without `read cold` if reading is not cold.

    Args:
        mode: one of the command's --mode, or STEPS for loader, model and training alone.
        step: the training step; None: a new one, if the mode needs it.
    """
    with ExitStack() as stack:
        stages: list[Stage] = []

        def add(stage: Stage) -> None:
            stages.append(stack.enter_context(stage))
            stage.calibrate(setting.seconds)

        if mode in ("all", "read"):
            cold = ColdReading(loader, READ_SHARE * available_bytes())
            add(cold)
            add(WarmReading(loader, cold.num_steps))
            # The warm stage needs the cold one's first pass, even if that turns out not to be cold.
            if not cold.is_cold:
                stages.remove(cold)
        if mode in ("all", "decode"):
            add(Decoding(loader, hold_batches(loader)))

        # The stages with a loader or a step share one loader and one network. The mode `train` needs both, but
        # measures neither alone.
        feed = stack.enter_context(Feed(loader)) if mode in ("all", STEPS, "loader", "train") else None
        if mode not in ("all", STEPS, "model", "train"):
            step = None
        elif step is None:
            step = build_step(setting, loader)
        if feed and mode != "train":
            add(Feeding(feed))
        if step and mode != "train":
            add(Stepping(stack.enter_context(Feed(open_synthetic(loader, setting.size))), step))
        if feed and step:
            add(Stepping(feed, step))
        yield stages


def run_rounds(stages: list[Stage], repetitions: int, report: Report) -> Windows:
    """Measure every stage once per round; the order rotates by one, so that none always follows the same other."""
    windows: Windows = {stage.name: [] for stage in stages}
    for repetition in range(repetitions):
        first = repetition % len(stages)
        for i, stage in enumerate(stages[first:] + stages[:first]):
            window = measure_window(stage)
            windows[stage.name].append(window)

            # Report the rate, and the share of all windows that are done.
            done = (repetition * len(stages) + i + 1) / (repetitions * len(stages))
            rate = f"{window.images_per_second:,.0f} images/s"
            report(f"round {repetition + 1} of {repetitions}, {stage.name}: {rate}", done)

    # Drop the cold reads if another process has read the shards into memory meanwhile.
    for stage in stages:
        if isinstance(stage, ColdReading) and not stage.is_cold:
            del windows[READ_COLD]
    return windows


def run_in_turn(stage: Stage, repetitions: int, report: Report) -> list[Window]:
    """Measure all windows of a stage one after another without a pause.

    Takes half the time of `run_rounds`, since a stage is brought to its steady rate only once. But a disturbance of
    the machine may affect one stage alone.
    """
    windows = [measure_window(stage, is_steady=number > 0) for number in range(repetitions)]
    rate = statistics.median(window.images_per_second for window in windows)
    report(f"{stage.name}: {rate:,.0f} images/s", 1.0)
    return windows


# Figures of the record, over all processes.


def describe_stages(windows: Windows, world: World) -> dict[str, dict[str, Any]]:
    """Return the figures of each stage by name; every process must call it."""
    return {name: describe_stage(name, each, world) for name, each in windows.items()}


def describe_stage(name: str, windows: list[Window], world: World) -> dict[str, Any]:
    """Return a stage's images/s per process and in total, its CPU time, and how the time of a batch is spent."""
    # One row per process, one column per window. The slowest process decides a window's rate.
    seconds, cpu, num_bytes = (
        all_gather_values([getattr(window, field) for window in windows], world)
        for field in ("seconds", "cpu_seconds", "num_bytes")
    )
    slowest = [max(column) for column in zip(*seconds, strict=True)]
    num_images = windows[0].num_images
    rates = [num_images / each for each in slowest]
    described: dict[str, Any] = {
        "images_per_second": summarize(rates),
        "total": summarize([rate * world.size for rate in rates]),
        "cpu_seconds_per_1000_images": statistics.median(
            1000 * sum(column) / (num_images * world.size) for column in zip(*cpu, strict=True)
        ),
    }

    # Add where the time of a batch goes if the loader delivers it, the bytes of an image, and the bandwidth of reading.
    if name in (LOADER, TRAIN):
        spent = {each: [window.spent[each] for window in windows] for each in windows[0].spent}
        described["milliseconds_a_batch"] = mean_over_all(spent, world)
    num_bytes_of = {kind: [getattr(window, field) for window in windows] for kind, field in BYTES.items()}
    per_image = {kind: each / num_images for kind, each in mean_over_all(num_bytes_of, world).items()}
    if per_image["stored"]:
        described["bytes_per_image"] = per_image
    if name.startswith("read"):
        totals = [sum(column) for column in zip(*num_bytes, strict=True)]
        described["megabytes_per_second"] = summarize(
            [total / 1e6 / each for total, each in zip(totals, slowest, strict=True)]
        )
    return described


def mean_over_all(values: dict[str, list[float]], world: World) -> dict[str, float]:
    """Return the mean of each list of values, over its windows and all processes; every process must call it."""
    everyones = all_gather_values([statistics.mean(each) for each in values.values()], world)
    return {name: statistics.mean(column) for name, column in zip(values, zip(*everyones, strict=True), strict=True)}


def describe_efficiency(stages: dict[str, dict[str, Any]]) -> dict[str, Any] | None:
    """Return train / min(loader, model) of each round; None if one of the stages was not measured."""
    if not all(name in stages for name in (LOADER, MODEL, TRAIN)):
        return None
    loader, model, train = (stages[name]["total"]["repetitions"] for name in (LOADER, MODEL, TRAIN))
    return summarize([t / min(a, b) for t, a, b in zip(train, loader, model, strict=True)])


def describe_setup(setting: Setting, loader: Loader) -> dict[str, Any]:
    """Return the part of a record that says what was measured, how and where."""
    world, backend = loader.world, loader.config.backend
    return {
        "dataset": describe_dataset(loader.split, setting.dataset_name),
        "backend": backend,
        "batch_size": setting.batch_size,
        "model": setting.model,
        "amp": setting.amp,
        "compile": setting.compile,
        "fused": setting.fused,
        "graph": setting.graph,
        "num_processes": world.size,
        "threads": loader.make_spec().num_threads,
        "device": world.device.type,
        "placement": describe_placement(loader.placement),
        **describe_origin("benchmarks/throughput.py", world, **describe_dali(backend)),
    }
