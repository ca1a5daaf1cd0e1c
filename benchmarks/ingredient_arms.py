"""The arms of benchmarks/ingredients.py: what each trains, and its command line."""

import sys
from dataclasses import dataclass
from pathlib import Path

from stores import CHECKOUT

CLASSES, IMAGES_PER_CLASS, VALIDATION_PER_CLASS = 40, 75, 50
EPOCHS, BATCH_SIZE, SIZE, MODEL = 6, 64, 48, "resnet10t"
TRAIN = CHECKOUT / "train" / "main.py"
TIMM = "timm's train.py"
COMMON = (  # flags of train/main.py in every arm
    *("tiny_imagenet", "--device", "cpu", "--amp", "bf16", "--model.name", MODEL),
    *("--epochs", str(EPOCHS), "--batch-size", str(BATCH_SIZE), "--optim.warmup-epochs", "1"),
    *("--transform.size", str(SIZE), "--evaluation.size", str(SIZE), "--evaluation.resize", str(SIZE)),
    *("--run.evaluate-every", "inf", "--run.save-every", "inf", "--run.log-every", "6000"),
    *("--loader.num-threads", "1", "--ema-half-life", "1280", "--ema-every", "4"),  # the EMA: 20 steps, 4 of them
)
LEARNING_RATE = "0.4"  # for a batch of 256, the best of RATES
RATES = ("0.2", "0.4", "0.8")  # tried with the baseline and with BCE, one seed each
GROW = ("--transform.first-size", "24", "--transform.grow", "2.4", "4.8", "--transform.size-step", "8")
TWICE = ("--epochs", "12", "--optim.warmup-epochs", "2", "--transform.grow", "4.8", "9.6")
BCE = ("--loss", "bce", "--model.prior-bias")
BLUR = ("--model.blur-first",)
# A step of coupled decay shrinks weights by lr * 5e-4 / (1 - momentum) in the long run. The same at the peak:
# 0.1 (0.4 for 256 images, at 64) * 5e-4 / (1 - 0.9).
DECAY = ("--optim.decoupled", "--optim.decay-all", "--optim.weight-decay", "5e-4")


@dataclass(frozen=True)
class Arm:
    """What is trained: the flags that differ from COMMON, and the seeds."""

    flags: tuple[str, ...]
    seeds: tuple[int, ...] = (0, 1, 2)


def list_arms(wanted: list[str] | None = None) -> dict[str, Arm]:
    """Return the arms by name, in the order in which they run; only those in `wanted`, unless that is None."""
    arms = {f"tuning: cross-entropy, lr {each}": Arm(("--optim.lr", each), (7,)) for each in RATES}
    arms |= {f"tuning: BCE, lr {each}": Arm((*BCE, "--optim.lr", each), (7,)) for each in RATES}
    flags: tuple[str, ...] = ("--optim.lr", LEARNING_RATE)
    arms[TIMM] = Arm(flags)
    for name, added in {
        "baseline": (),
        "+ growing resolution": GROW,
        "+ BCE, prior bias": BCE,
        "+ blur first": BLUR,
        "+ decoupled decay of all": DECAY,
    }.items():
        flags = (*flags, *added)
        arms[name] = Arm(flags)
    arms["growing resolution alone, twice the images"] = Arm(("--optim.lr", LEARNING_RATE, *GROW, *TWICE))
    return {name: arm for name, arm in arms.items() if wanted is None or any(each in name for each in wanted)}


def build_command(name: str, arm: Arm, seed: int, work: Path, timm: Path | None) -> list[str]:
    """Return the command line of one run."""
    shards, out = work / "shards", work / "run"
    if name == TIMM:
        return [sys.executable, str(timm), *timm_flags(arm, seed), "--data-dir", str(shards), "--output", str(out)]
    return [
        *(sys.executable, str(TRAIN), *COMMON, *arm.flags),
        *("--seed", str(seed), "--data.root", str(shards), "--run.dir", str(out)),
    ]


def timm_flags(arm: Arm, seed: int) -> list[str]:
    """Return the flags of timm's train.py that mean the same as those of an arm."""
    rate = float(arm.flags[arm.flags.index("--optim.lr") + 1]) * BATCH_SIZE / 256
    size = str(SIZE)
    return [
        *("--dataset", "wds/tiny", "--train-split", "train", "--val-split", "validation", "--device", "cpu"),
        *("--model", MODEL, "--num-classes", str(CLASSES), "--input-size", "3", size, size, "--crop-pct", "1.0"),
        *("--amp", "--amp-dtype", "bfloat16", "--channels-last", "--workers", "1", "--experiment", "timm"),
        *("--epochs", str(EPOCHS), "--batch-size", str(BATCH_SIZE), "--val-interval", str(EPOCHS)),
        *("--opt", "sgd", "--lr", str(rate), "--momentum", "0.9", "--weight-decay", "5e-4"),
        *("--sched", "cosine", "--sched-on-updates", "--warmup-epochs", "1", "--warmup-lr", "0", "--min-lr", "0"),
        *("--smoothing", "0.1", "--scale", "0.25", "1.0", "--color-jitter", "0", "--hflip", "0.5"),
        *("--train-interpolation", "bilinear", "--interpolation", "bilinear", "--seed", str(seed)),
        *("--mean", "0.485", "0.456", "0.406", "--std", "0.229", "0.224", "0.225"),
    ]
