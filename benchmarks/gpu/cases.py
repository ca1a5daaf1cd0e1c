"""The cases of the GPU suite, the most important first: what each measures, where it runs, and how long it takes.

Cases of one group share a worker process, because starting one and importing torch and DALI takes ten seconds. A crash
ends the process and loses no other case (`gpu/runner.py`). Each decode path has its own group, so that damage which one
path does to its process cannot affect the next path.

Estimates are seconds on an H200 with 16 cores and the default settings (benchmarks/records/h200); that of the tests is
extrapolated from 173 seconds in one worker to two. They decide whether a case is still started before the deadline, and
their sum has to stay below the default of nine minutes.
"""

from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from gpu.verdicts import (
    DECODE,
    FALLBACK,
    PARITY,
    Results,
    find_best_path,
    find_faster_side,
    is_usable,
    parse_paths,
)

from prep.errors import InputError

STAGES = ("smoke", "decode", "rates", "tests", "training")  # each has its own file of records
CPU = "cpu"  # the decode path without a GPU
DAMAGED, RESTARTS = "damaged-", "restarts-"
SPLICED, WHOLE = "auto", "off"  # values of the loader's `splice`, in the names of cases with restart shards
ROWS = "rows"  # as in gpu/decoding.py
# First the fastest path of MLPerf's submissions. Regions on the hardware decoder are reported to crash on H100s (not on
# the H200 that was tried): they are last.
PATHS = ("full-0.99", "full-0.65", FALLBACK, CPU, "roi-0.99")
BEST, FASTER = "best", "faster"  # in place of a path: the GPU's best one; the one with which training was faster
END_SECONDS = 1.0  # to end a worker process
TIMED = ("gpu.decoding:measure_decoding", "gpu.rates:measure_rates", "gpu.rates:measure_compiled")
CPU_LIMITS = 4  # in a rehearsal on a CPU, limits are this many times larger
RESIZE_RATIO = 256 / 224  # of evaluation: short side to crop
START_SECONDS = 14.0  # to start the suite and its first worker process; the other workers start while cases run


@dataclass(frozen=True)
class Settings:
    """Settings that all cases share."""

    data: Path  # prepared shards of real JPEGs
    split: str
    work: Path  # folder for compiled models, damaged copies and the run of the training case
    device: str  # cpu or cuda
    batch_size: int
    size: int  # pixels
    models: tuple[str, ...]
    amp: str
    repetitions: int
    seconds: float  # approximate length of a repetition
    epochs: int  # of the training case
    has_segments: bool = False  # the shards were prepared with --restarts

    @property
    def on_gpu(self) -> bool:
        return self.device == "cuda"


@dataclass(frozen=True)
class Case:
    """One measurement."""

    name: str
    stage: str
    work: str  # "module:function"; called with the job in a worker process
    limit: float  # seconds; a case that runs longer is hung
    estimate: float  # seconds
    job: dict[str, Any]
    group: str = ""  # cases of one group share a worker process; default: the stage
    needs: tuple[str, ...] = ()  # names of cases that must be done first
    path: str = ""  # decode path of the job: one of PATHS, BEST or FASTER
    unable: str = ""  # the reason why it cannot run on this device

    @property
    def is_timed(self) -> bool:
        """True if a process that starts at the same time would disturb its figures."""
        return self.work in TIMED


def build_cases(settings: Settings) -> list[Case]:
    """Return all cases in order. On a CPU, which is slower, the limits are larger."""
    cases = [
        *_smoke_cases(settings),
        *_decode_cases(settings),
        _load_case(settings),
        _augment_case(settings),
        *_damaged_cases(settings),
        *_rate_cases(settings),
        _training_case(settings),
        Case("gpu-tests", "tests", "gpu.marked:run_tests", 220, 105, {"marker": "gpu"}),
        _compile_case(settings),
        *_restart_cases(settings),
    ]
    return cases if settings.on_gpu else [replace(case, limit=CPU_LIMITS * case.limit) for case in cases]


