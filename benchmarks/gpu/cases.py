"""The cases of the GPU suite in order of worth: what each measures, where it runs, and how long it takes.

Cases of one group share a worker process, because starting one and importing torch and DALI takes ten seconds. A crash
ends the process and loses no other case (`gpu/runner.py`). Each decode path is a group of its own: what an earlier path
did to the process must not decide about the next one.

Estimates are seconds on an H100 with 16 cores and the default settings. They are not measured yet; they decide whether
a case is still begun before the deadline, and their sum has to stay below the default of nine minutes.
"""

from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from gpu.verdicts import (
    DECODE,
    FALLBACK,
    LOAD,
    PARITY,
    Results,
    find_best_path,
    find_faster_side,
    is_usable,
    parse_paths,
)

from prep.errors import InputError

STAGES = ("smoke", "decode", "rates", "tests", "training")  # each has a file of records
CPU = "cpu"  # the decode path without a GPU
DAMAGED = "damaged-"
# The fastest path of MLPerf's entries first. Regions on the hardware decoder are suspected to crash, so they are last.
PATHS = ("full-0.99", "full-0.65", FALLBACK, CPU, "roi-0", "roi-0.65", "roi-0.99")
BEST, FASTER = "best", "faster"  # instead of a path: the best one of a GPU, the one that trained faster
END_SECONDS = 1.0  # of a worker process
TIMED = ("gpu.decoding:measure", "gpu.rates:measure", "gpu.rates:measure_compiled")
MODES = ("default", "reduce-overhead")  # of torch.compile
CPU_LIMITS = 4  # times a GPU's, for a rehearsal
RESIZE_RATIO = 256 / 224  # of evaluation
START_SECONDS = 14.0  # of the suite and its first worker process; the others start while cases run


@dataclass(frozen=True)
class Settings:
    """What the whole suite runs with."""

    data: Path  # prepared shards of real JPEGs
    split: str
    work: Path  # for compiled models, damaged copies and the run of the training case
    device: str  # cpu or cuda
    batch_size: int
    size: int  # pixels
    models: tuple[str, ...]
    amp: str
    repetitions: int
    seconds: float  # of a repetition, about
    epochs: int  # of the training case

    @property
    def on_gpu(self) -> bool:
        return self.device == "cuda"


@dataclass(frozen=True)
class Case:
    """One measurement."""

    name: str
    stage: str
    work: str  # module:function; called with the job in a worker process
    limit: float  # seconds; after them the case is hung
    estimate: float  # seconds
    job: dict[str, Any]
    group: str = ""  # cases of one group share a worker process; default: the stage
    needs: tuple[str, ...] = ()  # cases that must be done before
    path: str = ""  # decode path for the job: one of PATHS, BEST or FASTER
    unable: str = ""  # why it cannot run on this device

    @property
    def is_timed(self) -> bool:
        """Whether a process that starts meanwhile would disturb its figures."""
        return self.work in TIMED


def build_cases(settings: Settings) -> list[Case]:
    """Return all cases in order. On a CPU, which is slower, the limits are larger."""
    cases = [
        *_smoke_cases(settings),
        *_decode_cases(settings),
        *_load_cases(settings),
        *_damaged_cases(settings),
        *_rate_cases(settings),
        Case("gpu-tests", "tests", "gpu.marked:run_tests", 150, 85, {"marker": "gpu"}),
        *_compile_cases(settings),
        *_training_cases(settings),
    ]
    return cases if settings.on_gpu else [replace(case, limit=CPU_LIMITS * case.limit) for case in cases]


def _smoke_cases(settings: Settings) -> list[Case]:
    """What machine this is, whether DALI can be imported, eight images, and the number of JPEG engines."""
    job = _common(settings)
    eight: dict[str, Any] = {"stage": "smoke", "job": job | {"batch_size": 8}, "needs": ("dali",)}
    return [
        Case("machine", "smoke", "gpu.smoke:describe_machine", 40, 2, job),
        Case("dali", "smoke", "gpu.smoke:find_dali", 40, 1, job),
        Case("smoke", work="gpu.smoke:decode_eight", limit=40, estimate=4, path=FALLBACK, **eight),
        # A process of its own: the decoder's library may read its log level only when it is first used.
        Case(
            "engines", work="gpu.smoke:count_engines", limit=40, estimate=4, group="engines", path="full-0.99", **eight
        ),
    ]


