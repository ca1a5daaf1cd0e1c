"""Conclusions from the suite's results: which decode paths may be used, which is best, which placement trains faster.

By its parity case, a decode path is `right`, `differs` (only subsampled JPEGs exceed their bound: their colours are
upsampled differently) or `wrong`; or that case has crashed, hung or failed. A path that differs may be used if none is
right. Any other path is never chosen, except the safe one if nothing was measured.
"""

from typing import Any

Results = dict[str, dict[str, Any]]  # records by the name of their case

PARITY, DECODE, LOAD = "parity-", "decode-", "load-"
FALLBACK = "full-0"  # the safe path, complete images without the hardware engine: no failure of it is known
GPU_WINS = 1.02  # times the CPU's rate: below that the placements count as equal, and the CPU's bits are exact


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
    """Return the median images/s of a finished case, None if there is none."""
    if record is None or record["status"] != "done":
        return None
    return (record["result"].get("images_per_second") or {}).get("median")
