"""The cases of the GPU suite, in order of worth: what is measured, with which settings, and for how long at most."""

from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, get_args

from loaders import LoaderConfig
from loaders.config import DecodeKind
from train.speed import CompileMode

Results = dict[str, dict[str, Any]]  # by name: what each case's record holds

STAGES = ("decode", "tests", "rates", "sweeps", "more")  # each has a file of records
HW_LOADS = (0.0, 0.65, 0.99)  # shares of JPEGs for the hardware decoder: none, DALI's own, as good as all
SMALLER = ("--max-side", "500", "--quality", "90")
SWEEPS: dict[str, tuple[Any, ...]] = {
    "hw_decoder_load": (0.3, 0.5, 0.8, 0.9, 1.0),
    "num_threads": (4, 8, 12, 16),
    "batches_ahead": (1, 3, 4, 6),
}
BATCH_SIZES = (64, 128, 512)
QUICK_MODES: tuple[CompileMode, ...] = ("default", "reduce-overhead")
RESIZE_RATIO = 256 / 224  # of evaluation


@dataclass(frozen=True)
class Settings:
    """What the whole suite is run with."""

    data: Path  # prepared shards, of real JPEGs
    split: str
    work: Path  # for what cases leave each other: repeated shards, compiled models
    device: str
    num_images: int  # of the repeated shards, at least
    batch_size: int
    size: int  # pixels
    models: tuple[str, ...]
    amp: str
    repetitions: int
    seconds: float  # a repetition, about
    also: tuple[str, ...]  # NAME=COMMAND, in the last stage
    also_seconds: float  # limit of each


@dataclass(frozen=True)
class Case:
    """One measurement, in a process of its own."""

    name: str
    stage: str
    limit: float  # seconds
    module: str = ""  # of this package, which is given the job
    job: dict[str, Any] = field(default_factory=dict)
    command: str = ""  # instead of a module: words of a shell, without a shell
    needs: tuple[str, ...] = ()  # cases without whose result it cannot be
    takes_best: bool = False  # of the decode paths that were found right


def build_cases(settings: Settings) -> list[Case]:
    """All of them, in order."""
    return [
        *_decode_cases(settings),
        Case("gpu-tests", "tests", 300, "marked", {"marker": "gpu"}),
        *_rate_cases(settings),
        *_sweep_cases(settings),
        *_other_commands(settings),
    ]


def _decode_cases(settings: Settings) -> list[Case]:
    """Each decode path: is it right, then how fast. A path that ends its process is a result too."""
    paths = [(decode, load) for decode in get_args(DecodeKind) for load in HW_LOADS]
    loaders = {f"{decode}-{load:g}": {"decode": decode, "hw_decoder_load": load} for decode, load in paths}
    common = _common(settings) | {"data": str(settings.data)}
    compared = common | {"num_images": settings.batch_size * 2, "resize": round(settings.size * RESIZE_RATIO)}
    return [
        Case(f"parity-{name}", "decode", 120, "parity", compared | {"loader": loader})
        for name, loader in loaders.items()
    ] + [
        Case(f"decode-{name}", "decode", 90, "decoding", common | {"loader": loader}, needs=(f"parity-{name}",))
        for name, loader in loaders.items()
    ]


def _rate_cases(settings: Settings) -> list[Case]:
    """The loader on original and on smaller JPEGs, decoding alone beside it, models alone, both together."""
    cases = [_repeated(settings, "repeated", ()), _rate(settings, "loader", mode="loader")]
    cases.append(Case("decode-alone", "rates", 90, "decoding", _on(settings, "repeated"), "", ("repeated",), True))
    for model in settings.models:
        cases.append(_rate(settings, f"model-{model}", mode="model", model=model))
        cases.append(_rate(settings, f"train-{model}", mode="train", model=model))
    cases.append(_repeated(settings, "repeated-500", SMALLER))
    cases.append(_rate(settings, "loader-500", "repeated-500", mode="loader"))
    return cases


