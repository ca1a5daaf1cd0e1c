"""Started by a launcher in `test_launchers.py`: a training loop that records the images of each batch.

The images are of one colour each, which spells their number, so a number is read from the pixels that arrive, whatever
is between the loader and the loop. Only torch and what `loaders` needs are imported, besides the framework at hand.
"""

import dataclasses
import json
import os
import signal
import sys
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from loaders import Epochs, EvalTransform, TrainTransform, World, build
from prep.errors import InputError

STEP, FIRST = 25, 5  # between levels of a channel, and the lowest one: ten levels, a decimal digit each
SAVE_AT, DIE_AT = 7, 9  # batches: the state is saved in the middle of an epoch, and more of it is trained on before
NUM_EPOCHS, SEED = 2, 3


def color_of(number: int) -> tuple[int, int, int]:
    """Return the colour that spells a number of three digits."""
    red, green, blue = (FIRST + STEP * (number // 10**power % 10) for power in range(3))
    return red, green, blue


def numbers_of(images_BCHW: torch.Tensor) -> list[int]:
    """Return the numbers that images of bytes spell."""
    digits_B3 = ((images_BCHW.float().mean((2, 3)) - FIRST) / STEP).round().long()
    return (digits_B3 * torch.tensor([1, 10, 100])).sum(1).tolist()


@dataclass(frozen=True)
class Job:
    """The arguments of all processes of a launch."""

    data: str
    folder: str
    batch_size: int  # of a process
    backend: str
    resumes: bool = False  # from the state that an earlier launch saved; otherwise save it, and die a little later
    wraps: bool = False  # put a DataLoader around the loader
    early: bool = False  # build the loader before the launcher or the framework has said which rank this is
    options: tuple[tuple[str, Any], ...] = ()  # more of `build`

    @property
    def state(self) -> Path:
        """Path of the saved state, which `resumes` reads."""
        return Path(self.folder).parent / "state"

    def build(self, split: str = "train") -> Epochs:
        """Build a process's loader."""
        transform = TrainTransform(size=16) if split == "train" else EvalTransform(size=16, resize=16)
        options = {"backend": self.backend, "device": "cpu", "seed": SEED, **dict(self.options)}
        return build(self.data, split, self.batch_size, transform, "uint8", **options)

    def log(self, rank: int, kind: str, images_BCHW: torch.Tensor, labels_B: torch.Tensor) -> None:
        """Record the images of a batch."""
        numbers = numbers_of(images_BCHW)
        assert [number % 10 for number in numbers] == labels_B.tolist()
        with open(Path(self.folder) / f"{kind}-{rank}", "a") as file:
            file.write(json.dumps(numbers) + "\n")


def die(rank: int) -> None:
    """End as by a power failure; rank 0 lets the others go first, or it would take the launcher with it."""
    dist.barrier()
    os.kill(os.getpid(), signal.SIGKILL)


def train(job: Job, rank: int, loader: Any) -> None:
    """Train in a plain loop, in step with the other ranks."""
    num_batches = 0
    for _ in range(NUM_EPOCHS):
        for images_BCHW, labels_B in loader:
            job.log(rank, "train", images_BCHW, labels_B)
            meet()
            num_batches += 1
            if not job.resumes and num_batches == SAVE_AT and rank == 0:
                job.state.write_text(json.dumps(loader.state_dict()))
            if not job.resumes and num_batches == DIE_AT:
                die(rank)
            if job.resumes and num_batches == NUM_EPOCHS * len(loader) - SAVE_AT:
                return


def meet() -> None:
    """Wait for all processes, as gradients do at each step."""
    if dist.is_initialized():
        dist.all_reduce(torch.tensor(0))


def run_plain(job: Job, rank: int, size: int, *, joins: bool) -> None:
    """Train as scripts of torchrun and of mp.spawn do, most of which join a process group first."""
    early = job.build() if job.early else None
    if joins:
        store = f"file://{job.folder}/store"
        dist.init_process_group("gloo", store, timedelta(seconds=60), rank=rank, world_size=size)
    loader = early or job.build()
    assert loader.loader.world == World(rank, size, rank, size)  # all are on this machine
    if job.resumes:
        loader.load_state_dict(json.loads(job.state.read_text()))
    train(job, rank, torch.utils.data.DataLoader(loader, batch_size=None) if job.wraps else loader)
    if joins:
        dist.destroy_process_group()


def run_spawned(rank: int, job: Job, size: int) -> None:
    """Run as mp.spawn starts it: the rank is unknown until the process joins a group, or gives it to `build`."""
    torch.set_num_threads(1)
    try:
        job.build()
    except InputError as error:
        (Path(job.folder) / f"refused-{rank}").write_text(str(error))
    given = dataclasses.replace(job, options=(("rank", rank), ("world_size", size))).build()
    assert (given.loader.world.rank, given.loader.world.size) == (rank, size)
    run_plain(job, rank, size, joins=True)


def run_accelerate(job: Job, size: int) -> None:
    """Train with Accelerate, which also saves the state and loads it."""
    from accelerate import Accelerator  # noqa: PLC0415  # pyright: ignore[reportMissingImports]

    early = job.build() if job.early else None
    accelerator = Accelerator(cpu=True)
    loader: Any = early or job.build()
    accelerator.register_for_checkpointing(loader)
    wrapped = torch.utils.data.DataLoader(loader, batch_size=None) if job.wraps else loader
    model, batches = accelerator.prepare(torch.nn.Linear(3, 10), wrapped)
    assert job.wraps or batches is loader
    if job.resumes:
        accelerator.load_state(str(job.state))
    num_batches = 0
    for _ in range(NUM_EPOCHS):
        for images_BCHW, labels_B in batches:
            job.log(accelerator.process_index, "train", images_BCHW, labels_B)
            accelerator.backward(model(images_BCHW.float().mean((2, 3))).sum())
            num_batches += 1
            if not job.resumes and num_batches == SAVE_AT:
                accelerator.save_state(str(job.state))
            if not job.resumes and num_batches == DIE_AT:
                die(accelerator.process_index)
            if job.resumes and num_batches == NUM_EPOCHS * len(loader) - SAVE_AT:
                break
    accelerator.end_training()


def run_lightning(job: Job, size: int) -> None:
    """Train with Lightning, which starts the other processes, and saves the loader's state in its checkpoints."""
    import lightning  # noqa: PLC0415  # pyright: ignore[reportMissingImports]

    early = job.build() if job.early else None

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.num_batches = torch.nn.Linear(3, 10), 0

        def train_dataloader(self) -> Any:
            loader = early or job.build()
            return torch.utils.data.DataLoader(loader, batch_size=None) if job.wraps else loader

        def val_dataloader(self) -> Any:
            return job.build("validation")

        def training_step(self, batch: Any, _: int) -> torch.Tensor:
            images_BCHW, labels_B = batch
            job.log(self.global_rank, "train", images_BCHW, labels_B)
            return self.model(images_BCHW.float().mean((2, 3))).sum()

        def validation_step(self, batch: Any, _: int) -> None:
            if not self.trainer.sanity_checking:
                job.log(self.global_rank, "validation", *batch)

        def on_train_batch_end(self, *_: Any) -> None:
            self.num_batches += 1
            if not job.resumes and self.num_batches == SAVE_AT:
                self.trainer.save_checkpoint(job.state)
            if not job.resumes and self.num_batches == DIE_AT:
                die(self.global_rank)

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=1e-9)

    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=size,
        strategy="ddp" if size > 1 else "auto",
        max_epochs=NUM_EPOCHS,
        default_root_dir=job.folder,
        **dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False),
    )
    trainer.fit(Module(), ckpt_path=job.state if job.resumes else None)


def main() -> None:
    """Run one process of a launch: `launched.py LAUNCHER SIZE JOB`."""
    launcher, size, fields = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
    job = Job(**fields | {"options": tuple(map(tuple, fields.get("options", ())))})
    torch.set_num_threads(1)
    if launcher == "spawn":
        torch.multiprocessing.spawn(run_spawned, (job, size), size)
    elif launcher == "torchrun":
        run_plain(job, int(os.environ.get("RANK", "0")), size, joins=size > 1)
    else:
        {"accelerate": run_accelerate, "lightning": run_lightning}[launcher](job, size)


if __name__ == "__main__":
    main()
