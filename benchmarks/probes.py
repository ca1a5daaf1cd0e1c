"""Measure a stage with a change, alternating with the unchanged stage, so that each promised gain is measured.

The result is the ratio of the two, so that other load on the machine, which slows both, does not change the promise.
The verdict of a record is built here: its figures are read, the probes that its bottleneck needs are measured.
"""

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any

import cv2
import numpy as np
import stages
import torch
import verdict
from machine import available_bytes, count_cores
from signs import COMMUNICATION, LAUNCHING, Sign
from stages import DECODE, LOADER, MODEL, READ_COLD, READ_WARM, TRAIN, Feed, Held, Report, Setting, Stepping
from timing import FAILURES, Stage, measure_ratios, shorten_error
from verdict import FILES, Figures, OtherPlacement, Probe, Scaling

from loaders import Loader, LoaderConfig, TrainTransform, build_loader
from loaders.config import MAX_THREADS, default_num_threads, share_cores
from loaders.placement import DEFAULT_DECODE
from loaders.plan import Images, Plan, train_plan
from loaders.reader import Encoded
from train.dist import all_gather_objects, broadcast_from_rank0

SIZE_SHARE = 0.72  # 224 becomes 160 pixels, a size at which fast recipes train
SIZE_STEP = 32  # pixels
GREY = "Gray"  # simplejpeg's name for it

Described = dict[str, dict[str, Any]]  # figures of stages, by the stage's name
Changed = tuple[Sequence[Stage], float]  # a stage and the same with a change, and the changed value


# The probes. Each opens its two stages in an ExitStack, and returns None if the change is not possible here.


def measure_probes(names: Sequence[str], loader: Loader, setting: Setting, report: Report) -> dict[str, Probe]:
    """Measure those of the named probes that apply here, each as ratios to the unchanged stage."""
    probes = {}
    for number, name in enumerate(names, 1):
        report(f"measuring the effect of {name} ({number} of {len(names)})", 1.0)
        if probe := measure_probe(name, loader, setting):
            probes[name] = probe
    return probes


def measure_probe(name: str, loader: Loader, setting: Setting) -> Probe | None:
    """Measure one probe; None if the change is not possible here. Its networks are freed before the next one opens."""
    with ExitStack() as stack:
        try:
            if changed := open_change(name, loader, setting, stack):
                pair, value = changed
                return Probe(*measure_ratios(pair, setting.seconds / 2), value)
        except torch.OutOfMemoryError:
            # A larger batch may need too much memory. With several processes the others wait for this one.
            if name != verdict.LARGER_BATCH or loader.world.size > 1:
                raise
    return None


def open_change(name: str, loader: Loader, setting: Setting, stack: ExitStack) -> Changed | None:
    """Open the stages of a probe; None if the change is not possible here."""
    if name == verdict.THREADS:
        return _open_threads(loader, stack)
    if name in FILES:
        return _open_files(name, loader, stack)

    # The others change the batches of the training step: where they come from, their resolution, or their number.
    if name == verdict.FREE_STORAGE:
        # Slow storage hides how much decoding and the model slow each other down; from memory this becomes visible.
        loaders, value = [loader, stages.MemoryLoader(loader, stages.hold_batches(loader))], 0.0
    elif setting.compile != "none":  # compiling for another size or batch takes minutes
        return None
    elif name == verdict.SMALLER_IMAGES:
        value = max(SIZE_STEP, round(setting.size * SIZE_SHARE / SIZE_STEP) * SIZE_STEP)
        if value >= setting.size:
            return None
        loaders = [stages.open_synthetic(loader, size) for size in (setting.size, value)]
    else:
        assert name == verdict.LARGER_BATCH
        batch_sizes = (loader.batch_size, 2 * loader.batch_size)
        loaders, value = (
            [stages.open_synthetic(loader, setting.size, each) for each in batch_sizes],
            2 * len(loader.slots),
        )

    # A batch of another size needs a step of its own, so that a microbatch keeps its size, and so its memory.
    step = None if name == verdict.LARGER_BATCH else stages.build_step(setting, loader)
    feeds = [stack.enter_context(Feed(each)) for each in loaders]
    return [Stepping(feed, step or stages.build_step(setting, feed.loader)) for feed in feeds], value


