"""Write the same images in every format that contenders read, each format with its reader's interpreter.

Shards come first, written by the real command; the other formats are written from them.
"""

import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from feeding.contenders import RESTART_SHARDS, SHARDS, SMALLER_SHARDS, Contender
from feeding.job import SPLIT
from race import FailedError, last_line

from prep.errors import InputError

CHECKOUT = Path(__file__).resolve().parent.parent
PREPARE, WRITE_FORMAT = CHECKOUT / "prep" / "shard.py", CHECKOUT / "benchmarks" / "feeding" / "formats.py"
PREPARATION = {  # options of prep/shard.py
    SHARDS: [],
    RESTART_SHARDS: ["--restarts"],
    SMALLER_SHARDS: ["--max-side", "500", "--quality", "90"],
}
LONGEST_WRITE = 3600  # seconds


def write_formats(
    readers: Iterable[Contender], pythons: dict[str, str], source: Path, work: Path, workers: int
) -> dict[str, str]:
    """Write every format that a contender reads, each in the folder of its name; return failures and their reasons.

    Deletes the source afterwards, which would only take space in the page cache.

    Raises:
        InputError: the source cannot be prepared.
    """
    wanted, failed = {reader.data: reader for reader in readers}, {}
    # Prepare the shards, always those with the original bytes: the other formats are written from them.
    for data, options in PREPARATION.items():
        if data == SHARDS or wanted.pop(data, None):
            prepare_shards(source, work / data, [*options, "--workers", str(workers)])
    wanted.pop(SHARDS, None)
    shutil.rmtree(source)
    # Write the peers' formats.
    for data, reader in wanted.items():
        out = work / data
        out.mkdir()
        python = pythons.get(reader.peer, sys.executable)
        try:
            _run_command([python, str(WRITE_FORMAT), data, str(work / SHARDS / SPLIT), str(out), str(workers)])
        except FailedError as error:
            failed[data] = f"{data} could not be written: {error}"
    return failed


def prepare_shards(source: Path, out: Path, options: list[str]) -> None:
    """Write Penstock's shards with prep/shard.py.

    Raises:
        InputError: the source cannot be prepared.
    """
    try:
        _run_command([sys.executable, str(PREPARE), "--source", str(source), "--out", str(out), *options])
    except FailedError as error:
        raise InputError(f"the images could not be prepared: {error}") from error


def _run_command(command: list[str]) -> None:
    """Run a command; raise FailedError with its last line if it fails or takes longer than LONGEST_WRITE seconds."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=LONGEST_WRITE)
    except subprocess.TimeoutExpired as error:
        raise FailedError(f"it took longer than {LONGEST_WRITE} s") from error
    if done.returncode:
        raise FailedError(last_line(done.stderr))


def count_bytes(folder: Path) -> int:
    """Return the total size of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
