"""`python benchmarks/gpu_suite.py --data DIR --out DIR`: what can be measured on one GPU, in nine minutes.

The most important cases come first: a smoke test; pixels and speed of each decode path; equal bits under load, images
with RandAugment, and damaged files; rates of loader, model and training for both placements; a real training that is
killed and resumed; the tests that need a GPU; compilation; and if DIR was prepared with --restarts, spliced images
compared with whole ones. No case runs past the deadline (--minutes). Each result is
on disk before the next case begins, so an interrupted call loses nothing. A later call with --only runs some cases
again and adds them to the same --out. The standard error of all cases goes to workers.log there.
"""

import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

from gpu.cases import Options, build_cases, choose_cases, list_cases
from options import check_least, check_positive, parse_options
from tables import print_tables

from prep.dataset import Manifest, read_manifest
from prep.errors import InputError, run

LOG = "workers.log"
LEAST_BATCH = 2  # BatchNorm needs a variance


def check_options(options: Options) -> Manifest:
    """Check the options and the dataset's size; return the dataset's manifest.

    Raises:
        InputError: an option has a value that cannot be used, or the dataset is missing or too small.
    """
    check_positive(**{name: getattr(options, name) for name in ("minutes", "size", "seconds", "repetitions", "epochs")})
    check_least(LEAST_BATCH, batch_size=options.batch_size)
    if twice := sorted({name for name in options.models if options.models.count(name) > 1}):
        raise InputError(f"--models names {', '.join(twice)} twice: name each model once")
    manifest = read_manifest(options.data / options.split)
    if manifest.num_images < options.batch_size:
        raise InputError(
            f"{options.data / options.split} has {manifest.num_images} images, and a batch needs "
            f"{options.batch_size}: prepare more, or choose a smaller --batch-size"
        )
    return manifest


def make_folder(flag: str, folder: Path) -> None:
    """Create a folder; raise InputError if it cannot be created."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder} cannot be created ({error.strerror}): choose another {flag}") from error


def main() -> None:
    """Run the cases until the deadline, or list them; print the table of all results in the folder."""
    started = time.monotonic()
    options = parse_options(Options, "benchmarks/gpu_suite.py", __doc__)
    manifest = check_options(options)

    # Find the device; a GPU that is present but cannot be used is an error. Workers get absolute paths.
    from loaders.world import resolve_device  # noqa: PLC0415  (torch)

    device = resolve_device(options.device).type
    options = replace(options, device=device, data=options.data.resolve(), work=options.work.resolve())
    cases = build_cases(options, manifest.has_segments)
    if options.list:
        print_tables([list_cases(choose_cases(cases, options.only, {}))])
        return

    # Run the cases that are chosen, and add their records to those in the folder.
    from gpu.runner import CaseRecords, Runner, describe_origin, describe_settings  # noqa: PLC0415
    from reports.gpu_runs import tables_of_suite  # noqa: PLC0415

    records = CaseRecords(options.out, describe_settings(options, manifest), describe_origin())
    chosen = choose_cases(cases, options.only, records.results)
    make_folder("--out", options.out)
    make_folder("--work", options.work)
    with Runner(records, options.out / LOG, deadline=started + 60 * options.minutes) as runner:
        runner.run_all(chosen)
    cases, _, conclusions = tables_of_suite(records.contents)
    print_tables([cases, conclusions])  # the origins are in the files


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))  # leaves `with` blocks, which end the workers
    run(main, "--out has the cases that have ended; run the others with --only")