def _sweep_cases(settings: Settings) -> list[Case]:
    """Compilation, then the loader's settings one at a time; last the modes that compile for minutes."""
    slow = [mode for mode in get_args(CompileMode) if mode not in ("none", *QUICK_MODES)]
    cases = [each for mode in QUICK_MODES for each in _compiled(settings, mode)]
    for option, values in SWEEPS.items():
        cases += [_rate(settings, f"loader-{option}-{value}", mode="loader", **{option: value}) for value in values]
    cases += [_rate(settings, f"loader-batch-{size}", mode="loader", batch_size=size) for size in BATCH_SIZES]
    return cases + [each for mode in slow for each in _compiled(settings, mode)]


def _compiled(settings: Settings, compile_mode: str) -> list[Case]:
    """The first model alone and in training, so that the two can be held against each other."""
    model = settings.models[0]
    return [
        _rate(settings, f"{mode}-{model}-{compile_mode}", mode=mode, model=model, compile=compile_mode)
        for mode in ("model", "train")
    ]


def _other_commands(settings: Settings) -> list[Case]:
    pairs = (each.partition("=") for each in settings.also)
    return [Case(name, "more", settings.also_seconds, command=command) for name, _, command in pairs]


def _repeated(settings: Settings, name: str, options: tuple[str, ...]) -> Case:
    job = {"data": str(settings.data), "split": settings.split, "out": str(settings.work / name)}
    job |= {"num_images": settings.num_images, "options": list(options)}
    return Case(name, "rates", 300, "repeated", job)


def _rate(settings: Settings, name: str, data: str = "repeated", **changes: Any) -> Case:
    """A case of `gpu.rates`; changes that are none of the job's are the loader's."""
    job = _on(settings, data) | {"compile": "none", "amp": settings.amp, "model": None, "work": str(settings.work)}
    loader = {option: value for option, value in changes.items() if option in vars(LoaderConfig())}
    job |= {key: value for key, value in changes.items() if key not in loader}
    job["loader"] = loader | ({"backend": "synthetic"} if job["mode"] == "model" else {})
    is_sweep = bool(changes.keys() - {"mode", "model"})
    limit = 400 if job["compile"] != "none" else 120
    return Case(name, "sweeps" if is_sweep else "rates", limit, "rates", job, "", (data,), job["mode"] != "model")


def _on(settings: Settings, data: str) -> dict[str, Any]:
    return _common(settings) | {"data": str(settings.work / data), "loader": {}}


def _common(settings: Settings) -> dict[str, Any]:
    names = ("split", "device", "batch_size", "size", "repetitions", "seconds")
    return {name: getattr(settings, name) for name in names}


def choose(cases: list[Case], patterns: list[str]) -> list[Case]:
    """Those whose name fits one of the patterns (none: all), and those that they need."""
    named = {case.name: case for case in cases}
    wanted = {case.name for case in cases if not patterns or any(fnmatchcase(case.name, each) for each in patterns)}
    waiting = list(wanted)
    while waiting:
        new = set(named[waiting.pop()].needs) - wanted
        wanted |= new
        waiting += new
    return [case for case in cases if case.name in wanted]


def resolve_job(case: Case, results: Results) -> dict[str, Any]:
    """The job, on the best of the decode paths where it takes that; what the case itself varies stays."""
    if not case.takes_best:
        return case.job
    return case.job | {"loader": find_best_path(results) | case.job["loader"]}


def find_best_path(results: Results) -> dict[str, Any]:
    """The fastest decode path of those that show the right images; the loader's defaults where none was measured."""
    right = [name for name, each in results.items() if name.startswith("parity-") and is_right(each)]
    if not right:
        return {}
    rates = {name: rate_of(results.get(name.replace("parity", "decode", 1), {})) or 0.0 for name in right}
    return results[max(rates, key=lambda name: rates[name])]["job"]["loader"]


def is_right(record: dict[str, Any]) -> bool:
    """Whether a decode path ran to its end and was near enough to the reference."""
    return record["status"] == "done" and record["result"]["is_right"]


def rate_of(record: dict[str, Any]) -> float | None:
    """Median images/s, where the case has measured it."""
    return ((record.get("result") or {}).get("images_per_second") or {}).get("median")
