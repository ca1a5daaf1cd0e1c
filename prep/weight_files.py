"""Read weight files and folders that others wrote, without executing code in them.

Formats: safetensors, what torch.save writes (`.pth`, `.pth.tar`, `.pt`, `.bin`, `.ckpt`), and folders of them. A file's
format is recognised by its first bytes, not by its suffix. `prep/weights.py` finds a network's tensors in the content.
torch is imported only when a file is read.
"""

import argparse
import json
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from prep.errors import InputError, list_some

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar")
# Files of trainers that hold no weights: Accelerate's, transformers' and timm's states of everything else.
OTHER_STATES = re.compile(r"(optimizer|scheduler|sampler|scaler|random_states|rng_state|training_args)[\w.-]*")
MODEL_FILES = re.compile(r"(model|pytorch_model)(_\d+)?\.(safetensors|bin)")  # Accelerate numbers further models
SAFETENSORS, SAFETENSORS_INDEX = "model.safetensors", "model.safetensors.index.json"
# The first bytes of files that people take for weights, and what to do.
OTHER_FORMATS = {
    b"version https://git-lfs": "a Git LFS pointer instead of the file: run `git lfs pull`",
    b"<": "a web page instead of the file: download it again",
    b"\x1f\x8b": "compressed with gzip: unpack it",
    b"\x89HDF": "an HDF5 file: convert it to safetensors",
}
MAX_REASON = 300  # characters of torch's message


class Inert:
    """A value that a pickle describes by a type which is not needed, for example a NumPy scalar. It does nothing."""

    def __init__(self, *values: object) -> None:
        """Ignore the arguments that the pickle has for the original type."""

    def __setstate__(self, state: object) -> None:
        """Ignore the state that the pickle has for the original type."""


def _make_dict(*factory: object) -> dict[Any, Any]:
    """Return an empty dictionary, in place of a defaultdict."""
    return {}


# Types that checkpoints contain besides tensors, by the names in pickles. None of the originals is imported or called:
# NumPy's constructors are not safe with untrusted arguments.
INERT_TYPES = (
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
    *("numpy.core.numeric._frombuffer", "numpy._core.numeric._frombuffer", "numpy.dtype", "numpy.ndarray"),
    *(f"pathlib{part}.{name}" for part in ("", "._local") for name in ("PosixPath", "WindowsPath", "PurePosixPath")),
    *(f"pathlib{part}.{name}" for part in ("", "._local") for name in ("PureWindowsPath", "Path", "PurePath")),
    *(f"builtins.{name}" for name in ("int", "float", "str", "list", "dict", "tuple", "bool", "slice", "range")),
    *("datetime.datetime", "datetime.timedelta", "datetime.date", "uuid.UUID", "types.SimpleNamespace"),
)


def read_content(path: Path) -> Any:
    """Return what a file or a folder holds, usually nested dictionaries with tensors on the CPU.

    A folder is one of sharded safetensors or `.bin` files, or holds one file of weights. A folder of Accelerate with
    several models gives a dictionary by file name.

    Raises:
        InputError: it does not exist, is another format or damaged, or reading it would execute code. Nothing in it
            is executed.
    """
    if path.is_dir():
        return _read_folder(path)
    if not path.is_file():
        raise InputError(
            f"{path} is not a file: give an exported artifact's folder, or a .pth, .pth.tar, .ckpt or .safetensors file"
        )
    # Recognise the format by the first bytes.
    with path.open("rb") as file:
        head = file.read(64)
    for start, problem in OTHER_FORMATS.items():
        if head.lstrip().startswith(start):
            raise InputError(f"{path} is {problem}")
    header_size = int.from_bytes(head[:8], "little")
    if head[8:9] == b"{" and header_size <= path.stat().st_size:
        return _read_safetensors(path)
    if path.suffix == ".safetensors":
        if head.startswith((b"PK\x03\x04", b"\x80")):
            raise InputError(f"{path} is a pickle of torch.save, not safetensors: rename it to {path.stem}.pth")
        raise InputError(f"{path} is not a complete safetensors file (its header is damaged): copy it again")
    return _read_pickle(path)


