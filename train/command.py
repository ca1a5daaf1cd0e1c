"""How commands end: in one line for a user's mistake, whatever the number of processes."""

import os
import sys
from collections.abc import Callable
from typing import NoReturn

from loaders import InputError
from train.dist import describe_error

DEFAULT_RECIPE = "seed_113"


def exit_with(error: InputError) -> NoReturn:
    """End the command with one line on standard error and status 1; silently where rank 0 says the same."""
    sys.exit(describe_error(error, int(os.environ.get("RANK", "0"))) or 1)


def run(main: Callable[[], None]) -> None:
    """Run a command; a user's mistake, the disk's fault or Ctrl-C ends it in one line."""
    try:
        main()
    except InputError as error:
        exit_with(error)
    except OSError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted")
