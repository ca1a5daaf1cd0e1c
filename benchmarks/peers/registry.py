"""Every reader and writer that Penstock is compared with: labels, packages, formats and races, each told once.

Each library is used in the best form that its documentation shows; its code is in LIBRARY_peer.py in this folder. No
reader converts to floating point if it can avoid it. All readers have the same number of workers, shuffle, and keep
their workers between epochs. This file needs the standard library alone, because the reports take labels from it.
"""

from dataclasses import dataclass, field, replace
from typing import Any

OURS = "penstock"
RESTARTS = "-restarts"  # suffix to the name of a contender that reads or writes restart shards instead of shards
# Formats, named as their folders. The first three are shards of Penstock, the others are written from the first one.
SHARDS, RESTART_SHARDS, SMALLER_SHARDS = "shards", "restart-shards", "smaller-shards"
FOLDER, LITDATA_CHUNKS, MDS, BETON = "folder", "litdata", "mds", "beton"
# What a writer syncs to disk before it returns.
SYNCED = "fsync of every file before it gets its name, and of the folder afterwards"
NO_SYNC = "none: when it returns, what is written may still be in memory only"


@dataclass(frozen=True)
class Library:
    """A library with readers, writers or both."""

    packages: tuple[str, ...]  # packages whose versions a record of its reader contains
    module: str = ""  # that an interpreter of its own must be able to import; "": the command's interpreter runs it
    install: str = ""  # how to install it there


TORCH = ("torch", "torchvision", "pillow")
DALI = ("nvidia-dali-cuda120", "nvidia-dali-cuda130", "torch")
LIBRARIES = {
    OURS: Library((OURS, *DALI)),
    "dali": Library(DALI),
    "torchvision": Library(TORCH),
    "timm": Library(("timm", *TORCH)),
    "webdataset": Library(("webdataset", *TORCH)),
    "bounds": Library(("simplejpeg",)),  # what no reader and no writer can be faster than
    "litdata": Library(("litdata", *TORCH), "litdata", "pip install litdata torchvision pillow pyarrow"),
    "mosaicml": Library(
        ("mosaicml-streaming", *TORCH), "streaming", "pip install mosaicml-streaming torchvision pillow pyarrow"
    ),
    "spdl": Library(
        ("spdl", *TORCH), "spdl", "apt-get install ffmpeg; pip install spdl torch torchvision numpy pillow"
    ),
    "ffcv": Library(
        ("ffcv", "numba", "opencv-python", "torch"),
        "ffcv",
        "apt-get install libopencv-dev libturbojpeg0-dev; pip install setuptools ffcv torch torchvision",
    ),
}


@dataclass(frozen=True)
class Contender:
    """A reader or a writer: the generator `function` in the file of its library."""

    name: str
    label: str  # in README
    what: str  # description
    library: str  # key of LIBRARIES
    function: str
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def entry(self) -> str:
        """The generator, as worker_main.py finds it."""
        return f"peers.{self.library}_peer:{self.function}"


@dataclass(frozen=True)
class Reader(Contender):
    """A way to feed batches: it yields None when it has imported everything, then batches, endlessly."""

    data: str = SHARDS  # the format that it reads
    short: str = ""  # label in pictures, where there is little room; "": `label`


@dataclass(frozen=True)
class Writer(Contender):
    """A way to write images to disk.

    It yields None when it is ready, None when its work is done, and then the number of images that it reads back from
    its output.
    """

    durability: str = NO_SYNC  # what it syncs to disk before it returns
    counted: str = "image_bytes"  # what its MB/s count: "image_bytes" or "source_bytes" of the source


# Readers.
BY_TORCHVISION, BY_PILLOW = {"decoder": "torchvision"}, {"decoder": "pillow"}
V2, DECODES_V2 = "decode_jpeg, transforms v2 on uint8", "decode_jpeg + transforms v2"

