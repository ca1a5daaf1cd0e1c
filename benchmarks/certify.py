"""`python benchmarks/certify.py DIR`: check the loader on the real stream of a prepared dataset.

Certificates: every image once per epoch, the right pixels, classes per batch, displacement between epochs, no image on
two ranks, exact resuming, and decoders that agree. --loader also checks the order of peers that shuffle in a buffer.
Each certificate is told on standard error once its loader is done, tables are printed at the end, --out FILE has the
JSON record, so far after each loader; the exit status is 1 if a certificate fails.
"""

import math
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from certificates.epochs import (
    OURS,
    Certificate,
    Job,
    certify_resume,
    collect,
    place_spans,
    show_progress,
    split_epochs,
)
from options import check_known, check_least, check_outputs, parse_options
from record import print_progress, write_json
from tyro.conf import Positional

from prep.errors import InputError, run

# Imported inside functions, so that --help and a refused flag answer at once: torch, DALI, scipy and timm.
if TYPE_CHECKING:
    from certificates.pixels import ProbeNetwork

    from loaders import Split, World
    from loaders.placement import Choice

PEERS = {
    "webdataset": "WebDataset(split_by_node, shardshuffle=100, detshuffle=True).shuffle(buffer)",
    "dali-reader": "fn.readers.webdataset(random_shuffle=True, initial_fill=buffer, pad_last_batch=True), PARTIAL",
}
NUM_KEPT = 200  # decoded images that are compared with their files


@dataclass(frozen=True)
class Options:
    """The command line."""

    data: Positional[Path]  # folder of a prepared dataset
    split: str = "train"  # split to check
    loader: tuple[str, ...] = (OURS,)  # penstock, webdataset, dali-reader
    epochs: int = 2  # at least 2
    batch_size: int = 256  # images of all ranks together
    size: int = 224  # pixels
    limit: int = 50_000  # decode at most so many images in epochs
    ranks: tuple[int, ...] = (2, 3)  # numbers of ranks
    seed: int = 0  # of the order and of the samples
    buffer: tuple[int, ...] = (1000,)  # peers' shuffle buffer; several sizes are checked one after another
    model: Path | None = None  # export or checkpoint for the logits; unset: random weights
    parity_images: int = 64  # images to compare decoders on
    threads: int = 0  # decoding threads (0: an equal share of the cores)
    device: str = "auto"  # of our loader: auto, cpu or cuda
    placement: str = "auto"  # where our loader decodes: auto, cpu or gpu
    decode: str = "auto"  # auto, roi (regions) or full (images)
    out: Path | None = None  # write the record to this file, so far after each loader
    picture: Path | None = None  # draw classes per batch and displacements (PNG)


def check_options(options: Options) -> None:
    """Check the options that need no dataset; raise InputError for one that cannot be used."""
    check_known("--loader", options.loader, (OURS, *PEERS))
    if options.epochs < 2:
        raise InputError(f"--epochs must be at least 2, got {options.epochs}: displacement is between two epochs")
    if min(options.ranks) < 2:
        raise InputError(f"--ranks must all be at least 2, got {min(options.ranks)}: one rank shares with no other")
    check_least(1, batch_size=options.batch_size, size=options.size, buffer=min(options.buffer))
    check_least(1, parity_images=options.parity_images)
    check_least(0, limit=options.limit)
    multiple = math.lcm(*options.ranks)
    if options.batch_size < multiple:
        among = " and ".join(map(str, options.ranks))
        raise InputError(
            f"--batch-size must be at least {multiple} to be divided among {among} ranks, got {options.batch_size}: "
            "choose a larger one, or other --ranks"
        )
    check_outputs(options.out, options.picture)


def build_job(options: Options, loader: str, buffer: int, num_images: int) -> Job:
    """Return the job of one process that takes all epochs; ours also returns a sample of the decoded images."""
    names = ("split", "batch_size", "seed", "threads", "epochs", "size", "device", "placement", "decode")
    job = Job(loader, str(options.data.resolve()), buffer=buffer, **{name: getattr(options, name) for name in names})
    if loader != OURS:
        return job

    # Draw the sample among the positions that are decoded.
    spans = place_spans(options.batch_size, num_images, options.epochs, options.limit)
    decoded = np.concatenate([np.arange(0), *(np.arange(span.start, span.stop) for span in spans if span.decoded)])
    draw = np.random.Generator(np.random.Philox([options.seed, 3]))
    kept = draw.choice(decoded, min(NUM_KEPT, len(decoded)), replace=False) if len(decoded) else decoded
    return replace(job, spans=spans, kept=tuple(map(int, kept)))


