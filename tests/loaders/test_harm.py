"""Random damage to shards and index, before or while two processes train: words or nothing, no crash and no hang.

PENSTOCK_SOAK_HARM sets how many times (12 unless told). That prep/verify.py notices all of it, and repairs it, is in
test_prep_verify.py; here the loader reads data that was not verified.
"""

import os
import random
import re
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest
from helpers.rank_jobs import harm_in_place
from helpers.ranks import HUNG, PEER_LOST, Ended, Ranks

from prep.dataset import MANIFEST, SAMPLES, Split
from prep.errors import InputError

NUM_TRIALS = int(os.environ.get("PENSTOCK_SOAK_HARM", "12"))
TARS = ("validation-000000.tar", "validation-000001.tar")
FOLDER = "/data/validation"
NUM_BATCHES = 18  # 6 of evaluation, 12 of training
BEFORE = -1  # the data is opened
NAMES_A_FILE = r"error: (?!.*(Error\b|Errno)).*/validation/\S"  # the manifest may be what misspells it


@dataclass(frozen=True)
class Trial:
    """The damage, its time, and the settings of the loader."""

    seed: int
    file: str
    moment: int  # the batch before which it happens, or BEFORE
    backend: str
    order: str
    most_damaged: int

    def arguments(self, root: Path) -> dict[str, Any]:
        """Return the arguments of the job `consume`."""
        fields = asdict(self)
        loader = {name: fields[name] for name in ("backend", "order", "most_damaged")}
        harm = {name: fields[name] for name in ("file", "moment", "seed")}
        return {"root": str(root), "loader": loader, "harm": harm}


def _draw(seed: int) -> Trial:
    draw = random.Random(seed)
    return Trial(
        seed=seed,
        file=draw.choice((*TARS, *TARS, SAMPLES, MANIFEST)),
        moment=draw.choice((BEFORE, draw.randrange(NUM_BATCHES))),
        backend=draw.choice(("dali", "dali", "reference")),
        order=draw.choice(("shuffle", "blocks")),
        most_damaged=draw.choice((0, 1000)),
    )


def _find_faults(ended: list[Ended]) -> list[str]:
    """Return the faults: an end without an error line, or with several of our lines that name a file."""
    faults = []
    for rank, (status, stderr) in enumerate((each.status, each.stderr) for each in ended):
        # The decoders' own libraries write to stderr as well, e.g. "Corrupt JPEG data: premature end of data segment".
        lines = stderr.splitlines()
        complaints = [line for line in lines if line.startswith("error: ")]
        if status not in (0, 1, PEER_LOST):
            faults.append(f"rank {rank} {'hung' if status == HUNG else f'ended with status {status}'}")
        is_last = complaints == lines[len(lines) - len(complaints) :]
        if "Traceback" in stderr or len(complaints) != (status == 1) or not is_last:
            faults.append(f"rank {rank} did not end with one line")
        elif not all(re.match(NAMES_A_FILE, line) for line in complaints):
            faults.append(f"rank {rank} ended with unclear words")
    statuses = [each.status for each in ended]
    if PEER_LOST in statuses and 1 not in statuses:
        faults.append("no rank says why it ended")
    return faults


@pytest.mark.parametrize("seed", range(NUM_TRIALS))
def test_no_random_damage_ends_without_words_or_hangs(ranks: Ranks, digits: Path, tmp_path: Path, seed: int) -> None:
    trial, root = _draw(seed), tmp_path / "data"
    shutil.copytree(digits / "validation", root / "validation")
    done = harm_in_place(root / "validation" / trial.file, seed) if trial.moment == BEFORE else ""
    ended = ranks.run("consume", 2, tmp_path, **trial.arguments(root))
    done = done or (ranks.group / "stdout-0").read_text().strip()
    faults = _find_faults(ended)
    assert not faults, "\n".join([*faults, str(trial), done, *(f"{each.status}: {each.stderr}" for each in ended)])


def test_a_manifest_that_miscounts_is_named(digits_copy: Path) -> None:
    """One bit of a digit: all else about it is as it should be."""
    path = digits_copy / "validation" / MANIFEST
    path.write_text(path.read_text().replace('"num_images": 360', '"num_images": 361'))
    with pytest.raises(InputError, match=f"{path} "):
        Split(digits_copy, "validation")


def test_sound_data_ends_well_and_says_nothing(ranks: Ranks, digits: Path, tmp_path: Path) -> None:
    """The measure of the test above."""
    trial = Trial(0, TARS[0], NUM_BATCHES + 1, "dali", "shuffle", 0)
    assert ranks.run("consume", 2, tmp_path, **trial.arguments(digits)) == [Ended(0, ""), Ended(0, "")]


@pytest.mark.parametrize(
    ("ended", "fault"),
    [
        ([Ended(0, ""), Ended(-11, "")], "rank 1 ended with status -11"),
        ([Ended(HUNG, ""), Ended(HUNG, "")], "rank 0 hung"),
        ([Ended(PEER_LOST, ""), Ended(PEER_LOST, "")], "no rank says why it ended"),
        ([Ended(1, "error: it failed\n"), Ended(PEER_LOST, "")], "rank 0 ended with unclear words"),
        ([Ended(1, f"error: OSError: {FOLDER}/{SAMPLES}\n"), Ended(0, "")], "rank 0 ended with unclear words"),
        (
            [Ended(1, f"error: {FOLDER}/{SAMPLES} is\nbad\n"), Ended(PEER_LOST, "")],
            "rank 0 did not end with one line",
        ),
        ([Ended(PEER_LOST, ""), Ended(1, "")], "rank 1 did not end with one line"),
        ([Ended(0, ""), Ended(0, "Traceback (most recent call last):\n")], "rank 1 did not end with one line"),
    ],
)
def test_what_must_not_be_is_found(ended: list[Ended], fault: str) -> None:
    assert fault in _find_faults(ended)


def test_what_may_be_is_not() -> None:
    clear = (
        f"error: {FOLDER}/{TARS[0]} ends before its image 1: `python prep/verify.py {FOLDER}` says how to repair it\n"
    )
    words = "Corrupt JPEG data: premature end of data segment\nwarning: 1 cannot be decoded\n"
    assert _find_faults([Ended(1, words + clear), Ended(PEER_LOST, words)]) == []
    assert _find_faults([Ended(1, clear), Ended(1, clear)]) == _find_faults([Ended(0, words), Ended(0, "")]) == []
