"""Staging, a run with a mirror, read-through, resuming and preparing under cloud/policy.json, enforced by moto."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.commands import CHECKOUT
from helpers.datasets import tree
from helpers.moto_server import MotoServer, load_policy
from helpers.train_runs import FLAGS, PATIENCE, SAVE_OFTEN

pytestmark = pytest.mark.needs("simplejpeg", "tyro", "obstore")
BUCKET, DATA, RUN = "ours", "imagenet", "runs/first"
MAKE_BUCKET = 'client("s3").create_bucket(Bucket="ours")'


@pytest.fixture(scope="module")
def variables(moto: MotoServer, digits: Path) -> dict[str, str]:
    """Put a dataset into a bucket; return the environment of a machine that has the policy and nothing more."""
    from prep.remote import Remote  # noqa: PLC0415

    moto.ask(MAKE_BUCKET)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in moto.environment().items():
            patch.setenv(name, value)
        remote = Remote(f"s3://{BUCKET}/{DATA}")
        for name, content in tree(digits).items():
            remote.put(name, content)
    keys = moto.make_user(load_policy(BUCKET, DATA, RUN))
    return {**os.environ, **moto.environment(keys), "OMP_NUM_THREADS": "1"}


def run(variables: dict[str, str], *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a command of ours on the machine."""
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(
        command, cwd=CHECKOUT, env=variables, capture_output=True, text=True, timeout=3 * PATIENCE, check=False
    )


def assert_no_keys(variables: dict[str, str], folder: Path, *commands: subprocess.CompletedProcess[str]) -> None:
    """Check that neither the output of commands nor any file they wrote holds the key or the secret."""
    contents = [each.encode() for command in commands for each in (command.stdout, command.stderr)]
    for content in (*contents, *tree(folder).values()):
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            assert variables[name].encode() not in content


def test_staging(variables: dict[str, str], digits: Path, tmp_path: Path) -> None:
    staged = run(variables, "prep/stage.py", f"s3://{BUCKET}/{DATA}", "--to", tmp_path)
    assert staged.returncode == 0, staged.stderr
    assert tree(tmp_path) == tree(digits)
    assert_no_keys(variables, tmp_path, staged)


def test_training_and_resuming(variables: dict[str, str], tmp_path: Path) -> None:
    run_dir, fetched = tmp_path / "run", tmp_path / "fetched"
    mirror = f"s3://{BUCKET}/{RUN}"
    places = ["--data.root", f"s3://{BUCKET}/{DATA}", "--data.cache", tmp_path / "cache", "--run.dir", run_dir]
    command = ["train/main.py", "demo", *FLAGS, *SAVE_OFTEN, *places, "--run.mirror", mirror]
    first = run(variables, *command, "--epochs", "1")
    assert first.returncode == 0, first.stderr
    assert "AccessDenied" not in first.stdout + first.stderr

    # Another machine has nothing but the bucket. The finished run has nothing left to train.
    shutil.rmtree(run_dir)
    shutil.rmtree(tmp_path / "cache")
    again = run(variables, *command, "--epochs", "1")
    assert again.returncode == 0, again.stderr
    assert "nothing left to train" in again.stdout
    assert run(variables, "train/mirror.py", mirror, "--to", fetched).returncode == 0
    newest = max(fetched.glob("checkpoints/step_*"))
    assert (newest / "model.safetensors").read_bytes() == (
        run_dir / "checkpoints" / newest.name / "model.safetensors"
    ).read_bytes()
    assert_no_keys(variables, tmp_path, first, again)
    refused = run(variables, *command[:-1], f"s3://{BUCKET}/runs/second", "--epochs", "1")
    assert refused.returncode == 1
    assert variables["AWS_ACCESS_KEY_ID"] not in refused.stderr
    assert "the policy must allow" in refused.stderr
    assert refused.stderr.count("\n") == 1


def test_preparing_where_the_policy_allows_to_write(variables: dict[str, str], digits_source: Path) -> None:
    """S3 answers 403 for every object that does not exist yet."""
    out = f"s3://{BUCKET}/{RUN}/prepared"
    prepared = run(variables, "prep/shard.py", "--source", digits_source, "--out", out, "--limit", 8)
    assert prepared.returncode == 0, prepared.stderr
    verified = run(variables, "prep/verify.py", out)
    assert verified.returncode == 0, verified.stderr
