"""The copy of a run in a bucket: its layout, who may write it, which checkpoint is the newest one.

recipe.json  starts.jsonl  metrics.jsonl  tuned.json  tensorboard/  hang.txt  bad_batches.json  continue.json
claims/000007.json                   the seventh start of the run with this mirror: host, instance, time, first clock
checkpoints/step_0000012800-000007/  a checkpoint of that start: its three files, metrics.jsonl and starts.jsonl as
                                     they were then, and meta.json, which is written last and holds the digests

S3 has no locks, and Swift's S3 interface has no conditional put except "only if absent". So a start takes the next
number by creating its claim, and before each meta.json it lists the claims: if there is a higher number, it writes no
more. It may be suspended after this look, and write when another start has long been at work. That does no harm:

* A start writes checkpoints under its own number alone, and each of them has its own copy of the logs. A late writer
  can neither change nor mix with what another start saved, and a checkpoint always finds the log that it expects.
* A claim holds the clock from which its start trains. Whatever a lower number has beyond that clock is superseded,
  whenever it appeared: it is never chosen, and deleted when the newest start next saves.
* The logs next to `checkpoints/` are for people and for TensorBoard, and no checkpoint needs them. A late writer may
  replace metrics.jsonl there by an older one; the next save repairs it.

So a run always continues from the newest whole checkpoint of one unbroken history. What a suspended start saves after
another one has started is lost, as it would be without a mirror.
"""

import json
import os
import re
import secrets
import socket
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prep.curves import METRICS
from prep.errors import InputError, list_some
from prep.files import sha256_of
from prep.json_lines import cut_to_whole_lines
from prep.remote import Patience, Remote
from train.checkpoint import (
    EMA,
    META,
    MODEL,
    OPTIMIZER,
    choose_kept,
    find_fault,
    list_checkpoints,
)
from train.config import (
    BAD_BATCHES,
    CHECKPOINTS,
    CONTINUE,
    HANG,
    RECIPE,
    STARTS,
    TENSORBOARD,
    TUNED,
    Recipe,
    complete,
    first_difference,
)

CLAIMS = "claims"
FORMAT = 1  # of this layout
WEIGHTS = (MODEL, EMA, OPTIMIZER)
JOURNALS = (METRICS, STARTS)  # logs of which each checkpoint has a copy
JOURNAL_DIGESTS = "journals"  # their digests, which meta.json has in the bucket alone
LOGS = (RECIPE, TUNED, *JOURNALS, HANG, BAD_BATCHES)


class TakenOverError(InputError):
    """Another run was started with the same mirror."""


@dataclass(frozen=True)
class Claim:
    """A start of the run with this mirror."""

    number: int
    clock: int  # images seen, where this start began
    host: str
    instance: str | None  # of EC2
    process: int
    since: str  # UTC
    earlier: list[list[int]]  # number and clock of each start before it
    token: str  # random: no two claims have the same content
    format: int = FORMAT

    def supersedes(self, number: int, clock: int) -> bool:
        """Return True if a checkpoint of the start `number` is not part of the history of this start."""
        starts = [*self.earlier, [self.number, self.clock]]
        return any(number < other and clock > first for other, first in starts)

    def __str__(self) -> str:
        instance = f" ({self.instance})" if self.instance else ""
        return f"process {self.process} on {self.host}{instance}, since {self.since}"


@dataclass(frozen=True)
class Stored:
    """A checkpoint's folder in the bucket."""

    name: str
    clock: int
    claim: int
    sizes: dict[str, int]  # of its objects, in bytes

    @property
    def local_name(self) -> str:
        """Its name in a run folder."""
        return f"step_{self.clock:010d}"


