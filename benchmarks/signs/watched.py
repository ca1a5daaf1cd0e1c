"""Windows of a stage, measured while the GPU is watched: how busy it is, and its clocks."""

from dataclasses import dataclass

from gpu.usage import Usage
from signs.clocks import ClockSampler, Sample
from signs.nvml import open_gpu
from stages.rounds import Report, run_in_turn
from stages.stage import Stage, Window


@dataclass(frozen=True)
class Watched:
    """The windows of one stage, and what was seen of the GPU meanwhile."""

    windows: list[Window]
    usage: dict[str, float]  # from gpu.usage: percentages
    samples: list[Sample]

    def busy_share(self, name: str) -> float | None:
        """Return the mean share of the time that a part of the GPU worked, e.g. "sm"; None if it is not known."""
        percent = self.usage.get(f"{name}_percent")
        return None if percent is None else percent / 100

    @property
    def wait_share(self) -> float:
        """The share of the time that was spent waiting for a batch."""
        waited = sum(window.spent["wait"] / 1000 * len(window.batch_seconds) for window in self.windows)
        return waited / sum(window.seconds for window in self.windows)


def watch(stage: Stage, repetitions: int, report: Report) -> Watched:
    """Measure windows of a stage without a pause. nvidia-smi reports once per second: shorter ones see nothing."""
    with Usage() as usage, ClockSampler(open_gpu(stage.world.device)) as sampler:
        windows = run_in_turn([stage], repetitions, report)[stage.name]
    return Watched(windows, usage.figures, sampler.samples)
