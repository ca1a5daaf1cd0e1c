"""The files of cloud/ that other programs read: each is given to the program itself, or to its linter."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from helpers.commands import CHECKOUT
from helpers.tools import CFN_LINT, HADOLINT, SHELLCHECK, SKYPILOT, tool_bin

CLOUD = CHECKOUT / "cloud"
# Prints what SkyPilot makes of each file, or why it refuses it.
PARSE = """
import sys
import sky
for path in sys.argv[1:]:
    try:
        for found in sky.Task.from_yaml(path).resources:
            place = found.infra.cloud, found.infra.region
            print(*place, found.use_spot, found.accelerators, found.local_disk, found.job_recovery)
    except Exception as error:
        print(type(error).__name__, " ".join(str(error).split()))
"""


def run(*command: object, cwd: Path = CHECKOUT, **variables: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **{name: str(value) for name, value in variables.items()}}
    words = list(map(str, command))
    return subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, check=False)


def test_shellcheck_is_silent() -> None:
    scripts = [*sorted(CLOUD.glob("*.sh")), CLOUD / "train.sbatch", CHECKOUT / ".ci/run"]
    assert len(scripts) > 4
    checked = run(tool_bin(SHELLCHECK) / "shellcheck", *scripts)
    assert (checked.returncode, checked.stdout) == (0, "")


def test_all_scripts_can_be_started() -> None:
    assert [script.name for script in CLOUD.glob("*.sh") if not os.access(script, os.X_OK)] == []


def test_hadolint_is_silent_about_the_dockerfile() -> None:
    checked = run(tool_bin(HADOLINT) / "hadolint", "--no-color", CLOUD / "Dockerfile")
    assert (checked.returncode, checked.stdout) == (0, "")
    (capabilities,) = [word for word in (CLOUD / "Dockerfile").read_text().split() if "CAPABILITIES" in word]
    assert capabilities == "NVIDIA_DRIVER_CAPABILITIES=compute,utility,video"


def test_cfn_lint_is_silent(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text((CLOUD / "spot.cfn.yaml").read_text().replace("CapacityRebalance:", "CapacityRebalancing:"))
    checked = run(tool_bin(CFN_LINT) / "cfn-lint", "--format", "parseable", CLOUD / "spot.cfn.yaml", wrong)
    assert checked.returncode == 2, checked.stderr
    (line,) = checked.stdout.splitlines()
    assert line.startswith(str(wrong))
    assert "CapacityRebalancing" in line


def test_skypilot_parses_the_task_and_refuses_a_misspelt_key(tmp_path: Path) -> None:
    task = (CLOUD / "penstock.sky.yaml").read_text()
    paths = [CLOUD / "penstock.sky.yaml"]
    for right, wrong in {"local_disk": "lokal_disk", "envs:": "environment:"}.items():
        paths.append(tmp_path / f"{len(paths)}.yaml")
        paths[-1].write_text(task.replace(right, wrong))
    # SkyPilot keeps a database in the home folder.
    parsed = run(tool_bin(*SKYPILOT) / "python", "-c", PARSE, *paths, HOME=tmp_path)
    assert parsed.returncode == 0, parsed.stderr
    *found, disk, variables = parsed.stdout.splitlines()
    # It does not refuse a misspelt key of job_recovery: these are the names that it reads.
    recovery = {"recover_on_exit_codes": [75], "max_restarts_on_errors": 2, "strategy": None}
    choices = ["A10G", "L4", "L40S"]
    assert sorted(found) == [f"AWS us-east-1 True {{'{name}': 4}} nvme:300+ {recovery}" for name in choices]
    assert "lokal_disk" in disk
    assert "environment" in variables


def test_the_task_starts_the_script_that_all_start() -> None:
    task = yaml.safe_load((CLOUD / "penstock.sky.yaml").read_text())
    assert task["setup"] == "cloud/setup.sh"
    assert task["run"] == "exec cloud/run.sh $PENSTOCK_ARGUMENTS"


@pytest.mark.parametrize("status", [0, 1, 75])
def test_a_slurm_job_requeues_itself_when_it_was_asked_to_leave(tmp_path: Path, status: int) -> None:
    if shutil.which("bash") is None:
        pytest.skip("needs bash")
    calls = tmp_path / "calls"
    train = f'echo "$PENSTOCK_TORCHRUN|$PENSTOCK_MIRROR" >> {calls}; exit {status}'
    pretended = {
        "srun": f'[ "$5" = cloud/setup.sh ] && exit 0; {train}',
        "scontrol": f'echo "scontrol $*" >> {calls}; [ "$1" = requeue ] || printf "node7\\nnode8\\n"',
    }
    for name, script in pretended.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    slurm = {"SLURM_NNODES": 2, "SLURM_JOB_ID": 11, "SLURM_JOB_NODELIST": "node[7-8]", "SLURM_CPUS_PER_TASK": 96}
    job = run("bash", CLOUD / "train.sbatch", "fast_24", PATH=f"{tmp_path}:{os.environ['PATH']}", **slurm)
    assert job.returncode == status, job.stderr
    options = "--nnodes 2 --rdzv-backend c10d --rdzv-id 11 --rdzv-endpoint node7:29500"
    requeued = ["scontrol requeue 11"] if status == 75 else []
    assert calls.read_text().splitlines() == [
        "scontrol show hostnames node[7-8]",
        f"{options}|s3://BUCKET/runs/first",
        *requeued,
    ]
