"""A pack for a bare GPU machine: made of small made-up wheels, and unpacked by bash as it will be there."""

import filecmp
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.commands import CHECKOUT, run_command
from helpers.fat_binaries import MACHINE_CODE, code, entry, fat_binary
from numpy.random import bit_generator
from packaging.requirements import Requirement

PACK = CHECKOUT / "benchmarks" / "gpu_pack.py"
VERSION = "{}.{}".format(*sys.version_info)
TAG = VERSION.replace(".", "")
TOOLS = ("readelf", "strip", "objcopy", "xz")
LIBRARY, DALI = "nvidia/dali/libdali.so", "nvidia/dali"
KEPT = {"made_up.py", LIBRARY, f"{DALI}/backend.cpython-{TAG}-x86_64-linux-gnu.so"}
LEFT_OUT = {
    f"{DALI}/backend.cpython-399-x86_64-linux-gnu.so",
    f"{DALI}/include/dali.h",
    "nvidia/nvimgcodec/extensions/libopencv_ext.so.0.9.0",
    "nvidia/nvimgcodec/include/nvimgcodec.h",
    "nvidia/nvimgcodec/nvimgcodec_impl.cpython-399-x86_64-linux-gnu.so",  # for two reasons
}
Bash = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of one wheel, `made-up`, with a library that holds device code."""
    if missing := [tool for tool in TOOLS if not shutil.which(tool)]:
        pytest.skip(f"needs {', '.join(missing)} (Debian: binutils, xz-utils)")
    pytest.importorskip("pip", reason="needs pip")  # an environment of uv has none
    folder = tmp_path_factory.mktemp("wheels")
    section, library = folder / "section", folder / "lib.so"
    section.write_bytes(fat_binary(*(entry(MACHINE_CODE, each, code(each)) for each in (80, 90))))
    command = ["objcopy", "--add-section", f".nv_fatbin={section}", bit_generator.__file__, str(library)]
    subprocess.run(command, check=True)
    content = dict.fromkeys(KEPT | LEFT_OUT, bit_generator.__file__) | {LIBRARY: str(library)}
    with zipfile.ZipFile(folder / "made_up-1.0-py3-none-manylinux_2_28_x86_64.whl", "w") as wheel:
        for name, path in content.items():
            wheel.writestr(name, Path(path).read_bytes() if name.endswith(".so") else f"NAME = {name!r}\n")
        wheel.writestr("made_up-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: made-up\nVersion: 1.0\n")
        wheel.writestr("made_up-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-manylinux_2_28_x86_64\n")
        wheel.writestr("made_up-1.0.dist-info/RECORD", "")
    return folder


def pack(out: Path, data: Path, *more: object, wheels: Path, path: str | None = None) -> tuple[int, str, str]:
    """Run the command where pip has no network; its status, output and errors."""
    environment = {**os.environ, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheels), "PIP_CONFIG_FILE": os.devnull}
    environment |= {"PATH": path} if path is not None else {}
    arguments = [out, "--data", data, "--python", VERSION, "--packages", "made-up", *more]
    command = [sys.executable, str(PACK), *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def pieces(digits: Path, wheels: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits and the made-up package, in three pieces of which each has room for 4 MiB."""
    out = tmp_path_factory.mktemp("pieces")
    (out / "piece-7").mkdir()  # of an earlier pack
    status, told, errors = pack(out, digits, "--pieces", 3, "--most-mib", 4, wheels=wheels)
    assert (status, errors) == (0, "")
    assert told.startswith(f"{out}: packages ") and told.endswith(" MiB\n") and told.count("+") == 2
    return out


@pytest.fixture
def bash(pieces: Path, tmp_path: Path) -> Bash:
    """`bash(script, name=program, …)`: a script where these programs, shell scripts, come first in PATH."""
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "python3").symlink_to(sys.executable)

    def run(script: str, only: bool = False, **stand_ins: str) -> subprocess.CompletedProcess[str]:
        for name, text in stand_ins.items():
            program = programs / name.replace("_", "-")
            program.unlink(missing_ok=True)
            program.write_text(f"#!/bin/sh\n{text}\n")
            program.chmod(0o755)
        path = str(programs) if only else f"{programs}:{os.environ['PATH']}"
        environment = {"PATH": path, "PIECES": str(pieces), "TO": str(tmp_path / "to")}
        command = [shutil.which("bash") or "bash", "-c", script]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)

    return run


SOURCE = '. "$PIECES/piece-2/unpack.sh" "$PIECES" "$TO"'
COPY = 'cp -r "$PIECES" "$TO.pieces"'
SOURCE_COPY = '. "$TO.pieces/piece-2/unpack.sh" "$TO.pieces" "$TO"'