def _open_threads(loader: Loader, stack: ExitStack) -> Changed | None:
    """Open decoding with one thread for each core of this process; None if it has as many threads already."""
    num_threads = int(count_cores() // loader.world.local_size)
    if num_threads <= loader.make_spec().num_threads:
        return None
    config = replace(loader.config, num_threads=num_threads)
    more = build_loader(loader.split, loader.transform, loader.batch_size, loader.world, config=config)
    held = stages.hold_batches(loader)
    return [stack.enter_context(stages.Decoding(each, held)) for each in (loader, more)], num_threads


def _open_files(name: str, loader: Loader, stack: ExitStack) -> Changed | None:
    """Open decoding of the same images stored smaller; None if they do not become smaller.

    Both are decoded from complete JPEGs: the share that restart markers save is assumed to stay.
    """
    held = stages.hold_batches(loader, splices=False)
    smaller = shrink_batches(loader, held, name)
    share = mean_image_bytes(smaller) / mean_image_bytes(held)
    if share >= 1:
        return None
    pair = [stack.enter_context(stages.Decoding(loader, each)) for each in (held, smaller)]
    return pair, share * float(loader.split.column("size").mean())


def probe_placement(loader: Loader, setting: Setting, report: Report) -> OtherPlacement | None:
    """Measure training with the other placement; return None if only one placement is possible.

    The other placement decodes in its default way: full images on a GPU, where decoding regions may crash the process.
    """
    if loader.world.device.type != "cuda" or "gpu" not in loader.backend.placements:
        return None
    there = "cpu" if loader.placement.side == "gpu" else "gpu"
    report(f"measuring training with decoding on the {there.upper()}", 1.0)
    config = replace(loader.config, placement=there, decode=DEFAULT_DECODE[there])
    open_other = partial(
        build_loader, loader.split, loader.transform, loader.batch_size, loader.world, loader.sampling, config
    )
    return compare_placements(loader, config, open_other, setting)


def compare_placements(
    loader: Loader, config: LoaderConfig, open_other: Callable[[], Loader], setting: Setting
) -> OtherPlacement:
    """Measure the step fed by `loader` and by another loader in alternating windows.

    Args:
        config: the other loader's settings, with an explicit placement.
        open_other: builds the other loader.

    Returns:
        The other placement with its rate; if it cannot run, with the reason instead.

    Raises:
        RuntimeError, InputError: the other loader failed while it was measured, and there are several processes: the
            others already wait for this one in the step.
    """
    describe = partial(OtherPlacement, loader.placement.side, config.placement, config.decode)
    with ExitStack() as stack:
        # Open the other loader and take one batch, before the first step: the processes of a step wait for each
        # other, so a failure in one of them must be known to all before. Then all of them return here.
        feeds, reasons = [], []
        try:
            other = open_other()
            other.position = loader.position
            feeds = [stack.enter_context(Feed(other))]
            next(feeds[0].batches)
        except FAILURES as error:
            reasons = [shorten_error(error)]
        if reasons := all_gather_objects(reasons, loader.world):
            return describe(None, reasons[0])

        # The same step consumes the batches of both loaders alternately.
        try:
            step = stages.build_step(setting, loader)
            feeds = [stack.enter_context(Feed(loader)), *feeds]
            return describe(measure_ratios([Stepping(feed, step) for feed in feeds], setting.seconds / 2)[0])
        except FAILURES as error:
            if loader.world.size > 1:
                raise
            return describe(None, shorten_error(error))


def find_core_scaling(loader: Loader) -> Scaling:
    """Return how decoding and the model would scale with twice the cores.

    A number of threads that was set, by a flag or by OMP_NUM_THREADS, does not grow. By default there is one decoding
    thread per core up to a limit, beyond which more cores do not help.
    """
    cores, usual = len(share_cores(loader.world)), default_num_threads(loader.world)
    return Scaling(
        decode=1.0 if loader.config.num_threads else min(MAX_THREADS, 2 * cores) / usual,
        model=1.0 if "OMP_NUM_THREADS" in os.environ else 2.0,
    )


# Batches in memory as they would be after `prep/shard.py --max-side 500 --quality 90`, or with other options.


def shrink_batches(loader: Loader, held: Held, name: str = verdict.SMALLER_FILES) -> Held:
    """Return the same images stored smaller, with their plans: the same draws, in windows of the smaller images.

    Args:
        name: one of FILES.
    """
    assert isinstance(loader.transform, TrainTransform)

    # The widths and heights that fit the options, rounded to the nearest pixel as preparation does.
    options, sides = FILES[name], (loader.widths, loader.heights)
    if "max_side" in options:
        scale_N = np.minimum(1.0, options["max_side"] / np.maximum(*sides))
    else:
        scale_N = np.minimum(1.0, options["short_side"] / np.minimum(*sides))
    images = Images(*(np.maximum(1, np.rint(sides_N * scale_N)).astype(np.int64) for sides_N in sides))

    smaller: Held = []
    for plan, encoded in held:
        planned = train_plan(loader.sampling, plan.position, loader.slots, images, loader.transform)
        smaller.append((replace(plan, windows_B4=planned.windows_B4), _shrink_batch(plan, encoded, images)))
    return smaller


def mean_image_bytes(held: Held) -> float:
    """Return the mean size of an encoded image in bytes."""
    sizes = [image.nbytes for _, encoded in held for image in encoded.images]
    return sum(sizes) / len(sizes)


def _shrink_batch(plan: Plan, encoded: Encoded, images: Images) -> Encoded:
    """Scale images down by pixel area and encode them with 4:2:0 chroma; keep an original if that saves no bytes."""
    import simplejpeg  # noqa: PLC0415 - throughput.py needs it for this probe only

    smaller = []
    heights_B, widths_B = (sides_B.tolist() for sides_B in images.sides(plan.rows_B))
    for original, height, width in zip(encoded.images, heights_B, widths_B, strict=True):
        had_height, had_width, _, subsampling = simplejpeg.decode_jpeg_header(original)
        colours, chroma = ("GRAY", GREY) if subsampling == GREY else ("RGB", "420")
        # The decoder scales by eighths to at least the wanted size; the rest is done by pixel area.
        pixels_HWC = simplejpeg.decode_jpeg(original, colours, min_width=width, min_height=height)
        if pixels_HWC.shape[:2] != (height, width):
            scaled = cv2.resize(pixels_HWC, (width, height), interpolation=cv2.INTER_AREA)
            pixels_HWC = scaled.reshape(height, width, -1)
        content = simplejpeg.encode_jpeg(np.ascontiguousarray(pixels_HWC), verdict.QUALITY, colours, chroma)
        saves_nothing = (had_height, had_width) == (height, width) and len(content) >= len(original)
        smaller.append(original if saves_nothing else np.frombuffer(content, np.uint8))
    return Encoded(smaller, encoded.buffer)


# The verdict.


def build_verdict(
    described: Described,
    loader: Loader,
    setting: Setting,
    cost: verdict.Cost,
    report: Report,
    signs: Sequence[Sign] = (),
) -> dict[str, Any] | None:
    """Return the verdict for the record; None if a stage that it needs was not measured."""
    if not all(name in described for name in (READ_WARM, DECODE, LOADER, MODEL, TRAIN)):
        return None

    # Find the bottleneck from the measured rates, and measure what would help against it.
    figures = read_figures(described, loader)
    probes, other = try_changes(verdict.WANTED, figures, signs, loader, setting, report)
    advice = verdict.advise(figures, probes, find_core_scaling(loader), other)
    return {
        "binds": verdict.find_bottleneck(figures),
        "expected_images_per_second": verdict.expected_rate(figures),
        "bounds": verdict.find_bounds(figures),
        "says": verdict.write_verdict(figures, advice, cost, other, [sign.says for sign in signs]),
        "signs": {sign.name: vars(sign) for sign in signs},
        "advice": [vars(each) for each in advice],
        "probes": {name: vars(probe) for name, probe in probes.items()},
        "other_placement": vars(other) if other else None,
        "figures": vars(figures),
    }


def try_changes(
    wanted: dict[str, tuple[str, ...]],
    figures: Figures,
    signs: Sequence[Sign],
    loader: Loader,
    setting: Setting,
    report: Report,
) -> tuple[dict[str, Probe], OtherPlacement | None]:
    """Measure the changes whose effect cannot be computed: the wanted probes, and the other placement.

    Args:
        wanted: names of probes by bottleneck.
        signs: if the model binds and much of its step does not depend on the images, a larger batch is tried too.
    """
    bottleneck = verdict.find_bottleneck(figures)
    names = list(wanted[bottleneck])
    is_fixed = any(sign.is_found and sign.name in (COMMUNICATION, LAUNCHING) for sign in signs)
    if is_fixed and bottleneck in (MODEL, verdict.CORES):
        names.append(verdict.LARGER_BATCH)
    return measure_probes(names, loader, setting, report), probe_placement(loader, setting, report)


def read_figures(described: Described, loader: Loader) -> Figures:
    """Return the figures that the verdict is computed from: medians over the windows, of all processes together.

    If decoding was not measured alone, the complete loader takes its place, and storage has no limit.
    """

    def rate(name: str) -> float:
        return described[name]["total"]["median"]

    def cpu(name: str) -> float:
        return described[name]["cpu_seconds_per_1000_images"] / 1000

    # The cores of all machines that take part, each counted by the first of its processes.
    own_cores = [count_cores()] if loader.world.local_rank == 0 else []
    # `fits_memory` is rank 0's answer on every rank: machines may differ, the verdict must not.
    sizes, is_quick = loader.split.column("size"), DECODE not in described
    decode, read = (LOADER, LOADER) if is_quick else (DECODE, READ_WARM)
    fits_memory = broadcast_from_rank0(int(sizes.sum()) < available_bytes(), loader.world)
    return Figures(
        read_warm=float("inf") if is_quick else rate(READ_WARM),
        decode=rate(decode),
        model=rate(MODEL),
        loader=rate(LOADER),
        train=rate(TRAIN),
        read_cold=rate(READ_COLD) if READ_COLD in described else None,
        fits_memory=is_quick or fits_memory,
        cpu_read=0.0 if is_quick else cpu(READ_WARM),
        cpu_decode=cpu(decode),
        cpu_model=cpu(MODEL),
        num_cores=sum(all_gather_objects(own_cores, loader.world)),
        shares_cores=loader.world.device.type == "cpu",
        decodes_on_gpu=loader.decodes_on_gpu,
        mean_bytes=float(sizes.mean()),
        read_share=find_read_share(described[read]),
    )


def find_read_share(stage: dict[str, Any]) -> float:
    """Return the share of the stored bytes that a stage reads: less than 1 from restart shards."""
    each = stage["bytes_per_image"]
    return each["read"] / each["stored"]