def _smoke_cases(settings: Settings) -> list[Case]:
    """Return cases that describe the machine, import DALI, decode eight images, and count the JPEG engines."""
    job = _common(settings)
    eight: dict[str, Any] = {"stage": "smoke", "job": job | {"batch_size": 8}, "needs": ("dali",)}
    return [
        Case("machine", "smoke", "gpu.smoke:describe_machine", 40, 2, job),
        Case("dali", "smoke", "gpu.smoke:find_dali", 40, 1, job),
        Case("smoke", work="gpu.smoke:decode_eight", limit=40, estimate=4, path=FALLBACK, **eight),
        # In its own process: the decoder's library may read its log level only when it is first used.
        Case(
            "engines", work="gpu.smoke:count_engines", limit=40, estimate=4, group="engines", path="full-0.99", **eight
        ),
    ]


def _decode_cases(settings: Settings) -> list[Case]:
    """Return two cases for each decode path, in one process: compare its pixels, then measure its rate."""
    compare, measure = "gpu.parity:compare_with_reference", "gpu.decoding:measure_decoding"
    rated = _common(settings)
    compared = rated | {"num_images": settings.batch_size * 2, "resize": _resize(settings)}
    cases = []
    for path in PATHS:
        here: dict[str, Any] = {"stage": "decode", "group": f"path-{path}", "path": path}
        here["unable"] = _unable(settings, path)
        imported = () if path == CPU else ("dali",)
        right = (PARITY + path,)
        cases += [
            Case(PARITY + path, work=compare, limit=40, estimate=6.5, job=compared, needs=imported, **here),
            Case(DECODE + path, work=measure, limit=40, estimate=7.5, job=rated, needs=right, **here),
        ]
    return cases


def _load_case(settings: Settings) -> Case:
    """Return the case that checks whether a plan gives the same bits while the device is busy with other work."""
    here: dict[str, Any] = {"limit": 40, "estimate": 8, "group": "load", "path": BEST}
    return Case(
        "load-best",
        "decode",
        "gpu.loads:compare_under_load",
        job=_common(settings),
        unable=_without_gpu(settings),
        **here,
    )


def _augment_case(settings: Settings) -> Case:
    """Return the case that compares images with RandAugment, whose operations a GPU computes with its own kernels."""
    job = _common(settings) | {"num_images": settings.batch_size}
    here: dict[str, Any] = {"limit": 40, "estimate": 7, "group": "augment", "path": FALLBACK, "needs": ("dali",)}
    return Case("augmented", "decode", "gpu.parity:compare_augmented", job=job, **here)


def _damaged_cases(settings: Settings) -> list[Case]:
    """Return cases that decode damaged files: by JPEG engines, by other code of the GPU, by the CPU's code."""
    here: dict[str, Any] = {"stage": "decode", "work": "gpu.damage:decode_damaged", "limit": 40, "estimate": 13}
    here |= {"job": _common(settings) | {"resize": _resize(settings), "work": str(settings.work)}, "group": "damaged"}
    return [
        Case(DAMAGED + path, path=path, needs=(PARITY + path,), unable=_unable(settings, path), **here)
        for path in ("full-0.99", FALLBACK, CPU)
    ]


def _rate_cases(settings: Settings) -> list[Case]:
    """Return cases that measure loader, model and training, for both placements, in one process."""
    unable = _without_gpu(settings)
    cases = [
        _rate("loader-cpu", 9, _rate_job(settings, mode="loader"), path=CPU),
        _rate("loader-gpu", 9, _rate_job(settings, mode="loader"), path=BEST, unable=unable),
    ]
    for model in settings.models:
        train = _rate_job(settings, mode="train", model=model)
        cases += [
            # The process's first step also loads cuDNN and chooses its kernels.
            _rate(
                f"model-{model}",
                18 if model == settings.models[0] else 8,
                _rate_job(settings, mode="model", model=model),
            ),
            _rate(f"train-{model}-cpu", 10, train, path=CPU),
            _rate(f"train-{model}-gpu", 10, train, path=BEST, unable=unable),
        ]
    return cases + _variant_cases(settings)


