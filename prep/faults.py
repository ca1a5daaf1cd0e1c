"""What `prep/verify.py` finds: a fault is a line for people, with what `--repair` can do about it."""

from dataclasses import dataclass, field
from enum import Enum, auto

from prep.dataset import Manifest
from prep.errors import one_line


class Remedy(Enum):
    """What mends a fault."""

    USER = auto()  # none but the user can; the line says how
    CLEAN = auto()  # remove what an interrupted run left
    INDEX = auto()  # write DALI's index anew from its tar
    SHARD = auto()  # write a shard anew from the source
    SPLIT = auto()  # all of them, and with them what closes the split
    DATASET = auto()  # write what lies beside the splits anew from their manifests


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong, in one line; `folder` is the split's, `shard` the tar's name where it is about one."""

    line: str
    remedy: Remedy
    folder: str = ""
    shard: str = ""

    @classmethod
    def at(cls, path: str, wrong: str, cure: "Cure", folder: str = "", shard: str = "") -> "Fault":
        return cls(one_line(f"{path} {wrong}: {cure.mend}"), cure.remedy, folder, shard)


@dataclass(frozen=True)
class Cure:
    """A remedy, and how a user is told of it."""

    remedy: Remedy
    mend: str


@dataclass
class Report:
    """What was looked at and found."""

    faults: list[Fault] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    num_splits: int = 0
    num_shards: int = 0
    num_images: int = 0
    num_decoded: int = 0
    size_bytes: int = 0


CLEAN = Cure(Remedy.CLEAN, "run prep/shard.py (or prep/adopt.py) again as before, or --repair removes it")
INDEX = Cure(Remedy.INDEX, "--repair writes it anew from its tar")
DATASET = Cure(Remedy.DATASET, "--repair writes it anew from the splits")
PREPARE = Cure(Remedy.USER, "delete its folder and prepare it again")


def shard_cure(manifest: Manifest) -> Cure:
    """How a damaged tar is mended."""
    if manifest.options is None:
        return Cure(Remedy.USER, "get that tar anew, or if it moved run prep/adopt.py again with where it is")
    return Cure(Remedy.SHARD, f"--repair{_source_argument(manifest)} writes it anew")


def split_cure(manifest: Manifest) -> Cure:
    """How the files that close a split are mended."""
    if manifest.options is None:
        return Cure(Remedy.USER, "delete its folder and run prep/adopt.py again")
    return Cure(Remedy.SPLIT, f"--repair{_source_argument(manifest)} writes the whole split anew, which this takes")


def is_hub_id(name: str) -> bool:
    """Whether a source's name tells where it is: owner/name on the hub; of a folder only its last part is kept."""
    return name.count("/") == 1 and "" not in name.split("/")


def _source_argument(manifest: Manifest) -> str:
    return "" if is_hub_id(manifest.source.name) else " --source SRC"