def certify_stream(options: Options, split: "Split", job: Job) -> list[Certificate]:
    """Return the certificates that apply to any loader's stream; for ours also that of the pixels."""
    from certificates import mixing  # noqa: PLC0415
    from certificates.pixels import certify_pixels  # noqa: PLC0415

    # All epochs, taken by one process.
    num_images, labels_N = len(split), split.column("label").astype("int64")
    with show_progress(f"{job.loader}: epochs", job.spans[-1].stop if job.spans else job.epochs * num_images) as report:
        (arrays,) = collect(job, report)
    epochs = split_epochs(arrays, job, num_images)

    # The first epoch, taken by several ranks. Our loader only plans it; peers cannot skip reading.
    worlds = {}
    for size in options.ranks:
        batch_size = job.batch_size // size * size
        spans = place_spans(batch_size, num_images, 1, 0) if job.spans else ()
        shared = replace(job, num_ranks=size, batch_size=batch_size, epochs=1, kept=(), spans=spans)
        with show_progress(f"{job.loader}: {size} ranks", num_images) as report:
            worlds[size] = [split_epochs(each, shared, num_images)[0] for each in collect(shared, report)]
    return [
        mixing.certify_coverage(epochs, labels_N),
        *([certify_pixels(arrays, split, job.placement == "gpu")] if job.loader == OURS else []),
        mixing.certify_classes(epochs, labels_N, job.batch_size),
        mixing.certify_displacement(epochs, num_images),
        mixing.certify_ranks(worlds, num_images),
    ]


def certify_ours(options: Options, split: "Split", job: Job, network: "ProbeNetwork") -> list[Certificate]:
    """Return the certificates that apply to our loader only: resuming, and the decoders."""
    from certificates.pixels import certify_parity, draw_sample, list_ways  # noqa: PLC0415

    resumed = certify_resume(job, options.ranks, len(split))
    sample = draw_sample(split, options.parity_images, options.seed)
    with show_progress("decoders", 2 * len(list_ways(job)) * len(sample)) as report:
        return [resumed, *certify_parity(sample, job, network, report)]


def describe_loader(job: Job, choice: "Choice") -> dict[str, Any]:
    """Return the loader's fields of the record: name, settings, and how much was decoded."""
    from record import describe_placement  # noqa: PLC0415

    if job.loader != OURS:
        return {"loader": job.loader, "what": PEERS[job.loader], "buffer": job.buffer, "num_decoded": 0}
    decoded = sum(span.stop - span.start for span in job.spans if span.decoded)
    return {
        "loader": job.loader,
        "device": job.device,
        "placement": describe_placement(choice),
        "num_decoded": decoded,
        "decoded_percent": 100 * decoded / job.spans[-1].stop,
    }


def build_record(options: Options, split: "Split", world: "World", found: dict[str, Any]) -> dict[str, Any]:
    """Return the record: the certificates of each loader, and all that is needed to repeat them."""
    from record import describe_dali, describe_origin, label_source  # noqa: PLC0415

    from train.versions import describe_versions  # noqa: PLC0415

    source = split.manifest.source.name
    versions = describe_dali("dali") | describe_versions("pillow", "webdataset")
    return {
        "what": "certificates",
        "dataset": {
            "name": Path(source).name,
            "label": label_source(source),
            "num_images": len(split),
            "num_classes": len(split.class_names),
        },
        **{name: getattr(options, name) for name in ("split", "epochs", "batch_size", "size", "seed", "ranks")},
        "loaders": found,
        **describe_origin("benchmarks/certify.py", world, **versions),
    }


def main() -> None:
    """Certify each loader; write the record after each, print the tables, draw the picture."""
    options = parse_options(Options, "benchmarks/certify.py", __doc__)
    check_options(options)

    from certificates.pixels import load_probe_network  # noqa: PLC0415
    from reports.claims import PASSED  # noqa: PLC0415
    from reports.kinds import publish  # noqa: PLC0415

    from loaders import LoaderConfig, Split, World  # noqa: PLC0415
    from loaders.placement import choose_placement  # noqa: PLC0415
    from loaders.world import resolve_device  # noqa: PLC0415

    # Choose where our loader decodes, once for all worlds: a process of many ranks has fewer cores and might choose
    # differently. What cannot be certified is refused before the first epoch is read.
    world = World(device=resolve_device(options.device))
    how: dict[str, Any] = {"placement": options.placement, "decode": options.decode, "num_threads": options.threads}
    choice = choose_placement(LoaderConfig(**how), world)
    options = replace(options, device=world.device.type, placement=choice.side, decode=choice.config.decode)
    split, network = Split(options.data, options.split), None
    if OURS in options.loader:
        network = load_probe_network(options.model, len(split.class_names), options.seed)

    # Certify the loaders one after another: ours, which has no buffer, once, a peer once per size of its buffer. It can
    # take hours: if a later loader fails, what is certified is in the file.
    found, failed, record = {}, [], dict[str, Any]()
    for loader in dict.fromkeys(options.loader):
        for buffer in (0,) if loader == OURS else options.buffer:
            job, name = build_job(options, loader, buffer, len(split)), f"{loader} {buffer:,}" if buffer else loader
            certificates = certify_stream(options, split, job)
            if loader == OURS and network:
                certificates += certify_ours(options, split, job, network)
            found[name] = describe_loader(job, choice) | {"certificates": list(map(asdict, certificates))}
            failed += [f"{name}: {each.name}" for each in certificates if each.passed is False]
            for each in certificates:
                print_progress(f"{name}: {each.name}: {PASSED[each.passed]}: {each.measured}")
            record = build_record(options, split, world, found)
            if options.out:
                write_json(options.out, record)

    # Print the tables and draw the picture; the exit status tells whether all have passed.
    publish(record, options.out)
    if options.picture:
        from certificates.mixing import draw_certificates  # noqa: PLC0415

        draw_certificates(record, options.picture)
    if failed:
        sys.exit(f"error: {len(failed)} certificates failed: {'; '.join(failed)}")


if __name__ == "__main__":
    run(main)
