"""The files of a Hugging Face dataset: list them, in a local folder or on the hub, and find those that are absent.

Only names and the texts of the dataset card are read, no data. What is absent follows from file names, since
`NAME-KKKKK-of-NNNNN` says how many files there are, and from the card, which declares the number of rows. Each finding
is one line of text. `huggingface_hub` is imported only when the hub is used, so that commands start quickly.
"""

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from prep.card import CARD_FILES
from prep.errors import InputError, list_some
from prep.split_names import canonical_split

LARGEST_CARD_BYTES = 16 << 20
# Class names instead of classes: the hub's client changed its HTTP library twice, and each has its own classes.
UNREACHABLE = {"TransportError", "ConnectError", "ConnectionError", "TimeoutError", "TimeoutException"}

PART = re.compile(r"(?P<prefix>.*?)(?P<part>\d+)-of-(?P<total>\d+)(?P<rest>[^/]*)", re.IGNORECASE)
NUMBERED = re.compile(r"(?P<prefix>.*?)(?P<part>\d{2,})(?P<rest>\.[^/.]+)")
UNFINISHED = (".incomplete", ".crdownload", ".part", ".partial", ".aria2", ".download", ".tmp", ".filepart")
HASH = re.compile(r"-[0-9a-f]{8,}(?=\.)")  # older versions of `push_to_hub` add it to each file's name


@dataclass(frozen=True)
class Listing:
    """The files of a dataset: paths below `root` with "/" between folders, without hidden ones."""

    source: str  # as the user gave it
    root: str  # a folder, or hf://datasets/OWNER/NAME@COMMIT
    paths: tuple[str, ...]
    card: dict[str, str]  # name of a card's file -> its text
    commit: str | None = None  # of a dataset on the hub

    def url(self, path: str) -> str:
        """Return the full path or address of a file in the listing."""
        return f"{self.root}/{path}"


# Listing


def list_local(folder: Path) -> Listing:
    """List a local folder, following links to folders."""
    paths = tuple(sorted(_walk(folder, "", set())))
    card = {}
    for name in CARD_FILES:
        path = folder / name
        if path.is_file() and path.stat().st_size <= LARGEST_CARD_BYTES:
            card[name] = path.read_text(encoding="utf-8", errors="replace")
    return Listing(str(folder), str(folder), paths, card)


def _walk(folder: Path, below: str, above: set[str]) -> Iterator[str]:
    """Yield the paths of the files below a folder.

    Args:
        above: the real paths of the folders that contain this one; a link to one of them would never end.
    """
    real = os.path.realpath(folder)
    if real in above:
        return
    for entry in os.scandir(folder):
        path = f"{below}{entry.name}"
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            if entry.name.startswith("__"):
                continue
            yield from _walk(folder / entry.name, f"{path}/", above | {real})
        else:
            yield path


def list_hub(source: str) -> Listing:
    """List a dataset of the hub at its present commit; read its card without a cache on disk.

    Raises:
        InputError: it does not exist, or is gated or unreachable.
    """
    import huggingface_hub  # noqa: PLC0415 - see the module's docstring

    huggingface_hub.logging.set_verbosity_error()  # hide its retries: one line reports what failed
    try:
        info = huggingface_hub.HfApi().dataset_info(source)
        paths = tuple(sorted(file.rfilename for file in info.siblings or () if _is_shown(file.rfilename)))
        names = {file.rfilename for file in info.siblings or ()}
        root = f"hf://datasets/{info.id}@{info.sha}"
        files = huggingface_hub.HfFileSystem()
        card = {name: str(files.read_text(f"{root}/{name}", errors="replace")) for name in CARD_FILES if name in names}
    except Exception as error:
        raise InputError(explain_hub_error(source, error)) from error
    return Listing(source, root, paths, card, info.sha)


def _is_shown(path: str) -> bool:
    """Check that no part of a path is hidden or a cache, by the rules of `datasets`."""
    *folders, name = path.split("/")
    return not name.startswith(".") and not any(part.startswith((".", "__")) for part in folders)


def explain_hub_error(source: str, error: BaseException) -> str:
    """Return one line on what failed and what to do, without the token and without the hub's page-long answer."""
    from huggingface_hub import errors  # noqa: PLC0415 - see the module's docstring

    chain: list[BaseException] = [error]
    while (cause := chain[-1].__cause__) is not None and cause not in chain:
        chain.append(cause)

    # Errors of the hub's client with a meaning that is known.
    by_kind: dict[type[BaseException] | tuple[type[BaseException], ...], str] = {
        errors.OfflineModeIsEnabled: f"cannot reach the hub for {source}: HF_HUB_OFFLINE is set; "
        "unset it, or give --source a local folder",
        errors.GatedRepoError: f"{source} is gated: accept its terms at https://huggingface.co/datasets/{source}, "
        "then `hf auth login` or set HF_TOKEN to a read token",
        errors.RepositoryNotFoundError: f"{source} is not on the hub, or private: check the name, "
        "then `hf auth login` if it is private",
    }
    for kind, line in by_kind.items():
        if any(isinstance(each, kind) for each in chain):
            return line

    # Any other status of the hub's answer; no answer at all; anything else.
    status = next((each.response.status_code for each in chain if isinstance(each, errors.HfHubHTTPError)), 0)
    if status:
        return _explain_status(source, status)
    if any(base.__name__ in UNREACHABLE for each in chain for base in type(each).__mro__):
        return f"cannot reach the hub for {source}: check the network, or give --source a local folder"
    return f"cannot open {source}: {type(error).__name__} {' '.join(str(error).split())[:300]}"