def test_each_piece_is_of_limited_size_and_earlier_ones_are_gone(pieces: Path) -> None:
    assert sorted(os.listdir(pieces)) == ["piece-0", "piece-1", "piece-2"]
    for number in range(3):
        files = [*(pieces / f"piece-{number}").iterdir()]
        assert {file.name for file in files} == {f"part-{number}"} | ({"unpack.sh"} if number == 2 else set())
        assert sum(file.stat().st_size for file in files) <= 4 << 20


def test_what_is_sourced_has_the_packages_and_the_shards(bash: Bash, digits: Path, tmp_path: Path) -> None:
    shown = "echo $PYTHONPATH; echo $PENSTOCK_DATA; python3 -c 'import made_up; print(made_up.NAME)'"
    script = f"set -euo pipefail; {SOURCE}; {shown}"
    done = bash(f"{script}; declare -F; compgen -v PACK_ || true")
    assert (done.returncode, done.stderr) == (0, "")
    to = tmp_path / "to"
    assert done.stdout.splitlines() == [f"{to}/site", f"{to}/data", "made_up.py"]  # and no function or value is left
    found = {str(path.relative_to(to / "site")) for path in (to / "site").rglob("*") if path.is_file()}
    assert found >= KEPT and not found & LEFT_OUT
    names = [str(path.relative_to(digits)) for path in digits.rglob("*") if path.is_file()]
    assert filecmp.cmpfiles(digits, to / "data", names, shallow=False) == (names, [], [])
    assert sorted(os.listdir(to)) == [".penstock-pack", "data", "site"]


def test_only_the_device_code_of_its_gpu_is_in_it(bash: Bash, tmp_path: Path) -> None:
    assert bash(SOURCE).returncode == 0
    library = (tmp_path / "to" / "site" / LIBRARY).read_bytes()
    assert code(90) in library and code(80) not in library


def test_it_goes_before_what_is_on_pythonpath_and_can_be_unpacked_again(bash: Bash, tmp_path: Path) -> None:
    done = bash(f"export PYTHONPATH=/mine; {SOURCE} && touch $TO/site/stale && {SOURCE} && echo $PYTHONPATH")
    site = tmp_path / "to" / "site"
    assert done.stdout == f"{site}:{site}:/mine\n"
    assert not (site / "stale").exists()


def test_pieces_may_lie_in_one_folder(bash: Bash, tmp_path: Path) -> None:
    done = bash(
        'mkdir all && cp "$PIECES"/piece-*/* all && . all/unpack.sh all "$TO" && echo $PENSTOCK_DATA'.replace(
            "all", str(tmp_path / "all")
        )
    )
    assert done.stdout == f"{tmp_path}/to/data\n", done.stderr


def test_without_xz_python_unpacks(bash: Bash, tmp_path: Path) -> None:
    for tool in ("bash", "cat", "head", "mkdir", "rm", "sha256sum", "tar", "touch", "uname"):
        (tmp_path / "bin" / tool).symlink_to(shutil.which(tool) or tool)
    done = bash(f"{SOURCE} && python3 -c 'import made_up; print(made_up.NAME)'", only=True)
    assert (done.returncode, done.stdout) == (0, "made_up.py\n"), done.stderr


@pytest.mark.parametrize(
    ("stand_ins", "message"),
    [
        ({"uname": "echo aarch64"}, "this pack is for x86_64, this machine is aarch64: make the pack for it"),
        ({"python3": "echo 3.9"}, f"this pack is for Python {VERSION}, python3 here is 3.9: make it with gpu_pack.py"),
        ({"python3": "exit 1"}, f"this pack is for Python {VERSION}, python3 here is none: make it with gpu_pack.py"),
    ],
)
def test_another_machine_is_refused_before_anything_is_unpacked(
    bash: Bash, tmp_path: Path, stand_ins: dict[str, str], message: str
) -> None:
    done = bash(f"{SOURCE}; echo status $?; echo ${{PENSTOCK_DATA:-unset}}", **stand_ins)
    assert done.stdout == "status 1\nunset\n"
    assert done.stderr.startswith(f"error: {message}") and done.stderr.count("\n") == 1
    assert not (tmp_path / "to").exists()


