"""Faults that `prep/verify.py` reports: one line for the user each, and the repair that `--repair` can make."""

from dataclasses import dataclass, field
from enum import Enum, auto

from prep.dataset import Manifest
from prep.errors import one_line


class Remedy(Enum):
    """The action that repairs a fault."""

    USER = auto()  # only the user can repair it; the line says how
    CLEAN = auto()  # remove the files left by an interrupted run
    INDEX = auto()  # write DALI's index again from its tar
    SEGMENTS = auto()  # write the list of a shard's segments again from its tar
    SHARD = auto()  # write a shard again from the source
    SPLIT = auto()  # write all shards again, and with them the manifest, sample index and ledger
    DATASET = auto()  # write the files next to the splits again from the splits' manifests


@dataclass(frozen=True)
class Cure:
    """A remedy, and the advice that tells the user about it."""

    remedy: Remedy
    advice: str


@dataclass(frozen=True)
class Fault:
    """One fault, in one line; `folder` is the split's, `shard` the tar's name if the fault is about one."""

    line: str
    remedy: Remedy
    folder: str = ""
    shard: str = ""

    @classmethod
    def at(cls, path: str, wrong: str, cure: Cure, folder: str = "", shard: str = "") -> "Fault":
        """Return the fault that reads "PATH WRONG: ADVICE"."""
        return cls(one_line(f"{path} {wrong}: {cure.advice}"), cure.remedy, folder, shard)


@dataclass
class Report:
    """The result of checking a dataset: faults, notes, and how much was checked."""

    faults: list[Fault] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    lacks_card: bool = False  # --repair writes it, but that is not a fault
    num_splits: int = 0
    num_shards: int = 0
    num_images: int = 0
    num_decoded: int = 0
    size_bytes: int = 0


CLEAN = Cure(Remedy.CLEAN, "run prep/shard.py (or prep/adopt.py) again as before, or --repair removes it")
INDEX = Cure(Remedy.INDEX, "--repair writes it again from its tar")
SEGMENTS = Cure(Remedy.SEGMENTS, INDEX.advice)
DATASET = Cure(Remedy.DATASET, "--repair writes it again from the splits")
STAGE = Cure(Remedy.USER, "run the same prep/stage.py command again")
PREPARE = Cure(Remedy.USER, "delete its folder and prepare it again")


def shard_cure(manifest: Manifest) -> Cure:
    """Return the cure of a damaged tar."""
    if manifest.options is None:
        return Cure(Remedy.USER, "fetch that tar again, or if it was moved run prep/adopt.py again with its new path")
    return Cure(Remedy.SHARD, f"--repair{_source_argument(manifest)} writes it again")


def split_cure(manifest: Manifest) -> Cure:
    """Return the cure of a damaged manifest, sample index or ledger."""
    if manifest.options is None:
        return Cure(Remedy.USER, "delete its folder and run prep/adopt.py again")
    return Cure(Remedy.SPLIT, f"--repair{_source_argument(manifest)} writes it again, with all shards of the split")


def prepare_cure(manifest: Manifest) -> Cure:
    """Return the cure of undamaged files that contradict each other."""
    return PREPARE if manifest.options is not None else split_cure(manifest)


def leave_out_cure(manifest: Manifest) -> Cure:
    """Return the cure of an image that does not decode, in an undamaged tar."""
    if manifest.options is None:
        advice = "delete its folder and run prep/adopt.py again without --no-decode-check: the image is left out"
        return Cure(Remedy.USER, advice)
    return Cure(Remedy.USER, "remove it from the source, delete the folder and prepare it again")


def is_hub_id(name: str) -> bool:
    """Check whether a source's name is OWNER/NAME on the hub, and so says where it is.

    The manifest holds only the last part of a folder's path.
    """
    return name.count("/") == 1 and "" not in name.split("/")


def _source_argument(manifest: Manifest) -> str:
    return "" if is_hub_id(manifest.source.name) else " --source SRC"
