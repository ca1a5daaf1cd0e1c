"""A stand-in for a GPU in tests of the loader without one: streams, events with a clock, and the upload.

Nothing here computes on a GPU. What it shows is what the loader asks of one: on which stream, in which order.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest
import torch

from loaders import World, batch

GPU = World(device=torch.device("cuda", 0))


class FakeStream:
    """Work queued on it is done at once, and takes no time: a test sets the clock."""

    def __init__(self, device: object = None) -> None:
        self.now = 0.0  # milliseconds
        self.awaited: list[FakeEvent] = []

    def wait_event(self, event: "FakeEvent") -> None:
        self.awaited.append(event)
        self.now = max(self.now, event.at)


class FakeEvent:
    """Happens at its stream's time; `is_done` is what `query` answers."""

    all: "list[FakeEvent]" = []  # noqa: RUF012  (emptied by `pretend`)

    def __init__(self, enable_timing: bool = False, blocking: bool = False) -> None:
        self.has_timing, self.is_done, self.at, self.is_recorded = enable_timing, False, 0.0, False
        FakeEvent.all.append(self)

    def record(self, stream: FakeStream) -> None:
        self.at, self.is_recorded = stream.now, True

    def query(self) -> bool:
        return self.is_done

    def synchronize(self) -> None:
        self.is_done = True

    def elapsed_time(self, later: "FakeEvent") -> float:
        assert self.has_timing and later.has_timing and self.is_recorded and later.is_recorded
        return later.at - self.at


@dataclass
class PretendGpu:
    """The requests of the loader to the GPU."""

    consumer: FakeStream = field(default_factory=FakeStream)  # the training thread's stream
    current: list[FakeStream] = field(default_factory=list)  # streams that were made current, innermost last
    pinned: list[int] = field(default_factory=list)  # addresses of pinned memory
    num_uploads: int = 0
    num_recorded: int = 0  # calls of Tensor.record_stream


def pretend(monkeypatch: pytest.MonkeyPatch) -> PretendGpu:
    """Replace what the loader uses of CUDA; uploads copy from host memory to host memory."""
    gpu = PretendGpu()
    FakeEvent.all.clear()
    monkeypatch.setattr("loaders.placement.find_capability", lambda world: (8, 6))  # on any machine the same choice

    def allocate_pinned(shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        memory = torch.empty(tuple(shape), dtype=dtype)
        gpu.pinned.append(memory.data_ptr())
        return memory

    def send(host: torch.Tensor, device: torch.device) -> torch.Tensor:
        assert device == GPU.device and host.is_contiguous() and host.data_ptr() in gpu.pinned
        assert gpu.current, "an upload must be queued on the loader's stream"
        gpu.num_uploads += 1
        return host.clone()

    @contextmanager
    def make_current(stream: FakeStream) -> Iterator[None]:
        gpu.current.append(stream)
        yield
        gpu.current.pop()

    def record_stream(tensor: torch.Tensor, stream: FakeStream) -> None:
        assert stream is gpu.consumer
        gpu.num_recorded += 1

    monkeypatch.setattr(batch, "_allocate_pinned", allocate_pinned)
    monkeypatch.setattr(batch, "_copy_to_gpu", send)
    monkeypatch.setattr(torch.cuda, "Stream", FakeStream)
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(torch.cuda, "stream", make_current)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: gpu.consumer)
    monkeypatch.setattr(torch.Tensor, "record_stream", record_stream)
    return gpu
