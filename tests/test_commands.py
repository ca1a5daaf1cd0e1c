"""Every command starts from any folder, answers at once, and needs no optional package to print its help."""

from pathlib import Path

import pytest
from helpers.commands import CHECKOUT, Measured, measure_hiding
from helpers.packages import OPTIONAL, is_installed

COMMANDS = (
    *("prep/shard.py", "prep/verify.py", "prep/adopt.py", "prep/digits.py", "prep/stage.py"),
    *("train/main.py", "train/evaluate.py", "train/export.py", "train/curves.py", "train/mirror.py"),
    *("serve/gradcam_viz.py", "serve/report.py", "serve/publish.py", "serve/app.py"),
    *("benchmarks/throughput.py", "benchmarks/prove_verdict.py", "benchmarks/peers.py", "benchmarks/preparation.py"),
    *("benchmarks/startup.py", "benchmarks/sweeps.py", "benchmarks/results.py", "benchmarks/pictures.py"),
    *("benchmarks/serving.py", "benchmarks/gpu_suite.py", "benchmarks/gpu_pack.py", "benchmarks/gpu_model.py"),
    *("benchmarks/certify.py", "benchmarks/prove_tuning.py", "benchmarks/ingredients.py", "benchmarks/cost.py"),
    "benchmarks/staging.py",
)
NEEDED = {"train/main.py": "tyro"}  # generates the command line
MAX_CPU_SECONDS = 1.0
# Packages that take more than a tenth of a second to import. No command needs them to parse its flags.
SLOW_TO_IMPORT = frozenset(
    [
        *("torch", "torchvision", "timm", "nvidia.dali", "captum", "gradio", "matplotlib", "sklearn", "tensorboard"),
        *("datasets", "pandas", "pyarrow.dataset", "ray", "webdataset"),
    ]
)


def ask(command: str, flag: str, folder: Path) -> Measured:
    """Run a command from another folder without optional packages. A slow answer gets a second chance."""
    if (needed := NEEDED.get(command)) and not is_installed(needed):
        pytest.skip(f"needs {needed}, which is not installed")
    hidden = OPTIONAL - {needed}
    answer = measure_hiding(hidden, CHECKOUT / command, flag, cwd=folder)
    if answer.cpu_seconds > MAX_CPU_SECONDS:  # the first start of a checkout also compiles its modules
        answer = measure_hiding(hidden, CHECKOUT / command, flag, cwd=folder)
    return answer


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_prints_its_help_at_once(command: str, tmp_path: Path) -> None:
    answer = ask(command, "--help", tmp_path)
    assert answer.status == 0, answer.stderr
    assert "usage" in answer.stdout.lower()
    assert not answer.modules & SLOW_TO_IMPORT
    assert answer.cpu_seconds <= MAX_CPU_SECONDS


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_refuses_an_unknown_flag_at_once(command: str, tmp_path: Path) -> None:
    answer = ask(command, "--no-such-flag", tmp_path)
    assert answer.status not in (0, None) and "Traceback" not in answer.stderr
    assert "--no-such-flag" in answer.stdout + answer.stderr or "required" in answer.stderr  # arguments come first
    assert not answer.modules & SLOW_TO_IMPORT
    assert answer.cpu_seconds <= MAX_CPU_SECONDS
