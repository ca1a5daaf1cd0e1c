"""The certificate of decoders: DALI on the CPU, and the path to the GPU in use, compared with the Pillow reference.

They are compared with the transforms of training and of evaluation; both loaders execute the same plan. The difference
in pixels may change a network's logits no more than noise as large as the limit on pixels.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from certificates.collect import Report
from certificates.job import Job
from certificates.judge import ProbeNetwork
from certificates.verdict import Certificate
from gpu.parity import MOST, MOST_SUBSAMPLED, WHOLE, Difference, by_kind, describe_jpeg

from loaders import EvalTransform, Loader, LoaderConfig, Split, TrainTransform, World, build_loader
from loaders.placement import DEFAULT_DECODE
from loaders.subset import Subset
from loaders.world import resolve_device

LEAST_AGREEMENT = 99.0  # percent of images with the same top-1; less if noise alone leaves less
RESIZE_SHARE = 256 / 224  # of evaluation's short side to its crop
BATCH_SIZE = 16


@dataclass(frozen=True)
class Way:
    """One path from encoded images to pixels on a device."""

    name: str
    device: str  # of the pixels: "cpu" or "cuda"
    placement: str  # where they are decoded: "cpu" or "gpu"
    decode: str

    @property
    def decodes_on_gpu(self) -> bool:
        return self.placement == "gpu"

    @property
    def config(self) -> LoaderConfig:
        """The loader's settings; an image that cannot be decoded is an error."""
        how: dict[str, Any] = {"placement": self.placement, "decode": self.decode}
        return LoaderConfig("dali", most_damaged=0, **how)


def list_ways(job: Job) -> list[Way]:
    """Return the path on the CPU, and on a GPU also the path of the job's loader."""
    alone = Way("CPU", "cpu", "cpu", job.decode if job.placement == "cpu" else DEFAULT_DECODE["cpu"])
    if job.device == "cpu":
        return [alone]
    name = "GPU" if job.placement == "gpu" else "CPU, uploaded to the GPU"
    return [alone, Way(name, job.device, job.placement, job.decode)]


@dataclass(frozen=True)
class Sample:
    """Images to compare decoders on."""

    split: Split
    pixels: int  # of the square output
    seed: int

    @property
    def transforms(self) -> dict[str, TrainTransform | EvalTransform]:
        """Transforms to compare, by name."""
        evaluation = EvalTransform(self.pixels, round(self.pixels * RESIZE_SHARE))
        return {"training": TrainTransform(self.pixels), "evaluation": evaluation}


def draw_sample(split: Split, num_images: int, pixels: int, seed: int) -> Sample:
    """Draw images of a split for a sample, uniformly without replacement."""
    draw = np.random.Generator(np.random.Philox([seed, 2]))
    rows_N = np.sort(draw.choice(len(split), min(num_images, len(split)), replace=False))
    return Sample(Subset(split, rows_N, range(len(split.class_names))), pixels, seed)


def certify_parity(sample: Sample, network: ProbeNetwork, way: Way, report: Report) -> Iterator[Certificate]:
    """Yield one certificate for each transform. The reference and the network stay on the CPU."""
    world = World(device=resolve_device(way.device))
    for name, transform in sample.transforms.items():
        size = min(BATCH_SIZE, len(sample.split))
        ours = build_loader(sample.split, transform, size, world, config=way.config)
        right = build_loader(sample.split, transform, size, config=LoaderConfig("reference", most_damaged=0))
        pixels, logits = compare_loaders(ours, right, network, report)
        yield build_certificate(f"parity, {way.name}, {name}", pixels, logits, network, way.decodes_on_gpu)


