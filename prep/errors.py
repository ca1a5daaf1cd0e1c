"""Report errors of commands: one clear line, and an exit status that is not zero.

Every package imports this module; it imports nothing of ours and nothing heavy. Code raises `InputError` for what a
user can correct, and `run` prints it. Under torchrun all processes usually find the same mistake; therefore only
rank 0 prints it. A `RankError` is found by one process only, which prints it itself.
"""

import argparse
import errno
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn

# Advice for errors of the operating system about files.
ADVICE = {
    errno.ENOSPC: "free some space, then run the same command again",
    errno.EDQUOT: "free some space or raise the quota, then run the same command again",
    errno.EIO: "the disk or its network failed: see `dmesg`, then run the same command again",
    errno.ESTALE: "the network file system changed under this process: mount it again, then run the same command again",
    errno.EROFS: "mount it for writing, or choose another folder",
    errno.EACCES: "give this user the permission (`ls -ld` shows the owner), or choose another folder",
    errno.EPERM: "the file system or an attribute (`lsattr`) does not allow it: choose another folder",
    errno.ENOENT: "check the path, then run the same command again",
    errno.EEXIST: "move the file that has this name, or choose another path",
    errno.ENOTDIR: "a file is where a folder should be: choose another path",
    errno.EISDIR: "a folder is where a file should be: choose another path",
    errno.ENAMETOOLONG: "choose a shorter path",
    errno.ELOOP: "its links form a loop: repair them",
    errno.EMFILE: "raise the limit of open files, `ulimit -n`",
    errno.ENFILE: "close other programs, this machine has too many open files",
    errno.ENOMEM: "use fewer --workers, or free some memory",
    errno.EBUSY: "end the program that uses it, then run the same command again",
    errno.ETXTBSY: "end the program that uses it, then run the same command again",
    errno.ENOTSUP: "the file system does not support it: choose a folder on another one",
    errno.ENOSYS: "the file system does not support it: choose a folder on another one",
}


OWN_PACKAGES = ("prep", "loaders", "train", "serve")  # PyPI has other projects of these names
# What to give pip for a module. Extras are those of the checkout, because `penstock` on PyPI is another project too.
REQUIREMENTS = {
    **dict.fromkeys(("fastapi", "gradio", "starlette", "uvicorn"), "-e '.[app]'"),
    "nvidia": "-e '.[cu12]'",
    "obstore": "-e '.[s3]'",
    **dict.fromkeys(("onnx", "onnxruntime", "onnxscript"), "-e '.[onnx]'"),
    "ray": "-e '.[ray]'",
    "PIL": "pillow",
    "cv2": "opencv-python-headless",
    "pytorch_grad_cam": "grad-cam",
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
}


class InputError(ValueError):
    """An input, a flag or a file that cannot be used; the message is one line that names it and the fix."""

    def describe(self, rank: int) -> str | None:
        """Return the error line that this rank prints; None if rank 0 prints the same."""
        return None if rank else f"error: {self}"


class RankError(InputError):
    """An error that only one of several processes finds, so that this process has to report it."""

    def describe(self, rank: int) -> str:
        """Return the error line that this rank prints."""
        return f"error: {f'rank {rank}: ' if rank else ''}{self}"


def run(main: Callable[[], int | None], interrupted: str = "") -> None:
    """Run a command's `main`; exit with the status that it returns if that is neither None nor 0.

    A mistake of the user, an error of the disk, a missing package and Ctrl-C end the process with one line on standard
    error.

    Args:
        interrupted: text to print after Ctrl-C, for example how to continue.
    """
    try:
        if status := main():
            sys.exit(status)
    except BrokenPipeError:
        # The reader of the output, such as `head`, has ended. Without a new target Python prints an error at exit.
        discard_output()
        sys.exit(1)
    except InputError as error:
        exit_with(error)
    except OSError as error:
        sys.exit(f"error: {one_line(describe_os_error(error))}")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in OWN_PACKAGES:  # a mistake in this code
            raise
        sys.exit(f"error: the package {error.name} is missing: pip install {find_requirement(error.name or '')}")
    except KeyboardInterrupt as error:
        said = str(error) or interrupted
        sys.exit(f"interrupted{f': {said}' if said else ''}")


@contextmanager
def explain_interruption(describe: Callable[[], str]) -> Iterator[None]:
    """Let Ctrl-C in the block end the command with what `describe` returns then, instead of `run`'s text."""
    try:
        yield
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(describe()) from error


def find_requirement(module: str) -> str:
    """Return what to give `pip install`, in the checkout, to get a module."""
    package = module.partition(".")[0]
    return REQUIREMENTS.get(package, package)


def exit_with(error: InputError) -> NoReturn:
    """End the process with status 1 and the error's line; without the line if rank 0 prints the same."""
    rank = os.environ.get("RANK", "")  # may itself be wrong
    line = error.describe(int(rank) if rank.isdecimal() else 0)
    sys.exit(1 if line is None else one_line(line))


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Add the default to the help of each flag that has one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return super()._get_help_string(action) if action.default else action.help


def positive_count(text: str) -> int:
    """Parse an argument that is a whole number of 1 or more, for argparse's `type`."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text}")
    return int(text)


def seed_number(text: str) -> int:
    """Parse an argument that is a whole number of 0 or more, for argparse's `type`: numpy accepts no other seed."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 0, got {text}")
    return int(text)


def list_some(names: Sequence[str], most: int = 4) -> str:
    """Return the first few names, and how many more there are."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def one_line(text: str) -> str:
    """Return a text without line breaks and invalid characters, which names of files may contain."""
    return " ".join(text.split()).encode(errors="backslashreplace").decode()


def warn(message: str) -> None:
    """Print a warning on standard error; print nothing for an empty message."""
    if message:
        print(f"warning: {message}", file=sys.stderr)


def print_lines(text: str) -> None:
    """Print lines that contain names of files; characters that cannot be encoded are written with backslashes."""
    print(text.encode(errors="backslashreplace").decode())


def print_or_discard(text: str) -> None:
    """Print a line; if nothing reads the output any more, discard this line and all later ones.

    A terminal that was closed gives EIO, a pipe to a `tee` that Ctrl-C ended EPIPE. A run that is about to save must
    not end because of that.
    """
    try:
        print(text, flush=True)
    except OSError:
        discard_output()


def discard_output() -> None:
    """Send standard output to /dev/null, including what is still in its buffer, which Python would flush at exit."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def describe_os_error(error: OSError) -> str:
    """Return an error of the operating system in one line: the path, the error, and what to do."""
    path = " -> ".join(str(name) for name in (error.filename, error.filename2) if name is not None)
    reason = (error.strerror or str(error) or type(error).__name__).rstrip(".")
    advice = ADVICE.get(error.errno or 0, "")
    return ": ".join(filter(None, (path, reason[:1].lower() + reason[1:], advice)))
