"""benchmarks/RESULTS.md: one section for each kind of record, in a fixed order, with all records of the kind."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from drawing.shown import name_pictures
from reports.dollars import describe_cost
from reports.gpu_model import describe_model
from reports.ingredients import describe_ingredients
from reports.phases import describe_phases
from reports.plain import describe_plainly
from reports.proofs import describe_certificates, describe_proof
from reports.races import describe_feeding, describe_preparation, describe_serving, describe_staging, describe_startup
from reports.rates import describe_sweeps, describe_throughput
from reports.reading import Record, Records
from reports.suite import describe_suite
from reports.tuned import describe_settings, describe_tuning
from reports.words import format_machine, make_table

Describe = Callable[[dict[str, Any]], Iterator[str]]
KINDS: dict[str, tuple[str, Describe]] = {
    "feeding": ("Feeding, compared with peers", describe_feeding),
    "sweeps": ("Loader rate by threads and by stored size", describe_sweeps),
    "throughput": ("Throughput of each stage, and the bottleneck", describe_throughput),
    "throughput of a recipe": ("A recipe, resolution by resolution", describe_phases),
    "cost of a recipe": ("A recipe on EC2, in dollars", describe_cost),
    "proof of the verdict": ("Tests of the verdict", describe_proof),
    "loader settings": ("Tuned settings", describe_settings),
    "tuning": ("Tests of tuning", describe_tuning),
    "certificates": ("Certificates", describe_certificates),
    "startup": ("Start-up", describe_startup),
    "preparation": ("Preparation, compared with other writers", describe_preparation),
    "staging": ("Staging from S3, compared with other programs", describe_staging),
    "gpu model": ("A ResNet-50's training step on a GPU, without data", describe_model),
    "ingredients": ("Ingredients of a recipe, on a proxy", describe_ingredients),
    "serving": ("Latency of the app", describe_serving),
}
GPU_SUITE = "gpu suite"
PICTURES = "../docs/pictures"  # relative to RESULTS.md
INTRODUCTION = """# Results

All figures in this file are from `benchmarks/records/`; `python benchmarks/results.py` writes it. To change a figure,
run its benchmark again. The records contain every repetition. A figure is valid for the machine and the images named
with it. "Median (min to max)" is over the repetitions.
"""


def write_document(records: Records) -> str:
    """Return the text of RESULTS.md.

    Raises:
        InputError: a record lacks a field of its kind.
    """
    # The table of all records, then the sections of the known kinds.
    blocks = [INTRODUCTION, "\n".join(list_all(records.values()))]
    for what, (title, describe) in KINDS.items():
        found = [record for record in records.values() if record.what == what]
        blocks += [f"## {title}\n"] * bool(found)
        blocks += [describe_record(record, describe) for record in sort_by_machine(found)]

    # Last the GPU suite, whose records belong together by folder, and kinds without a section.
    blocks += describe_folders([record for record in records.values() if record.what == GPU_SUITE])
    others = [record for record in records.values() if record.what not in (*KINDS, GPU_SUITE)]
    blocks += ["## Records of other kinds\n"] * bool(others)
    blocks += [describe_record(record, describe_plainly) for record in others]
    return "\n".join(blocks).rstrip("\n") + "\n"


def sort_by_machine(records: Iterable[Record]) -> list[Record]:
    """Sort records so that those of one machine are together, the newest first."""
    newest = sorted(records, key=lambda record: record.content.get("date", ""), reverse=True)
    return sorted(newest, key=lambda record: format_hardware(record.content))


def list_all(records: Iterable[Record]) -> Iterator[str]:
    """Yield the table of all records, one line per record."""
    rows = [
        [f"[{record.name}](records/{record.name})", record.what, format_hardware(record.content), *_when(record)]
        for record in records
    ]
    return make_table(("record", "kind", "machine", "commit", "date"), rows)


def _when(record: Record) -> list[str]:
    return [str(record.content.get(name, "")) for name in ("commit", "date")]


def format_hardware(content: dict[str, Any]) -> str:
    """Return the machine of a record, "" if it does not name one for all its figures."""
    return format_machine(content["hardware"]) if isinstance(content.get("hardware"), dict) else ""


def describe_record(record: Record, describe: Describe) -> str:
    """Return the text of one record, with its name and machine as heading.

    Raises:
        InputError: it lacks a field of its kind.
    """
    try:
        title = ", on ".join(filter(None, (record.name, format_hardware(record.content))))
        pictures = [
            line for name, each in name_pictures(record) for line in (f"![{each.title}]({PICTURES}/{name})", "")
        ]
        return "\n".join([f"### {title}", "", *pictures, *describe(record.content)])
    except (KeyError, TypeError, AttributeError) as error:
        raise record.make_error(error) from error


def describe_folders(records: list[Record]) -> Iterator[str]:
    """Yield the section of the GPU suite; each folder is one run of it."""
    if records:
        yield "## On a GPU\n"
    for folder in sorted({record.folder for record in records}):
        stages = [record for record in records if record.folder == folder]
        names = ", ".join(record.name for record in stages)
        yield describe_record(
            Record(stages[0].path, names, {"what": GPU_SUITE}),
            lambda _, stages=stages: describe_suite([record.content for record in stages]),
        )
