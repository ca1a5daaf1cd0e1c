"""Every command starts from any folder, answers at once, and needs no optional package to print its help."""

from pathlib import Path

import pytest
from helpers.commands import CHECKOUT, Measured, measure_hiding
from helpers.packages import OPTIONAL, is_installed

COMMANDS = (
    *("prep/shard.py", "prep/verify.py", "prep/adopt.py", "prep/digits.py", "prep/stage.py"),
    *("train/main.py", "train/evaluate.py", "train/export.py", "train/curves.py", "train/mirror.py"),
    *("serve/gradcam_viz.py", "serve/report.py", "serve/publish.py", "serve/app.py", "serve/classify.py"),
    *("benchmarks/throughput.py", "benchmarks/compare.py", "benchmarks/prepare.py", "benchmarks/certify.py"),
    *("benchmarks/latency.py", "benchmarks/cost.py", "benchmarks/gpu_suite.py", "benchmarks/gpu_model.py"),
    *("benchmarks/gpu_pack.py", "benchmarks/report.py", "benchmarks/prove.py"),
)
DEMO = "prep/digits.py"  # a part of `make demo`
NO_TYRO = "benchmarks/gpu_model.py"  # runs on machines that have little more than torch
# Generates the command line of these.
NEEDED = {name: "tyro" for name in COMMANDS if name == "train/main.py" or name.startswith("benchmarks/")}
NEEDED.pop(NO_TYRO)
# Words without which these commands complain about what is missing first.
FIRST_WORDS = {
    "benchmarks/certify.py": ("DIR",),
    "benchmarks/latency.py": ("app",),
    "benchmarks/gpu_pack.py": ("OUT", "--data", "DIR"),
    "benchmarks/prove.py": ("verdict", "--source", "DIR"),
}
MAX_CPU_SECONDS = 1.0
# Packages that take more than a tenth of a second to import. No command needs them to parse its flags.
SLOW_TO_IMPORT = frozenset(
    [
        *("torch", "torchvision", "timm", "nvidia.dali", "captum", "gradio", "matplotlib", "sklearn", "tensorboard"),
        *("datasets", "pandas", "pyarrow.dataset", "ray", "webdataset"),
    ]
)


def ask(command: str, *words: str, folder: Path) -> Measured:
    """Run a command from another folder without optional packages. A slow answer gets a second chance."""
    if (needed := NEEDED.get(command)) and not is_installed(needed):
        pytest.skip(f"needs {needed}, which is not installed")
    hidden = OPTIONAL - {needed}
    answer = measure_hiding(hidden, CHECKOUT / command, *words, cwd=folder)
    if answer.cpu_seconds > MAX_CPU_SECONDS:  # the first start of a checkout also compiles its modules
        answer = measure_hiding(hidden, CHECKOUT / command, *words, cwd=folder)
    return answer


def test_each_command_has_a_row_in_readmes_table() -> None:
    rows = "\n".join(line for line in (CHECKOUT / "README.md").read_text().splitlines() if line.startswith("| `"))
    assert [name for name in COMMANDS if name not in rows and name != DEMO] == []


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_prints_its_help_at_once(command: str, tmp_path: Path) -> None:
    answer = ask(command, "--help", folder=tmp_path)
    assert answer.status == 0, answer.stderr
    assert "usage" in answer.stdout.lower()
    assert not answer.modules & SLOW_TO_IMPORT
    assert answer.cpu_seconds <= MAX_CPU_SECONDS


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_refuses_an_unknown_flag_at_once(command: str, tmp_path: Path) -> None:
    answer = ask(command, *FIRST_WORDS.get(command, ()), "--no-such-flag", folder=tmp_path)
    assert answer.status not in (0, None) and "Traceback" not in answer.stderr
    assert "--no-such-flag" in answer.stdout + answer.stderr or "required" in answer.stderr  # arguments come first
    assert not answer.modules & SLOW_TO_IMPORT
    assert answer.cpu_seconds <= MAX_CPU_SECONDS
