"""cloud/nvme.sh on loop devices that bear the model of EC2's disks: formatted, mounted, found again, or refused.

A kernel without md has no arrays. For several disks the call of mdadm is therefore compared, and a further loop device
stands for the array.
"""

import os
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from helpers.commands import CHECKOUT

INSTANCE_STORE, EBS = "Amazon EC2 NVMe Instance Storage", "Amazon Elastic Block Store"
SIZE = 320 << 20  # bytes: mkfs.xfs makes no file system below 300 MB
SBIN = "/usr/sbin:/sbin"
# Writes down its arguments; the array that it makes is the device $PENSTOCK_TEST_ARRAY.
MDADM = """#!/bin/sh
echo "$*" >> "$PENSTOCK_TEST_CALLS"
ln -s "$PENSTOCK_TEST_ARRAY" "$PENSTOCK_ARRAY"
"""
NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")


def write_member(device: str, name: str = "any:penstock") -> None:
    """Write the superblock (version 1.2) that mdadm leaves on each disk of an array."""
    sector = 8  # where it lies
    block = bytearray(256)
    struct.pack_into("<IIII16s32s", block, 0, 0xA92B4EFC, 1, 0, 0, bytes(range(16)), name.encode())
    struct.pack_into("<IIQII", block, 72, 0, 0, 0, 1024, 2)  # level, layout, size, chunk and number of disks
    struct.pack_into("<QQQ", block, 128, 2048, (SIZE >> 9) - 2048, sector)
    total = sum(struct.unpack("<64I", block))
    struct.pack_into("<I", block, 216, (total & 0xFFFFFFFF) + (total >> 32))
    with Path(device).open("r+b") as file:
        file.seek(sector * 512)
        file.write(block)


