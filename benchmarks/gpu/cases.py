"""The cases of the GPU suite, the most important first: what each measures, where it runs, and how long it takes.

Cases of one group share a worker process, because starting one and importing torch and DALI takes ten seconds. A crash
ends the process and loses no other case (`gpu/runner.py`). Each decode path has its own group, so that damage which one
path does to its process cannot affect the next path.

Estimates are seconds on an H200 with 16 cores and the default settings (benchmarks/records/h200); that of the tests is
extrapolated from 173 seconds in one worker to two. They decide whether a case is still started before the deadline, and
the sum of those up to the tests has to stay below the default of nine minutes. The cases after them need more.

Later cases depend on conclusions from the results of earlier ones: which decode paths may be used, which is best, which
placement trains faster. By its parity case, a path is `right`, `differs` (only subsampled JPEGs exceed their bound:
their colours are upsampled differently) or `wrong`; or that case has crashed, hung or failed. A path that differs may
be used if none is right. Any other path is never chosen, except the safe one if nothing was measured.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

from tables import Table

from prep.errors import InputError

STAGES = ("smoke", "decode", "rates", "tests", "training")  # each has its own file of records
CPU = "cpu"  # the decode path without a GPU
FALLBACK = "full-0"  # the safe path, complete images without the hardware engine: no failure of it is known
# First the fastest path of MLPerf's submissions. Regions on the hardware decoder are reported to crash on H100s (not on
# the H200 that was tried): they are last.
PATHS = ("full-0.99", "full-0.65", FALLBACK, CPU, "roi-0.99")
BEST, FASTER = "best", "faster"  # in place of a path: the GPU's best one; the one with which training was faster
PARITY, DECODE, LOAD, DAMAGED, RESTARTS = "parity-", "decode-", "load-", "damaged-", "restarts-"  # begin names of cases
SPLICED, WHOLE = "auto", "off"  # values of the loader's `splice`, in the names of cases with restart shards
CHECK = "check-fused"  # the case before those with fused BatchNorm
ROWS = "rows"  # instead of a value of `splice`: complete rows of segments, which the loader does not do
COMPARE, DECODING, RATES = "gpu.pixels:compare_with_reference", "gpu.rates:measure_decoding", "gpu.rates:measure_rates"
COMPILED, DAMAGE = "gpu.rates:measure_compiled", "gpu.pixels:decode_damaged"
CHECK_KERNELS, PROFILE = "gpu.speed:check_kernels", "gpu.speed:profile_case"
TIMED = (DECODING, RATES, COMPILED, PROFILE)  # a process that starts at the same time would disturb their figures
GPU_WINS = 1.02  # times the CPU's rate: below that the placements count as equal, and the CPU's bits are exact
CPU_LIMITS = 4  # in a rehearsal on a CPU, limits are this many times larger
RESIZE_RATIO = 256 / 224  # of evaluation: short side to crop
START_SECONDS = 14.0  # to start the suite and its first worker process; the other workers start while cases run
END_SECONDS = 1.0  # to end a worker process

Job = dict[str, Any]  # the arguments of a case's entry
Figures = Iterator[dict[str, Any]]  # what it yields: each value is the result so far, and the last one is the result
Results = dict[str, dict[str, Any]]  # records by the name of their case


@dataclass(frozen=True)
class Options:
    """The suite's options."""

    data: Path
    """Prepared dataset of a few hundred real JPEGs or more."""
    out: Path
    """Folder for smoke, decode, rates, tests, training (.json) and workers.log."""
    split: str = "train"
    """Split of the dataset."""
    work: Path = Path("data/gpu-suite")
    """Folder for compiled models, damaged copies and the run of the training case."""
    minutes: float = 9.0
    """Deadline, counted from the start of the command."""
    only: tuple[str, ...] = ()
    """Run these cases (with wildcards) and those that they need."""
    list: bool = False
    """Print the cases with limits and estimates, and exit."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """cpu: rehearse without a GPU."""
    batch_size: int = 256
    """Images per batch."""
    size: int = 224
    """Pixels."""
    models: tuple[str, ...] = ("resnet50", "resnet50d")
    """timm models; the first one is also compiled and tried in fp16."""
    amp: Literal["none", "bf16", "fp16"] = "bf16"
    """Mixed precision."""
    repetitions: int = 3
    """Repetitions per rate."""
    seconds: float = 1.0
    """Approximate length of a repetition."""
    epochs: int = 40
    """Epochs of the training case, over all images."""


@dataclass(frozen=True)
class Case:
    """One measurement."""

    name: str
    stage: str
    entry: str  # "module:function", called with the job in a worker process; gives Figures
    limit: float  # seconds; a case that runs longer is hung
    estimate: float  # seconds
    job: Job
    path: str = ""  # decode path of the job: one of PATHS, BEST or FASTER
    group: str = ""  # cases of one group share a worker process; default: the stage
    needs: tuple[str, ...] = ()  # names of cases that must be done first
    unable: str = ""  # the reason why it cannot run on this device


def build_cases(options: Options, has_segments: bool) -> list[Case]:
    """Return all cases in order. On a CPU, which is slower, the limits are larger.

    Args:
        options: with the device that was found, and absolute paths because commands run in other folders.
        has_segments: the shards were prepared with --restarts.
    """
    common = {"data": str(options.data), "split": options.split, "device": options.device}
    common |= {name: getattr(options, name) for name in ("batch_size", "size", "repetitions", "seconds")}
    rated = common | {"amp": options.amp, "compile": "none", "work": str(options.work), "model": options.models[0]}
    rated |= {"fused": "off", "graph": False}
    train = common | {"amp": options.amp, "epochs": options.epochs, "run": str(options.work / "training")}
    cases = [
        *_pixel_cases(common, options),
        *_rate_cases(rated, options.models),
        *_speed_cases(rated, options.models),
        Case("training", "training", "gpu.training:train_and_resume", 150, 75, train),
        Case("gpu-tests", "tests", "gpu.marked:run_tests", 220, 105, {"marker": "gpu"}),
        Case("profile", "rates", PROFILE, 90, 20, rated, FASTER),
        Case("profile-fused", "rates", PROFILE, 90, 12, rated | {"fused": "on"}, FASTER, needs=(CHECK,)),
        *_restart_cases(common, rated),
        # gpu_model.py measures other modes, and small images.
        Case("compile-default", "rates", COMPILED, 150, 70, rated | {"compile": "default"}, FASTER, "compile"),
    ]
    on_gpu = options.device == "cuda"
    ratio = 1 if on_gpu else CPU_LIMITS
    return [
        replace(case, limit=ratio * case.limit, unable=explain_unable(case, on_gpu, has_segments)) for case in cases
    ]


def _pixel_cases(common: Job, options: Options) -> Iterator[Case]:
    """Yield the first checks, the pixels and the rate of each decode path, equal bits, RandAugment, damaged files."""
    eight, resize = common | {"batch_size": 8}, {"resize": round(options.size * RESIZE_RATIO)}
    compared = common | resize | {"num_images": 2 * options.batch_size}
    augmented = common | {"num_images": options.batch_size}
    damaged = common | resize | {"work": str(options.work)}
    dali = ("dali",)
    yield Case("machine", "smoke", "gpu.smoke:describe_machine", 40, 2, common)
    yield Case("dali", "smoke", "gpu.smoke:find_dali", 40, 1, common)
    yield Case("smoke", "smoke", "gpu.smoke:decode_eight", 40, 4, eight, FALLBACK, needs=dali)
    # In its own process: the decoder's library may read its log level only when it is first used.
    yield Case("engines", "smoke", "gpu.smoke:count_engines", 40, 4, eight, "full-0.99", "engines", dali)
    for path in PATHS:
        group, needs = f"path-{path}", () if path == CPU else dali
        yield Case(PARITY + path, "decode", COMPARE, 40, 6.5, compared, path, group, needs)
        yield Case(DECODE + path, "decode", DECODING, 40, 7.5, common, path, group, (PARITY + path,))
    yield Case("load-best", "decode", "gpu.pixels:compare_under_load", 40, 8, common, BEST, "load")
    # A GPU computes RandAugment's operations with its own kernels.
    yield Case("augmented", "decode", "gpu.pixels:compare_augmented", 40, 7, augmented, FALLBACK, "augment", dali)
    # Damaged files are decoded by JPEG engines, by other code of the GPU, and by the CPU's code.
    for path in ("full-0.99", FALLBACK, CPU):
        yield Case(DAMAGED + path, "decode", DAMAGE, 40, 13, damaged, path, "damaged", (PARITY + path,))


def _rate_cases(rated: Job, models: tuple[str, ...]) -> Iterator[Case]:
    """Yield cases that measure loader, model and training, for both placements, in one process."""
    loader = rated | {"mode": "loader", "model": None}
    yield Case("loader-cpu", "rates", RATES, 60, 9, loader, CPU)
    yield Case("loader-gpu", "rates", RATES, 60, 9, loader, BEST)
    for model in models:
        # The process's first step also loads cuDNN and chooses its kernels.
        alone, train = ({"mode": mode, "model": model} for mode in ("model", "train"))
        yield Case(f"model-{model}", "rates", RATES, 60, 18 if model == models[0] else 8, rated | alone)
        yield Case(f"train-{model}-cpu", "rates", RATES, 60, 10, rated | train, CPU)
        yield Case(f"train-{model}-gpu", "rates", RATES, 60, 10, rated | train, BEST)
    # Other ways to train the first model. With more work for the JPEG engines, decoding takes less of the GPU's cores
    # from the model. fp16 has other BatchNorm kernels than bf16.
    name, train = f"train-{models[0]}", rated | {"mode": "train"}
    yield Case(f"{name}-full-0.99", "rates", RATES, 60, 10, train, "full-0.99")
    yield Case(f"{name}-gpu-fp16", "rates", RATES, 60, 19, train | {"amp": "fp16"}, BEST)


def _speed_cases(rated: Job, models: tuple[str, ...]) -> Iterator[Case]:
    """Yield cases with fused BatchNorm, without and with the step as CUDA graphs.

    Their names are those of the usual cases with -fused and -graph after the model, so that the ratios are computed for
    them too. The kernels are checked before.
    """
    yield Case(CHECK, "rates", CHECK_KERNELS, 60, 6, {"device": rated["device"], "amp": rated["amp"]})
    fused, needs = rated | {"fused": "on"}, (CHECK,)
    for model in models:
        alone, train = ({"mode": mode, "model": model} for mode in ("model", "train"))
        yield Case(f"model-{model}-fused", "rates", RATES, 60, 8, fused | alone, needs=needs)
        yield Case(f"train-{model}-fused-gpu", "rates", RATES, 60, 10, fused | train, BEST, needs=needs)
    # With more work for the JPEG engines, decoding takes less of the GPU's cores from the faster model.
    name, train = f"train-{models[0]}-fused", {"mode": "train"}
    yield Case(f"{name}-full-0.99", "rates", RATES, 60, 10, fused | train, "full-0.99", needs=needs)
    graph, alone = fused | {"graph": True}, {"mode": "model"}
    yield Case(f"model-{models[0]}-fused-graph", "rates", RATES, 60, 9, graph | alone, needs=needs)
    yield Case(f"{name}-graph-gpu", "rates", RATES, 60, 11, graph | train, BEST, needs=needs)


def _restart_cases(common: Job, rated: Job) -> list[Case]:
    """Return cases that read restart shards: are spliced images right, and how fast are they, compared with whole ones.

    Decoding alone shows what the decoder gains. The complete loader and training also contain the Python code that
    splices, in one process for each GPU: they decide whether splicing pays there.
    """
    compared = common | {"num_images": 2 * common["batch_size"], "splice": SPLICED}
    loader, train = rated | {"mode": "loader", "model": None}, rated | {"mode": "train"}
    pixels: dict[str, list[Case]] = {}
    for path in ("full-0.99", FALLBACK, "roi-0.99"):
        right, group = f"{RESTARTS}{PARITY}{path}", RESTARTS + path
        pixels[path] = [Case(right, "decode", COMPARE, 40, 4.5, compared, path, group, ("dali",))]
        for splice in (WHOLE, ROWS, SPLICED):
            name, job = f"{RESTARTS}{DECODE}{path}-{splice}", common | {"splice": splice}
            pixels[path].append(Case(name, "decode", DECODING, 40, 7.5, job, path, group, (right,)))
    rates = [
        Case(f"{RESTARTS}{name}-{splice}", "rates", RATES, 60, estimate, job | {"splice": splice}, path)
        for name, path, job, estimates in (
            ("loader-full-0.99", "full-0.99", loader, (9, 9)),
            (f"loader-{FALLBACK}", FALLBACK, loader, (9, 9)),
            ("loader-cpu", CPU, loader, (9, 9)),
            ("train", "full-0.99", train, (18, 10)),  # the first step loads cuDNN
        )
        for splice, estimate in zip((WHOLE, SPLICED), estimates, strict=True)
    ]
    return [*pixels["full-0.99"], *pixels[FALLBACK], *rates, *pixels["roi-0.99"]]


def explain_unable(case: Case, on_gpu: bool, has_segments: bool) -> str:
    """Return why a case cannot run here, "" if it can. A rehearsal decodes paths without JPEG engines too."""
    if case.name.startswith(RESTARTS) and not has_segments:
        return "needs --data that was prepared with --restarts"
    if on_gpu or case.name == "engines":  # this one finds none on a CPU
        return ""
    if case.path == BEST or case.name == CHECK:
        return "needs a GPU"
    return "needs a GPU with JPEG engines" if case.path in PATHS and hardware_share(case.path) else ""


def hardware_share(path: str) -> float:
    """Return the share of the JPEGs that a path gives to the hardware decoder."""
    return 0.0 if path == CPU else float(path.partition("-")[2])


def parse_paths(results: Results) -> dict[str, str]:
    """Return each decode path's verdict: right, differs, wrong, or the status of a parity case without a result."""
    return {
        name.removeprefix(PARITY): record["result"]["verdict"] if record["status"] == "done" else record["status"]
        for name, record in results.items()
        if name.startswith(PARITY)
    }


