"""`python benchmarks/certify.py DIR`: check the loader on the real stream of a prepared dataset.

Certificates: every image once per epoch, the right pixels, classes per batch, displacement between epochs, no image on
two ranks, exact resuming, and decoders that agree. --loader also checks the order of peers that shuffle in a buffer.
A table goes to stderr, one JSON record to stdout; the exit status is 1 if a certificate fails.
"""

import argparse
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from certificates.job import ENTRIES, OURS, Job

from prep.errors import InputError, run

if TYPE_CHECKING:
    from loaders import Split
    from loaders.placement import Choice

PEERS = {
    "webdataset": "WebDataset(split_by_node, shardshuffle=100, detshuffle=True).shuffle(buffer)",
    "dali-reader": "fn.readers.webdataset(random_shuffle=True, initial_fill=buffer, pad_last_batch=True), PARTIAL",
}


def parse_arguments() -> argparse.Namespace:
    """Return the command line's arguments."""
    parser = argparse.ArgumentParser(
        prog="benchmarks/certify.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("data", type=Path, metavar="DIR", help="prepared dataset")
    add("--split", default="train", help="default: train")
    add("--loader", nargs="+", choices=list(ENTRIES), default=[OURS], help="default: penstock")
    add("--epochs", type=int, default=2, help="at least 2 (default: 2)")
    add("--batch-size", type=int, default=256, help="images of all ranks together (default: 256)")
    add("--size", type=int, default=224, help="pixels (default: 224)")
    add("--limit", type=int, default=50_000, metavar="N", help="decode at most N images in epochs (default: 50,000)")
    add("--ranks", type=int, nargs="+", default=[2, 3], metavar="N", help="numbers of ranks (default: 2 3)")
    add("--seed", type=int, default=0, help="of the order and of the samples (default: 0)")
    add("--buffer", type=int, nargs="+", default=[1000], metavar="N", help="peers' shuffle buffer (default: 1000)")
    add("--model", type=Path, metavar="DIR", help="export or checkpoint for the logits (default: random weights)")
    add("--parity-images", type=int, default=64, metavar="N", help="images to compare decoders on (default: 64)")
    add("--threads", type=int, default=0, help="decoding threads (default: an equal share of the cores)")
    add("--device", default="auto", help="of our loader: auto, cpu or cuda")
    add("--placement", default="auto", metavar="SIDE", help="where our loader decodes: auto, cpu or gpu")
    add("--decode", default="auto", metavar="HOW", help="auto, roi (regions) or full (images)")
    add("--out", type=Path, metavar="FILE", help="also write the record to this file")
    add("--picture", type=Path, metavar="FILE", help="draw classes per batch and displacements (PNG)")
    return parser.parse_args()


def check_arguments(arguments: argparse.Namespace) -> None:
    """Check the arguments that need no dataset.

    Raises:
        InputError: one has a value that cannot be used.
    """
    if arguments.epochs < 2:
        raise InputError(f"--epochs must be at least 2, got {arguments.epochs}: displacement is between two epochs")
    for name in ("batch_size", "size", "parity_images"):
        if getattr(arguments, name) < 1:
            raise InputError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(arguments, name)}")
    if min(arguments.buffer) < 1:
        raise InputError(f"--buffer must be at least 1, got {min(arguments.buffer)}")
    if arguments.limit < 0:
        raise InputError(f"--limit must be at least 0, got {arguments.limit}")
    if min(arguments.ranks) < 2:
        raise InputError(f"--ranks must all be at least 2, got {min(arguments.ranks)}")
    if max(arguments.ranks) > arguments.batch_size:
        raise InputError(
            f"--batch-size {arguments.batch_size} is too small for {max(arguments.ranks)} ranks: "
            "choose a larger one, or fewer --ranks"
        )
    for out in filter(None, (arguments.out, arguments.picture)):
        if not out.resolve().parent.is_dir():
            raise InputError(f"{out.parent} does not exist: create it, or choose another folder for {out.name}")


def list_loaders(arguments: argparse.Namespace) -> list[tuple[str, int]]:
    """Return each loader with its buffer size: a peer once per size, ours with 0 because it has no buffer."""
    buffers = {name: [0] if name == OURS else arguments.buffer for name in dict.fromkeys(arguments.loader)}
    return [(name, buffer) for name, sizes in buffers.items() for buffer in sizes]