def _variant_cases(settings: Settings) -> list[Case]:
    """Return cases that train the first model in other ways, to compare with its cases of `_rate_cases`."""
    model, unable = settings.models[0], _without_gpu(settings)
    train, job = f"train-{model}", _rate_job(settings, mode="train", model=model)
    return [
        # With more work for the JPEG engines, decoding takes less of the GPU's cores from the model.
        _rate(f"{train}-full-0.99", 10, job, path="full-0.99", unable=unable),
        # fp16 has other BatchNorm kernels than bf16.
        _rate(f"{train}-gpu-fp16", 19, job | {"amp": "fp16"}, path=BEST, unable=unable),
    ]


def _compile_case(settings: Settings) -> Case:
    """Return the case that measures the first model compiled: alone and in training, with one compilation."""
    job = _rate_job(settings, model=settings.models[0], compile="default")  # gpu_model.py measures other modes
    return Case("compile-default", "rates", "gpu.rates:measure_compiled", 150, 70, job, group="compile", path=FASTER)


def _training_case(settings: Settings) -> Case:
    """Return the case that kills, resumes, finishes and evaluates a run of train/main.py."""
    job = _common(settings) | {"amp": settings.amp, "epochs": settings.epochs, "run": str(settings.work / "training")}
    return Case("training", "training", "gpu.training:train_and_resume", 150, 75, job)


def _restart_cases(settings: Settings) -> list[Case]:
    """Return cases that read restart shards: are spliced images right, and how fast are they, compared with whole ones.

    Decoding alone shows what the decoder gains. The complete loader and training also contain the Python code that
    splices, in one process for each GPU: they decide whether splicing pays there.
    """
    first, second, last = (_restart_path(settings, path) for path in ("full-0.99", FALLBACK, "roi-0.99"))
    return [*first, *second, *_restart_rates(settings), *last]


def _restart_path(settings: Settings, path: str) -> list[Case]:
    """Return the cases of a decode path, in one process: compare spliced images, then measure the rate of decoding."""
    here: dict[str, Any] = {"stage": "decode", "group": RESTARTS + path, "path": path, "limit": 40}
    here["unable"] = _without_segments(settings) or _unable(settings, path)
    compare, measure = "gpu.parity:compare_with_reference", "gpu.decoding:measure_decoding"
    right, rated = f"{RESTARTS}{PARITY}{path}", _common(settings)
    compared = rated | {"num_images": settings.batch_size * 2, "splice": SPLICED}
    cases = [Case(right, work=compare, estimate=4.5, job=compared, needs=("dali",), **here)]
    for splice in (WHOLE, ROWS, SPLICED):
        name, job = f"{RESTARTS}{DECODE}{path}-{splice}", rated | {"splice": splice}
        cases.append(Case(name, work=measure, estimate=7.5, job=job, needs=(right,), **here))
    return cases


def _restart_rates(settings: Settings) -> list[Case]:
    """Return the cases of the loader and of training, in the process of the other rates."""
    loader = _rate_job(settings, mode="loader")
    train = _rate_job(settings, mode="train", model=settings.models[0])
    cases = []
    for name, path, job, estimates in (
        ("loader-full-0.99", "full-0.99", loader, (9, 9)),
        (f"loader-{FALLBACK}", FALLBACK, loader, (9, 9)),
        ("loader-cpu", CPU, loader, (9, 9)),
        ("train", "full-0.99", train, (18, 10)),  # the first step loads cuDNN
    ):
        unable = _without_segments(settings) or _unable(settings, path)
        cases += [
            _rate(f"{RESTARTS}{name}-{splice}", estimate, job | {"splice": splice}, path=path, unable=unable)
            for splice, estimate in zip((WHOLE, SPLICED), estimates, strict=True)
        ]
    return cases


def _without_segments(settings: Settings) -> str:
    return "" if settings.has_segments else "needs --data that was prepared with --restarts"


def _rate(name: str, estimate: float, job: dict[str, Any], **more: Any) -> Case:
    """Return a case of `gpu.rates`."""
    return Case(name, "rates", "gpu.rates:measure_rates", 60, estimate, job, **more)


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
    """Return why a decode path cannot run here, "" if it can. A rehearsal decodes paths without JPEG engines too."""
    return "" if settings.on_gpu or not _share(path) else "needs a GPU with JPEG engines"


