"""`python benchmarks/certify.py DIR`: what the loader does to a prepared dataset, certified on its real stream.

Every image once an epoch, pixels that are those images', classes in a batch, displacement between epochs, ranks that
share nothing, resuming, and decoders that agree. --loader takes peers that shuffle in a buffer through the first four.
A table goes to stderr, one JSON record to stdout; the exit status is 1 when a certificate fails.
"""

import argparse
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from certificates.job import Job
from certificates.judge import find_judge
from certificates.picture import draw
from certificates.resume import place_stretch
from certificates.stages import OURS, build_job, certify
from certificates.table import show
from certificates.take import ENTRIES
from certificates.verdict import list_failed
from record import describe_dali, describe_origin, describe_placement, label_source, publish

from loaders import LoaderConfig, Split, World
from loaders.device import resolve_device
from loaders.placement import Choice, choose_placement
from prep.errors import InputError, exit_with
from train.checkpoint import describe_versions

PEERS = {
    "webdataset": "WebDataset(split_by_node, shardshuffle=100, detshuffle=True).shuffle(buffer)",
    "dali-reader": "fn.readers.webdataset(random_shuffle=True, initial_fill=buffer, pad_last_batch=True), PARTIAL",
}


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="benchmarks/certify.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("data", type=Path, metavar="DIR", help="prepared dataset")
    add("--split", default="train", help="default: train")
    add("--loader", nargs="+", choices=list(ENTRIES), default=[OURS], help="default: penstock")
    add("--epochs", type=int, default=2, help="default, and least: 2")
    add("--batch-size", type=int, default=256, help="images of all ranks together (default: 256)")
    add("--size", type=int, default=224, help="pixels (default: 224)")
    add("--limit", type=int, default=50_000, metavar="N", help="most images to decode in epochs (default: 50,000)")
    add("--ranks", type=int, nargs="+", default=[2, 3], metavar="N", help="numbers of ranks (default: 2 3)")
    add("--seed", type=int, default=0, help="of the order, and of what is drawn here (default: 0)")
    add("--buffer", type=int, nargs="+", default=[1000], metavar="N", help="images to shuffle among, of peers (1,000)")
    add("--model", type=Path, metavar="DIR", help="export or checkpoint for the logits (default: random weights)")
    add("--parity-images", type=int, default=64, metavar="N", help="images to compare decoders on (default: 64)")
    add("--threads", type=int, default=0, help="decoding threads (default: an equal share of the cores)")
    add("--device", default="auto", help="of our loader: auto, cpu or cuda")
    add("--placement", default="auto", metavar="SIDE", help="where our loader decodes: auto, cpu or gpu")
    add("--decode", default="auto", metavar="HOW", help="auto, roi (regions) or full (images)")
    add("--out", type=Path, metavar="FILE", help="write the record here too")
    add("--picture", type=Path, metavar="FILE", help="draw classes in a batch and displacements (PNG)")
    return parser.parse_args()


def check(arguments: argparse.Namespace) -> None:
    """Raises InputError for what nothing can be certified with."""
    if arguments.epochs < 2:
        raise InputError(f"{arguments.epochs} epochs have no displacement between them: take 2 or more")
    sizes = (arguments.batch_size, arguments.size, arguments.parity_images, *arguments.buffer)
    if min(sizes) < 1 or arguments.limit < 0:
        raise InputError("batch-size, size, buffer and parity-images must be 1 or more, limit 0 or more")
    if min(arguments.ranks) < 2:
        raise InputError(f"{min(arguments.ranks)} ranks share nothing with anybody: take --ranks of 2 or more")
    if max(arguments.ranks) > arguments.batch_size:
        raise InputError(f"a batch of {arguments.batch_size} is too small for {max(arguments.ranks)} ranks")
    for out in filter(None, (arguments.out, arguments.picture)):
        if not out.resolve().parent.is_dir():
            raise InputError(f"{out.parent} does not exist: create it or choose another place for {out.name}")


def list_loaders(arguments: argparse.Namespace) -> list[tuple[str, int]]:
    """Each loader, a peer with each size of its buffer; ours has none."""
    buffers = {name: [0] if name == OURS else arguments.buffer for name in dict.fromkeys(arguments.loader)}
    return [(name, buffer) for name, sizes in buffers.items() for buffer in sizes]


def choose_our_placement(arguments: argparse.Namespace) -> Choice:
    """Return where our loader decodes: resolved once, since processes of many ranks have fewer cores each.

    Raises:
        InputError: this machine lacks the placement.
    """
    asked = LoaderConfig(placement=arguments.placement, decode=arguments.decode, num_threads=arguments.threads)
    return choose_placement(asked, World(device=resolve_device(arguments.device)))


def describe_loader(job: Job, choice: Choice) -> dict[str, Any]:
    """Return what was certified, in words and figures."""
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


def build_record(arguments: argparse.Namespace, split: Split, found: dict[str, Any]) -> dict[str, Any]:
    """All that is needed to read the certificates and to take them again."""
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
    """Certify each loader, show and write what was found."""
    arguments = parse_arguments()
    check(arguments)
    choice = choose_our_placement(arguments)
    arguments.device = resolve_device(arguments.device).type
    arguments.placement, arguments.decode = choice.side, choice.config.decode
    split, found, failed = Split(arguments.data, arguments.split), {}, []
    place_stretch(build_job(arguments, OURS, 0, len(split)), arguments.ranks, len(split))  # refused now, not in a while
    judge = find_judge(arguments.model, len(split.class_names), arguments.seed) if OURS in arguments.loader else None
    for loader, buffer in list_loaders(arguments):
        job, name = build_job(arguments, loader, buffer, len(split)), f"{loader} {buffer:,}" if buffer else loader
        certificates = certify(arguments, split, job, judge if loader == OURS else None)
        found[name] = describe_loader(job, choice) | {"certificates": [asdict(each) for each in certificates]}
        show(describe_loader(job, choice), certificates)
        failed += [f"{name}: {each}" for each in list_failed(certificates)]
    record = build_record(arguments, split, found)
    publish(record, arguments.out)
    if arguments.picture:
        draw(record, arguments.picture)
    if failed:
        sys.exit(f"error: {len(failed)} certificates failed: {'; '.join(failed)}")


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        exit_with(error)
