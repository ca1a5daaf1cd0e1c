"""How serve says no: one clear line and a non-zero exit. `serve` imports nothing of ours, so it has its own."""

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn


class InputError(ValueError):
    """Something a user gave cannot be used; the message is one line that names it and the fix."""


def positive_count(text: str) -> int:
    """An argument that is a number of 1 or more, for argparse's `type`."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is no number of 1 or more")
    return int(text)


def list_some(names: Sequence[str], most: int = 4) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def run(main: Callable[[], None]) -> NoReturn:
    """Run a command to its exit status; a user's mistake, a missing package or the disk's fault ends it in one line."""
    try:
        main()
    except (InputError, OSError) as error:
        sys.exit(f"error: {' '.join(str(error).split())}")
    except ModuleNotFoundError as error:
        sys.exit(f"error: the package {error.name} is missing: pip install {error.name}")
    except KeyboardInterrupt:
        sys.exit("interrupted: nothing was written")
    sys.exit(0)
