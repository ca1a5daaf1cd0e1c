"""benchmarks/RESULTS.md: every record in the section of its kind, the kinds in the order of the flow."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from drawing.shown import name_pictures
from reports.gpu_model import describe_model
from reports.plain import describe_plainly
from reports.proofs import describe_certificates, describe_proof
from reports.races import describe_feeding, describe_preparation, describe_serving, describe_startup
from reports.rates import describe_sweeps, describe_throughput
from reports.reading import Record, Records
from reports.suite import describe_suite
from reports.tuned import describe_settings, describe_tuning
from reports.words import format_machine, make_table

from prep.errors import InputError

Describe = Callable[[dict[str, Any]], Iterator[str]]
KINDS: dict[str, tuple[str, Describe]] = {
    "feeding": ("Feeding, beside peers", describe_feeding),
    "sweeps": ("The loader against threads and stored size", describe_sweeps),
    "throughput": ("Throughput of each stage, and what binds", describe_throughput),
    "proof of the verdict": ("The verdict, put to the proof", describe_proof),
    "loader settings": ("Tuned settings", describe_settings),
    "tuning": ("Tuning, put to the proof", describe_tuning),
    "certificates": ("Certificates", describe_certificates),
    "startup": ("Start-up", describe_startup),
    "preparation": ("Preparation, beside others", describe_preparation),
    "gpu model": ("A ResNet-50's training step on a GPU, without data", describe_model),
    "serving": ("The app's answer", describe_serving),
}
GPU_SUITE = "gpu suite"
PICTURES = "../docs/pictures"  # from there
INTRODUCTION = """# Results

Every figure here is from `benchmarks/records/`, put together by `python benchmarks/results.py`: to change one, take its
record again. The records hold every repetition. Figures hold for the machine and the images that stand beside them.
"""


def write_document(records: Records) -> str:
    """The whole file.

    Raises:
        InputError: a record lacks what its kind has.
    """
    blocks = [INTRODUCTION, "\n".join(list_all(records.values()))]
    for what, (title, describe) in KINDS.items():
        found = [record for record in records.values() if record.what == what]
        blocks += [f"## {title}\n"] * bool(found)
        blocks += [describe_record(record, describe) for record in sort_by_machine(found)]
    blocks += describe_folders([record for record in records.values() if record.what == GPU_SUITE])
    others = [record for record in records.values() if record.what not in (*KINDS, GPU_SUITE)]
    blocks += ["## Records of other kinds\n"] * bool(others)
    blocks += [describe_record(record, describe_plainly) for record in others]
    return "\n".join(blocks).rstrip("\n") + "\n"


def sort_by_machine(records: Iterable[Record]) -> list[Record]:
    """Those of one machine together, each machine's newest first."""
    newest = sorted(records, key=lambda record: record.content.get("date", ""), reverse=True)
    return sorted(newest, key=lambda record: format_hardware(record.content))


def list_all(records: Iterable[Record]) -> Iterator[str]:
    """What there is: a line a record."""
    rows = [
        [f"[{record.name}](records/{record.name})", record.what, format_hardware(record.content), *_when(record)]
        for record in records
    ]
    return make_table(("record", "of", "machine", "commit", "date"), rows)


def _when(record: Record) -> list[str]:
    return [str(record.content.get(name, "")) for name in ("commit", "date")]


def format_hardware(content: dict[str, Any]) -> str:
    """The machine, where the record names one for the whole."""
    return format_machine(content["hardware"]) if isinstance(content.get("hardware"), dict) else ""


def describe_record(record: Record, describe: Describe) -> str:
    """One record's part, under its name and machine.

    Raises:
        InputError: it lacks what its kind has.
    """
    try:
        title = ", on ".join(filter(None, (record.name, format_hardware(record.content))))
        pictures = [
            line for name, each in name_pictures(record) for line in (f"![{each.title}]({PICTURES}/{name})", "")
        ]
        return "\n".join([f"### {title}", "", *pictures, *describe(record.content)])
    except (KeyError, TypeError, AttributeError) as error:
        what = f"{type(error).__name__} {error}"
        raise InputError(f"{record.path} is not as a record of {record.what} is now ({what}): take it again") from error


def describe_folders(records: list[Record]) -> Iterator[str]:
    """The GPU suite's: a folder is one run of it."""
    if records:
        yield "## On a GPU\n"
    for folder in sorted({record.folder for record in records}):
        stages = [record for record in records if record.folder == folder]
        names = ", ".join(record.name for record in stages)
        yield describe_record(
            Record(stages[0].path, names, {"what": GPU_SUITE}),
            lambda _, stages=stages: describe_suite([record.content for record in stages]),
        )
