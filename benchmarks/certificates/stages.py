"""From a loader to its certificates: which images it is asked for, by which processes, with a progress bar."""

import tempfile
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
from certificates.collect import Arrays, Report, as_epochs, collect
from certificates.counts import certify_coverage, certify_ranks
from certificates.job import OURS, Job
from certificates.judge import ProbeNetwork
from certificates.mixing import certify_classes, certify_displacement
from certificates.ours import place_spans
from certificates.parity import certify_parity, draw_sample, list_ways
from certificates.pixels import certify_pixels
from certificates.resume import certify_resume, place_stretch
from certificates.taken import Taken
from certificates.verdict import Certificate
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from loaders import Split

NUM_KEPT = 200  # images compared with their files


def certify(arguments: Namespace, split: Split, job: Job, network: ProbeNetwork | None) -> list[Certificate]:
    """Return all certificates of one loader; `network` is None for a peer, which has only those of its stream."""
    with progress_bar() as progress:
        found = certify_stream(arguments, split, job, progress)
        return found + (certify_ours(arguments, split, job, network, progress) if network else [])


def build_job(arguments: Namespace, loader: str, buffer: int, num_images: int) -> Job:
    """Return the job of one process that takes all epochs; ours also returns a sample of the decoded images."""
    job = Job(
        loader=loader,
        data=str(arguments.data.resolve()),
        split=arguments.split,
        batch_size=arguments.batch_size,
        seed=arguments.seed,
        threads=arguments.threads,
        epochs=arguments.epochs,
        buffer=buffer,
        pixels=arguments.size,
        device=arguments.device,
        placement=arguments.placement,
        decode=arguments.decode,
    )
    if loader != OURS:
        return job

    # Draw the sample among the positions that are decoded.
    spans = place_spans(job, num_images, arguments.epochs, arguments.limit)
    decoded = np.concatenate([np.arange(span.start, span.stop) for span in spans if span.decoded] or [np.arange(0)])
    draw_kept = np.random.Generator(np.random.Philox([arguments.seed, 3]))
    kept = draw_kept.choice(decoded, min(NUM_KEPT, len(decoded)), replace=False) if len(decoded) else decoded
    return replace(job, spans=spans, kept=tuple(map(int, kept)))


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """Show the images done and the time that the rest will take; yield the bar, which is hidden without a terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        yield progress


def start_task(progress: Progress, name: str, total: int) -> Report:
    """Add a task of `total` images to the progress bar; return the function that advances it."""
    task = progress.add_task(name, total=total)
    return lambda count: progress.advance(task, count)


def take_epochs(job: Job, num_images: int, progress: Progress) -> Arrays:
    """Return the arrays of all epochs, taken by one process."""
    with tempfile.TemporaryDirectory(prefix="penstock-") as folder:
        total = job.spans[-1].stop if job.spans else job.epochs * num_images
        return collect(job, Path(folder), start_task(progress, f"{job.loader}: epochs", total))[0]


def take_ranks(job: Job, size: int, num_images: int, progress: Progress) -> list[Taken]:
    """Return the first epoch as taken by `size` ranks. Our loader only plans it; peers cannot skip reading."""
    batch_size = job.batch_size // size * size
    job = replace(job, size=size, batch_size=batch_size, epochs=1, kept=())
    job = replace(job, spans=place_spans(job, num_images, 1, 0) if job.spans else ())
    with tempfile.TemporaryDirectory(prefix="penstock-") as folder:
        ranks = collect(job, Path(folder), start_task(progress, f"{job.loader}: {size} ranks", num_images))
    return [as_epochs(each, job, num_images, 1)[0] for each in ranks]


def certify_stream(arguments: Namespace, split: Split, job: Job, progress: Progress) -> list[Certificate]:
    """Return the certificates that apply to any loader's stream."""
    num_images, labels_N = len(split), split.column("label").astype(np.int64)
    arrays = take_epochs(job, num_images, progress)
    epochs = as_epochs(arrays, job, num_images, arguments.epochs)
    worlds = {size: take_ranks(job, size, num_images, progress) for size in arguments.ranks}
    return [
        certify_coverage(epochs, labels_N),
        *([certify_pixels(arrays, split, job.placement == "gpu")] if job.kept else []),
        certify_classes(epochs, labels_N, job.batch_size),
        certify_displacement(epochs, num_images),
        certify_ranks(worlds, num_images),
    ]


def certify_ours(
    arguments: Namespace, split: Split, job: Job, network: ProbeNetwork, progress: Progress
) -> list[Certificate]:
    """Return the certificates that apply to our loader only: resuming, and the decoders."""
    ranks, ways = arguments.ranks, list_ways(job)
    job = replace(job, kept=())
    _, (start, _, end) = place_stretch(job, ranks, len(split))
    with tempfile.TemporaryDirectory(prefix="penstock-") as folder:
        report = start_task(progress, "resume", 2 * (end - start))
        found = [certify_resume(job, ranks, len(split), Path(folder), report)]
    sample = draw_sample(split, arguments.parity_images, arguments.size, arguments.seed)
    report = start_task(progress, "decoders", 2 * len(ways) * len(sample.split))
    return found + [each for way in ways for each in certify_parity(sample, network, way, report)]
