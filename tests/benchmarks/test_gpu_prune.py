"""Device code that a GPU does not load is zeroed, and nothing else in the file changes."""

import importlib
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.fat_binaries import MACHINE_CODE, OTHER, PTX, code, entry, fat_binary
from numpy.random import bit_generator

from prep.errors import InputError


@pytest.fixture
def prune() -> Any:
    return importlib.import_module("packing.device_code")


def machine_code(*architectures: int) -> list[bytes]:
    return [entry(MACHINE_CODE, each, code(each)) for each in architectures]


@pytest.mark.parametrize(
    ("capability", "kept"),
    [
        (90, [90]),
        (80, [80]),
        (86, [86]),
        (89, [86]),  # no code for it: the newest of the same major version
        (87, [86]),
        (75, []),  # neither code nor PTX that is old enough
        (100, [70]),  # PTX, since no code is of its major version
    ],
)
def test_what_the_driver_may_load_stays(prune: Any, capability: int, kept: list[int]) -> None:
    ptx = entry(PTX, 70, code(70)) if capability == 100 else entry(PTX, 120, code(120))
    whole = bytearray(fat_binary(*machine_code(80, 86, 90), ptx))
    before = bytes(whole)
    num_zeroed = prune.prune_section(whole, 0, len(whole), capability)
    assert [each for each in (70, 80, 86, 90, 120) if code(each) in whole] == kept
    assert num_zeroed == (4 - len(kept)) * len(code(0))
    changed = [i for i, (old, new) in enumerate(zip(before, whole, strict=True)) if old != new]
    assert all(whole[i] == 0 for i in changed) and len(changed) <= num_zeroed  # zeros alone, nothing moved


def test_all_entries_of_the_chosen_architecture_stay(prune: Any) -> None:
    twins = [entry(MACHINE_CODE, 90, b"plain 9.0!"), entry(MACHINE_CODE, 90, b"only 9.0a!"), *machine_code(80)]
    whole = bytearray(fat_binary(*twins))
    prune.prune_section(whole, 0, len(whole), 90)
    assert b"plain 9.0!" in whole and b"only 9.0a!" in whole and code(80) not in whole


def test_payloads_of_an_unknown_kind_and_all_around_a_fat_binary_stay(prune: Any) -> None:
    first, second = fat_binary(*machine_code(80, 90)), fat_binary(entry(OTHER, 80, code(81)), *machine_code(90))
    padding = bytes(-len(first) % 8) + b"\x55" * 24
    whole = bytearray(b"before!!" + first + padding + second + b"after!!!")
    stop = len(whole) - len(b"after!!!")
    prune.prune_section(whole, len(b"before!!"), stop, 90)
    assert whole.startswith(b"before!!") and whole.endswith(b"after!!!") and padding in whole
    assert code(80) not in whole and whole.count(code(90)) == 2 and code(81) in whole


@pytest.mark.parametrize(
    ("whole", "message"),
    [
        (fat_binary(*machine_code(80, 90))[:-1], "the fat binary at byte 0 does not end within its section"),
        (fat_binary(machine_code(80)[0][:8] + b"\xff\xff" + machine_code(80)[0][10:]), "the entry at byte 16 does not"),
        (fat_binary(b"\x02\x00\x01\x01" + bytes(60)), "the entry at byte 16 does not"),  # a header of no bytes
    ],
)
def test_sizes_that_do_not_fit_are_an_error_and_no_endless_walk(prune: Any, whole: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        prune.prune_section(bytearray(whole), 0, len(whole), 90)


@pytest.fixture
def library(tmp_path: Path) -> Callable[[dict[str, bytes]], Path]:
    """`library(sections)`: a real shared object with these sections added."""
    if not shutil.which("objcopy") or not shutil.which("readelf"):
        pytest.skip("needs binutils")

    def build(sections: dict[str, bytes]) -> Path:
        path, options = tmp_path / "lib.so", []
        for number, (name, content) in enumerate(sections.items()):
            (tmp_path / f"{number}").write_bytes(content)
            options += ["--add-section", f"{name}={tmp_path / str(number)}"]
        subprocess.run(["objcopy", *options, bit_generator.__file__, str(path)], check=True)
        return path

    return build


def test_every_section_of_a_library_is_pruned(prune: Any, library: Callable[[dict[str, bytes]], Path]) -> None:
    fat = fat_binary(*machine_code(80, 90))
    path = library({".nv_fatbin": fat, "__nv_relfatbin": fat + bytes(-len(fat) % 8) + fat, ".other": code(80)})
    before = path.read_bytes()
    assert prune.prune_library(path, 90) == 3 * len(code(80))
    after = path.read_bytes()
    assert len(after) == len(before) and after.count(code(90)) == 3
    assert after.count(code(80)) == 1  # in the section that is none of device code


def test_a_library_without_device_code_is_not_written(prune: Any, library: Callable[[dict[str, bytes]], Path]) -> None:
    path = library({})
    path.chmod(0o444)
    before = path.stat()
    assert prune.prune_library(path, 90) == 0
    assert path.stat() == before


def test_what_cannot_be_pruned_is_named(
    prune: Any, library: Callable[[dict[str, bytes]], Path], tmp_path: Path
) -> None:
    path = library({".nv_fatbin": fat_binary(*machine_code(80, 90))[:-1]})
    with pytest.raises(InputError, match=r"lib\.so cannot be pruned: the fat binary at byte \d+ does not end within"):
        prune.prune_library(path, 90)
    (tmp_path / "text.so").write_text("GROUP ( libother.so )")
    with pytest.raises(InputError, match=r"text\.so cannot be pruned: it is not an ELF file that readelf can read"):
        prune.prune_library(tmp_path / "text.so", 90)
