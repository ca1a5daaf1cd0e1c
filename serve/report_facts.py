"""The facts of a report that are not measured: when, with which code, on which data, by which preprocessing."""

import json
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from serve.artifact import ARTIFACT, Served
from serve.pictures import Source

CHECKOUT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Setting:
    """How a report was asked for."""

    artifact: str  # path
    data: Path
    device: str
    seed: int
    num_measured: int


def list_facts(served: Served, source: Source, setting: Setting) -> list[tuple[str, str]]:
    """Return (name, value) of each fact, in the order of the page; unknown ones are left out."""
    facts = [
        ("Report", datetime.now(UTC).strftime("%d %B %Y, %H:%M UTC")),
        ("Model", served.name),
        ("Artifact", Path(setting.artifact).name or setting.artifact),
        ("Trained by commit", find_training_commit(setting.artifact)),
        ("Images", f"{source.name} (folder {setting.data.resolve().name})"),
        ("Drawn", describe_draw(source, setting)),
        ("Preprocessing", describe_preprocessing(served)),
        ("Measured by commit", find_commit()),
        ("Measured on", f"{describe_device(setting.device)}, torch {version('torch')}, timm {version('timm')}"),
    ]
    return [(name, value) for name, value in facts if value]


def describe_draw(source: Source, setting: Setting) -> str:
    """Return how the measured images were chosen."""
    if setting.num_measured >= source.num_images:
        return f"all {setting.num_measured:,} images"
    return f"{setting.num_measured:,} of {source.num_images:,} images, at random with seed {setting.seed}"


def describe_preprocessing(served: Served) -> str:
    """Return how a picture becomes the network's input, in words."""
    settings = served.preprocessing
    mean, std = ("(" + ", ".join(f"{each:.4g}" for each in values) + ")" for values in (settings.mean, settings.std))
    return (
        f"short side to {settings.resize} pixels ({settings.interpolation}), centre {settings.crop} × {settings.crop}, "
        f"mean {mean}, standard deviation {std}"
    )


def describe_device(device: str) -> str:
    """Return a device of torch, in words."""
    import torch  # noqa: PLC0415

    return torch.cuda.get_device_name(device) if device.startswith("cuda") else "CPU"


def find_training_commit(artifact: str) -> str | None:
    """Return the commit that an artifact's folder records; None if it records none."""
    try:
        facts: Any = json.loads((Path(artifact) / ARTIFACT).read_bytes())
        commit = facts["commit"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return str(commit) if commit else None


def find_commit() -> str | None:
    """Return the commit of this checkout, with a plus sign if files differ from it; None if git cannot tell."""
    describe = ["describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"]
    try:
        done = subprocess.run(
            ["git", "-C", CHECKOUT, *describe], capture_output=True, text=True, check=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
