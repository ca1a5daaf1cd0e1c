"""The suite's records on disk: a file of JSON a stage, whole after every case, so that a suite that ends goes on."""

import json
import subprocess
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from gpu.cases import STAGES, Case, Results, resolve_job
from gpu.runner import SETTLED
from record import describe_command, describe_date, describe_hardware

from prep.dataset import InputError, write_whole
from train.checkpoint import describe_commit

PACKAGES = (
    *("penstock", "torch", "torchvision", "timm", "numpy", "pillow"),
    *("nvidia-dali-cuda120", "nvidia-dali-cuda130", "nvidia-nvimgcodec-cu12", "nvidia-nvimgcodec-cu13"),
)
QUERY = ("nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader")


class Kept:
    """The records in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.stages = folder, {stage: _read(folder / f"{stage}.json") for stage in STAGES}

    @property
    def results(self) -> Results:
        """All records by the name of their case."""
        return {name: record for stage in self.stages.values() for name, record in stage.items()}

    def is_settled(self, case: Case, job: dict[str, Any]) -> bool:
        """Whether the case has a result, and is still the same."""
        record = self.stages[case.stage].get(case.name)
        return record is not None and record["status"] in SETTLED and _is_same(case, job, record)

    def current(self, cases: list[Case]) -> Results:
        """The records that were taken with these settings: others must not be held against them."""
        found = [(case, self.stages[case.stage].get(case.name)) for case in cases]
        return {
            case.name: record
            for case, record in found
            if record is not None and _is_same(case, resolve_job(case, self.results), record)
        }

    def add(self, case: Case, job: dict[str, Any], outcome: dict[str, Any], machine: dict[str, Any]) -> None:
        """Keep an outcome with all that is needed to take it again."""
        stage = self.stages[case.stage]
        stage[case.name] = {**outcome, "job": job, "asked": case.command or None, **machine, "date": describe_date()}
        content = {"what": "gpu suite", "stage": case.stage, "cases": stage}
        write_whole(self.folder / f"{case.stage}.json", (json.dumps(content, indent=1) + "\n").encode())


def _is_same(case: Case, job: dict[str, Any], record: dict[str, Any]) -> bool:
    """Whether the record is of this very job."""
    return (record["job"], record["asked"]) == (job, case.command or None)


def _read(path: Path) -> Results:
    if not path.exists():
        return {}
    try:
        return json.loads(path.read_text())["cases"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} holds no records of this suite: delete it or choose another --out") from error


def describe_machine() -> dict[str, Any]:
    """Command, commit, versions and hardware, the same for all cases of a run."""
    return {
        "command": describe_command("benchmarks/gpu_suite.py"),
        "commit": describe_commit(),
        "versions": dict(_versions()),
        "hardware": describe_hardware(describe_gpu()),
    }


def describe_gpu() -> str | None:
    """Name, driver and memory, as nvidia-smi tells them; None without one."""
    try:
        done = subprocess.run(QUERY, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    return "; ".join(done.stdout.splitlines())


def _versions() -> Iterator[tuple[str, str]]:
    for name in PACKAGES:
        try:
            yield name, version(name)
        except PackageNotFoundError:
            continue
