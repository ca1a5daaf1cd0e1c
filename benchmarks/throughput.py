"""`python benchmarks/throughput.py [--data DIR]`: measure each stage of training, name the bottleneck, suggest changes.

Stages: read (training's images in training's order, from storage (cold) and from memory (warm)); decode (from memory to
pixels); loader (the complete loader, up to the device); model (the training step on one batch, again and again); train
(the step fed by the loader). They are measured in rounds, one window of each stage per round. With all stages measured,
the verdict names the bottleneck, what would help and by how much, and the hours and dollars of the reference recipe.
With --recipe NAME: loader, model and training at each resolution of a recipe, and the hours and dollars of all of it.
With --tune: a search for the loader's fastest settings. With --profile: where the time of a training step goes, by
class of kernel. Progress goes to stderr, tables and the verdict to stdout, the record to --out FILE. Under torchrun:
rates per process and in total. docs/benchmarks.md explains the figures.
"""

import importlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from options import check_known, check_outputs, check_positive, check_repetitions, parse_options
from record import print_progress

from loaders.config import LoaderConfig
from prep.errors import InputError, run
from train.compile import CompileMode, FusedKind
from train.config import AmpKind, Recipe
from train.recipe import DEFAULT_RECIPE, RECIPES

if TYPE_CHECKING:
    from signs import Sign
    from stages import Report, Setting, Windows

    from loaders import Loader, Split, World

Mode = Literal["all", "read", "decode", "loader", "model", "train"]
# All of loaders.backends.BACKENDS except "synthetic", which has nothing to read or decode. Written out here because
# importing the backends takes seconds, which --help should not; a test compares the two.
MeasuredBackend = Literal["dali", "reference"]
DEFAULT_LOADER = LoaderConfig()
# Options that are also fields of the setting; None: the recipe's value, or the default.
OF_SETTING = ("mode", "batch_size", "microbatch", "size", "model", "amp", "compile", "fused", "graph")
OF_SETTING += ("repetitions", "seconds", "scale", "full", "dollars_per_hour")

PROFILED_MODES = ("all", "train", "model")  # the first one, which is the default, means `train` to --profile

IMAGENET = Path("data/imagenet")
PREPARE = Path(__file__).resolve().parent.parent / "prep" / "shard.py"
PHOTOS, PHOTOS_NAME, COPIES = ("china.jpg", "flower.jpg"), "two sample photos of scikit-learn, copied", 128