def is_usable(record: dict[str, Any] | None) -> bool:
    """Check whether a parity case found pixels that a model may be trained on."""
    return record is not None and record["status"] == "done" and record["result"]["verdict"] != "wrong"


def find_best_path(results: Results) -> str | None:
    """Return the GPU's decode path to use: the fastest that is right, else one that differs; None if there is none.

    It is the safe path if no path was tried. Paths whose bits changed from run to run or under load are left out.
    """
    verdicts = {path: each for path, each in parse_paths(results).items() if path != "cpu" and each != "skipped"}
    if not verdicts:
        return FALLBACK
    verdicts = {path: each for path, each in verdicts.items() if path not in find_shaky_paths(results)}
    if right := [path for path, verdict in verdicts.items() if verdict == "right"]:
        return max(right, key=lambda path: rate_of(results.get(DECODE + path)) or 0.0)
    differing = [path for path, verdict in verdicts.items() if verdict == "differs"]
    if FALLBACK in differing:
        return FALLBACK
    return max(differing, key=lambda path: rate_of(results.get(DECODE + path)) or 0.0, default=None)


def find_shaky_paths(results: Results) -> set[str]:
    """Return the decode paths that gave different bits for the same plan."""
    tried = [each for name, each in results.items() if name.startswith(LOAD) and each["status"] == "done"]
    is_same = {each["job"]["path"]: each["result"] for each in tried}
    return {path for path, same in is_same.items() if not (same["is_same_idle"] and same["is_same_under_load"])}