class RunStore:
    """One run in a bucket. One thread may write at a time.

    Args:
        url: s3://BUCKET/PREFIX.

    Raises:
        InputError: the URL, obstore or the credentials cannot be used. No request is made.
    """

    def __init__(self, url: str, patience: Patience | None = None) -> None:
        self.remote = Remote(url, patience)
        self.url = self.remote.url
        self.claim: Claim | None = None  # of this process
        self.metas: dict[str, dict[str, Any]] = {}  # content of meta.json in the bucket, by folder
        self.sent: dict[str, Any] = {}  # what was uploaded of each log: its size, and for small files its time

    # Reading.

    def check(self, recipe: Recipe, run_dir: Path) -> None:
        """Check that the bucket holds nothing there, or the run that is in the run folder, or is to be in it.

        Raises:
            InputError: it holds something else, a run of another recipe or version, or another run than the folder.
        """
        if not self.holds_run() and (found := self.remote.folders()):
            raise InputError(f"{self.url} holds no run, but {list_some(found)}: choose another --run.mirror")

        # The recipe must be the same, except for the number of epochs.
        newest = next(self.find_checkpoints(self.read_newest_claim()), None)
        theirs = self._read_fields(newest).get("recipe") if newest else None
        theirs = complete(theirs or parse_json(self.remote.read(RECIPE) or b""))
        field = theirs and first_difference({**recipe.to_dict(), "epochs": theirs.get("epochs")}, theirs)
        if field:
            raise InputError(f"{self.url} holds a run of another recipe, {field} differs: choose another --run.mirror")
        if not self.is_run_of(run_dir):
            raise InputError(
                f"{self.url} holds another run than {run_dir}: choose another --run.mirror, or another --run.dir to "
                "continue the one in the bucket"
            )

    def holds_run(self) -> bool:
        """Return True if the bucket holds a run there."""
        return not {f"{CLAIMS}/", f"{CHECKPOINTS}/", RECIPE}.isdisjoint(self.remote.folders())

    def is_run_of(self, run_dir: Path) -> bool:
        """Return False if the run folder has checkpoints of another run: one with another first start."""
        path = run_dir / STARTS
        starts = (self.remote.read(STARTS) or b"", path.read_bytes() if path.exists() else b"")
        first, ours = (each.partition(b"\n")[0] for each in starts)
        return not (first and ours and first != ours and list_checkpoints(run_dir / CHECKPOINTS))

    def read_newest_claim(self) -> Claim | None:
        """Return the claim with the highest number; None if there is none.

        Raises:
            InputError: it cannot be read, or a newer version wrote it.
        """
        number = max(self._list_claims(), default=0)
        return self._read_claim(number) if number else None

    def find_checkpoints(self, newest_claim: Claim | None) -> Iterator[Stored]:
        """Yield the checkpoints that have a meta.json and are not superseded, the newest one first."""
        for each in sorted(self.list_folders(), key=lambda each: (each.clock, each.claim), reverse=True):
            is_superseded = newest_claim is not None and newest_claim.supersedes(each.claim, each.clock)
            if META in each.sizes and not is_superseded:
                yield each

    def read_meta(self, stored: Stored) -> bytes:
        """Return the content of a checkpoint's meta.json as a run folder has it; empty if there is none."""
        fields = self._read_fields(stored)
        return dump_json({name: value for name, value in fields.items() if name != JOURNAL_DIGESTS}) if fields else b""

    def read_digests(self, stored: Stored) -> dict[str, str]:
        """Return the SHA-256 of the other objects of a checkpoint, by name."""
        fields = self._read_fields(stored)
        return fields.get("files", {}) | fields.get(JOURNAL_DIGESTS, {})

    def _read_scores(self, stored: Stored) -> dict[str, float]:
        return self._read_fields(stored).get("metrics", {})

    def _read_fields(self, stored: Stored) -> dict[str, Any]:
        if stored.name not in self.metas:
            self.metas[stored.name] = parse_json(self.remote.read(f"{CHECKPOINTS}/{stored.name}/{META}") or b"")
        return self.metas[stored.name]

    def list_folders(self) -> list[Stored]:
        """Return all folders of checkpoints, whole or not."""
        folders: dict[str, dict[str, int]] = {}
        for key, size in self.remote.list(CHECKPOINTS).items():
            folder, _, name = key.removeprefix(f"{CHECKPOINTS}/").partition("/")
            folders.setdefault(folder, {})[name] = size
        found = {name: re.fullmatch(r"step_(\d+)-(\d+)", name) for name in folders}
        return [Stored(name, int(at[1]), int(at[2]), folders[name]) for name, at in found.items() if at]

    # Claiming.

    def take(self, clock: int, instance: str | None) -> Claim:
        """Create the next claim: from now on this start is the one that writes.

        Also deletes continue.json, since the run goes on.

        Args:
            clock: images seen, where this start begins.
            instance: of EC2.

        Raises:
            InputError: the bucket cannot be written.
        """
        assert self.claim is None
        # Claims may have been deleted by a rule of the bucket: no number is used again while its checkpoints exist.
        number = max((each.claim for each in self.list_folders()), default=0)
        while True:
            before = self.read_newest_claim()
            earlier = [*before.earlier, [before.number, before.clock]] if before else []
            number = max(number, before.number if before else 0) + 1
            since = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
            token = secrets.token_hex(8)
            claim = Claim(number, clock, socket.gethostname(), instance, os.getpid(), since, earlier, token)
            if self.remote.create(f"{CLAIMS}/{number:06d}.json", dump_json(asdict(claim))):
                break
        self.remote.delete(CONTINUE)
        self.claim = claim
        return claim

    def confirm(self) -> None:
        """Check that no other start has claimed the run since.

        Raises:
            TakenOverError: another one has.
        """
        assert self.claim is not None
        number = max(self._list_claims(), default=0)
        if number < self.claim.number:  # a rule of the bucket has deleted the claims
            return
        try:
            newest = self._read_claim(number)
        except InputError:
            newest = None
        # The same number with another token: some servers let two simultaneous create-only puts both succeed.
        if number > self.claim.number or (newest and newest.token != self.claim.token):
            other = newest or "another start"
            raise TakenOverError(f"{self.url} was taken over by {other}: end that run before you start this one again")

    def _list_claims(self) -> list[int]:
        found = (re.fullmatch(rf"{CLAIMS}/(\d+)\.json", name) for name in self.remote.list(CLAIMS))
        return [int(each[1]) for each in found if each]

    def _read_claim(self, number: int) -> Claim:
        name = f"{CLAIMS}/{number:06d}.json"
        fields = parse_json(self.remote.read(name) or b"")
        if fields.get("format", FORMAT) != FORMAT:
            raise InputError(
                f"{self.url} was written by another version of Penstock (format {FORMAT} is expected, found "
                f"{fields['format']}): use that version, or choose another --run.mirror"
            )
        try:
            return Claim(**fields)
        except TypeError:
            raise InputError(f"{self.url}/{name} is damaged: delete it, then run the same command again") from None

    # Writing.

    def put_logs(self, run_dir: Path, names: tuple[str, ...] = LOGS) -> None:
        """Upload the logs that changed since they were last uploaded."""
        for name in names:
            self._put_log(run_dir, name)

        # TensorBoard's files only grow: those of earlier starts are there. A file that was renamed here (see
        # `train.logger.sort_before_now`) would show its points twice.
        here = {str(path.relative_to(run_dir)): path for path in (run_dir / TENSORBOARD).rglob("*") if path.is_file()}
        if TENSORBOARD not in self.sent:
            there = self.remote.list(TENSORBOARD)
            for name in there.keys() - here.keys():
                self.remote.delete(name)
            self.sent |= {TENSORBOARD: True, **there}
        for name, path in sorted(here.items()):
            size = path.stat().st_size
            if self.sent.get(name) != size:
                self.remote.put(name, path)
                self.sent[name] = size

    def _put_log(self, run_dir: Path, name: str) -> None:
        path = run_dir / name
        if path.exists():
            facts = path.stat()
            if self.sent.get(name) != (facts.st_size, facts.st_mtime_ns):
                self.remote.put(name, _read_log(path))
                self.sent[name] = (facts.st_size, facts.st_mtime_ns)

    def put_checkpoint(self, path: Path) -> None:
        """Upload a checkpoint of the run folder; it counts when its meta.json is there, which comes last.

        Raises:
            TakenOverError: another start has claimed the run; the checkpoint does not count.
            OSError: the checkpoint was deleted in the meantime.
        """
        assert self.claim is not None
        name, fields = f"{path.name}-{self.claim.number:06d}", parse_json((path / META).read_bytes())
        folder = f"{CHECKPOINTS}/{name}"
        if self.metas.pop(name, None):  # never a meta.json over files that it does not describe
            self.remote.delete(f"{folder}/{META}")
        for file in WEIGHTS:
            self.remote.put(f"{folder}/{file}", path / file)
        journals = {log: _read_log(path.parent.parent / log) for log in JOURNALS}
        for log, content in journals.items():
            self.remote.put(f"{folder}/{log}", content)
        fields[JOURNAL_DIGESTS] = {log: sha256_of(content) for log, content in journals.items()}
        self.confirm()
        self.remote.put(f"{folder}/{META}", dump_json(fields))
        self.metas[name] = fields

    def find_missing(self, run_dir: Path, since: int, keep: int) -> Path | None:
        """Return the newest whole checkpoint of the run folder that the bucket lacks; None if it lacks none.

        Args:
            since: images seen; older checkpoints do not count.
            keep: as for `prune`; what that would delete again is not missing.
        """
        whole = [*self.find_checkpoints(self.claim)]
        there = {self.read_meta(each) for each in whole}
        missing: dict[str, Path] = {}
        found = [(each.clock, each.name, self._read_scores(each)) for each in reversed(whole)]
        for path in list_checkpoints(run_dir / CHECKPOINTS):
            try:
                meta = (path / META).read_bytes()
            except OSError:  # it was deleted in the meantime, or is damaged
                continue
            fields = parse_json(meta)
            if meta not in there and fields.get("clock", -1) >= since:
                missing[path.name] = path
                found.append((fields["clock"], path.name, fields.get("metrics", {})))
        found.sort(key=lambda each: each[0])
        kept = choose_kept({name: scores for _, name, scores in found}, keep)
        return next((path for name, path in reversed(missing.items()) if name in kept and not find_fault(path)), None)

    def find_copy(self, path: Path) -> Stored | None:
        """Return the copy of a local checkpoint in the bucket."""
        meta = (path / META).read_bytes()
        found = self.find_checkpoints(self.read_newest_claim())
        return next((each for each in found if self.read_meta(each) == meta), None)

    def prune(self, keep: int) -> None:
        """Delete what `train.checkpoint.prune` would delete, superseded checkpoints and remains of uploads.

        Of each checkpoint meta.json goes first, so that it never looks whole when a file is missing.
        """
        assert self.claim is not None
        whole = list(self.find_checkpoints(self.claim))
        kept = choose_kept({each.name: self._read_scores(each) for each in reversed(whole)}, keep)
        for each in self.list_folders():
            if each.name not in kept and each.claim <= self.claim.number:
                for name in sorted(each.sizes, key=lambda name: name != META):
                    self.remote.delete(f"{CHECKPOINTS}/{each.name}/{name}")
                self.metas.pop(each.name, None)


def _read_log(path: Path) -> bytes:
    """Return the content of a log; of one with an object per line the whole lines: another thread may be writing."""
    content = path.read_bytes()
    return cut_to_whole_lines(content) if path.suffix == ".jsonl" and content else content


def parse_json(content: bytes) -> dict[str, Any]:
    """Return the object in a JSON file; an empty one if it holds none."""
    try:
        fields = json.loads(content)
    except ValueError:
        return {}
    return fields if isinstance(fields, dict) else {}


def dump_json(fields: dict[str, Any]) -> bytes:
    """Return the content of a JSON file, as all files of a run folder are written."""
    return (json.dumps(fields, indent=1) + "\n").encode()