@dataclass(frozen=True)
class Options:
    """The options of a measurement."""

    data: Path | None = None  # prepared dataset; unset: data/imagenet, else two sample photos
    mode: Mode = "all"  # stages to measure; all of them end with a verdict
    backend: MeasuredBackend = "dali"  # the loader's backend
    recipe: str = ""  # name of a recipe: measure each of its resolutions, as it trains there
    scale: float = 1.0  # with --recipe: measure at its resolutions times this (a rehearsal)
    full: bool = False  # with --recipe: also reading, decoding, and the effect of each change
    batch_size: int | None = None  # images per step and process; unset: 64, or the recipe's
    microbatch: int | None = None  # images at once per process, 0: all; unset: 0, or the recipe's
    size: int | None = None  # image size in pixels; unset: 224
    model: str | None = None  # name of a timm model; unset: resnet50d, or the recipe's
    amp: AmpKind | None = None  # autocast precision; unset: bf16, or the recipe's
    compile: CompileMode | None = None  # torch.compile mode; unset: none, or the recipe's
    fused: FusedKind | None = None  # BatchNorm, ReLU, addition by Triton kernels; unset: auto, or the recipe's
    graph: bool | None = None  # the whole step as CUDA graphs; unset: no, or the recipe's
    repetitions: int = 5  # number of rounds, at least 5
    seconds: float = 3.0  # approximate length of one window of a stage
    threads: int = 0  # decoding threads per process; 0: an equal share of the cores
    device: str = "auto"  # auto, cpu or cuda
    placement: str = DEFAULT_LOADER.placement  # where to decode images: auto, cpu, gpu
    decode: str = DEFAULT_LOADER.decode  # auto, roi (crop region only), full (full image)
    splice: str = DEFAULT_LOADER.splice  # restart shards: auto (only the crop) or off
    hw_decoder_load: float = DEFAULT_LOADER.hw_decoder_load  # share of the JPEGs for the GPU's hardware decoder
    dollars_per_hour: float | None = None  # price of all machines together, for the recipe's cost
    tune: bool = False  # search the loader's fastest settings on this machine; --out writes their file
    minutes: float = 5.0  # length of the search of --tune
    profile: bool = False  # where the time of a step goes, by class of kernel; with --out also as a picture
    out: Path | None = None  # write the record to this file

    def check(self) -> None:
        """Check the options; raise InputError for the first one that cannot be used."""
        check_repetitions(self.repetitions)
        check_known("--recipe", [self.recipe] if self.recipe else [], RECIPES)
        for name in ("size", "mode", "tune"):
            if self.recipe and getattr(self, name) not in (None, "all", False):
                raise InputError(f"--recipe and --{name} exclude each other: give one of them")
        self.check_profile()
        values = {name: getattr(self, name) for name in ("seconds", "size", "scale", "batch_size", "dollars_per_hour")}
        check_positive(**{name: value for name, value in values.items() if value is not None})
        check_outputs(self.out)
        self.loader.check()
        if recipe := self.find_recipe():
            from phases import check_sizes, plan_phases  # noqa: PLC0415

            check_sizes(plan_phases(recipe, self.scale))

    def check_profile(self) -> None:
        """Check the flags that --profile cannot be combined with, and the name of its picture; raise InputError."""
        if not self.profile:
            return
        if self.mode not in PROFILED_MODES:
            raise InputError(
                f"--profile needs a training step: give --mode train (or none) or --mode model, not --mode {self.mode}"
            )
        for name in ("recipe", "tune"):
            if getattr(self, name):
                raise InputError(f"--profile and --{name} exclude each other: give one of them")
        if self.out:
            if self.out.suffix == ".png":
                raise InputError(
                    f"--out: {self.out} is the name of the picture, which is drawn next to the record: give a name "
                    "that ends in .json"
                )
            check_outputs(self.out.with_suffix(".png"))

    def find_recipe(self) -> Recipe | None:
        """Return the recipe to measure, None without --recipe."""
        return RECIPES[self.recipe]() if self.recipe else None

    @property
    def loader(self) -> LoaderConfig:
        """The loader's settings as the flags ask for them; "auto" is not resolved yet."""
        return LoaderConfig(
            backend=self.backend,
            num_threads=self.threads,
            placement=self.placement,  # pyright: ignore[reportArgumentType]  (LoaderConfig.check has checked it)
            decode=self.decode,  # pyright: ignore[reportArgumentType]
            splice=self.splice,  # pyright: ignore[reportArgumentType]
            hw_decoder_load=self.hw_decoder_load,
        )

    def read_setting(self, run_dir: Path, world: "World") -> "Setting":
        """Return the settings of the measurement; with a recipe, its values are the defaults.

        Args:
            run_dir: compiled code is cached here.
            world: the processes that share a recipe's batch.
        """
        from stages import Setting  # noqa: PLC0415

        usual = Setting(run_dir=run_dir, loader=self.loader, dataset_name=None if find_data(self.data) else PHOTOS_NAME)
        if recipe := self.find_recipe():
            usual = replace(
                usual,
                batch_size=len(world.share(recipe.batch_size)),
                model=recipe.model.name,
                amp=recipe.amp,
                compile=recipe.speed.compile,
                fused=recipe.speed.fused,
                graph=recipe.speed.graph,
                microbatch=recipe.speed.microbatch,
                recipe=recipe,
            )
        given = {name: getattr(self, name) for name in OF_SETTING}
        return replace(usual, **{name: value for name, value in given.items() if value is not None})


def read_options(words: list[str] | None = None) -> Options:
    """Parse the command line, or the given words."""
    return parse_options(Options, "benchmarks/throughput.py", __doc__, words)


# The images.


@contextmanager
def open_split(folder: Path | None, world: "World") -> Iterator["Split"]:
    """Yield the train split to measure on; without a dataset, sample photos that are prepared now and deleted later."""
    from loaders import Split  # noqa: PLC0415
    from train.dist import broadcast_from_rank0  # noqa: PLC0415

    folder = find_data(folder)
    if folder is not None:
        yield Split(folder, "train")
    elif world.rank != 0:
        # Rank 0 prepares the photos and sends their folder.
        yield Split(broadcast_from_rank0(None, world), "train")
    else:
        with tempfile.TemporaryDirectory(prefix="penstock-") as temporary:
            yield Split(broadcast_from_rank0(str(prepare_photos(Path(temporary))), world), "train")


def find_data(folder: Path | None) -> Path | None:
    """Return the requested dataset, or ImageNet in its default folder; None if there is neither."""
    return IMAGENET if folder is None and (IMAGENET / "train" / "manifest.json").exists() else folder


