"""Open the source that the user's `--source` names: a folder of any known layout, or a dataset on the hub.

Files that identify a layout decide first; any other folder is listed and examined. Anything that cannot be a source is
refused with what to do about it, such as the command that unpacks an archive.
"""

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pyarrow as pa
import pyarrow.parquet as pq

from prep.errors import InputError
from prep.file_kinds import check_no_pointer
from prep.folder_tree import Folder, list_folder
from prep.image_folder import open_image_folder
from prep.imagenet_layouts import WNID, find_kaggle, is_tiny_imagenet, open_kaggle, open_tiny_imagenet
from prep.parquet import open_parquet_dataset
from prep.saved_dataset import DICT, STATE, is_saved_dataset, open_saved_dataset
from prep.source import Reading, Source

HUB_ID = r"\w[\w.-]*(/[\w.-]+)?"
RAW_TARS = rf"ILSVRC2012_img_(train|val|test).*\.tar|{WNID}\.tar"  # ImageNet's own archives
UNPACKED_BY_TAR = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst")
ARCHIVES = (".zip", ".7z", ".rar", *UNPACKED_BY_TAR)


def open_source(source: str, wanted: Reading | None = None) -> Source:
    """Open a folder of images or of a saved dataset, or a dataset on the Hugging Face hub.

    Args:
        source: a path, or a hub id such as ILSVRC/imagenet-1k.
        wanted: how to read it, if it can be read in several ways.

    Raises:
        InputError: there is no such source, it cannot be reached or used, or it can be read in several ways.
    """
    path, wanted = Path(source), wanted or Reading()
    try:
        is_folder, exists = path.is_dir(), path.exists()
    except OSError as error:  # no permission for a folder above it, or the name is too long
        raise InputError(f"{source} cannot be opened ({error.strerror}): check the path and its permissions") from error
    if is_folder:
        return _open_folder(path, wanted)
    if exists:
        _refuse_file(path)
    if not re.fullmatch(HUB_ID, source):
        raise InputError(f"{source} does not exist: --source must be a folder or a hub id such as ILSVRC/imagenet-1k")
    return open_parquet_dataset(source, wanted)


def _open_folder(folder: Path, wanted: Reading) -> Source:
    """Open a folder: try the layouts that a certain file identifies first, and any tree of folders last."""
    # A saved dataset, tiny-imagenet or Kaggle's ImageNet; --split-map makes folders the splits of an image folder.
    if is_saved_dataset(folder) and not (_is_another_state(folder / STATE) and not (folder / DICT).is_file()):
        return open_saved_dataset(folder, wanted)
    if not wanted.split_map:
        if is_tiny_imagenet(folder):
            return open_tiny_imagenet(folder, wanted)
        if cls_loc := find_kaggle(folder):
            return open_kaggle(cls_loc, wanted)

    # Tables with images.
    tree = list_folder(folder)
    _check_not_prepared(tree)
    tables = _find_files(tree, ".parquet")
    for name in tables:
        if (folder / name).exists():  # the reader reports links to nothing
            check_no_pointer(folder, name, (folder / name).stat().st_size)
    if tables and _are_images_in_tables(tree, tables, wanted):
        return open_parquet_dataset(str(folder.resolve()), wanted)

    # Images in class folders, where the flags for tables have no meaning.
    if not _shows_images(tree):
        _refuse_without_images(tree, tables)
    for flag, value in (
        ("--config", wanted.config),
        ("--image-column", wanted.image_column),
        ("--label-column", wanted.label_column),
    ):
        if value:
            raise InputError(f"{folder} is an image folder and has no tables: remove {flag} {value}")
    return open_image_folder(tree, wanted, _describe_others(tree, tables))


def _is_another_state(path: Path) -> bool:
    """Check whether another program than `datasets` wrote a file state.json, which may be in a folder of images."""
    try:
        state = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return False
    return not isinstance(state, dict) or "_data_files" not in state


def _shows_images(tree: Folder) -> bool:
    """Check whether a folder holds images anywhere, without hidden ones."""
    return bool(tree.holders or tree.find_images())


# Parquet files and images in one folder


def _find_files(tree: Folder, suffix: str) -> list[str]:
    """Return the paths below the source of all files with a suffix, sorted, without hidden ones."""
    return sorted(name for name, _ in tree.walk_files() if name.lower().endswith(suffix) and not name.startswith("."))


def _are_images_in_tables(tree: Folder, tables: list[str], wanted: Reading) -> bool:
    """Decide whether a folder with parquet files is read as tables, not as an image folder.

    Raises:
        InputError: there are images in tables and images in folders, and no flag decides.
    """
    if wanted.split_map and all((child := tree.find_child(name)) and child.holds_image for name, _ in wanted.split_map):
        return False
    with_images = [name for name in tables if _may_hold_images(tree.path / name)]
    if not _shows_images(tree) or (wanted.image_column and with_images):
        return bool(with_images) or not _find_files(tree, ".tar")
    if not with_images:
        return False
    if not tree.holders:  # images outside of folders have no class; they illustrate the tables
        return True
    folder = next(iter(tree.holders.values()))
    raise InputError(
        f"{tree.path} holds images in tables ({with_images[0]}) and in folders ({folder.name}): "
        "give --image-column for the tables, or for the folders --split-map train=FOLDER"
    )