def _read_safetensors(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError  # noqa: PLC0415
    from safetensors.torch import load_file  # noqa: PLC0415

    try:
        return load_file(path)
    except SafetensorError as error:
        raise InputError(f"{path} is not a complete safetensors file ({error}): copy it again") from error


def _read_pickle(path: Path) -> Any:
    """Load with torch's `weights_only`, which executes nothing; types without effect become `Inert`."""
    import torch  # noqa: PLC0415

    allowed: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [argparse.Namespace]
    allowed += [(Inert, name) for name in INERT_TYPES]
    allowed += [(_make_dict, "collections.defaultdict")]
    try:
        with torch.serialization.safe_globals(allowed), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about old formats; a file that cannot be read is an error below
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files raise almost any exception
        raise InputError(
            f"{path} holds more than tensors, or is damaged; nothing in it was run ({explain_pickle_error(error)}): "
            "give a file of torch.save(model.state_dict(), FILE), or safetensors"
        ) from error


def explain_pickle_error(error: Exception) -> str:
    """Return the part of torch's message that names the type or the damage, without its advice, in one line."""
    text = " ".join(str(error).split())
    if found := re.search(r"Unsupported global: GLOBAL (\S+)", text):
        return f"it needs the type {found[1]}, which is not allowed"
    if found := re.search(r"(?:WeightsUnpickler error:|Trying to|Can only|Cannot use) ?.*", text):
        text = found[0].removeprefix("WeightsUnpickler error: ")
    return re.split(r"\.? (?:Please|Check the documentation|Do it only)", text)[0][:MAX_REASON] or type(error).__name__


# Folders


def _read_folder(folder: Path) -> Any:
    if (folder / ".metadata").is_file() and any(folder.glob("*.distcp")):
        raise InputError(
            f"{folder} is a distributed checkpoint, whose .metadata is a pickle that can execute code: if you trust "
            f"it, convert it with `python -m torch.distributed.checkpoint.format_utils dcp_to_torch {folder} FILE.pth`"
        )
    # Files in parts, listed by an index. Safetensors are preferred, as by other loaders.
    indices = sorted(folder.glob("*.safetensors.index.json")) or sorted(folder.glob("*.bin.index.json"))
    if len(indices) == 1:
        return read_sharded(indices[0])
    files = list_weight_files(folder)
    if not files:
        raise InputError(
            f"{folder} holds no model: expected a folder of train/export.py, or a file of weights "
            f"({', '.join(SUFFIXES)})"
        )
    if len(files) == 1:
        return read_content(files[0])
    if all(MODEL_FILES.fullmatch(path.name) for path in files):
        return {path.name: read_content(path) for path in files}
    raise InputError(f"{folder} holds {list_some([path.name for path in files])}: give one of these files")


def list_weight_files(folder: Path) -> list[Path]:
    """Return the files of weights in a folder, without those that a safetensors file of the same weights replaces."""
    files = sorted(
        path
        for path in folder.iterdir()
        if path.suffix in SUFFIXES
        and path.is_file()
        and not path.name.startswith(".")
        and not OTHER_STATES.fullmatch(path.name)
    )
    names = {path.name for path in files}
    return [path for path in files if not (path.name == "pytorch_model.bin" and SAFETENSORS in names)]


def read_sharded(index: Path) -> dict[str, Any]:
    """Return the tensors of all files that an index of Hugging Face lists.

    Raises:
        InputError: the index is damaged, a file is missing, or a file lacks a tensor.
    """
    try:
        places: dict[str, str] = json.loads(index.read_bytes())["weight_map"]
        names = sorted(set(places.values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{index} is damaged ({error!r}): copy it again") from error
    if outside := [name for name in names if Path(name).name != name]:
        raise InputError(f"{index} names {outside[0]}, expected files in its own folder: copy it again")
    if missing := [name for name in names if not (index.parent / name).is_file()]:
        raise InputError(f"{index} names {list_some(missing)}, which are missing: copy the folder again")
    content: dict[str, Any] = {}
    for name in names:
        content |= read_content(index.parent / name)
    if lost := sorted(places.keys() - content.keys()):
        raise InputError(f"{index.parent} lacks the tensors {list_some(lost)} of its index: copy the folder again")
    return content