def _explain_status(source: str, status: int) -> str:
    """Return one line for the HTTP status of the hub's answer."""
    if status == 429:
        return (
            f"the hub refuses more requests for {source} now (429): wait some minutes and run again; "
            "`hf auth login` raises the limit"
        )
    if status in (401, 403):
        return f"the hub refuses access to {source} ({status}): `hf auth login`, or set HF_TOKEN to a valid token"
    return f"the hub fails for {source} ({status}): run again later, or give --source a local folder"


# Completeness by file names


@dataclass(frozen=True)
class Finding:
    """Faults of the files of a split: the user can allow `missing` parts, but not `contradictions`."""

    missing: tuple[str, ...] = ()
    contradictions: tuple[str, ...] = ()


@dataclass
class _NumberedSet:
    """The files NAME-KKKKK-of-NNNNN with the same NNNNN."""

    example: "re.Match[str]"
    files: dict[int, list[str]] = field(default_factory=dict)  # KKKKK -> names


def check_parts(names: Iterable[str]) -> Finding:
    """Check the `-of-` sets and the numbering among the file names of one split."""
    # Group the files by the name before their number, then by the total that they name.
    names = sorted(names)
    sets: dict[tuple[str, str], dict[int, _NumberedSet]] = {}
    for name in names:
        if match := PART.fullmatch(name):
            series = (match["prefix"], str(PurePosixPath(HASH.sub("", match["rest"])).suffix))
            of = sets.setdefault(series, {}).setdefault(int(match["total"]), _NumberedSet(match))
            of.files.setdefault(int(match["part"]), []).append(name)

    # Each series must have one total, and each part once.
    missing, contradictions = [], []
    for by_total in sets.values():
        if len(by_total) > 1:
            shown = [next(iter(found.files.values()))[0] for found in by_total.values()]
            contradictions.append(f"sets of {' and of '.join(map(str, sorted(by_total)))} files ({', '.join(shown)})")
            continue
        total, found = next(iter(by_total.items()))
        contradictions += [f"the same part twice ({', '.join(twice)})" for twice in found.files.values() if twice[1:]]
        missing += _find_absent_parts(total, found, contradictions)

    missing += _find_gaps([name for name in names if not PART.fullmatch(name)])
    return Finding(tuple(missing), tuple(contradictions[:1]))


def _find_absent_parts(total: int, found: _NumberedSet, contradictions: list[str]) -> list[str]:
    """Return a line for the absent parts, if any; add a line to `contradictions` for parts beyond the last one."""
    first = 1 if 0 not in found.files and total in found.files else 0  # some writers count from 1
    beyond = [part for part in found.files if not first <= part < first + total]
    if beyond:
        contradictions.append(f"a part beyond the last ({found.files[beyond[0]][0]})")
    absent = [part for part in range(first, first + total) if part not in found.files]
    if not absent:
        return []
    match = found.example
    width = len(match["part"])
    rest = HASH.sub("-*", match["rest"])
    shown = [f"{match['prefix']}{part:0{width}d}-of-{match['total']}{rest}" for part in absent]
    return [f"{len(absent):,} of {total:,} files: {list_some(shown, 3)}"]


def _find_gaps(names: Sequence[str]) -> list[str]:
    """Return a line for each series with gaps, among files that are numbered with leading zeros from 0 or 1."""
    series: dict[tuple[str, int, str], dict[int, str]] = {}
    for name in names:
        if match := NUMBERED.fullmatch(name):
            key = (match["prefix"], len(match["part"]), match["rest"])
            series.setdefault(key, {})[int(match["part"])] = name
    lines = []
    for (prefix, width, rest), parts in series.items():
        absent = [part for part in range(min(parts), max(parts)) if part not in parts]
        if min(parts) <= 1 and absent and len(absent) < max(parts):
            shown = list_some([f"{prefix}{part:0{width}d}{rest}" for part in absent], 3)
            lines.append(f"{len(absent):,} of {max(parts) - min(parts) + 1:,} numbered files: {shown}")
    return lines


def unfinished_downloads(names: Iterable[str]) -> list[str]:
    """Return a line for each unfinished download: browsers and tools add a suffix until a file is complete."""
    return [
        f"{name} is an unfinished download"
        for name in sorted(names)
        if name.lower().endswith(UNFINISHED) and any(kind in name.lower() for kind in (".parquet", ".arrow"))
    ]


def partial_exports(names: Iterable[str]) -> list[str]:
    """Return a line for each folder such as partial-train, where the dataset viewer puts the first 5 GB of a split."""
    folders = {part for name in names for part in PurePosixPath(name).parent.parts if part.startswith("partial-")}
    return [f"the folder {folder} holds only the first part of its split" for folder in sorted(folders)]


# Completeness by the dataset card


def check_rows(split: str, num_rows: int, declared: Mapping[str, int], card: str) -> list[str]:
    """Compare the number of rows of a split with the one that the card declares; return a line if they differ.

    Args:
        split: the source's name for it.
        declared: number of rows of each split that the card declares.
        card: the card's file name, for the line.
    """
    named = [name for name in declared if name == split] or [
        name for name in declared if canonical_split(name) == canonical_split(split)
    ]
    if not named or declared[named[0]] == num_rows:
        return []
    return [f"{num_rows:,} rows are there, {declared[named[0]]:,} are declared in {card}"]


def absent_splits(splits: Iterable[str], declared: Iterable[str], card: str) -> list[str]:
    """Return a line for each split that a card declares and that has no file, except test, which is not prepared."""
    present = {canonical_split(split) for split in splits}
    absent = [name for name in declared if canonical_split(name) not in present | {"test"}]
    return [f"the split {name}, declared in {card}" for name in absent]
