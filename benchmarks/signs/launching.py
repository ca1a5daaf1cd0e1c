"""Launching: the CPU needs longer to launch a step's work than the GPU needs to do it, so the GPU is idle.

Two signs of it. A step of 2 images launches the same kernels as a complete one, but the GPU finishes them at once: if
it takes almost as long, launching decides. It is measured without communication, which does not depend on the images
either. And the GPU is idle although training does not wait for data; this also finds launches that are slow because
the loader's threads use the cores.

The time until the launching loop returns, compared with the time until the GPU has finished, would show neither. The
driver holds about a thousand launches, and one step of ResNet-50 has 1,036 (records/h200/gpu-model.json): the loop
waits for the GPU in any case.
"""

import statistics
from collections.abc import Sequence

from signs.communication import Alone
from signs.sign import LAUNCHING, Sign
from stages.setting import Setting
from stages.stage import Window, measure_window
from stages.stepping import Feed, open_synthetic

from loaders import Loader
from train.step import Step

REPETITIONS = 3
FEW_IMAGES = 2  # images of a small step at once: BatchNorm needs two
MOST_FIXED = 0.7  # share of a step that a step of few images takes
MOST_IDLE, MOST_WAIT = 0.15, 0.05  # shares of the time that the GPU is idle, and that training waits for data
ADVICE = "--speed.compile reduce-overhead (CUDA graphs), --speed.compile default, or more images per step"


def measure_few(loader: Loader, step: Step, setting: Setting) -> float | None:
    """Return the seconds of a step of few images without communication; None with torch.compile.

    They do not depend on the resolution, as long as launching decides.
    """
    if setting.compile != "none":  # it would compile for the small batch
        return None
    batch_size = FEW_IMAGES * step.num_parts * loader.world.size
    if batch_size >= loader.batch_size:
        return None
    with Feed(open_synthetic(loader, setting.size, batch_size)) as feed:
        stage = Alone(feed, step)
        stage.calibrate(setting.seconds)
        return step_seconds([measure_window(stage) for _ in range(REPETITIONS)])


def step_seconds(windows: Sequence[Window]) -> float:
    """Return the median time of a step."""
    return statistics.median(window.seconds / len(window.batch_seconds) for window in windows)


def judge_launching(
    fixed_share: float | None, idle: float | None = None, wait: float | None = None, has_gpu: bool = True
) -> Sign | None:
    """Return the sign; None if nothing of it was measured.

    Args:
        fixed_share: time of a step of few images, as a share of a complete step.
        idle: share of the time of training in which the GPU was idle.
        wait: share of the time that training waited for data.
    """
    facts, found = [], []
    if fixed_share is not None:
        facts.append(f"a step of {FEW_IMAGES} images takes {fixed_share:.0%} of the time of a complete one")
        found.append(fixed_share > MOST_FIXED)
    if idle is not None and wait is not None:
        facts.append(f"the GPU is idle {idle:.0%} of the time while training waits {wait:.0%} of it for data")
        found.append(idle > MOST_IDLE and wait < MOST_WAIT)
    if not facts:
        return None
    says = " and ".join(facts)
    if any(found) and has_gpu:
        says += f": launching its work takes the CPU too long. Not measured here: {ADVICE}"
    elif any(found):
        says += ": most of its time does not depend on the number of images. More images per step help"
    share = max(fixed_share or 0.0, idle if found[-1] and idle is not None else 0.0)
    figures = {"fixed_share": fixed_share, "idle_share": idle, "wait_share": wait}
    return Sign(LAUNCHING, any(found), share, f"{says[0].upper()}{says[1:]}.", figures)