def _decode_cases(settings: Settings) -> list[Case]:
    """For each decode path: whether its pixels are right, then how fast it is, in one process."""
    rated = _common(settings)
    compared = rated | {"num_images": settings.batch_size * 2, "resize": _resize(settings)}
    cases = []
    for path in PATHS:
        here: dict[str, Any] = {"stage": "decode", "group": f"path-{path}", "path": path}
        here["unable"] = _unable(settings, path)
        imported = () if path == CPU else ("dali",)
        right = (PARITY + path,)
        cases += [
            Case(PARITY + path, work="gpu.parity:compare", limit=40, estimate=5, job=compared, needs=imported, **here),
            Case(DECODE + path, work="gpu.decoding:measure", limit=40, estimate=8, job=rated, needs=right, **here),
        ]
    return cases


def _load_cases(settings: Settings) -> list[Case]:
    """Whether the same plan gives the same bits while the device is busy with other work."""
    here: dict[str, Any] = {"stage": "decode", "work": "gpu.loads:compare_under_load", "limit": 40, "estimate": 5}
    here |= {"job": _common(settings), "group": "load"}
    return [
        Case("load-best", path=BEST, unable=_without_gpu(settings), **here),
        Case("load-full-0.99", path="full-0.99", unable=_without_gpu(settings), **here),
        Case("load-cpu", path=CPU, **here),
    ]


def _damaged_cases(settings: Settings) -> list[Case]:
    """What damaged files come to on each decode path."""
    here: dict[str, Any] = {"stage": "decode", "work": "gpu.damage:decode_damaged", "limit": 30, "estimate": 3}
    here |= {"job": _common(settings) | {"resize": _resize(settings), "work": str(settings.work)}, "group": "damaged"}
    return [
        Case(DAMAGED + path, path=path, needs=(PARITY + path,), unable=_unable(settings, path), **here)
        for path in PATHS
    ]


def _rate_cases(settings: Settings) -> list[Case]:
    """Loader, model and training, for both placements, in one process."""
    unable = _without_gpu(settings)
    cases = [
        _rate("loader-cpu", 8, _rate_job(settings, mode="loader"), path=CPU),
        _rate("loader-gpu", 8, _rate_job(settings, mode="loader"), path=BEST, unable=unable),
    ]
    for model in settings.models:
        train = _rate_job(settings, mode="train", model=model)
        cases += [
            _rate(f"model-{model}", 9, _rate_job(settings, mode="model", model=model)),
            _rate(f"train-{model}-cpu", 10, train, path=CPU),
            _rate(f"train-{model}-gpu", 10, train, path=BEST, unable=unable),
        ]
    return cases


def _compile_cases(settings: Settings) -> list[Case]:
    """The first model compiled: alone and in training, with one compilation."""
    here: dict[str, Any] = {"stage": "rates", "work": "gpu.rates:measure_compiled", "limit": 150, "estimate": 60}
    here |= {"group": "compile", "path": FASTER}
    return [
        Case(f"compile-{mode}", job=_rate_job(settings, model=settings.models[0], compile=mode), **here)
        for mode in MODES
    ]


def _training_cases(settings: Settings) -> list[Case]:
    """A run of train/main.py that is killed, resumed, finished and evaluated."""
    job = _common(settings) | {"amp": settings.amp, "epochs": settings.epochs, "run": str(settings.work / "training")}
    return [Case("training", "training", "gpu.training:train_and_resume", 150, 60, job)]


def _rate(name: str, estimate: float, job: dict[str, Any], **more: Any) -> Case:
    """Return a case of `gpu.rates`."""
    return Case(name, "rates", "gpu.rates:measure", 60, estimate, job, **more)


def _rate_job(settings: Settings, **changes: Any) -> dict[str, Any]:
    job = _common(settings) | {"amp": settings.amp, "compile": "none", "work": str(settings.work), "model": None}
    return job | changes


def _common(settings: Settings) -> dict[str, Any]:
    names = ("split", "device", "batch_size", "size", "repetitions", "seconds")
    return {"data": str(settings.data)} | {name: getattr(settings, name) for name in names}


