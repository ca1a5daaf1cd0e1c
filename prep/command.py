"""What prep's commands share: arguments that count, warnings, and an end in one line."""

import argparse
import os
import sys
from collections.abc import Callable
from typing import NoReturn

from prep.dataset import InputError
from prep.files import describe_os_error


def positive_count(text: str) -> int:
    """An argument that is a number of 1 or more, for argparse's `type`."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is no number of 1 or more")
    return int(text)


def warn(message: str) -> None:
    """Say something that is not fatal; nothing where there is nothing to say."""
    if message:
        print(f"warning: {message}", file=sys.stderr)


def say(text: str) -> None:
    """Print lines, whatever the names of files in them: a name that is no text is written with backslashes."""
    print(text.encode(errors="backslashreplace").decode())


def one_line(text: str) -> str:
    """Printable anywhere, whatever the names of files in it: no line breaks, no half characters."""
    return " ".join(text.split()).encode(errors="backslashreplace").decode()


def run(main: Callable[[], int | None], interrupted: str = "run the same command again to go on") -> NoReturn:
    """Run a command to its exit status; a user's mistake, a missing package or the disk's fault ends it in one line."""
    try:
        sys.exit(main())
    except BrokenPipeError:  # whoever read the output has left, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains as it exits
        sys.exit(1)
    except InputError as error:
        sys.exit(f"error: {one_line(str(error))}")
    except OSError as error:
        sys.exit(f"error: {one_line(describe_os_error(error))}")
    except ModuleNotFoundError as error:
        sys.exit(f"error: the package {error.name} is missing: pip install {error.name}")
    except KeyboardInterrupt:
        sys.exit(f"interrupted: {interrupted}")