class Machine:
    """A pretended machine: folders for /sys, /nvme and /opt/dlami/nvme, and loop devices as its disks."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder, self.stack = folder, stack
        self.sys, self.mount, self.bin = (folder / name for name in ("sys", "nvme", "bin"))
        (self.sys / "block").mkdir(parents=True)
        self.bin.mkdir()
        stack.callback(self.unmount_all)

    def add_pretended(self, name: str, model: str) -> None:
        """Add a disk that has no device: one that must not be touched."""
        device = self.sys / "block" / name / "device"
        device.mkdir(parents=True)
        (device / "model").write_text(f"{model:<40}\n")  # as the kernel writes it

    def pretend(self, name: str, script: str) -> None:
        """Put a command first in the path."""
        (self.bin / name).write_text(script)
        (self.bin / name).chmod(0o755)

    def add_loop(self, model: str = INSTANCE_STORE) -> str:
        """Add a disk that is a loop device; its path. Skip the test where there are none."""
        image = self.folder / f"image-{len(list(self.folder.glob('image-*')))}"
        with image.open("wb") as file:
            file.truncate(SIZE)
        try:
            device = self.succeed("losetup", "--find", "--show", image)
        except (subprocess.CalledProcessError, FileNotFoundError) as error:
            pytest.skip(f"needs loop devices: {getattr(error, 'stderr', None) or error}")
        self.stack.callback(self.succeed, "losetup", "--detach", device)
        if model:
            self.add_pretended(Path(device).name, model)
        return device

    def environment(self, **variables: object) -> dict[str, str]:
        ours = {
            "PATH": f"{self.bin}:{os.environ['PATH']}:{SBIN}",
            "PENSTOCK_SYS": self.sys,
            "PENSTOCK_MOUNT": self.mount,
            "PENSTOCK_DLAMI": self.folder / "dlami",
            "PENSTOCK_ARRAY": self.folder / "array",
        }
        return {name: str(value) for name, value in (ours | variables).items()}

    def nvme(self, *arguments: object, before: tuple[str, ...] = (), **variables: object) -> tuple[int, str, str]:
        """Run nvme.sh; its status, the folder that it printed, and its error."""
        command = [*before, str(CHECKOUT / "cloud/nvme.sh"), *map(str, arguments)]
        run = subprocess.run(
            command, env=self.environment(**variables), capture_output=True, text=True, timeout=120, check=False
        )
        return run.returncode, run.stdout.strip(), run.stderr.strip()

    def refuses(self, *arguments: object) -> str:
        """Run nvme.sh; the one line with which it refuses."""
        status, folder, error = self.nvme(*arguments)
        assert (status, folder) == (1, "")
        assert error.startswith("error: "), error
        assert "\n" not in error, error
        return error

    def succeed(self, *command: object) -> str:
        """Run a command of the system; its output."""
        path = f"{os.environ['PATH']}:{SBIN}"
        words = list(map(str, command))
        return subprocess.run(
            words, env={"PATH": path}, check=True, capture_output=True, text=True, timeout=120
        ).stdout.strip()

    def unmount_all(self) -> None:
        for line in Path("/proc/self/mounts").read_text().splitlines():
            if (where := line.split()[1]).startswith(str(self.folder)):
                self.succeed("umount", where)


@pytest.fixture
def machine() -> Iterator[Machine]:
    """A machine without disks, in a folder that every user can reach."""
    for tool in ("lsblk", "wipefs", "flock", "mountpoint"):
        if shutil.which(tool, path=f"{os.environ['PATH']}:{SBIN}") is None:
            pytest.skip(f"needs {tool} of util-linux, which is not installed")
    with tempfile.TemporaryDirectory(prefix="nvme-") as folder, ExitStack() as stack:
        Path(folder).chmod(0o755)
        yield Machine(Path(folder), stack)


@pytest.fixture
def formatting(machine: Machine) -> Machine:
    """A machine that can format and mount."""
    if os.getuid() != 0:
        pytest.skip("needs root")
    if shutil.which("mkfs.xfs", path=f"{os.environ['PATH']}:{SBIN}") is None:
        pytest.skip("needs mkfs.xfs, which is not installed: apt-get install xfsprogs")
    if "xfs" not in Path("/proc/filesystems").read_text():
        pytest.skip("needs a kernel with xfs")
    return machine


def test_one_disk_is_formatted_mounted_and_found_again(formatting: Machine) -> None:
    disk = formatting.add_loop()
    formatting.add_pretended("nvme0n1", EBS)
    for _ in range(2):
        assert formatting.nvme() == (0, str(formatting.mount), "")
    assert formatting.succeed("findmnt", "-no", "SOURCE,FSTYPE", formatting.mount).split() == [disk, "xfs"]
    (formatting.mount / "kept").write_text("data")
    # After a start of the same machine.
    formatting.succeed("umount", formatting.mount)
    assert formatting.nvme(disk) == (0, str(formatting.mount), "")
    assert (formatting.mount / "kept").read_text() == "data"
    # And for a user without root.
    assert formatting.nvme(before=NOBODY) == (0, str(formatting.mount), "")


def test_disks_with_data_are_refused_by_name(formatting: Machine) -> None:
    foreign, empty = formatting.add_loop(), formatting.add_loop()
    formatting.succeed("mkfs.xfs", "-q", "-L", "user's", foreign)
    formatting.pretend("mdadm", MDADM)
    error = formatting.refuses()
    assert f"{foreign} has data (xfs user's)" in error
    assert f"wipefs --all {foreign}" in error
    assert formatting.succeed("wipefs", "--no-act", empty) == "", "no disk was changed"
    assert not formatting.mount.exists()
    # The other one alone may be used; then the two are no pair.
    assert formatting.nvme(empty)[:2] == (0, str(formatting.mount))
    formatting.succeed("umount", formatting.mount)
    formatting.succeed("wipefs", "--all", foreign)
    assert f"{empty} has a file system of its own" in formatting.refuses()


def test_any_signature_counts(formatting: Machine) -> None:
    disk = formatting.add_loop()
    formatting.succeed("mkswap", disk)
    assert f"{disk} has data (swap" in formatting.refuses()
    formatting.succeed("wipefs", "--all", disk)
    with Path(disk).open("r+b") as device:  # the table of partitions that protects a GPT
        device.seek(446)
        device.write(bytes([0, 0, 2, 0, 0xEE, 255, 255, 255, 1, 0, 0, 0, 255, 255, 9, 0]))
        device.seek(510)
        device.write(b"\x55\xaa")
    assert f"{disk} has data (" in formatting.refuses()


def test_our_own_file_system_that_is_damaged_is_one_line(formatting: Machine) -> None:
    disk = formatting.add_loop()
    formatting.succeed("mkfs.xfs", "-q", "-L", "penstock", disk)
    os.truncate(formatting.folder / "image-0", SIZE // 2)
    formatting.succeed("losetup", "--set-capacity", disk)
    assert f"{disk} has our label but cannot be mounted (mount: " in formatting.refuses()


def test_mounted_disks_are_refused_by_name(formatting: Machine) -> None:
    disk, elsewhere = formatting.add_loop(), formatting.folder / "elsewhere"
    formatting.succeed("mkfs.xfs", "-q", "-L", "penstock", disk)
    elsewhere.mkdir()
    formatting.succeed("mount", disk, elsewhere)
    error = formatting.refuses()
    assert f"{disk} is mounted at {elsewhere}: PENSTOCK_DISK={elsewhere}" in error


def test_a_mount_point_that_is_taken_is_refused(formatting: Machine) -> None:
    formatting.add_loop()
    formatting.mount.mkdir()
    (formatting.mount / "theirs").touch()
    assert f"{formatting.mount} is not empty" in formatting.refuses()
    formatting.succeed("mount", "-t", "tmpfs", "none", formatting.mount)
    assert f"{formatting.mount} is a mount of none" in formatting.refuses()


def test_several_disks_become_an_array(formatting: Machine) -> None:
    disks, array = [formatting.add_loop() for _ in range(2)], formatting.add_loop(model="")
    formatting.pretend("mdadm", MDADM)
    calls, link, named = formatting.folder / "calls", formatting.folder / "array", " ".join(sorted(disks))
    variables = {"PENSTOCK_TEST_CALLS": calls, "PENSTOCK_TEST_ARRAY": array}
    assert formatting.nvme(**variables) == (0, str(formatting.mount), "")
    options = "--run --quiet --homehost=any --name=penstock --level=0 --raid-devices=2"
    assert calls.read_text() == f"--create {link} {options} {named}\n"
    assert formatting.succeed("findmnt", "-no", "SOURCE", formatting.mount) == array
    # After a start of the same machine, whose kernel has not put the array together. What is in it stays.
    (formatting.mount / "kept").touch()
    formatting.succeed("umount", formatting.mount)
    link.unlink()
    for disk in disks:
        write_member(disk)
    assert formatting.nvme(**variables) == (0, str(formatting.mount), "")
    assert calls.read_text().splitlines()[1:] == [f"--assemble --quiet {link} {named}"]
    assert (formatting.mount / "kept").exists()
    # Whose kernel has put it together, under another name.
    for mounted in (True, False):
        if not mounted:
            formatting.succeed("umount", formatting.mount)
        for disk in disks:
            holder = formatting.sys / "block" / Path(disk).name / "holders" / Path(array).name
            holder.mkdir(parents=True, exist_ok=True)
        assert formatting.nvme(**variables) == (0, str(formatting.mount), "")
    assert len(calls.read_text().splitlines()) == 2


def test_disks_that_do_not_belong_together_are_refused(formatting: Machine) -> None:
    disks = [formatting.add_loop() for _ in range(2)]
    formatting.pretend("mdadm", MDADM)
    write_member(disks[0])
    assert "only some belong to an array" in formatting.refuses()
    assert f"{disks[0]} is one of several disks of an array" in formatting.refuses(disks[0])
    write_member(disks[0], "theirs:data")
    assert f"{disks[0]} has data (linux_raid_member theirs:data)" in formatting.refuses()


def test_an_ebs_disk_is_refused_by_name(machine: Machine) -> None:
    machine.add_pretended("nvme0n1", EBS)
    machine.add_pretended("nvme1n1", INSTANCE_STORE)
    assert f"/dev/nvme0n1 is not an instance-store disk (its model is '{EBS}')" in machine.refuses("/dev/nvme0n1")
    assert "/dev/nvme7n1 is not a disk of this machine" in machine.refuses("/dev/nvme7n1")


def test_a_machine_without_instance_store_is_told_what_to_do(machine: Machine) -> None:
    assert "no instance-store disk (no NVMe disk): set PENSTOCK_DISK to a folder" in machine.refuses()
    machine.add_pretended("nvme0n1", EBS)
    assert f"no instance-store disk (nvme0n1: {EBS})" in machine.refuses()


def test_without_root_it_says_so(machine: Machine) -> None:
    if os.getuid() == 0 and shutil.which("setpriv") is None:
        pytest.skip("needs setpriv, to run without root")
    disk = machine.add_loop()
    status, _, error = machine.nvme(before=NOBODY if os.getuid() == 0 else ())
    assert status == 1
    assert error.startswith(f"error: {disk} must be mounted, which needs root: sudo ")
    assert "\n" not in error


def test_folders_that_are_there_are_taken_as_they_are(machine: Machine) -> None:
    folder = machine.folder / "ebs" / "penstock"
    assert machine.nvme(PENSTOCK_DISK=folder) == (0, str(folder), "")
    if os.getuid() != 0:
        pytest.skip("needs root, to mount")
    dlami = machine.folder / "dlami"
    dlami.mkdir()
    machine.add_pretended("nvme1n1", INSTANCE_STORE)
    machine.succeed("mount", "-t", "tmpfs", "none", dlami)
    assert machine.nvme() == (0, str(dlami), "")