def _resize(settings: Settings) -> int:
    return round(settings.size * RESIZE_RATIO)


def _without_gpu(settings: Settings) -> str:
    return "" if settings.on_gpu else "needs a GPU"


def _unable(settings: Settings, path: str) -> str:
    """Return why a decode path cannot run here. Without a GPU the paths without JPEG engines decode on the CPU."""
    return "" if settings.on_gpu or not _share(path) else "needs a GPU with JPEG engines"


def _share(path: str) -> float:
    """Return the share of the JPEGs that a path gives to the hardware decoder."""
    return 0.0 if path == CPU else float(path.partition("-")[2])


def describe_path(path: str, device: str) -> dict[str, Any]:
    """Return the loader's settings of a decode path; without a GPU those of its equivalent on the CPU."""
    if path == CPU:
        return {"placement": "cpu"}
    decode = path.partition("-")[0]
    return {"placement": "gpu" if device == "cuda" else "cpu", "decode": decode, "hw_decoder_load": _share(path)}


def resolve_job(case: Case, results: Results) -> dict[str, Any]:
    """Return the case's job with the loader's settings of its decode path.

    Raises:
        InputError: there is nothing to measure; the message says why.
    """
    if not case.path:
        return case.job | {"loader": {}}
    path = _find_path(case, results)
    return case.job | {"loader": describe_path(path, case.job["device"]), "path": path}


def _find_path(case: Case, results: Results) -> str:
    best = find_best_path(results)
    if case.path == BEST:
        if best is None:
            raise InputError("no decode path of the GPU is right")
        return best
    if case.path == FASTER:
        return best if best and find_faster_side(results) == "gpu" else CPU
    if case.name == f"{LOAD}{best}":
        raise InputError(f"{best} is the best path, and load-best has tried it")
    parity = results.get(PARITY + case.path)
    if case.name.startswith((DAMAGED, LOAD)) and parity is not None and not is_usable(parity):
        raise InputError(f"{case.path} is not right: {parse_paths(results)[case.path]}")
    return case.path


def choose(cases: list[Case], patterns: list[str], results: Results) -> list[Case]:
    """Return the cases that a pattern fits (no pattern: all), and those that they need and that have no result.

    Raises:
        InputError: a pattern fits no case.
    """
    for pattern in patterns:
        if not any(fnmatchcase(case.name, pattern) for case in cases):
            raise InputError(f"unknown case {pattern}: --list names all cases")
    named = {case.name: case for case in cases}
    wanted = {case.name for case in cases if not patterns or any(fnmatchcase(case.name, each) for each in patterns)}
    waiting = list(wanted)
    while waiting:
        new = {name for name in named[waiting.pop()].needs if not _is_done(results.get(name))} - wanted
        wanted |= new
        waiting += new
    return [case for case in cases if case.name in wanted]


def _is_done(record: dict[str, Any] | None) -> bool:
    return record is not None and record["status"] == "done"


def list_cases(cases: list[Case]) -> str:
    """Return a table of the cases with limit and estimate, and the sum of what runs on this device."""
    lines = [f"{'case':<28} {'limit':>6} {'estimate':>9}  (seconds; estimates for an H100)"]
    for case in cases:
        unable = f"  skipped: {case.unable}" if case.unable else ""
        lines.append(f"{case.name:<28} {case.limit:>6.0f} {case.estimate:>9.0f}{unable}")
    total = estimate_seconds(cases)
    lines.append(f"{'starting, ending processes':<28} {'':>6} {total - sum_estimates(cases):>9.0f}")
    lines.append(f"{'sum':<28} {'':>6} {total:>9.0f}  = {total / 60:.1f} minutes")
    return "\n".join(lines)


def estimate_seconds(cases: list[Case]) -> float:
    """Return the seconds that the cases which can run here take on an H100, with their processes."""
    groups = {case.group or case.stage for case in cases if not case.unable}
    return START_SECONDS + END_SECONDS * len(groups) + sum_estimates(cases)


def sum_estimates(cases: list[Case]) -> float:
    """Return the sum of the estimates of the cases which can run here."""
    return sum(case.estimate for case in cases if not case.unable)