@pytest.mark.parametrize(
    ("found", "warns"), [("9.0", False), ("9.0\n9.0", False), ("8.0", True), ("10.0", True), ("9.0\n8.9", True)]
)
def test_another_gpu_is_warned_of(bash: Bash, found: str, warns: bool) -> None:
    done = bash(SOURCE, nvidia_smi=f"cat <<END\n{found}\nEND")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("\n") == warns
    assert ("warning: this pack's GPU code is for compute capability 9.0, a GPU here has " in done.stderr) == warns


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ('. "$PIECES/piece-2/unpack.sh" /nowhere "$TO"', "part-0 of this pack is not in /nowhere: copy all pieces"),
        (
            f'{COPY}; rm "$TO.pieces/piece-1/part-1"; {SOURCE_COPY}',
            "part-1 of this pack is not in ",
        ),
        (
            f'{COPY}; echo >>"$TO.pieces/piece-1/part-1"; {SOURCE_COPY}',
            "/part-1 is damaged or from another pack: copy it again",
        ),
        (f'mkdir -p "$TO/data/mine"; {SOURCE}', "/data exists and is not from a pack: move it away"),
        (f'touch "$TO"; {SOURCE}', "cannot write to "),
        ('bash "$PIECES/piece-2/unpack.sh" "$PIECES" "$TO"', "this script sets variables, so source it"),
    ],
)
def test_what_cannot_be_unpacked_is_told_in_one_line(bash: Bash, tmp_path: Path, script: str, message: str) -> None:
    done = bash(f"{script}; echo status $?; echo ${{PENSTOCK_DATA:-unset}}")
    assert done.stdout == "status 1\nunset\n"
    *others, line = done.stderr.splitlines()
    assert line.startswith("error: ") and message in line
    assert all(other.startswith("mkdir: ") for other in others)
    assert not (tmp_path / "to" / "site").exists()
    assert not (tmp_path / "to" / "data").exists() or (tmp_path / "to" / "data" / "mine").is_dir()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            ["--data", "DIGITS/train"],
            r"/train must be a folder of prepared splits, each with a manifest.json: give the",
        ),
        (
            ["--data", "EMPTY"],
            "must be a folder of prepared splits, each with a manifest.json: make one with prep/shard",
        ),
        (["--data", "CUT"], "validation-000000.tar is missing: prepare the dataset again"),
        (["--pieces", 2, "--most-mib", 1], "MiB of shards do not fit into 2 pieces of 1 MiB: use fewer or smaller"),
        (["--packages", "nowhere-to-be-found"], "pip cannot download the packages: ERROR: "),
        (["OUT"], "out is a file: OUT must be a folder"),
        (["--python", "3"], "error: --python must be a version such as 3.12, got 3"),
        (["--compute-capability", "90"], "error: --compute-capability must be one such as 9.0, got 90"),
        (["--pieces", 0], "error: --pieces must be at least 1, got 0"),
    ],
)
def test_what_cannot_be_packed_is_told_in_one_line(
    digits: Path, digits_copy: Path, wheels: Path, tmp_path: Path, more: list[object], message: str
) -> None:
    (digits_copy / "validation" / "validation-000000.tar").unlink()
    (tmp_path / "empty").mkdir()
    places = {"DIGITS/train": digits / "train", "EMPTY": tmp_path / "empty", "CUT": digits_copy}
    if more == ["OUT"]:
        (tmp_path / "out").touch()
    status, told, errors = pack(
        tmp_path / "out", digits, *(places.get(str(each), each) for each in more if each != "OUT"), wheels=wheels
    )
    assert status != 0 and told == ""
    assert message in errors.splitlines()[-1] and "Traceback" not in errors
    assert not (tmp_path / "out").is_dir()


def test_missing_programs_are_named(digits: Path, wheels: Path, tmp_path: Path) -> None:
    status, told, errors = pack(tmp_path / "out", digits, wheels=wheels, path=str(tmp_path))
    assert (status, told) == (1, "")
    assert errors == ("error: readelf, strip, xz is missing on this machine: install binutils xz-utils\n")


def test_what_is_packed_fits_what_the_project_asks_for() -> None:
    listed = run_command("-c", "from gpu_pack import PACKAGES; print(*PACKAGES)", cwd=CHECKOUT / "benchmarks")
    packed = {requirement.name: requirement for requirement in map(Requirement, listed.stdout.split())}
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    asked = {requirement.name: requirement for requirement in map(Requirement, project["dependencies"])}
    assert set(asked) & set(packed) == {"captum", "datasets", "psutil", "rich", "simplejpeg", "tyro", "webdataset"}
    (dali,) = map(Requirement, project["optional-dependencies"]["cu13"])
    (pinned,) = packed[dali.name].specifier
    assert dali.specifier.contains(pinned.version)
    constraints = (CHECKOUT / "constraints.txt").read_text()
    assert all(f"\n{name}==" in constraints for name, each in packed.items() if not each.specifier)
