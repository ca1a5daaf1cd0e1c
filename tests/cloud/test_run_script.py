"""cloud/run.sh: what it starts, what its exit status says, and what a signal does."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.commands import CHECKOUT
from helpers.train_runs import FLAGS, PATIENCE, await_that

# Pretends to be torchrun or a Python command: writes down its arguments, then does what $DOES says.
PRETENDED = """#!/bin/bash
case "$0 $1" in *setup.sh*) name=setup ;; *stage.py*) name=stage ;; *) name=train ;; esac
printf '%s\\n' "$@" > "$FOLDER/$name"
while [ $# -gt 0 ]; do [ "$1" = --run.dir ] && run=$2; shift; done
leave() { mkdir -p "$run"; echo "{\\"left\\": $$}" > "$run/continue.json"; exit 1; }
case "$name $DOES" in
*" fail") exit 3 ;;
"train leave") leave ;;
"train wait") trap leave TERM ;;&
"train detach") # its processes outlive it, and save later
    mkdir -p "$run"; touch "$run/run.lock"; mkfifo "$FOLDER/go"
    setsid bash -c "exec 9>'$run/run.lock'; flock 9; touch '$FOLDER/ready'; read < '$FOLDER/go'
        echo late > '$run/continue.json'" &
    until [ -e "$FOLDER/ready" ]; do sleep 0.01; done; exit 1 ;;