def find_faster_side(results: Results, model: str = "") -> str | None:
    """Return the placement, cpu or gpu, with which a model (default: the first one) trains faster; None if unknown."""
    for name in results:
        if name.startswith(f"train-{model}") and name.endswith("-cpu"):
            cpu, gpu = rate_of(results[name]), rate_of(results.get(f"{name.removesuffix('-cpu')}-gpu"))
            if cpu and gpu:
                return "gpu" if gpu > GPU_WINS * cpu else "cpu"
    return None


def rate_of(record: dict[str, Any] | None) -> float | None:
    """Return the median images/s of a case; None if it is not done or has no median."""
    if record is None or record["status"] != "done":
        return None
    rate = record["result"].get("images_per_second")
    return rate["median"] if isinstance(rate, dict) else None  # the killed training's rate is one number


def resolve_job(case: Case, results: Results) -> Job:
    """Return the case's job with the loader's settings of its decode path; those on the CPU without a GPU.

    Earlier results decide about the paths BEST and FASTER.

    Raises:
        InputError: there is nothing to measure; the message is the reason.
    """
    if not case.path:
        return case.job | {"loader": {}}
    path, best, parity = case.path, find_best_path(results), results.get(PARITY + case.path)
    if path == BEST and best is None:
        raise InputError("no decode path of the GPU is right")
    if case.name.startswith(DAMAGED) and parity is not None and not is_usable(parity):
        raise InputError(f"{path} is not right: {parse_paths(results)[path]}")
    if path in (BEST, FASTER):
        path = best if best and (path == BEST or find_faster_side(results) == "gpu") else CPU
    loader: dict[str, Any] = {"placement": "gpu" if path != CPU and case.job["device"] == "cuda" else "cpu"}
    if path != CPU:
        loader |= {"decode": path.partition("-")[0], "hw_decoder_load": hardware_share(path)}
    if "splice" in case.job:
        loader["splice"] = WHOLE if case.job["splice"] == ROWS else case.job["splice"]
    return case.job | {"loader": loader, "path": path}