def compare_loaders(
    ours: Loader, right: Loader, network: ProbeNetwork, report: Report
) -> tuple[list[Difference], list[dict[str, np.ndarray]]]:
    """Return each image's difference in pixels from the reference, and the logits of both and of noisy pixels.

    Args:
        ours: the loader to check.
        right: the reference loader; both are read batch by batch, and have the same plan.
        network: computes the logits.
        report: called with the number of images compared.
    """
    noise = torch.Generator().manual_seed(0)
    pixels: list[Difference] = []
    logits: list[dict[str, np.ndarray]] = []
    for batch, reference in zip(*(islice(loader, len(right)) for loader in (ours, right)), strict=True):
        assert (batch.rows_B == reference.rows_B).all()

        # Pixels: the mean and the largest difference of each image that is not padding.
        valid_B, wanted_BCHW = reference.valid_B, reference.images_BCHW.int()
        apart_BCHW = (batch.images_BCHW.cpu().int() - wanted_BCHW).abs()
        kinds = [describe_jpeg(right.split, int(row)) for row in reference.rows_B]
        means_B, most_B = apart_BCHW.float().mean((1, 2, 3)).tolist(), apart_BCHW.amax((1, 2, 3)).tolist()
        found = zip(kinds, means_B, most_B, strict=True)
        pixels += [each for each, valid in zip(found, valid_B.tolist(), strict=True) if valid]

        # Logits of our pixels, of the reference's, and of the reference's with noise as large as the limit.
        signs_BCHW = 2 * torch.randint(0, 2, wanted_BCHW.shape, generator=noise) - 1
        limits_B = torch.tensor([limit_of(kind, ours.decodes_on_gpu) for kind in kinds])
        noisy_BCHW = wanted_BCHW + signs_BCHW * limits_B.view(-1, 1, 1, 1).int()
        shown = {"ours": batch.images_BCHW, "reference": reference.images_BCHW, "noise": noisy_BCHW.clamp(0, 255)}
        logits.append({name: network.logits(images).numpy()[valid_B.numpy()] for name, images in shown.items()})
        report(len(kinds))
    return pixels, logits


def limit_of(kind: str, decodes_on_gpu: bool) -> float:
    """Return the largest allowed mean difference of an image: CPU decoders agree exactly, nvJPEG rounds differently."""
    return MOST if not decodes_on_gpu or kind.removesuffix(" progressive") in WHOLE else MOST_SUBSAMPLED


def build_certificate(
    name: str,
    pixels: list[Difference],
    logits: list[dict[str, np.ndarray]],
    network: ProbeNetwork,
    decodes_on_gpu: bool,
) -> Certificate:
    """Return the certificate of one path and transform."""
    figures = {"model": network.what, "is_trained": network.is_trained, "pixels": by_kind(iter(pixels))}
    figures |= compare_logits(logits)

    # Three conditions: pixels within the limit, logits no further apart than by noise, the same top-1.
    near = all(mean <= limit_of(kind, decodes_on_gpu) for kind, mean, _ in pixels)
    least = min(LEAST_AGREEMENT, figures["same_top1_percent_by_noise"])
    agrees = figures["same_top1_percent"] >= least or not network.is_trained
    worst, largest = max(mean for _, mean, _ in pixels), max(most for *_, most in pixels)
    means = f"{np.mean([mean for _, mean, _ in pixels]):.3f}"
    note = "" if network.is_trained else " (random weights: ignored)"
    top1 = f"same top-1 {figures['same_top1_percent']:.1f}%{note}"
    return Certificate(
        name,
        near and figures["logits_apart"] <= figures["logits_apart_by_noise"] and agrees,
        f"{len(pixels)} images: pixels differ by {means} of 255, worst image {worst:.3f}, worst pixel {largest}; "
        f"logits {figures['logits_apart']:.4f}; {top1}",
        f"logits {figures['logits_apart_by_noise']:.4f} apart by noise ({network.what})",
        f"image ≤ {MOST:g} of 255" + f" (subsampled {MOST_SUBSAMPLED:g})" * decodes_on_gpu
        + "; logits ≤ noise of that size"
        + f"; top-1 ≥ {LEAST_AGREEMENT:g}%, or as with noise" * network.is_trained,
        figures,
    )  # fmt: skip


def compare_logits(logits: list[dict[str, np.ndarray]]) -> dict[str, Any]:
    """Return root mean square distances, in standard deviations of the logits, and percentages of the same top-1."""
    ours, right, noise = (np.concatenate([each[name] for each in logits]) for name in ("ours", "reference", "noise"))
    scale = max(1e-12, float(right.std(axis=0).mean()))
    return {
        "logits_apart": float(np.sqrt(((ours - right) ** 2).mean())) / scale,
        "logits_apart_by_noise": float(np.sqrt(((noise - right) ** 2).mean())) / scale,
        "same_top1_percent": float(100 * (ours.argmax(1) == right.argmax(1)).mean()),
        "same_top1_percent_by_noise": float(100 * (noise.argmax(1) == right.argmax(1)).mean()),
        "num_images": len(right),
    }
