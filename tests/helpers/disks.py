"""Small disks for tests: each is a tmpfs in a mount namespace of its own."""

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

AS_ROOT = [] if os.geteuid() == 0 else ["-r"]  # others need a user namespace to mount in
ENTER = [] if os.geteuid() == 0 else ["-U", "--preserve-credentials"]
HOLD = 'mount -t tmpfs -o "size=$0" tmpfs "$1" && echo mounted && exec sleep 600'


@dataclass(frozen=True)
class Disk:
    """A tmpfs in its own mount namespace, which ends with the process that holds it."""

    folder: Path
    holder: subprocess.Popen[str]

    @property
    def seen(self) -> Path:
        """Its folder as other processes see it."""
        return Path(f"/proc/{self.holder.pid}/root{self.folder}")

    def remount(self, options: str) -> None:
        command = ["nsenter", "-t", str(self.holder.pid), "-m", *ENTER]
        subprocess.run([*command, "mount", "-o", f"remount,{options}", "tmpfs", self.folder], check=True)


def make_disk(size: str, folder: Path) -> Disk:
    """Make a small disk of a size such as 4m at an empty folder; skip where this user cannot mount.

    The caller kills its holder.
    """
    try:
        command = ["unshare", "-m", *AS_ROOT, "sh", "-c", HOLD, size, folder]
        pipe = subprocess.PIPE
        holder = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True)
    except FileNotFoundError:
        pytest.skip("needs util-linux's unshare")
    assert holder.stdout is not None and holder.stderr is not None
    if holder.stdout.readline() != "mounted\n":
        _, stderr = holder.communicate()
        pytest.skip(f"needs to mount a tmpfs: {stderr.strip()}")
    return Disk(folder, holder)