def _share(path: str) -> float:
    """Return the share of the JPEGs that a path gives to the hardware decoder."""
    return 0.0 if path == CPU else float(path.partition("-")[2])


def describe_path(path: str, device: str) -> dict[str, Any]:
    """Return the loader's settings of a decode path; without a GPU, those of its equivalent on the CPU."""
    if path == CPU:
        return {"placement": "cpu"}
    decode = path.partition("-")[0]
    return {"placement": "gpu" if device == "cuda" else "cpu", "decode": decode, "hw_decoder_load": _share(path)}


def resolve_job(case: Case, results: Results) -> dict[str, Any]:
    """Return the case's job with the loader's settings of its decode path.

    Raises:
        InputError: there is nothing to measure; the message is the reason.
    """
    if not case.path:
        return case.job | {"loader": {}}
    path = _find_path(case, results)
    loader = describe_path(path, case.job["device"])
    if "splice" in case.job:
        loader["splice"] = WHOLE if case.job["splice"] == ROWS else case.job["splice"]
    return case.job | {"loader": loader, "path": path}


def _find_path(case: Case, results: Results) -> str:
    """Return the decode path of a case; earlier results decide about BEST and FASTER.

    Raises:
        InputError: the path is not available.
    """
    best = find_best_path(results)
    if case.path == BEST:
        if best is None:
            raise InputError("no decode path of the GPU is right")
        return best
    if case.path == FASTER:
        return best if best and find_faster_side(results) == "gpu" else CPU
    parity = results.get(PARITY + case.path)
    if case.name.startswith(DAMAGED) and parity is not None and not is_usable(parity):
        raise InputError(f"{case.path} is not right: {parse_paths(results)[case.path]}")
    return case.path


def choose_cases(cases: list[Case], patterns: list[str], results: Results) -> list[Case]:
    """Return the cases that match a pattern (no pattern: all), and the cases that they need and that are not done.

    Raises:
        InputError: a pattern matches no case.
    """
    for pattern in patterns:
        if not any(fnmatchcase(case.name, pattern) for case in cases):
            raise InputError(f"unknown case {pattern}: --list names all cases")
    named = {case.name: case for case in cases}
    wanted = {case.name for case in cases if not patterns or any(fnmatchcase(case.name, each) for each in patterns)}

    # Add what the wanted cases need, what those need, and so on.
    waiting = list(wanted)
    while waiting:
        new = {name for name in named[waiting.pop()].needs if not _is_done(results.get(name))} - wanted
        wanted |= new
        waiting += new
    return [case for case in cases if case.name in wanted]


def _is_done(record: dict[str, Any] | None) -> bool:
    return record is not None and record["status"] == "done"


def list_cases(cases: list[Case]) -> str:
    """Return a table of the cases with limits and estimates, and the sum for this device."""
    lines = [f"{'case':<28} {'limit':>6} {'estimate':>9}  (seconds; estimates for an H200)"]
    for case in cases:
        unable = f"  skipped: {case.unable}" if case.unable else ""
        lines.append(f"{case.name:<28} {case.limit:>6.0f} {case.estimate:>9.0f}{unable}")
    total = estimate_seconds(cases)
    lines.append(f"{'starting, ending processes':<28} {'':>6} {total - sum_estimates(cases):>9.0f}")
    lines.append(f"{'sum':<28} {'':>6} {total:>9.0f}  = {total / 60:.1f} minutes")
    return "\n".join(lines)


def estimate_seconds(cases: list[Case]) -> float:
    """Return the seconds that an H200 needs for the cases that can run here, with the start of their processes."""
    groups = {case.group or case.stage for case in cases if not case.unable}
    return START_SECONDS + END_SECONDS * len(groups) + sum_estimates(cases)


def sum_estimates(cases: list[Case]) -> float:
    """Return the sum of the estimates of the cases that can run here."""
    return sum(case.estimate for case in cases if not case.unable)