def choose_cases(cases: list[Case], patterns: tuple[str, ...], results: Results) -> list[Case]:
    """Return the cases that match a pattern (no pattern: all), and the cases that they need and that are not done.

    Raises:
        InputError: a pattern matches no case.
    """
    for pattern in patterns:
        if not any(fnmatchcase(case.name, pattern) for case in cases):
            raise InputError(f"unknown case {pattern}: --list names all cases")
    wanted = {case.name for case in cases if not patterns or any(fnmatchcase(case.name, each) for each in patterns)}
    done = {name for name, record in results.items() if record["status"] == "done"}
    for case in reversed(cases):  # what a case needs stands before it
        wanted |= set(case.needs) - done if case.name in wanted else set()
    return [case for case in cases if case.name in wanted]


def estimate_seconds(cases: list[Case]) -> tuple[float, float]:
    """Return the seconds that an H200 needs for the cases that can run here, and those around the cases."""
    able = [case for case in cases if not case.unable]
    around = START_SECONDS + END_SECONDS * len({case.group or case.stage for case in able})
    return around + sum(case.estimate for case in able), around


def list_cases(cases: list[Case]) -> Table:
    """Return the cases with limits and estimates, and the sum for this device."""
    rows = [
        [case.name, f"{case.limit:.0f}", f"{case.estimate:.0f}", f"skipped: {case.unable}" if case.unable else ""]
        for case in cases
    ]
    total, around = estimate_seconds(cases)
    rows.append(["starting, ending processes", "", f"{around:.0f}", ""])
    rows.append(["sum", "", f"{total:.0f}", f"{total / 60:.1f} minutes"])
    return Table("Cases, in seconds; estimates for an H200", ("case", "limit", "estimate", "note"), rows)