def prepare_photos(folder: Path) -> Path:
    """Prepare copies of scikit-learn's two sample photos with the real command; return the folder of the shards."""
    images = Path(str(importlib.import_module("sklearn.datasets").__file__)).parent / "images"
    source, out = folder / "source", folder / "shards"
    for photo in PHOTOS:
        name = Path(photo).stem
        (source / "train" / name).mkdir(parents=True)
        for number in range(COPIES):
            shutil.copyfile(images / photo, source / "train" / name / f"{name}_{number:03d}.jpg")
    command = [sys.executable, str(PREPARE), "--source", str(source), "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = " ".join(done.stderr.split())[-300:]
        raise InputError(f"the sample photos could not be prepared ({reason}): pass --data DIR to use a dataset")
    return out


# The measurements. Every process of the world must call them.


def measure(options: Options, world: "World") -> dict[str, Any]:
    """Measure, tune or profile as the options ask for it, and return the record."""
    from loaders import TrainTransform, build_loader  # noqa: PLC0415
    from train.loader_settings import agree_on_placement  # noqa: PLC0415

    # Every rank decodes on the side that rank 0 chose. A placement that this machine does not have is refused before
    # sample photos are prepared.
    placement = agree_on_placement(options.loader, world)
    with open_split(options.data, world) as split, tempfile.TemporaryDirectory(prefix="penstock-") as run_dir:
        setting = options.read_setting(Path(run_dir), world)
        if options.tune:
            from tune import Workload, run_search  # noqa: PLC0415

            work = Workload(split, world, setting.batch_size, setting.size)
            return run_search(work, options.loader, options.minutes)
        report = make_report(world)
        if setting.recipe:
            from resolutions import Bench, measure_recipe  # noqa: PLC0415

            return measure_recipe(Bench(setting.recipe, setting, split, placement, world), report, options.out)
        batch_size = setting.batch_size * world.size
        loader = build_loader(split, TrainTransform(setting.size), batch_size, world, config=placement)
        if options.profile:
            from step_time import profile_training  # noqa: PLC0415

            return profile_training(setting, loader, report)
        return measure_stages(setting, loader, report)


def measure_stages(setting: "Setting", loader: "Loader", report: "Report") -> dict[str, Any]:
    """Measure the stages of a mode and return the record, which has all that is needed to read and to repeat it."""
    import torch  # noqa: PLC0415
    from probes import build_verdict  # noqa: PLC0415
    from stages import describe_efficiency, describe_setup, describe_stages  # noqa: PLC0415
    from verdict import Cost  # noqa: PLC0415

    # Compute the figures over all processes, and the verdict from them.
    windows, signs = measure_rounds(setting, loader, report)
    stages = describe_stages(windows, loader.world)
    cost = Cost(RECIPES[DEFAULT_RECIPE](), setting.dollars_per_hour)
    verdict, train = build_verdict(stages, loader, setting, cost, report, signs), stages.get("train")

    # The model's settings are recorded only if a stage has used the model.
    without = (
        {}
        if setting.mode in ("all", "model", "train")
        else dict.fromkeys(("model", "amp", "compile", "fused", "graph"))
    )
    return {
        "what": "throughput",
        "mode": setting.mode,
        "stages": stages,
        "efficiency": describe_efficiency(stages),
        "verdict": verdict,
        "recipe": cost.to_dict(train["total"]["median"]) if train else None,
        "size": setting.size,
        "torch_threads": torch.get_num_threads(),
        "splices": loader.whole is not None,
        **describe_setup(setting, loader),
        **without,
    }


def measure_rounds(setting: "Setting", loader: "Loader", report: "Report") -> tuple["Windows", list["Sign"]]:
    """Measure all stages in rounds, and the signs on them; return the windows of each stage, and the signs.

    The stages end here, with their network: the probes of the verdict open others, which need the memory.
    """
    from signs import measure_signs  # noqa: PLC0415
    from stages import open_stages, run_rounds  # noqa: PLC0415

    with open_stages(setting.mode, loader, setting) as opened:
        windows = run_rounds(opened, setting.repetitions, report)
        signs = measure_signs(loader, opened, windows, setting, report) if setting.mode == "all" else []
    return windows, signs


def make_report(world: "World") -> "Report":
    """Return a function that prints the last result and the remaining time on stderr, on rank 0."""
    # Time and finished share of the first report; the warm-up before it is not extrapolated.
    first: tuple[float, float] | None = None

    def report(what: str, done: float) -> None:
        nonlocal first
        now = time.monotonic()
        if first is None:
            first = (now, done)
        started, share = first
        # After the last window (done is 1) come signs and probes, whose time is not known.
        left = f"; {(1 - done) * (now - started) / (done - share):.0f} s left" if share < done < 1 else ""
        if world.rank == 0:
            print_progress(f"{what}{left}")

    if world.rank == 0:
        print_progress("opening the stages and warming them up")
    return report


def main() -> None:
    """Measure, tune or profile on all processes, then publish the record on rank 0."""
    options = read_options()
    options.check()

    # These imports cost seconds: --help and a refused flag must not wait for them.
    from reports.kinds import publish  # noqa: PLC0415

    from train.dist import join_world  # noqa: PLC0415

    with join_world(options.device) as world:
        record = measure(options, world)
    if world.rank == 0:
        publish(record, options.out)
        if options.profile and options.out:
            from reports.plots import draw_next_to  # noqa: PLC0415  (matplotlib)

            print_progress(f"picture: {os.path.relpath(draw_next_to(options.out))}")


if __name__ == "__main__":
    run(main)
