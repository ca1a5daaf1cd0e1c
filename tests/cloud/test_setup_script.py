"""cloud/setup.sh and `make env EXTRAS=...`: what they install, when they do nothing, and old drivers."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from helpers.commands import CHECKOUT

SMI = '#!/bin/sh\n[ "$*" = "--query-gpu=driver_version --format=csv,noheader" ] && echo "{driver}"\n'
UV = '#!/bin/sh\necho "uv $*" >> "$CALLS"\n[ "$2" = find ] && echo /managed/python3.13 || :\n'
MAKE = '#!/bin/sh\necho "make $*" >> "$CALLS"\ncase "$*" in *--question*) exit {is_old} ;; esac\n'
# Stands for Python: `-m venv .venv` makes a folder with itself and a uv in it, which writes down what it installs.
PYTHON = """#!/bin/sh
echo "python $*" >> "$CALLS"
case "$*" in *"-m venv"*)
    case "$*" in *--clear*) rm -rf .venv ;; esac
    mkdir -p .venv/bin
    for name in python uv; do printf '#!/bin/sh\\necho "%s $*" >> "$CALLS"\\n' $name > .venv/bin/$name; done
    chmod +x .venv/bin/* ;;
esac
"""


class Machine:
    """Pretended commands first in the path, and what they were called with."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.calls = folder, folder / "calls"
        (folder / "bin").mkdir()

    def pretend(self, name: str, script: str) -> None:
        (self.folder / "bin" / name).write_text(script)
        (self.folder / "bin" / name).chmod(0o755)

    def run(self, *command: object) -> subprocess.CompletedProcess[str]:
        """Run a command; what was called is anew in `self.calls`."""
        self.calls.write_text("")
        return subprocess.run(
            list(map(str, command)),
            cwd=self.folder,
            env={
                "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}",
                "HOME": str(self.folder),
                "CALLS": str(self.calls),
            },
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def called(self) -> list[str]:
        return self.calls.read_text().splitlines()


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """A GPU machine with a new driver and uv, whose .venv is not there yet."""
    machine = Machine(tmp_path)
    machine.pretend("nvidia-smi", SMI.format(driver="580.95.05"))
    machine.pretend("uv", UV)
    machine.pretend("make", MAKE.format(is_old=1))
    return machine


def test_the_environment_is_built_with_the_python_of_uv(machine: Machine) -> None:
    run = machine.run(CHECKOUT / "cloud/setup.sh")
    assert (run.returncode, run.stderr) == (0, "")
    assert machine.called() == [
        f"make --silent --question -C {CHECKOUT} .venv/.installed EXTRAS=cu13,s3",
        "uv python install --quiet 3.13",
        "uv python find --managed-python 3.13",
        f"make -C {CHECKOUT} env PYTHON=/managed/python3.13 EXTRAS=cu13,s3",
    ]


def test_an_environment_that_is_current_is_left_alone(machine: Machine) -> None:
    machine.pretend("make", MAKE.format(is_old=0))
    assert machine.run(CHECKOUT / "cloud/setup.sh").returncode == 0
    assert len(machine.called()) == 1


@pytest.mark.parametrize(
    ("driver", "error"),
    [
        ("570.133.20", "error: the NVIDIA driver is 570.133.20, CUDA 13 needs 580 or newer: use a newer image"),
        ("NVIDIA-SMI has failed", "error: nvidia-smi answers 'NVIDIA-SMI has failed' instead of the driver's version"),
    ],
)
def test_an_old_driver_is_one_line(machine: Machine, driver: str, error: str) -> None:
    machine.pretend("nvidia-smi", SMI.format(driver=driver))
    run = machine.run(CHECKOUT / "cloud/setup.sh")
    assert run.returncode == 1
    assert run.stderr.startswith(error)
    assert run.stderr.count("\n") == 1
    assert machine.called() == [], "nothing is installed"


def test_make_env_installs_other_extras_into_a_new_environment(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.pretend("python", PYTHON)
    for name in ("Makefile", "pyproject.toml", "constraints.txt", "prep/_transcode.c", "loaders/_read.c"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(CHECKOUT / name, tmp_path / name)

    def make_env(*variables: str) -> list[str]:
        """Run `make env`; how it made the environment and what it installed."""
        run = machine.run("make", "env", f"PYTHON={tmp_path}/bin/python", *variables)
        assert run.returncode == 0, run.stderr
        return [
            line.split()[-1]
            for line in machine.called()
            if "venv .venv" in line or "-m venv" in line or "uv pip" in line
        ]

    assert make_env() == [".venv", ".[app,cu12,dev]"]
    assert make_env() == []
    (tmp_path / ".venv/old").touch()
    assert make_env("EXTRAS=cu13,s3") == [".venv", ".[cu13,s3]"]
    assert not (tmp_path / ".venv/old").exists()
    assert make_env("EXTRAS=cu13,s3") == make_env() == [], "without EXTRAS an environment stays as it is"
    os.utime(tmp_path / ".venv/.installed", (0, 0))  # older than pyproject.toml
    (tmp_path / ".venv/old").touch()
    assert make_env() == [".venv", ".[cu13,s3]"]
    assert (tmp_path / ".venv/old").exists()
