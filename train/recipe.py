"""The recipes, one function each. The docstring states the expected accuracy with its source, hardware and command.

To add a recipe: write a function here and add it to RECIPES; most are `replace(another(), ...)`.
`train/main.py --help` prints the first line of each docstring and what follows `Expected:`.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from loaders.augment import AugmentConfig
from loaders.plan import EvalTransform, TrainTransform
from train.config import DataConfig, EraseConfig, MixConfig, ModelConfig, OptimConfig, Recipe, RunConfig

DEFAULT_RECIPE = "seed_113"


def seed_113() -> Recipe:
    """ResNet-50D on ImageNet-1k, the plain recipe: 113 epochs at 224 px, batch 256 (4 GPUs x 64).

    Expected: not measured by Penstock yet; 78.5% EMA top-1 (75.1% at epoch 80) in the run that it follows, which had
    more augmentation.
    Hardware: 4 GPUs, e.g. an EC2 g5.12xlarge (4 x A10G).
    Command: torchrun --nproc-per-node 4 train/main.py seed_113 --data.root data/imagenet
    """
    return Recipe(
        name="seed_113",
        epochs=113,
        optim=OptimConfig(lr=0.1, momentum=0.9, weight_decay=1e-4, warmup_epochs=5),
        model=ModelConfig("resnet50d"),
    )


def seed_113_aug() -> Recipe:
    """ResNet-50D as the reference run trained it: seed_113 plus RandAugment, Mixup, CutMix and random erasing.

    Mixing ends at epoch 52 and erasing at 83, without a restart.

    Expected: not measured by Penstock yet; 78.5% EMA top-1 (75.1% at epoch 80) in the reference run.
    Hardware: 4 GPUs, e.g. an EC2 g5.12xlarge (4 x A10G).
    Command: torchrun --nproc-per-node 4 train/main.py seed_113_aug --data.root data/imagenet
    """
    plain = seed_113()
    return replace(
        plain,
        name="seed_113_aug",
        transform=replace(plain.transform, augment=AugmentConfig("rand", magnitude=9, std=0.5)),
        mix=MixConfig(mixup=0.2, cutmix=1.0, until=52),
        erase=EraseConfig(probability=0.25, until=83),
    )


def fast(epochs: int) -> Recipe:
    """ResNet-50 with BlurPool in few epochs, as FFCV trains it: the resolution grows from 160 to 192 late in the run.

    Evaluation is at 256 pixels, more than in training (FixRes, arXiv 1906.06423). The learning rate warms up over two
    epochs and then decays linearly. Values: github.com/libffcv/ffcv-imagenet, rn50_configs. There the resolution grows
    between epochs 65 and 76 of 88; here at the same shares of `epochs`. Additions: an EMA, evaluation without flips.
    """
    return Recipe(
        name=f"fast_{epochs}",
        epochs=epochs,
        batch_size=1024,
        ema_decay=0.999,
        optim=OptimConfig(lr=0.425, weight_decay=1e-4, warmup_epochs=2, nesterov=False, schedule="linear"),
        model=ModelConfig("resnetblur50"),
        transform=TrainTransform(size=192, first_size=160, grow=(round(epochs * 65 / 88), round(epochs * 76 / 88))),
        evaluation=EvalTransform(size=256, resize=292),
    )


def fast_16() -> Recipe:
    """ResNet-50 with BlurPool in 16 epochs, 160 to 192 pixels, evaluated at 256.

    Expected: not measured by Penstock yet; FFCV publishes 73.8% (8 x A100).
    Hardware: 8 GPUs. With fewer, set --speed.microbatch.
    Command: torchrun --nproc-per-node 8 train/main.py fast_16 --data.root data/imagenet
    """
    return fast(16)


def fast_24() -> Recipe:
    """ResNet-50 with BlurPool in 24 epochs, 160 to 192 pixels, evaluated at 256.

    Expected: not measured by Penstock yet; FFCV publishes 75.6% (8 x A100).
    Hardware: 8 GPUs. With fewer, set --speed.microbatch.
    Command: torchrun --nproc-per-node 8 train/main.py fast_24 --data.root data/imagenet
    """
    return fast(24)


def fast_88() -> Recipe:
    """ResNet-50 with BlurPool in 88 epochs, 160 to 192 pixels, evaluated at 256.

    Expected: not measured by Penstock yet; FFCV publishes 78.4% (8 x A100).
    Hardware: 8 GPUs. With fewer, set --speed.microbatch.
    Command: torchrun --nproc-per-node 8 train/main.py fast_88 --data.root data/imagenet
    """
    return fast(88)


def tiny_imagenet() -> Recipe:
    """ResNet-18 on Tiny ImageNet (200 classes, 64 px), 30 epochs: a real run for one small GPU, or for a CPU with time.

    Expected: not measured at full length yet (docs/LOG.md has the results of short CPU runs).
    Command: torchrun --nproc-per-node 2 train/main.py tiny_imagenet --data.root data/tiny-imagenet
    """
    return Recipe(
        name="tiny_imagenet",
        epochs=30,
        amp="none",
        ema_decay=0.998,
        model=ModelConfig("resnet18"),
        optim=OptimConfig(lr=0.2, weight_decay=5e-4, warmup_epochs=2),
        transform=TrainTransform(size=64, scale=(0.25, 1.0)),
        evaluation=EvalTransform(size=64, resize=64),
        data=DataConfig(Path("data/tiny-imagenet")),
        run=RunConfig(log_every=2_560),
    )


def demo() -> Recipe:
    """A small ResNet on scikit-learn's digits: the complete pipeline on a laptop's CPU in one to two minutes.

    Expected: 98% EMA top-1 or more on the 360 held-out digits (docs/LOG.md).
    Command: make demo
    """
    return Recipe(
        name="demo",
        epochs=8,
        batch_size=64,
        amp="none",
        ema_decay=0.97,
        model=ModelConfig("resnet10t"),
        optim=OptimConfig(lr=0.2, weight_decay=5e-4, warmup_epochs=1),
        transform=TrainTransform(size=32, scale=(0.6, 1.0), hflip=0.0),  # a mirrored digit is a different shape
        evaluation=EvalTransform(size=32, resize=32),
        data=DataConfig(Path("data/digits")),
        run=RunConfig(log_every=1_437, save_every=2.0),
    )


RECIPES: dict[str, Callable[[], Recipe]] = {
    recipe.__name__: recipe for recipe in (seed_113, seed_113_aug, fast_16, fast_24, fast_88, tiny_imagenet, demo)
}