*" wait") sleep 1000 & touch "$FOLDER/ready"; wait ;;
esac
"""


class Machine:
    """A checkout with cloud/ and pretended commands, the disk of a machine, and how run.sh is started on it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.disk, self.checkout = folder, folder / "disk", folder / "checkout"
        shutil.copytree(CHECKOUT / "cloud", self.checkout / "cloud")
        (folder / "bin").mkdir()
        for name in ("torchrun", "python"):
            self.pretend(self.checkout / ".venv/bin" / name, PRETENDED)
        self.variables: dict[str, object] = {
            "PENSTOCK_DATA": "s3://bucket/imagenet",
            "PENSTOCK_MIRROR": "s3://bucket/runs/first",
            "PENSTOCK_DISK": self.disk,
            "PENSTOCK_NPROC": 2,
            "PENSTOCK_SKIP_SETUP": 1,
            "FOLDER": folder,
        }

    @property
    def marker(self) -> Path:
        return self.disk / "runs/first/continue.json"

    def pretend(self, path: Path, script: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(script)
        path.chmod(0o755)

    def start(self, *arguments: str, **variables: object) -> subprocess.Popen[str]:
        given = {name: str(value) for name, value in (self.variables | variables).items() if value is not None}
        return subprocess.Popen(
            [self.checkout / "cloud/run.sh", *arguments],
            env={**os.environ, "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}", **given},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, *arguments: str, **variables: object) -> tuple[int, str]:
        """Run to the end; the exit status, and what was said."""
        process = self.start(*arguments, **variables)
        said = "".join(process.communicate(timeout=PATIENCE))
        return process.returncode, said

    def refuses(self, *arguments: str, **variables: object) -> str:
        """Run; the line with which it refuses before anything is started."""
        status, said = self.run(*arguments, **variables)
        assert status == 1
        assert said.startswith("error: "), said
        assert said.count("\n") == 1, said
        assert not (self.folder / "train").exists()
        return said

    def called(self, name: str) -> list[str]:
        """Return the arguments that a pretended command got."""
        return (self.folder / name).read_text().splitlines()


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """A machine without GPUs."""
    return Machine(tmp_path)


def test_it_reads_through_unless_told_to_stage(machine: Machine) -> None:
    assert machine.run("seed_113", "--epochs", "20") == (0, "run.sh: the run is finished\n")
    main, cache = f"{machine.checkout}/train/main.py", f"{machine.disk}/imagenet"
    start = ["--standalone", "--nproc-per-node", "2", main, "seed_113"]
    rest = ["--run.dir", f"{machine.disk}/runs/first", "--run.mirror", "s3://bucket/runs/first", "--device", "cpu"]
    through = ["--data.root", "s3://bucket/imagenet", "--data.cache", cache]
    assert machine.called("train") == [*start, *through, *rest, "--epochs", "20"]
    assert not (machine.folder / "stage").exists()
    assert machine.run("seed_113", PENSTOCK_STAGE=1)[0] == 0
    assert machine.called("stage") == [f"{machine.checkout}/prep/stage.py", "s3://bucket/imagenet", "--to", cache]
    assert machine.called("train") == [*start, "--data.root", cache, *rest]


def test_folders_nodes_and_gpus(machine: Machine, tmp_path: Path) -> None:
    machine.pretend(tmp_path / "bin/nvidia-smi", "#!/bin/sh\nfor i in 0 1 2 3; do echo GPU $i: NVIDIA L4; done\n")
    newer_torch = machine.checkout / ".venv/lib/python3.13/site-packages/torch/distributed/run.py"
    newer_torch.parent.mkdir(parents=True)
    newer_torch.write_text('"--shutdown-timeout",')
    run, nodes = tmp_path / "ebs/first", "--nnodes 2 --rdzv-id 7"
    data: dict[str, object] = {"PENSTOCK_DATA": "/imagenet", "PENSTOCK_RUN": run, "PENSTOCK_MIRROR": None}
    assert machine.run("--epochs", "1", **data, PENSTOCK_NPROC=None, PENSTOCK_TORCHRUN=nodes)[0] == 0
    assert machine.called("train") == [
        *("--nnodes", "2", "--rdzv-id", "7", "--shutdown-timeout", "110", "--nproc-per-node", "4"),
        *(f"{machine.checkout}/train/main.py", "--data.root", "/imagenet", "--run.dir", str(run), "--epochs", "1"),
    ]
    assert not machine.disk.exists(), "no disk was asked for"


def test_only_75_means_that_the_run_can_go_on(machine: Machine) -> None:
    status, said = machine.run(DOES="leave")
    assert status == 75
    assert "was asked to leave and has saved: the same command continues" in said
    # The marker of that time does not count for a start that fails.
    assert machine.run(DOES="fail") == (3, "run.sh: training failed (torchrun ended with 3)\n")
    assert machine.marker.exists()
    assert machine.run(DOES="leave")[0] == 75
    assert machine.run(PENSTOCK_STAGE=1, DOES="fail") == (3, ""), "stage.py says what failed"


def test_it_waits_for_processes_that_save_after_their_torchrun_has_ended(machine: Machine) -> None:
    process = machine.start(DOES="detach")
    await_that((machine.folder / "ready").exists, "the lock is held")
    with (machine.folder / "go").open("w") as go:
        assert not machine.marker.exists()
        go.write("\n")
    _, said = process.communicate(timeout=PATIENCE)
    assert (process.returncode, machine.marker.read_text()) == (75, "late\n"), said


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_reaches_torchrun(machine: Machine, number: signal.Signals) -> None:
    process = machine.start(DOES="wait")
    await_that((machine.folder / "ready").exists, "training")
    process.send_signal(number)
    _, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == 75, said
    assert machine.marker.exists()


@pytest.mark.parametrize("step", ["setup", "stage"])
def test_a_signal_before_training_ends_all_processes(machine: Machine, step: str) -> None:
    variables: dict[str, object] = {"PENSTOCK_STAGE": 1}
    if step == "setup":
        machine.pretend(machine.checkout / "cloud/setup.sh", PRETENDED)
        variables = {"PENSTOCK_SKIP_SETUP": None}
    process = machine.start(DOES="wait", **variables)
    await_that((machine.folder / "ready").exists, step)
    process.terminate()
    # The pipe closes only when the last process that was started has ended.
    assert process.communicate(timeout=PATIENCE)[1] == "run.sh: SIGTERM: the same command continues\n"
    assert process.returncode == 75
    assert not (machine.folder / "train").exists()


def test_a_command_runs_when_the_run_is_finished(machine: Machine) -> None:
    done = machine.folder / "done"
    assert machine.run(DOES="leave", PENSTOCK_WHEN_FINISHED=f"touch {done}")[0] == 75
    assert not done.exists()
    assert machine.run(PENSTOCK_WHEN_FINISHED=f"touch {done}")[0] == 0
    assert done.exists()
    status, said = machine.run(PENSTOCK_WHEN_FINISHED="false")
    assert (status, said.splitlines()[-1]) == (
        1,
        "error: the run is finished, but PENSTOCK_WHEN_FINISHED failed: false",
    )


def test_settings_that_are_missing_or_contradict_are_one_line(machine: Machine) -> None:
    assert "PENSTOCK_DATA is not set" in machine.refuses(PENSTOCK_DATA=None)
    assert "the run would end with the machine" in machine.refuses(PENSTOCK_MIRROR=None)
    assert "PENSTOCK_NPROC=1 trains on the CPU" in machine.refuses(PENSTOCK_NPROC=None)
    assert "(it is '0')" in machine.refuses(PENSTOCK_NPROC=0)
    assert "--run.dir is set by" in machine.refuses("seed_113", "--run.dir=elsewhere")
    assert "--dry-run trains nothing" in machine.refuses("seed_113", "--dry-run")
    assert "cannot be made" in machine.refuses(PENSTOCK_DISK="/proc/none").splitlines()[-1]
    (machine.checkout / ".venv/bin/torchrun").unlink()
    assert "torchrun is missing: run cloud/setup.sh" in machine.refuses()


@pytest.mark.needs("simplejpeg", "tyro")
def test_a_real_run_saves_on_sigterm(machine: Machine, digits: Path) -> None:
    torchrun = pytest.importorskip("torch.distributed.run", reason="needs torch, which is not installed").__file__
    script = f'#!/bin/sh\nexec {sys.executable} -m torch.distributed.run "$@"\n'
    machine.pretend(machine.checkout / ".venv/bin/torchrun", script)
    module = machine.checkout / ".venv/lib/python3/site-packages/torch/distributed/run.py"
    module.parent.mkdir(parents=True)
    module.symlink_to(torchrun)
    (machine.checkout / "train").symlink_to(CHECKOUT / "train")
    variables: dict[str, object] = {"PENSTOCK_DATA": digits, "PENSTOCK_MIRROR": None, "PENSTOCK_NPROC": 1}
    variables |= {"PENSTOCK_RUN": (run := machine.folder / "run"), "PYTHONPATH": CHECKOUT}
    process = machine.start("demo", *FLAGS, "--epochs", "200", **variables)
    metrics = run / "metrics.jsonl"
    await_that(lambda: (metrics.exists() and "\n" in metrics.read_text()) or process.poll() is not None, "a log")
    process.terminate()
    said = "".join(process.communicate(timeout=PATIENCE))
    assert process.returncode == 75, said
    assert "SIGTERM: saved at image" in said
    assert json.loads((run / "continue.json").read_text())["reason"] == "SIGTERM"