PENSTOCK = Reader(
    *(OURS, "Penstock (`dali` on the CPU)", "build_loader with its defaults, backend dali", OURS, "read"),
    short="Penstock",
)
DALI_READER = Reader(
    *("dali-reader", "DALI's own `readers.webdataset` + `image_random_crop`"),
    *("readers.webdataset, image_random_crop, resize, flip", "dali", "read"),
    short="DALI's own reader",
)
WEBDATASET = Reader(
    *("webdataset-v2", f"webdataset, {DECODES_V2}", f"WebLoader, {V2}", "webdataset", "read", BY_TORCHVISION),
    short="webdataset",
)
TIMM_WDS = Reader(
    *("timm-wds", "timm's `wds/` reader", "create_dataset wds/, create_loader, Pillow", "timm", "read_shards"),
    short="timm, wds/",
)
OTHER_READERS = (
    Reader(
        *("torchvision-v2", f"torchvision, {DECODES_V2}", f"DataLoader, ImageFolder, {V2}", "torchvision", "read"),
        options=BY_TORCHVISION,
        data=FOLDER,
        short="torchvision v2",
    ),
    Reader(
        *("imagefolder-pillow", "torchvision ImageFolder, Pillow", "DataLoader, ImageFolder, Pillow, transforms v2"),
        *("torchvision", "read"),
        options=BY_PILLOW,
        data=FOLDER,
        short="torchvision, Pillow",
    ),
    Reader(
        *("timm", "timm's loader with prefetcher", "create_loader, its prefetcher, Pillow", "timm", "read_folder"),
        data=FOLDER,
        short="timm",
    ),
    Reader(
        *("webdataset-pillow", "webdataset, Pillow", "WebLoader, Pillow, transforms v2", "webdataset", "read"),
        options=BY_PILLOW,
    ),
    WEBDATASET,
    Reader(
        *("litdata-v2", f"LitData, {DECODES_V2}", f"StreamingDataLoader, {V2}", "litdata", "read"),
        options=BY_TORCHVISION,
        data=LITDATA_CHUNKS,
        short="LitData",
    ),
    Reader(
        *("mosaicml-v2", f"MosaicML Streaming, {DECODES_V2}", f"StreamingDataset, DataLoader, {V2}", "mosaicml"),
        function="read",
        options=BY_TORCHVISION,
        data=MDS,
        short="MosaicML Streaming",
    ),
    Reader(
        *("spdl-io", "SPDL, its own decoder", "a pipeline of threads, spdl.io", "spdl", "read_with_ffmpeg"),
        data=FOLDER,
    ),
    Reader(
        *("spdl-v2", f"SPDL, {DECODES_V2}", f"a pipeline of threads, {V2}", "spdl", "read_with_torchvision"),
        options=BY_TORCHVISION,
        data=FOLDER,
        short="SPDL",
    ),
    Reader(
        *("libjpeg-turbo", "libjpeg-turbo alone: full decoding, nothing else"),
        *("upper bound: full decoding, no transform", "bounds", "decode_alone"),
        data=FOLDER,
        short="libjpeg-turbo alone",
    ),
)
FFCV = Reader("ffcv", "FFCV", "Loader, OrderOption.RANDOM, os_cache", "ffcv", "read", data=BETON)


def on_restarts(reader: Reader) -> Reader:
    """Return a reader that reads the same images from restart shards."""
    return replace(reader, name=reader.name + RESTARTS, data=RESTART_SHARDS)


READING_RACES = {
    "original bytes": (PENSTOCK, on_restarts(PENSTOCK), DALI_READER, *OTHER_READERS),
    # Do restart shards cost other readers anything? Each reads the same images with restart markers and without.
    "readers of restart shards": tuple(
        each for reader in (DALI_READER, WEBDATASET, TIMM_WDS) for each in (reader, on_restarts(reader))
    ),
    # FFCV encodes every image again, so the others read images that were made smaller in the same way.
    "max side 500, quality 90": (
        replace(PENSTOCK, data=SMALLER_SHARDS),
        replace(PENSTOCK, name=f"{OURS}-original"),
        replace(DALI_READER, data=SMALLER_SHARDS),
        FFCV,
    ),
}


# Writers.
def penstock_writer(what: str, name: str = OURS, **options: Any) -> Writer:
    """Return Penstock's preparation with options of `prep.dataset.Options`."""
    return Writer(name, "Penstock", what, OURS, "write", options, SYNCED)


def smaller_writers(**options: Any) -> tuple[Writer, ...]:
    """Return the writers that make images smaller, at quality 90; `options`: max_side or short_side, in pixels."""
    options["quality"] = 90
    pillow = "a pool of two, the parent process reads and writes"
    return (
        penstock_writer("decoded, resized, encoded", **options),
        Writer("pillow", "a Pillow pool", pillow, "webdataset", "write_with_pillow", options),
    )


UNDECODED = "original bytes"  # the race of writers that decode no image, and therefore need more of them
WRITING_RACES = {
    UNDECODED: (
        penstock_writer("images not decoded", decode_check=False),
        Writer("webdataset", "webdataset's ShardWriter", "ShardWriter", "webdataset", "write_with_shard_writer"),
        Writer("litdata", "LitData", "optimize, chunks of 64 MB", "litdata", "write"),
        Writer("mosaicml", "MosaicML", "MDSWriter, one folder per process, merge_index", "mosaicml", "write"),
        Writer(
            *("copy", "a plain copy", "the source's files", "bounds", "copy"),
            durability="fsync of every file",
            counted="source_bytes",
        ),
    ),
    # Penstock alone: no peer checks the images by decoding, and none writes restart markers.
    "original bytes, checked": (
        penstock_writer("each image decoded once in full"),
        penstock_writer("--restarts: transcoded, decoded before and after", OURS + RESTARTS, restarts=True),
    ),
    "max side 500": smaller_writers(max_side=500),
    "short side 256": smaller_writers(short_side=256),
}


def label_reader(name: str, short: bool = False) -> str:
    """Return a reader's label in README's table, or its short one in pictures; the name itself if it is unknown."""
    readers = {each.name: each for race in READING_RACES.values() for each in race}
    plain = name.removesuffix(RESTARTS)
    label = plain
    if reader := readers.get(plain):
        label = reader.short if short and reader.short else reader.label
    return label + ", restarts" * (name != plain)


def label_writer(name: str) -> str:
    """Return a writer's label in README; the name itself if it is unknown."""
    labels = {each.name: each.label for race in WRITING_RACES.values() for each in race}
    plain = name.removesuffix(RESTARTS)
    return labels.get(plain, plain) + ", restarts" * (name != plain)
