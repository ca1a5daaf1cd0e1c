"""Communication: the share of a training step in which a process waits for the gradients of the others.

The same step is measured with and without averaging the gradients (DDP's `no_sync`), alternately.
"""

from signs.sign import COMMUNICATION, Sign
from stages.probes import measure_pair
from stages.setting import Setting
from stages.stepping import Feed, Stepping, open_synthetic

from loaders import Loader
from train.dist import no_sync
from train.step import Step

MOST_SHARE = 0.1  # of a step


class Alone(Stepping):
    """The training step without communication; the processes' weights differ afterwards, which costs no time."""

    def take(self) -> None:
        with no_sync(self.step.model):
            super().take()


def measure_communication(loader: Loader, step: Step, setting: Setting) -> Sign | None:
    """Measure the share of a step that communication takes; None for one process. Every process must call it."""
    if loader.world.size == 1:
        return None
    with Feed(open_synthetic(loader, setting.size)) as feed:
        probe = measure_pair([Stepping(feed, step), Alone(feed, step)], setting, 0.0)
    return judge_communication(probe.rate)


def judge_communication(gain: float) -> Sign:
    """Return the sign.

    Args:
        gain: images/s of the step without communication, divided by images/s with it.
    """
    # With twice the images between two exchanges, or half the bytes, half of the communication remains per image.
    share = max(0.0, 1 - 1 / gain)
    halved = 1 / (1 - share / 2)
    says = f"Communication between the processes takes {share:.0%} of a training step"
    if share > MOST_SHARE:
        says += (
            f": with half of it the step would be {halved:.2f} x as fast. Give each process a larger batch, accumulate "
            "(a larger --batch-size with --speed.microbatch)"
        )
    return Sign(COMMUNICATION, share > MOST_SHARE, share, f"{says}.", {"share": share, "gain_if_halved": halved})
