"""The suite's records on disk: one JSON file per stage, rewritten after each case and each part of a case.

A later call with the same settings writes its cases into the same files and keeps the cases that it does not run.
"""

import json
import subprocess
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from gpu.cases import STAGES, Case, Settings
from gpu.verdicts import Results

from prep.dataset import read_manifest
from prep.errors import InputError
from prep.files import write_whole

PACKAGES = (
    *("penstock", "torch", "torchvision", "timm", "numpy", "pillow", "pytest"),
    *("nvidia-dali-cuda120", "nvidia-dali-cuda130", "nvidia-nvimgcodec-cu12", "nvidia-nvimgcodec-cu13"),
    "nvidia-nvjpeg",
)
PLACES = ("data", "work", "run")  # fields of a job with paths of this machine, which a record does not need
QUERY = ("nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader")


class CaseRecords:
    """The records in a folder.

    Args:
        folder: the folder of the stages' files.
        settings: of this call; figures with other settings are not comparable.
        origin: command, commit, versions and hardware of this call (`describe_origin`).

    Raises:
        InputError: the folder holds other files of these names, or records with other settings.
    """

    def __init__(self, folder: Path, settings: dict[str, Any], origin: dict[str, Any]) -> None:
        self.folder, self.settings, self.origin = folder, settings, origin
        self.stages = {stage: self._read(folder / f"{stage}.json") for stage in STAGES}

    @property
    def results(self) -> Results:
        """All records, by the name of their case."""
        return {name: record for stage in self.stages.values() for name, record in stage.items()}

    def add(self, case: Case, job: dict[str, Any], outcome: dict[str, Any]) -> None:
        """Write an outcome to disk, with all that is needed to repeat it.

        A result of an earlier call is not replaced by a case that had no time in this call.
        """
        stage = self.stages[case.stage]
        if outcome["status"] in ("skipped", "cut") and stage.get(case.name, {}).get("status") == "done":
            return
        told = {name: value for name, value in job.items() if name not in PLACES}
        stage[case.name] = {"seconds": 0.0, **outcome, "job": told, **self.origin}
        content = {"what": "gpu suite", "stage": case.stage, "settings": self.settings, "cases": stage}
        write_whole(self.folder / f"{case.stage}.json", (json.dumps(content, indent=1) + "\n").encode())

    def _read(self, path: Path) -> Results:
        """Return the records of a stage.

        Raises:
            InputError: the file is not a stage's, or has other settings.
        """
        if not path.exists():
            return {}
        try:
            content = json.loads(path.read_text())
            settings, cases = content["settings"], content["cases"]
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path} holds no records of this suite: delete it or choose another --out") from error
        for name, value in self.settings.items():
            if settings.get(name) != value:
                raise InputError(
                    f"{path} holds records with {name} {settings.get(name)}, and this call has {value}: "
                    "choose another --out, or the same settings"
                )
        return cases


def describe_settings(settings: Settings) -> dict[str, Any]:
    """Return the settings that must be equal for all records of a folder."""
    manifest = read_manifest(settings.data / settings.split)
    return {
        "device": settings.device,
        "batch_size": settings.batch_size,
        "size": settings.size,
        "amp": settings.amp,
        "images": f"{manifest.num_images} of {manifest.source.name}" + ", restarts" * manifest.has_segments,
    }


def describe_origin() -> dict[str, Any]:
    """Return the origin of a call, the same for all its cases: command, commit, versions, hardware and date."""
    from record import describe_command, describe_date, describe_hardware  # noqa: PLC0415  (imports torch)

    from train.versions import describe_commit  # noqa: PLC0415

    return {
        "command": describe_command("benchmarks/gpu_suite.py"),
        "commit": describe_commit(),
        "versions": dict(find_versions()),
        "hardware": describe_hardware(describe_gpu()),
        "date": describe_date(),
    }


def describe_gpu() -> str | None:
    """Return name, driver and memory of the GPUs as nvidia-smi prints them; None without a GPU."""
    try:
        done = subprocess.run(QUERY, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    return "; ".join(done.stdout.splitlines())


def find_versions() -> Iterator[tuple[str, str]]:
    """Yield the installed packages with their versions; those without metadata, as in a bare checkout, are left out."""
    for name in PACKAGES:
        try:
            yield name, version(name)
        except PackageNotFoundError:
            continue
