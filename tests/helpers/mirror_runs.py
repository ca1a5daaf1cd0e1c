"""Runs with a mirror in a real S3 server, and what their bucket holds."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from helpers.ranks import Ranks
from helpers.swift_server import SwiftServer
from helpers.train_runs import PATIENCE, Run, assert_ended, start
from train.mirror_fetch import fetch_run
from train.mirror_store import RunStore

BUCKET, PREFIX = "runs", "one/first"
URL = f"s3://{BUCKET}/{PREFIX}"
MIRRORED = ("--run.mirror", URL)
FILES = ["ema.safetensors", "meta.json", "metrics.jsonl", "model.safetensors", "optimizer.pt", "starts.jsonl"]


@dataclass
class Bucket:
    """The objects of the run at URL."""

    server: SwiftServer
    settings: dict[str, Any] = field(default_factory=dict)  # of the processes that use it: see `apply_settings`

    def objects(self) -> dict[str, int]:
        """Return the names and sizes of all objects."""
        chunks = self.server.open(BUCKET).list()
        return {each["path"].removeprefix(f"{PREFIX}/"): each["size"] for chunk in chunks for each in chunk}

    def read(self, name: str) -> bytes:
        """Return the content of an object."""
        return self.server.open(BUCKET).get(f"{PREFIX}/{name}").bytes().to_bytes()

    def write(self, name: str, content: bytes) -> None:
        """Replace an object."""
        self.server.open(BUCKET).put(f"{PREFIX}/{name}", content)

    def delete(self, name: str) -> None:
        """Delete an object."""
        self.server.open(BUCKET).delete(f"{PREFIX}/{name}")

    def checkpoints(self) -> dict[str, list[str]]:
        """Return the names of the objects of each checkpoint, whole or not."""
        found: dict[str, list[str]] = {}
        for path in self.objects():
            if path.startswith("checkpoints/"):
                _, folder, name = path.split("/")
                found.setdefault(folder, []).append(name)
        return {folder: sorted(found[folder]) for folder in sorted(found)}

    def claims(self) -> list[dict[str, Any]]:
        """Return the claims."""
        return [json.loads(self.read(name)) for name in sorted(self.objects()) if name.startswith("claims/")]

    def has_partial(self) -> bool:
        """Return True if a checkpoint is being uploaded."""
        return any("meta.json" not in names for names in self.checkpoints().values())

    def assert_no_half(self, folder: Path) -> None:
        """All checkpoints that have a meta.json are whole."""
        damaged: list[str] = []
        fetch_run(RunStore(URL), folder, damaged.append)
        assert damaged == []

    def start(self, ranks: Ranks, run: Run, size: int, *, held: bool = False, **settings: Any) -> Path:
        """Start train/main.py with this mirror; the group's folder."""
        return start(ranks, run, size, "script-mirrored", held=held, settings={**self.settings, **settings})

    def finish(self, ranks: Ranks, run: Run, size: int, **settings: Any) -> str:
        """Train to the end; what rank 0 printed."""
        group = self.start(ranks, run, size, **settings)
        assert_ended(ranks.wait(PATIENCE), 0)
        return (group / "stdout-0").read_text()