def _may_hold_images(path: Path) -> bool:
    """Check whether a parquet file has a column of bytes; return True if it cannot be read."""
    try:
        schema = pq.read_schema(path)
    except (pa.ArrowException, OSError):
        return True
    return any(_holds_bytes(column.type) for column in schema)


def _holds_bytes(found: pa.DataType) -> bool:
    if pa.types.is_struct(found):
        return any(_holds_bytes(child.type) for child in found)
    return pa.types.is_binary(found) or pa.types.is_large_binary(found) or pa.types.is_fixed_size_binary(found)


def _describe_others(tree: Folder, tables: list[str]) -> list[str]:
    """Return a line for the manifest on each kind of files, besides images in folders, that could be data."""
    top = [name for name in tables if "/" not in name]
    kinds = {
        "parquet files without images": tables if top else [],
        "tars": [name for name in tree.files if name.endswith(".tar")],
        "archives": [name for name in tree.files if name.endswith(ARCHIVES)],
    }
    return [f"{len(names):,} {kind} ({sorted(names)[0]})" for kind, names in kinds.items() if names]


# Refusals


def _check_not_prepared(tree: Folder) -> None:
    """Check that the source is not the output of prep/shard.py or prep/adopt.py.

    Raises:
        InputError: it is.
    """
    prepared = [folder for folder in (tree, *tree.shown.values()) if folder.is_output]
    if tree.is_output or (prepared and not any(each.holds_image for each in tree.shown.values())):
        raise InputError(
            f"{tree.path} is a dataset that Penstock has already prepared: train on it with --data.root, "
            "or give --source the data that it was made from"
        )


def _refuse_without_images(tree: Folder, tables: list[str]) -> NoReturn:
    """Raise InputError with what a folder without images holds instead, and what to do with it."""
    tars = _find_files(tree, ".tar")
    for name, size_bytes in tree.walk_files():
        if name in tars:
            check_no_pointer(tree.path, name, size_bytes)
    archives = [name for name in _walk_names(tree) if name.endswith(ARCHIVES)]
    raw = [name for name in tars if re.fullmatch(RAW_TARS, name.rpartition("/")[2])]
    if raw:
        raise InputError(_explain_raw(tree.path / raw[0]))
    if tars:
        others = f" and tables without images ({tables[0]})" if tables else ""
        raise InputError(
            f"{tree.path} holds tars ({tars[0]}){others}: if they are in WebDataset format give them to "
            f"python prep/adopt.py {shlex.quote(str((tree.path / tars[0]).parent))}, else unpack them"
        )
    if archives:
        raise InputError(f"{tree.path} holds an archive and no images: {_how_to_unpack(tree.path / archives[0])}")
    raise InputError(f"{tree.path} holds no parquet file and no CLASS/IMAGE.jpg: nothing to prepare")


def _walk_names(tree: Folder) -> Iterator[str]:
    return (name for name, _ in tree.walk_files())


def _refuse_file(path: Path) -> NoReturn:
    """Raise InputError with what to do with a file that was given as the source."""
    check_no_pointer(path.parent, path.name, path.stat().st_size)
    if re.fullmatch(RAW_TARS, path.name):
        raise InputError(_explain_raw(path))
    advice = "--source must be a folder or a hub id such as ILSVRC/imagenet-1k"
    if path.suffix.lower() == ".parquet":
        advice = f"give the folder that it is in, --source {shlex.quote(str(path.parent))}"
    elif path.suffix == ".tar":
        advice = f"give a WebDataset to python prep/adopt.py {shlex.quote(str(path))}, and unpack any other tar"
    elif path.name.endswith(ARCHIVES):
        advice = _how_to_unpack(path)
    raise InputError(f"{path} is a file: {advice}")


def _how_to_unpack(path: Path) -> str:
    """Return the command that unpacks an archive into its folder."""
    archive, folder = shlex.quote(str(path)), shlex.quote(str(path.parent))
    if path.name.endswith(".zip"):
        command = f"unzip -q {archive} -d {folder}"
    elif path.name.endswith(UNPACKED_BY_TAR):
        command = f"tar -xf {archive} -C {folder}"
    else:
        command = f"7z x {archive} -o{folder}"
    return f"unpack it ({command}), move it out and give --source {folder}"


def _explain_raw(path: Path) -> str:
    """Return how to unpack an archive of image-net.org: a tar of tars for training, one of images for validation."""
    quoted = shlex.quote(str(path))
    if path.name.startswith("ILSVRC2012_img_train"):
        unpack = (
            f"mkdir train && tar -xf {quoted} -C train && cd train && "
            "for t in *.tar; do mkdir ${t%.tar} && tar -xf $t -C ${t%.tar} && rm $t; done"
        )
    elif path.name.startswith("ILSVRC2012_img_"):
        unpack = f"mkdir val && tar -xf {quoted} -C val, and put Kaggle's LOC_val_solution.csv next to val"
    else:
        unpack = "in that folder: for t in *.tar; do mkdir ${t%.tar} && tar -xf $t -C ${t%.tar}; done"
    return f"{path} is an archive of ImageNet: unpack it first ({unpack}), then give the folder above train and val"
