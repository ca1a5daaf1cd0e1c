"""Which rank a process has: as given, as torch.distributed says, or as torchrun does; anything else is refused."""

import logging
import os
import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch.distributed as dist
from helpers.commands import CHECKOUT

from loaders import EvalTransform, TrainTransform, World, build, world
from loaders.world import LAUNCHERS, WorldError, find_world

OTHERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "NODE_RANK", "GROUP_RANK")
Group = Callable[[int, int], None]


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make this a process that no launcher started and that has logged no warning."""
    names = [*OTHERS, *(name for pair in LAUNCHERS.values() for name in pair)]
    for name in [*names, *(name for name in os.environ if name.startswith("SLURM_"))]:
        monkeypatch.delenv(name, raising=False)
    world.log_once.cache_clear()


@pytest.fixture
def tell(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Sets variables as a shell does: `A=1 B=2`."""

    def set_all(line: str) -> None:
        for word in line.split():
            name, _, value = word.partition("=")
            monkeypatch.setenv(name, value)

    return set_all


@pytest.fixture
def group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Group:
    """Pretend that a process group with two processes per machine exists; the others have built their loaders."""
    store = dist.FileStore(str(tmp_path / "store"), -1)

    def pretend(rank: int, size: int) -> None:
        monkeypatch.setattr(world, "_group_rank_and_size", lambda: (rank, size))
        monkeypatch.setattr(world, "_clone_group_store", lambda: dist.PrefixStore("penstock-hosts", store.clone()))
        monkeypatch.setattr(world, "HOSTS_SECONDS", 0.1)
        for other in set(range(size)) - {rank}:
            dist.PrefixStore("penstock-hosts", store).set(str(other), f"host-{other // 2}")
        monkeypatch.setattr(world.socket, "gethostname", lambda: f"host-{rank // 2}")

    return pretend


TORCHRUN = "RANK=3 WORLD_SIZE=4 LOCAL_RANK=1 LOCAL_WORLD_SIZE=2"


@pytest.mark.parametrize(
    ("line", "world"),
    [
        ("", World()),
        (TORCHRUN, World(3, 4, 1, 2)),
        ("WORLD_SIZE=1", World()),
        ("RANK=0 WORLD_SIZE=1", World()),
        ("LOCAL_RANK=0 NODE_RANK=0", World()),  # what Lightning leaves behind
        (f"{TORCHRUN} SLURM_PROCID=0 SLURM_STEP_NUM_TASKS=2", World(3, 4, 1, 2)),  # srun torchrun
        ("OMPI_COMM_WORLD_RANK=0 OMPI_COMM_WORLD_SIZE=1", World()),
        # A batch script, and a shell on a compute node, are one process of a job that may start eight.
        ("SLURM_JOB_ID=7 SLURM_NTASKS=8 SLURM_NPROCS=8 SLURM_PROCID=0 SLURM_LOCALID=0", World()),
        ("SLURM_NTASKS=8 SLURM_PROCID=0 SLURM_STEP_ID=4294967290", World()),
        ("SLURM_NTASKS=8 SLURM_PROCID=0 SLURM_STEP_ID=0 SLURM_STEP_NUM_TASKS=1", World()),
        # mpirun starts its daemons by srun, one a node: its own processes are what counts.
        ("SLURM_STEP_NUM_TASKS=4 SLURM_PROCID=2 OMPI_COMM_WORLD_RANK=0 OMPI_COMM_WORLD_SIZE=1", World()),
    ],
)
def test_a_place_that_is_known_is_taken(line: str, world: World, tell: Callable[[str], None]) -> None:
    tell(line)
    assert find_world() == world


