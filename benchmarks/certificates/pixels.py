"""Certificates of pixels: images are those of their rows, and decoders agree, in pixels and in a network's logits.

`certify_pixels` uses no code of the loaders: it reads the bytes from the tars at the index's offsets, checks their
sha256 and compares with Pillow's pixels. `certify_parity` compares DALI on the CPU, and the path to the GPU in use,
with the Pillow reference, which executes the same plan. The difference in pixels may change the logits no more than
noise as large as the limit on pixels. The reference and the network stay on the CPU, so that only the pixels differ.
"""

import hashlib
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice, product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from certificates.epochs import Arrays, Certificate, Job, Report
from gpu.pixels import MOST, MOST_SUBSAMPLED, Difference, by_kind, compare_batch, is_stored_whole, render_batches
from PIL import Image
from torch import nn

from loaders import EvalTransform, Loader, LoaderConfig, Split, TrainTransform, World, build_loader
from loaders.batch import Normalize
from loaders.placement import DEFAULT_DECODE
from loaders.subset import Subset
from loaders.world import resolve_device
from prep.errors import InputError
from serve.artifact import load_artifact
from train.checkpoint import find_checkpoint, read_meta, restore_models
from train.config import ModelConfig, Recipe
from train.export import ARTIFACT, count_classes
from train.model import build_model

LEAST_AGREEMENT = 99.0  # percent of images with the same top-1; less if noise alone leaves less
RESIZE_SHARE = 256 / 224  # of evaluation's short side to its crop
BATCH_SIZE = 16


def certify_pixels(arrays: Arrays, split: Split, decodes_on_gpu: bool) -> Certificate:
    """Compare each kept image with its own file, and with the file of another image, which must differ clearly.

    Args:
        arrays: rows [K], uint8 images [K, size, size, 3], windows [K, 4] and flips [K], as kept by streams.py.
        split: the split that the images come from.
        decodes_on_gpu: a GPU decoded them, so the limit is larger.
    """
    name = "pixels are those of the rows"
    if "kept_rows" not in arrays:
        return Certificate(name, None, "nothing was decoded: give a higher --limit", "", "")
    rows_K, images_KHWC = arrays["kept_rows"], arrays["kept_images"].astype(int)

    # Read the files; their digests must be those of the index. Crop and scale them with Pillow.
    contents = [read_jpeg(split, int(row)) for row in rows_K]
    digests = split.samples.column("sha256")
    named = zip(contents, rows_K, strict=True)
    foreign = sum(hashlib.sha256(each).digest() != digests[int(row)].as_py() for each, row in named)
    geometry = zip(contents, arrays["kept_windows"], arrays["kept_flips"], strict=True)
    right_KHWC = np.stack([crop_with_pillow(*each, images_KHWC.shape[1]) for each in geometry]).astype(int)

    # Measure the mean difference from the own file and from another one.
    own_K = np.abs(images_KHWC - right_KHWC).mean((1, 2, 3))
    other_K = np.abs(images_KHWC - np.roll(right_KHWC, 1, axis=0)).mean((1, 2, 3))
    limit = MOST_SUBSAMPLED if decodes_on_gpu else MOST
    return Certificate(
        name,
        bool(own_K.max() <= limit and not foreign),
        f"{len(rows_K):,} images: worst differs by {own_K.max():.3f} of 255 on average; "
        f"from another's by {np.median(other_K):.0f} (median)" + f"; {foreign} files not the index's" * bool(foreign),
        "equal except for rounding",
        f"≤ {limit:g} per pixel: filters and decoders round differently (docs/LOG.md, parity)",
        {
            "num_images": len(rows_K),
            "worst_mean_difference": float(own_K.max()),
            "median_to_another": float(np.median(other_K)),
            "foreign_files": foreign,
        },
    )


def read_jpeg(split: Split, row: int) -> bytes:
    """Return an image's encoded bytes."""
    with split.shard_paths[split.column("shard")[row]].open("rb") as tar:
        tar.seek(split.column("offset")[row])
        return tar.read(split.column("size")[row])


