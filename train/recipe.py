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
    epochs and then decays linearly. Values: github.com/libffcv/ffcv-imagenet, rn50_configs (batch 512 on each of 8
    GPUs, learning rate 1.7 for all 4,096 images) and train_imagenet.py. The resolution grows between epochs 65 and 76
    of 88, in shorter runs at the same shares, rounded down. Differences: an EMA; no weight decay on any norm or bias
    (there on those of `bn` layers alone); timm's weights at the start. FFCV's accuracy is the mean of image and mirror
    image: evaluate with `train/evaluate.py --flip`.
    """
    return Recipe(
        name=f"fast_{epochs}",
        epochs=epochs,
        batch_size=4096,
        ema_half_life=710_000,  # 0.999 per step of 1,024 images
        optim=OptimConfig(lr=0.10625, weight_decay=1e-4, warmup_epochs=2, nesterov=False, schedule="linear"),
        model=ModelConfig("resnet50", blur_first=True),
        transform=TrainTransform(size=192, first_size=160, grow=(epochs * 65 // 88, epochs * 76 // 88)),
        evaluation=EvalTransform(size=256, resize=292),
    )


def fast_16() -> Recipe:
    """ResNet-50 with BlurPool in 16 epochs, 160 to 192 pixels, evaluated at 256: FFCV's recipe.

    Expected: not measured by Penstock yet; FFCV publishes 73.8%, with mirror images (8 x A100).
    Hardware: 8 GPUs x 512 images. Where they do not fit at once, set --speed.microbatch, e.g. 256.
    Command: torchrun --nproc-per-node 8 train/main.py fast_16 --data.root data/imagenet
    """
    return fast(16)


def fast_24() -> Recipe:
    """ResNet-50 with BlurPool in 24 epochs, 160 to 192 pixels, evaluated at 256: FFCV's recipe.

    Expected: not measured by Penstock yet; FFCV publishes 75.6%, with mirror images (8 x A100).
    Hardware: 8 GPUs x 512 images. Where they do not fit at once, set --speed.microbatch, e.g. 256.
    Command: torchrun --nproc-per-node 8 train/main.py fast_24 --data.root data/imagenet
    """
    return fast(24)


def fast_88() -> Recipe:
    """ResNet-50 with BlurPool in 88 epochs, 160 to 192 pixels, evaluated at 256: FFCV's recipe.

    Expected: not measured by Penstock yet; FFCV publishes 78.4%, with mirror images (8 x A100).
    Hardware: 8 GPUs x 512 images. Where they do not fit at once, set --speed.microbatch, e.g. 256.
    Command: torchrun --nproc-per-node 8 train/main.py fast_88 --data.root data/imagenet
    """
    return fast(88)


def quick(epochs: int, schedule_epochs: float | None = None) -> Recipe:
    """ResNet-50 as MosaicML trains it: small images for 40% of the schedule, which then grow to 176 pixels until 80%.

    By area an epoch costs 0.48 to 0.59 of one of FFCV's. Values: the configuration of MosaicML's MLPerf run,
    github.com/mlcommons/training_results_v2.0, MosaicML/benchmarks/resnet/implementations/8xA100_80GB-methods, as
    Composer v0.7.0-RC1 reads it: 90 epochs are scaled by 0.32 and cut to 28, the 8 epochs of warm-up are not scaled,
    and the half-life of the EMA is its default, 100 batches. docs/recipes.md names the files.

    Differences: the resolution grows in steps of 16 pixels between epochs (there 4, and at any step), so that each size
    can be compiled; images are resized once, from the photograph to the epoch's size; timm's weights at the start;
    BlurPool as FFCV's, which leaves the max pool as it is; bf16 (there fp16, --amp fp16).

    The weight decay is applied per step: with another batch size, scale it too.

    Args:
        schedule_epochs: length of the schedule, if the run stops before its end. Such a run can be continued later,
            with a larger --epochs.
    """
    length = schedule_epochs or epochs
    return Recipe(
        name=f"quick_{epochs}",
        epochs=epochs,
        batch_size=2048,
        loss="bce",
        label_smoothing=0.08,
        ema_half_life=100 * 2048,
        ema_every=20,
        optim=OptimConfig(
            lr=0.256,  # 2.048 for 2,048 images
            momentum=0.875,
            nesterov=False,
            weight_decay=5e-4,
            decay_all=True,
            decoupled=True,
            warmup_epochs=8,
            schedule_epochs=schedule_epochs,
        ),
        model=ModelConfig("resnet50", blur_first=True, prior_bias=True),
        transform=TrainTransform(
            size=176, first_size=88, grow=(round(0.4 * length, 2), round(0.8 * length, 2)), size_step=16
        ),
        evaluation=EvalTransform(size=224, resize=232),
    )


def quick_24() -> Recipe:
    """ResNet-50 in 24 epochs, 88 to 176 pixels, evaluated at 224: MosaicML's recipe, stopped at 24 of 28 epochs.

    Expected: not measured by Penstock yet; 75.29 to 75.55% at epoch 24 in ten MLPerf logs (8 x A100) of MosaicML
    (training_results_v2.0) and Ailiverse (training_results_v3.1).
    Hardware: any number of GPUs. At 176 pixels the batch of 2,048 needs about 55 GiB over all of them (from what an
    H200 needed for 512 images of 160): where a GPU's share does not fit, set --speed.microbatch, 1024 for 40 or 48 GB,
    512 for 24 GB.
    Command: torchrun --nproc-per-node 8 train/main.py quick_24 --data.root data/imagenet
    """
    return quick(24, schedule_epochs=28)


def quick_27() -> Recipe:
    """ResNet-50 in 27 epochs, 88 to 176 pixels, evaluated at 224: MosaicML's recipe, stopped at 27 of 28 epochs.

    Expected: not measured by Penstock yet; 76.02 to 76.26% at epoch 27 in ten MLPerf logs (8 x A100) of MosaicML
    (training_results_v2.0) and Ailiverse (training_results_v3.1).
    Hardware: any number of GPUs. At 176 pixels the batch of 2,048 needs about 55 GiB over all of them (from what an
    H200 needed for 512 images of 160): where a GPU's share does not fit, set --speed.microbatch, 1024 for 40 or 48 GB,
    512 for 24 GB.
    Command: torchrun --nproc-per-node 8 train/main.py quick_27 --data.root data/imagenet
    """
    return quick(27, schedule_epochs=28)


def quick_60() -> Recipe:
    """ResNet-50 in 60 epochs, 88 to 176 pixels, evaluated at 224: MosaicML's recipe at the length that they call mild.

    Expected: not measured by Penstock yet; MosaicML publishes a range for their mild runs of fewer than 60 epochs, 75
    to 78.1%.
    Hardware: any number of GPUs. At 176 pixels the batch of 2,048 needs about 55 GiB over all of them (from what an
    H200 needed for 512 images of 160): where a GPU's share does not fit, set --speed.microbatch, 1024 for 40 or 48 GB,
    512 for 24 GB.
    Command: torchrun --nproc-per-node 8 train/main.py quick_60 --data.root data/imagenet
    """
    return quick(60)


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


def finetune() -> Recipe:
    """Start from pretrained weights and train on another dataset: 10 epochs at 224 px, by default timm's ResNet-50.

    For any folder of images or parquet that prep/shard.py reads. The classifier is new if the classes are others.
    --model.name with --model.pretrained TAG, or --model.init FILE, give other weights; --model.freeze keeps parts of
    them. docs/finetuning.md has an example with results.

    Expected: depends on the dataset; not measured by Penstock for ImageNet's weights.
    Hardware: one GPU; a CPU for small networks.
    Command: torchrun train/main.py finetune --data.root data/flowers
    """
    return Recipe(
        name="finetune",
        epochs=10,
        batch_size=64,
        ema_decay=0.97,  # 1,000 images give 156 steps: a slower average would still hold the first weights
        optim=OptimConfig(lr=0.04, weight_decay=1e-4, warmup_epochs=1),  # 0.01 for this batch
        model=ModelConfig("resnet50", pretrained="default"),
        transform=TrainTransform(scale=(0.25, 1.0)),
        data=DataConfig(Path("data/finetune")),
        run=RunConfig(log_every=1_280),
    )


RECIPES: dict[str, Callable[[], Recipe]] = {
    recipe.__name__: recipe
    for recipe in (
        *(seed_113, seed_113_aug),
        *(fast_16, fast_24, fast_88),
        *(quick_24, quick_27, quick_60),
        *(tiny_imagenet, demo, finetune),
    )
}