REFUSED = {
    "WORLD_SIZE=2": "WORLD_SIZE=2, but no RANK",
    "WORLD_SIZE=2 LOCAL_RANK=1 NODE_RANK=0 MASTER_ADDR=localhost": "WORLD_SIZE=2, but no RANK",  # Lightning
    "WORLD_SIZE=0": "WORLD_SIZE must be at least 1",
    "RANK=0": "RANK=0, but no WORLD_SIZE",
    "RANK=2 WORLD_SIZE=2": "RANK must be less than WORLD_SIZE, found RANK=2 WORLD_SIZE=2",
    "RANK=0 WORLD_SIZE=0": "WORLD_SIZE must be at least 1",
    "RANK= WORLD_SIZE=2": "RANK must be a whole number, found ''",
    "RANK=0 WORLD_SIZE=two": "WORLD_SIZE must be a whole number, found 'two'",
    "RANK=-1 WORLD_SIZE=2": "RANK must be a whole number, found '-1'",
    "RANK=1.0 WORLD_SIZE=2": "RANK must be a whole number, found '1.0'",
    "RANK=0 WORLD_SIZE=2 LOCAL_RANK=2 LOCAL_WORLD_SIZE=2": "LOCAL_RANK must be less than LOCAL_WORLD_SIZE",
    "RANK=0 WORLD_SIZE=1 LOCAL_RANK=1 LOCAL_WORLD_SIZE=2": "contradict rank 0 of 1: correct them",
    "RANK=0 WORLD_SIZE=2 LOCAL_RANK=0 LOCAL_WORLD_SIZE=4": "contradict rank 0 of 2: correct them",
    "RANK=0 WORLD_SIZE=2 LOCAL_RANK=x LOCAL_WORLD_SIZE=2": "LOCAL_RANK must be a whole number",
    "LOCAL_RANK=1": "the environment has LOCAL_RANK=1, and nothing says which rank",
    "LOCAL_WORLD_SIZE=2": "the environment has LOCAL_WORLD_SIZE=2, and",
    "LOCAL_RANK=0 NODE_RANK=1": "the environment has NODE_RANK=1, and",
    "OMPI_COMM_WORLD_RANK=0 OMPI_COMM_WORLD_SIZE=2": "Open MPI started this process as 0 of 2",
    "MV2_COMM_WORLD_RANK=1 MV2_COMM_WORLD_SIZE=2": "MVAPICH started this process as 1 of 2",
    "PMI_RANK=1 PMI_SIZE=2": "MPI started this process as 1 of 2",
    "PMIX_RANK=1": "PMIx started this process, PMIX_RANK=1",
    "SLURM_PROCID=0 SLURM_NTASKS=2 SLURM_STEP_ID=0 SLURM_STEP_NUM_TASKS=2": "srun started this process as 0 of 2",
    "SLURM_PROCID=0 SLURM_NTASKS=2 SLURM_STEP_ID=0": "srun started this process as 0 of 2",
    "SLURM_PROCID=1 SLURM_NTASKS=2": "srun started this process as 1 of 2",
}


@pytest.mark.parametrize("line", REFUSED)
def test_what_is_incomplete_or_contradictory_is_one_line_whose_advice_helps(
    line: str, tell: Callable[[str], None], group: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    tell(line)
    with pytest.raises(WorldError, match=re.escape(REFUSED[line])) as refusal:
        find_world()
    text = str(refusal.value)
    assert "\n" not in text
    if "correct" in text:  # the variables themselves are wrong
        return
    assert find_world(1, 2).rank == 1
    with monkeypatch.context() as torchrun:
        for name in OTHERS:
            torchrun.delenv(name, raising=False)
        for word in TORCHRUN.split():
            torchrun.setenv(*word.split("="))
        assert find_world() == World(3, 4, 1, 2)
    rank = 0 if line == "RANK=0" else 1
    group(rank, 2)
    assert (find_world().rank, find_world().size) == (rank, 2)


def test_a_process_that_python_started_must_be_told(
    monkeypatch: pytest.MonkeyPatch, tell: Callable[[str], None]
) -> None:
    """`test_launchers.py` has real ones of mp.spawn."""
    monkeypatch.setattr("multiprocessing.parent_process", object)
    with pytest.raises(WorldError, match="started by multiprocessing, and nothing says which rank"):
        find_world()
    assert find_world(0, 1) == World()
    tell("WORLD_SIZE=1")
    assert find_world() == World()


@pytest.mark.parametrize("is_worker", [True, False])
def test_a_worker_of_ray_must_be_told(monkeypatch: pytest.MonkeyPatch, is_worker: bool) -> None:
    context = SimpleNamespace(worker=SimpleNamespace(mode=1 if is_worker else 0))
    members = {"is_initialized": lambda: True, "get_runtime_context": lambda: context, "WORKER_MODE": 1}
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(**members))
    if not is_worker:
        assert find_world() == World()
        return
    with pytest.raises(WorldError, match="started by Ray"):
        find_world()


@pytest.mark.parametrize("given", [(0, None), (None, 2), ("0", "2"), (0.0, 2), (True, 2), (2, 2), (-1, 2), (0, 0)])
def test_a_rank_that_cannot_be_is_refused(given: tuple[int | None, int | None]) -> None:
    with pytest.raises(WorldError, match=r"rank= (and world_size= )?must be"):
        find_world(*given)


def test_an_initialised_group_is_asked_first_and_tells_the_machines_apart(
    group: Group, tell: Callable[[str], None]
) -> None:
    group(3, 5)
    assert find_world() == World(3, 5, 1, 2)
    tell("LOCAL_RANK=0 LOCAL_WORLD_SIZE=1 RANK=3 WORLD_SIZE=5")
    assert find_world() == World(3, 5, 0, 1)


