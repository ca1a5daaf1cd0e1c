"""How commands speak and end: in one line for a user's mistake, whatever the number of processes."""

import os
import sys
from collections.abc import Callable
from typing import NoReturn

from loaders import InputError
from prep.dataset import describe_os_error
from train.dist import describe_error

DEFAULT_RECIPE = "seed_113"


def exit_with(error: InputError) -> NoReturn:
    """End the command with one line on standard error and status 1; silently where rank 0 says the same."""
    rank = os.environ.get("RANK", "")  # may be what is wrong
    sys.exit(describe_error(error, int(rank) if rank.isdecimal() else 0) or 1)


def run(main: Callable[[], None]) -> None:
    """Run a command; a user's mistake, the disk's fault or Ctrl-C ends it in one line."""
    try:
        main()
    except InputError as error:
        exit_with(error)
    except OSError as error:
        sys.exit(f"error: {describe_os_error(error)}")
    except KeyboardInterrupt:
        sys.exit("interrupted")


def speak(text: str) -> None:
    """Print a line, if anybody still reads.

    A terminal that was closed gives EIO, a pipe to a `tee` that Ctrl-C ended EPIPE. A run that is about to save must
    not end for that, so from then on all output goes to /dev/null: what is left in the buffer as well, or Python would
    fail to flush it at its end and exit with 120.
    """
    try:
        print(text, flush=True)
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