def crop_with_pillow(content: bytes, window: np.ndarray, flip: bool, size: int) -> np.ndarray:
    """Return a window (top, left, height, width) as Pillow scales it: uint8 [size, size, 3]."""
    top, left, height, width = map(int, window)
    with Image.open(io.BytesIO(content)) as opened:
        image = opened.convert("RGB").crop((left, top, left + width, top + height))
    image = image.resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else image)


@dataclass(frozen=True)
class ProbeNetwork:
    """A network on the CPU: pixels of two decoders should give it the same logits."""

    what: str  # its name, for the record
    is_trained: bool  # with random weights its top-1 has no meaning
    network: nn.Module
    normalize: Normalize

    @torch.inference_mode()
    def compute_logits(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        """Return the logits, float32 [B, K] on the CPU, of pixels of 0 to 255 on any device."""
        return self.network.eval()(self.normalize(images_BCHW.cpu()))


def load_probe_network(path: Path | None, num_classes: int, seed: int) -> ProbeNetwork:
    """Load an exported model or a checkpoint of train/main.py; without a path, build resnet50d with random weights.

    Raises:
        InputError: `path` holds neither an exported model nor a checkpoint.
    """
    if path is None:
        torch.manual_seed(seed)
        network = build_model(ModelConfig(), num_classes, torch.device("cpu"))
        return ProbeNetwork("resnet50d, random weights", False, network, Normalize())

    # An export of train/export.py.
    if (path / ARTIFACT).is_file():
        facts, served = json.loads((path / ARTIFACT).read_text()), load_artifact(path)
        normalize = Normalize(served.preprocessing.mean, served.preprocessing.std)
        return ProbeNetwork(f"{facts['architecture']}, {path.name}", True, served.model, normalize)

    # A checkpoint: its EMA weights.
    if not path.is_dir():
        raise InputError(f"{path} is not a folder: give --model an export of train/export.py or a run of train/main.py")
    checkpoint = find_checkpoint(path)
    recipe = Recipe.from_dict(read_meta(checkpoint)["recipe"])
    models = restore_models(checkpoint, recipe, count_classes(checkpoint, recipe), torch.device("cpu"))
    normalize = Normalize(recipe.model.mean, recipe.model.std)
    return ProbeNetwork(f"{recipe.model.name}, {checkpoint.name}", True, models["ema"], normalize)


def list_ways(job: Job) -> dict[str, Job]:
    """Return by name the path on the CPU, and on a GPU also the path of the job, as jobs."""
    decode = job.decode if job.placement == "cpu" else DEFAULT_DECODE["cpu"]
    ways = {"CPU": replace(job, device="cpu", placement="cpu", decode=decode)}
    if job.device != "cpu":
        ways["GPU" if job.placement == "gpu" else "CPU, uploaded to the GPU"] = job
    return ways


def draw_sample(split: Split, num_images: int, seed: int) -> Split:
    """Draw images of a split, uniformly without replacement."""
    draw = np.random.Generator(np.random.Philox([seed, 2]))
    rows_N = np.sort(draw.choice(len(split), min(num_images, len(split)), replace=False))
    return Subset(split, rows_N, range(len(split.class_names)))


def certify_parity(sample: Split, job: Job, network: ProbeNetwork, report: Report) -> Iterator[Certificate]:
    """Yield a certificate for each path, one for the transform of training and one for that of evaluation."""
    resize = round(job.size * RESIZE_SHARE)
    transforms = {"training": TrainTransform(job.size), "evaluation": EvalTransform(job.size, resize)}
    for (way, each), (name, transform) in product(list_ways(job).items(), transforms.items()):
        how: dict[str, Any] = {"placement": each.placement, "decode": each.decode}
        config = LoaderConfig("dali", most_damaged=0, **how)  # an image that cannot be decoded is an error
        world = World(device=resolve_device(each.device))
        loader = build_loader(sample, transform, min(BATCH_SIZE, len(sample)), world, config=config)
        pixels, logits = compare_decoders(loader, network, report)
        yield judge_parity(f"parity, {way}, {name}", pixels, logits, network, loader.decodes_on_gpu)


def compare_decoders(
    loader: Loader, network: ProbeNetwork, report: Report
) -> tuple[list[Difference], dict[str, np.ndarray]]:
    """Return each image's difference in pixels from the reference, and the logits of both and of noisy pixels."""
    noise, pixels = torch.Generator().manual_seed(0), list[Difference]()
    logits: dict[str, list[np.ndarray]] = {"ours": [], "reference": [], "noise": []}
    batches = islice(loader, len(loader))
    for batch, reference in zip(batches, render_batches(loader, len(loader)), strict=True):
        pixels += compare_batch(batch, reference)

        # Logits of our pixels, of the reference's, and of the reference's with noise as large as the limit.
        right_BCHW = torch.from_numpy(reference.images_BHWC).permute(0, 3, 1, 2).contiguous().int()
        signs_BCHW = 2 * torch.randint(0, 2, right_BCHW.shape, generator=noise) - 1
        limits_B = torch.tensor([find_limit(kind, loader.decodes_on_gpu) for kind in reference.kinds]).int()
        noisy_BCHW = (right_BCHW + signs_BCHW * limits_B.view(-1, 1, 1, 1)).clamp(0, 255)
        for name, images in {"ours": batch.images_BCHW, "reference": right_BCHW, "noise": noisy_BCHW}.items():
            logits[name].append(network.compute_logits(images).numpy()[reference.valid_B])
        report(len(reference.kinds))
    return pixels, {name: np.concatenate(each) for name, each in logits.items()}


def find_limit(kind: str, decodes_on_gpu: bool) -> float:
    """Return the largest allowed mean difference of an image: CPU decoders agree exactly, nvJPEG rounds differently."""
    return MOST_SUBSAMPLED if decodes_on_gpu and not is_stored_whole(kind) else MOST


def judge_parity(
    name: str, pixels: list[Difference], logits: dict[str, np.ndarray], network: ProbeNetwork, decodes_on_gpu: bool
) -> Certificate:
    """Return the certificate of one path and transform."""
    # Root mean square distances in standard deviations of the logits, and percentages of images with the same top-1.
    right, figures = logits["reference"], {"model": network.what, "is_trained": network.is_trained}
    figures |= {"pixels": by_kind(pixels), "num_images": len(right)}
    scale = max(1e-12, float(right.std(axis=0).mean()))
    for suffix, others in (("", logits["ours"]), ("_by_noise", logits["noise"])):
        figures[f"logits_apart{suffix}"] = float(np.sqrt(((others - right) ** 2).mean())) / scale
        figures[f"same_top1_percent{suffix}"] = float(100 * (others.argmax(1) == right.argmax(1)).mean())

    # Three conditions: pixels within the limit, logits no further apart than by noise, the same top-1.
    near = all(mean <= find_limit(kind, decodes_on_gpu) for kind, mean, _ in pixels)
    least = min(LEAST_AGREEMENT, figures["same_top1_percent_by_noise"])
    agrees = figures["same_top1_percent"] >= least or not network.is_trained
    means = [mean for _, mean, _ in pixels]
    note = "" if network.is_trained else " (random weights: ignored)"
    return Certificate(
        name,
        near and figures["logits_apart"] <= figures["logits_apart_by_noise"] and agrees,
        f"{len(pixels)} images: pixels differ by {np.mean(means):.3f} of 255, worst image {max(means):.3f}, "
        f"worst pixel {max(most for *_, most in pixels)}; logits {figures['logits_apart']:.4f}; "
        f"same top-1 {figures['same_top1_percent']:.1f}%{note}",
        f"logits {figures['logits_apart_by_noise']:.4f} apart by noise ({network.what})",
        f"image ≤ {MOST:g} of 255" + f" (subsampled {MOST_SUBSAMPLED:g})" * decodes_on_gpu
        + "; logits ≤ noise of that size"
        + f"; top-1 ≥ {LEAST_AGREEMENT:g}%, or as with noise" * network.is_trained,
        figures,
    )  # fmt: skip
