"""Processes of every launcher read each image once per epoch between them, and resume exactly at a saved state.

Lightning and Accelerate need a separate environment (docs/loading.md). The whole table:

    PENSTOCK_FRAMEWORKS_PYTHON=/tmp/frameworks/bin/python pytest tests/loaders/test_launchers.py -rP | grep '^|'
"""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path

import pytest
from helpers.commands import CHECKOUT
from helpers.datasets import prepare_folder
from helpers.launched import DIE_AT, NUM_EPOCHS, SAVE_AT, Job, color_of, numbers_of
from PIL import Image

NUM_IMAGES, BATCH_SIZE = 1000, 50  # of all processes together
BATCHES = NUM_IMAGES // BATCH_SIZE  # an epoch
DRIVER = CHECKOUT / "tests" / "helpers" / "launched.py"
# torchrun and mp.spawn always run; they need no DALI, which takes seconds to import.
LAUNCHERS = {"torchrun": "reference", "spawn": "reference", "lightning": "dali", "accelerate": "dali"}
COMMANDS = {"torchrun": "torchrun", "accelerate": "torchrun"}  # the others start their processes by themselves
FRAMEWORKS = "PENSTOCK_FRAMEWORKS_PYTHON"


@pytest.fixture(scope="module")
def numbered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of 1,000 images of one colour each; the last digit of an image's number is its class."""
    source, out = tmp_path_factory.mktemp("numbered-source"), tmp_path_factory.mktemp("numbered")
    for number in range(NUM_IMAGES):
        path = source / "train" / f"class-{number % 10}" / f"{number:04}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 16), color_of(number)).save(path, quality=95, subsampling=0)
    shutil.copytree(source / "train", source / "validation")
    for split in ("train", "validation"):
        prepare_folder(source, split, out)
    return out


@pytest.fixture(scope="module")
def undisturbed(numbered: Path) -> list[list[int]]:
    """The images of each batch of two epochs, by one process that nothing interrupts."""
    loader = Job(str(numbered), "", BATCH_SIZE, "reference").build()
    batches = [numbers_of(images_BCHW) for _ in range(NUM_EPOCHS) for images_BCHW, _ in loader]
    loader.close()
    return batches


def find_python(launcher: str) -> str:
    """Return the interpreter that has the framework; skip the test where there is none."""
    if launcher in ("torchrun", "spawn"):
        return sys.executable
    python = os.environ.get(FRAMEWORKS)
    if not python:
        pytest.skip(f"needs an interpreter that has {launcher} (set {FRAMEWORKS})")
    return python


def launch(launcher: str, size: int, job: Job) -> subprocess.CompletedProcess[str]:
    """Run a job in `size` processes."""
    Path(job.folder).mkdir()
    command = [find_python(launcher)]
    if size > 1 and COMMANDS.get(launcher) == "torchrun":
        command += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={size}"]
    command += [str(DRIVER), launcher, str(size), json.dumps(dataclasses.asdict(job))]
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, timeout=600, capture_output=True, text=True, check=False)


def read_batches(job: Job, size: int, kind: str = "train") -> list[list[int]]:
    """Return the images of each global batch: of rank 0 first."""
    logs = [(Path(job.folder) / f"{kind}-{rank}").read_text().splitlines() for rank in range(size)]
    return [list(chain.from_iterable(map(json.loads, lines))) for lines in zip(*logs, strict=True)]


def epochs_of(batches: list[list[int]]) -> Iterator[list[int]]:
    """Yield the images of each epoch."""
    remaining = iter(batches)
    while epoch := list(islice(remaining, BATCHES)):
        yield [number for batch in epoch for number in batch]


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_every_image_comes_once_an_epoch_and_resuming_is_exact(
    launcher: str, numbered: Path, undisturbed: list[list[int]], tmp_path: Path
) -> None:
    job = Job(str(numbered), str(tmp_path / "killed"), BATCH_SIZE // 2, LAUNCHERS[launcher])
    killed = launch(launcher, 2, job)
    assert killed.returncode != 0 and job.state.exists(), killed.stderr
    before = read_batches(job, 2)
    assert before == undisturbed[:DIE_AT]

    resumed = dataclasses.replace(job, folder=str(tmp_path / "resumed"), resumes=True)
    ended = launch(launcher, 2, resumed)
    assert ended.returncode == 0, ended.stderr
    whole = before[:SAVE_AT] + read_batches(resumed, 2)
    counts = [len(epoch) for epoch in epochs_of(whole)]
    assert counts == [NUM_IMAGES] * NUM_EPOCHS
    assert all(sorted(epoch) == list(range(NUM_IMAGES)) for epoch in epochs_of(whole))
    assert whole == undisturbed

    alone = dataclasses.replace(resumed, folder=str(tmp_path / "alone"), batch_size=BATCH_SIZE)
    ended = launch(launcher, 1, alone)
    assert ended.returncode == 0, ended.stderr
    assert read_batches(alone, 1) == undisturbed[SAVE_AT:]
    if launcher == "spawn":
        for rank in range(2):
            assert "started by multiprocessing" in (tmp_path / "killed" / f"refused-{rank}").read_text()
    if launcher == "lightning":  # it has evaluated after each epoch, and looked at two batches before the first one
        seen = [number for batch in read_batches(resumed, 2, "validation") for number in batch]
        assert sorted(seen) == sorted(list(range(NUM_IMAGES)) * NUM_EPOCHS)
    print(f"| {launcher} x2 | {' + '.join(map(str, counts))} | each once | exact | exact, on 1 process |")


@pytest.mark.parametrize(
    ("launcher", "mistake", "lines"),
    [
        # Lightning starts its other processes, which build a loader too, only after its first one has built it.
        ("lightning", "early", ["WORLD_SIZE=2, but no RANK", "Lightning: build in train_dataloader"]),
        ("accelerate", "wraps", ["Accelerate's DataLoaderDispatcher", "pass the loader itself to `prepare`"]),
    ],
)
def test_what_would_lose_images_is_refused(
    launcher: str, mistake: str, lines: list[str], numbered: Path, tmp_path: Path
) -> None:
    job = Job(str(numbered), str(tmp_path / "refused"), BATCH_SIZE // 2, LAUNCHERS[launcher])
    refused = launch(launcher, 2, dataclasses.replace(job, **{mistake: True}))
    assert refused.returncode != 0
    assert all(line in refused.stderr for line in lines), refused.stderr
    assert not list(Path(job.folder).glob("train-*"))
