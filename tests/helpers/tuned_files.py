"""Files of tuned settings as `--tune` writes them, without the figures that only people read."""

import json
import os
from pathlib import Path
from typing import Any

SETTINGS = {
    "placement": "cpu",
    "num_threads": 1,
    "batches_ahead": 3,
    "decode": "full",
    "hw_decoder_load": 0.0,
    "pin_threads": True,
}


def tuned_record(num_processes: int = 1, **changes: Any) -> dict[str, Any]:
    """A record of this machine."""
    return {
        "what": "loader settings",
        "format": 1,
        "settings": SETTINGS,
        "backend": "dali",
        "hardware": {"cpu": "any", "cores": len(os.sched_getaffinity(0)), "gpu": None},
        "local_processes": num_processes,
        **changes,
    }


def write_tuned(path: Path, num_processes: int = 1, **changes: Any) -> Path:
    """Write such a record and return its path."""
    path.write_text(json.dumps(tuned_record(num_processes, **changes)))
    return path