@pytest.mark.parametrize("line", ["RANK=0 WORLD_SIZE=2", "RANK=1 WORLD_SIZE=3", "WORLD_SIZE=1", "RANK=0"])
def test_an_environment_that_contradicts_the_group_is_refused(
    line: str, group: Group, tell: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    group(1, 2)
    tell(line)
    with pytest.raises(WorldError, match=f"says rank 1 of 2, and the environment {line}: correct or unset") as refusal:
        find_world()
    assert "rank=1, world_size=2" in str(refusal.value)
    assert find_world(1, 2) == World(1, 2, 1, 2)
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert find_world() == World(1, 2, 1, 2)


def test_a_process_that_builds_alone_does_not_wait_forever(group: Group, monkeypatch: pytest.MonkeyPatch) -> None:
    group(0, 1)
    monkeypatch.setattr(world, "_group_rank_and_size", lambda: (0, 2))
    with pytest.raises(WorldError, match="build it in each of them, or set LOCAL_RANK and LOCAL_WORLD_SIZE"):
        find_world()
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert find_world() == World(0, 2, 0, 2)


def test_cores_are_shared_out_where_nothing_says_who_else_is_here(
    tell: Callable[[str], None], caplog: pytest.LogCaptureFixture
) -> None:
    tell("RANK=0 WORLD_SIZE=4")
    with caplog.at_level(logging.WARNING, "penstock"):
        assert [find_world(), find_world()] == [World(0, 4, 0, 4)] * 2
    assert [record.message for record in caplog.records] == [
        "LOCAL_RANK and LOCAL_WORLD_SIZE are not set: the cores are divided as if all 4 processes ran on this "
        "machine; set these variables if they do not"
    ]
    assert find_world(3, 4) == World(3, 4, 3, 4)
    tell("LOCAL_RANK=0")
    assert find_world() == World(0, 4, 0, 4)


def test_a_loader_that_was_built_before_the_group_is_refused_at_its_first_epoch(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This happens in the first process of Lightning, which knows of no other one when it builds."""
    options: dict[str, Any] = {"backend": "reference", "device": "cpu"}
    places: list[dict[str, Any]] = [{}, {"rank": 0, "world_size": 1}]
    early, told = (build(digits, "train", 700, TrainTransform(size=16), **options, **place) for place in places)
    dist.init_process_group("gloo", f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        next(iter(early))  # it says the same
        monkeypatch.setattr(dist, "get_world_size", lambda: 2)
        with pytest.raises(WorldError, match=r"built as rank 0 of 1, and torch\.distributed now says rank 0 of 2"):
            iter(early)
        next(iter(told))
    finally:
        dist.destroy_process_group()
        early.close()
        told.close()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("RANK=1 WORLD_SIZE=two", "error: rank 1: the environment variable WORLD_SIZE must be a whole number"),
        ("RANK=x WORLD_SIZE=2", "error: the environment variable RANK must be a whole number"),
        ("RANK=5 WORLD_SIZE=2", "error: rank 5: RANK must be less than WORLD_SIZE"),
        ("WORLD_SIZE=2 LOCAL_RANK=1", "error: the environment has WORLD_SIZE=2, but no RANK"),
        ("SLURM_STEP_NUM_TASKS=2 SLURM_PROCID=1", "error: srun started this process as 1 of 2"),
        ("RANK=1 WORLD_SIZE=2", "error: rank 1: the processes cannot connect at MASTER_ADDR, MASTER_PORT"),
    ],
)
def test_each_process_of_training_says_so_itself(
    line: str, said: str, digits: Path, tmp_path: Path, tell: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rank 0 may have found nothing wrong, or not be there."""
    tell(line)
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    script, run = str(CHECKOUT / "train/main.py"), tmp_path / "run"
    arguments = ["demo", "--data.root", str(digits), "--run.dir", str(run), "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    with pytest.raises(SystemExit) as exit_:
        runpy.run_path(script, run_name="__main__")
    assert isinstance(exit_.value.code, str) and exit_.value.code.startswith(said)
    assert "\n" not in exit_.value.code and not run.exists()


def test_evaluation_shares_out_evenly_what_is_left_for_the_last_batch(digits: Path) -> None:
    """360 images: 300 and 60. By their usual slots rank 0 would have all 60, and the others a batch of none."""
    options: dict[str, Any] = {"backend": "reference", "device": "cpu"}
    transform, world = EvalTransform(16, 16), range(3)
    loaders = [build(digits, "validation", 100, transform, rank=rank, world_size=3, **options) for rank in world]
    batches = [[labels.tolist() for _, labels in loader] for loader in loaders]
    assert [list(map(len, each)) for each in batches] == [[100, 20]] * 3
    everything = [label for number in range(2) for each in batches for label in each[number]]
    assert everything == loaders[0].loader.split.column("label").tolist()


def test_fewer_images_than_processes_leave_some_without_and_lose_none(digits: Path) -> None:
    options: dict[str, Any] = {"backend": "reference", "device": "cpu", "world_size": 7}
    loaders = [build(digits, "validation", 51, EvalTransform(16, 16), rank=rank, **options) for rank in range(7)]
    batches = [[len(labels) for _, labels in loader] for loader in loaders]
    assert [len(each) for each in batches] == [2] * 7  # 357 and 3 images: all take part in each step
    assert sorted(each[1] for each in batches) == [0, 0, 0, 0, 1, 1, 1]
