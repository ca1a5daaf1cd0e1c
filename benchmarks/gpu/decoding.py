"""Images/s of decoding alone, from encoded batches in memory to pixels: no reading, no training thread.

The rate of the complete loader is compared with this one. Windows, sizes and the decoder's options are the loader's.
"""

from typing import Any

from answer import Job
from gpu.memory import describe_memory
from gpu.usage import Usage
from gpu.worker import Report
from record import summarize
from stages.decoding import Decoding, hold_batches
from stages.stage import measure_window

from loaders import LoaderConfig, Split, TrainTransform, build_loader
from train.dist import join_world


def measure_decoding(job: Job, report: Report) -> dict[str, Any]:
    """Measure the decoding rate; return every repetition, how busy the machine was, and the GPU's memory."""
    with join_world(job["device"]) as world:
        split, config = Split(job["data"], job["split"]), LoaderConfig(**job["loader"])
        loader = build_loader(split, TrainTransform(job["size"]), job["batch_size"], world, config=config)
        with Decoding(loader, hold_batches(loader)) as stage:
            stage.calibrate(job["seconds"])
            with Usage() as usage:
                windows = [measure_window(stage) for _ in range(job["repetitions"])]
            memory = describe_memory(world.device)
    return {
        "images_per_second": summarize([window.num_images / window.seconds for window in windows]),
        "usage": usage.figures,
        **memory,
        **loader.placement.to_dict(),
    }