def choose_our_placement(arguments: argparse.Namespace) -> "Choice":
    """Return where our loader decodes.

    It is chosen once for all worlds: a process of many ranks has fewer cores and might choose differently.

    Raises:
        InputError: this machine lacks the placement.
    """
    from loaders import LoaderConfig, World  # noqa: PLC0415  (torch)
    from loaders.placement import choose_placement  # noqa: PLC0415
    from loaders.world import resolve_device  # noqa: PLC0415

    asked = LoaderConfig(placement=arguments.placement, decode=arguments.decode, num_threads=arguments.threads)
    return choose_placement(asked, World(device=resolve_device(arguments.device)))


def describe_loader(job: Job, choice: "Choice") -> dict[str, Any]:
    """Return the loader's fields of the record: name, settings, and how much was decoded."""
    from record import describe_placement  # noqa: PLC0415  (torch)

    if not job.spans:
        return {"loader": job.loader, "what": PEERS[job.loader], "buffer": job.buffer, "num_decoded": 0}
    decoded = sum(span.stop - span.start for span in job.spans if span.decoded)
    return {
        "loader": job.loader,
        "device": job.device,
        "placement": describe_placement(choice),
        "num_decoded": decoded,
        "decoded_percent": 100 * decoded / job.spans[-1].stop,
    }


def build_record(arguments: argparse.Namespace, split: "Split", found: dict[str, Any]) -> dict[str, Any]:
    """Return the record: the certificates of each loader, and all that is needed to repeat them."""
    from record import describe_dali, describe_origin, label_source  # noqa: PLC0415  (torch)

    from loaders import World  # noqa: PLC0415
    from loaders.world import resolve_device  # noqa: PLC0415
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
        **{name: getattr(arguments, name) for name in ("split", "epochs", "batch_size", "size", "seed", "ranks")},
        "loaders": found,
        **describe_origin("benchmarks/certify.py", World(device=resolve_device(arguments.device)), **versions),
    }


def main() -> None:
    """Certify each loader; print the table and the record."""
    arguments = parse_arguments()
    check_arguments(arguments)

    # Imported here, so that --help and a refused flag answer at once: torch, DALI, scipy and timm.
    from certificates.judge import load_probe_network  # noqa: PLC0415
    from certificates.resume import place_stretch  # noqa: PLC0415
    from certificates.stages import build_job, certify  # noqa: PLC0415
    from certificates.table import print_certificates  # noqa: PLC0415
    from certificates.verdict import list_failed  # noqa: PLC0415
    from record import publish  # noqa: PLC0415

    from loaders import Split  # noqa: PLC0415
    from loaders.world import resolve_device  # noqa: PLC0415

    # Refuse all that cannot be certified, before the first epoch is read.
    choice = choose_our_placement(arguments)
    arguments.device = resolve_device(arguments.device).type
    arguments.placement, arguments.decode = choice.side, choice.config.decode
    split, found, failed = Split(arguments.data, arguments.split), {}, []
    place_stretch(build_job(arguments, OURS, 0, len(split)), arguments.ranks, len(split))
    network = None
    if OURS in arguments.loader:
        network = load_probe_network(arguments.model, len(split.class_names), arguments.seed)

    # Certify the loaders one after another.
    for loader, buffer in list_loaders(arguments):
        job, name = build_job(arguments, loader, buffer, len(split)), f"{loader} {buffer:,}" if buffer else loader
        certificates = certify(arguments, split, job, network if loader == OURS else None)
        found[name] = describe_loader(job, choice) | {"certificates": [asdict(each) for each in certificates]}
        print_certificates(describe_loader(job, choice), certificates)
        failed += [f"{name}: {each}" for each in list_failed(certificates)]

    # Write the record and the picture; the exit status tells whether all have passed.
    record = build_record(arguments, split, found)
    publish(record, arguments.out)
    if arguments.picture:
        from certificates.picture import draw_certificates  # noqa: PLC0415  (matplotlib)

        draw_certificates(record, arguments.picture)
    if failed:
        sys.exit(f"error: {len(failed)} certificates failed: {'; '.join(failed)}")


if __name__ == "__main__":
    run(main)
