"""What a visitor leaves on the server besides uploads: a folder after a crash, and the last answers in memory.

`serve/app/uploads.py` deletes the uploads themselves.
"""

import fcntl
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from pathlib import Path

from gradio import Blocks

PREFIX, LOCK = "penstock-app-", "lock"
KEEP_ANSWERS = timedelta(seconds=60)


@contextmanager
def make_private_folder() -> Iterator[Path]:
    """Yield a new folder for this process, and delete it at the end.

    Also delete the folders of servers that were killed before they could. A living server holds a lock in its folder.
    """
    parent = Path(tempfile.gettempdir())
    for folder in parent.glob(f"{PREFIX}*"):
        with suppress(OSError):  # of another user, or of a living server
            _delete_unlocked(folder)
    with tempfile.TemporaryDirectory(prefix=PREFIX) as temporary, (Path(temporary) / LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield Path(temporary)


def _delete_unlocked(folder: Path) -> None:
    """Delete a folder whose lock is free.

    Raises:
        OSError: the lock is held, the folder has none (it may be about to get one), or it cannot be deleted.
    """
    with (folder / LOCK).open("r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder)


def forget_answers(blocks: Blocks, keep: timedelta = KEEP_ANSWERS) -> None:
    """Delete the answers that Gradio keeps of each session, which contain the visitor's picture, after a minute.

    The page starts a session for each choice and never asks for an earlier answer.
    """
    holder = getattr(blocks, "state_holder", None)
    if holder is None:  # before the launch
        return
    with holder.lock:
        old = [name for name, used in holder.time_last_used.items() if datetime.now() - used > keep]
        for session in old:
            holder.session_data.pop(session, None)
            holder.time_last_used.pop(session, None)
