"""Under NCCL a lost process is named by the others, and none of them waits for it."""

import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch.distributed as dist
from helpers.commands import free_port
from helpers.ranks import Ended, Ranks
from helpers.train_runs import PATIENCE

import train.dist
from loaders import World
from prep.errors import InputError
from train.dist import Heartbeats, PeerLostError, PeerWatch, name_lost_peer

LOST = "another process ended, so this one cannot continue"
GLOO = (
    "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer [10.0.0.2]:9318. This may "
    "indicate a remote failure"
)
NCCL = "NCCL error in: /pytorch/torch/csrc/distributed/c10d/ProcessGroupNCCL.cpp:3699, "
REMOTE = f"{NCCL}remote process exited or there was a network error, NCCL version 2.28.9\nncclRemoteError: "
TIMEOUT = (
    "[Rank 0] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=7, OpType=ALLREDUCE, NumelIn=1) ran for "
    "1800001 milliseconds before timing out."
)


@pytest.fixture(scope="module")
def peers() -> Iterator[Ranks]:
    """Forks processes that believe to be on GPUs."""
    with Ranks("helpers.peer_jobs") as warm:
        yield warm


def run_plan(peers: Ranks, folder: Path, *plan: str) -> list[Ended]:
    """Each rank does what its word of the plan says: see `helpers.peer_jobs.end_one`."""
    peers.start("end-one", len(plan), folder, port=free_port(), plan=plan)
    return peers.wait(PATIENCE)


def last_line(ended: Ended) -> str:
    """torch's own log may come before it."""
    return ended.stderr.splitlines()[-1]


def test_the_others_name_a_killed_process_where_they_talk_to_it(peers: Ranks, tmp_path: Path) -> None:
    ended = run_plan(peers, tmp_path, "meet", "die")
    assert [each.status for each in ended] == [1, -signal.SIGKILL], ended
    assert last_line(ended[0]).startswith(f"rank 0: {LOST} (") and "gloo/transport" in last_line(ended[0])


def test_the_others_name_a_killed_process_where_they_wait_for_the_gpu(peers: Ranks, tmp_path: Path) -> None:
    ended = run_plan(peers, tmp_path, "hang", "hang", "die")
    assert [each.status for each in ended] == [1, 1, -signal.SIGKILL], ended
    assert last_line(ended[0]) == f"rank 0: {LOST} (no sign of life from rank 2 for 1 seconds)"


def test_the_others_name_the_store_where_that_is_lost(peers: Ranks, tmp_path: Path) -> None:
    ended = run_plan(peers, tmp_path, "die", "hang")
    assert [each.status for each in ended] == [-signal.SIGKILL, 1], ended
    assert last_line(ended[1]) == f"rank 1: {LOST} (the store on rank 0's machine has not answered for 1 seconds)"


def test_a_refusal_is_one_line_and_ends_the_process(peers: Ranks, tmp_path: Path) -> None:
    ended = run_plan(peers, tmp_path, "refuse", "hang")
    assert [each.status for each in ended] == [1, 1], ended
    assert ended[0].stderr == "error: the loss was not finite\n"
    assert last_line(ended[1]).startswith(f"rank 1: {LOST} (")


def test_a_process_without_memory_left_says_so_in_one_line(peers: Ranks, tmp_path: Path) -> None:
    ended = run_plan(peers, tmp_path, "meet", "exhaust")
    assert [each.status for each in ended] == [1, 1], ended
    assert ended[1].stderr.startswith("error: rank 1: too little memory (CUDA out of memory. Tried to allocate 20.00")
    assert "--speed.microbatch" in ended[1].stderr and ended[1].stderr.count("\n") == 1


def test_an_unexpected_error_is_a_traceback_and_ends_the_process(peers: Ranks, tmp_path: Path) -> None:
    ended = run_plan(peers, tmp_path, "meet", "fail")
    assert [each.status for each in ended] == [1, 1], ended
    assert "peer_jobs.py" in ended[1].stderr and last_line(ended[1]) == "ZeroDivisionError: a fault of ours"
    assert last_line(ended[0]).startswith(f"rank 0: {LOST} (")


def test_a_world_that_ends_well_is_destroyed_and_was_patient(peers: Ranks, tmp_path: Path) -> None:
    ended = run_plan(peers, tmp_path, "leave", "leave")
    assert [(each.status, each.stderr) for each in ended] == [(0, ""), (0, "")], ended
    for rank in range(2):  # half an hour: others may compile, read or write for minutes
        assert (peers.group / f"asked-{rank}").read_text() == f"nccl 1800 cuda:{rank}"


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError(GLOO),
        dist.DistBackendError(REMOTE),
        dist.DistBackendError("NCCL communicator was aborted on rank 0."),
        dist.DistBackendError(TIMEOUT),
        RuntimeError(TIMEOUT),
        RuntimeError("NCCL error: remote process exited or there was a network error, NCCL version 2.28.9"),
        dist.DistNetworkError("The client socket has failed to connect to any network address"),
    ],
)
def test_errors_of_a_lost_process_are_told_as_such(error: RuntimeError) -> None:
    named = name_lost_peer(error)
    assert isinstance(named, PeerLostError)
    assert str(named).startswith(f"{LOST} (") and "\n" not in str(named)


@pytest.mark.parametrize(
    "error",
    [
        dist.DistBackendError(f"{NCCL}unhandled cuda error\nncclUnhandledCudaError: Call to CUDA function failed."),
        dist.DistBackendError(f"{NCCL}invalid usage\nncclInvalidUsage: This usually reflects invalid usage of NCCL"),
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("ProcessGroupNCCL is only supported with GPUs, no GPUs found!"),
        InputError("NCCL error: what a user wrote"),
        KeyboardInterrupt(),
    ],
)
def test_errors_of_this_process_stay_what_they_are(error: BaseException) -> None:
    assert name_lost_peer(error) is error


class Watched:
    """Two ranks of a world in one process, with one store."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, lost_seconds: float) -> None:
        store, self.ended, self.endings = dist.HashStore(), threading.Event(), list[tuple[str, int]]()
        monkeypatch.setattr(train.dist, "end_process", self._note)
        self.watches = []
        for rank in range(2):
            board = Heartbeats("alive", World())
            board.rank, board.size, board.store = rank, 2, dist.PrefixStore("alive", store)
            self.watches.append(PeerWatch(board, lost_seconds, sign_seconds=0.01))

    def _note(self, error: BaseException, rank: int) -> None:
        self.endings.append((str(error), rank))
        self.watches[rank].stopped.set()  # its threads end, as the process would
        self.ended.set()


def await_silence(watch: PeerWatch, rank: int, num_signs: int) -> None:
    while watch.silences[rank] < num_signs:
        assert not watch.stopped.wait(0.005)


def test_a_process_that_left_is_not_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(monkeypatch, lost_seconds=0.5)
    ours, theirs = watched.watches
    with ours:
        with theirs:
            pass
        await_silence(ours, 1, 150)
        assert ours.lines[1] == PeerWatch.LEFT
    assert watched.endings == []


def test_a_process_that_never_gave_a_sign_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(monkeypatch, lost_seconds=0.5)
    with watched.watches[0]:
        assert watched.ended.wait(PATIENCE)
    ((line, rank),) = watched.endings
    assert rank == 0 and line.endswith("(no sign of life from rank 1 for 0.5 seconds)")
