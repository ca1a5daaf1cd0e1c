"""The contenders of the feeding race, each in the best form that its documentation shows: one table of configurations.

No contender converts to floating point if it can avoid it. All have the same number of workers, shuffle, and keep
their workers between epochs. What an entry does beyond its options is in its own file here.
"""

from dataclasses import dataclass, field, replace
from typing import Any

OURS = "penstock"
# Formats; the others have their peers' names.
SHARDS, RESTART_SHARDS, SMALLER_SHARDS, FOLDER = "shards", "restart-shards", "smaller-shards", "folder"
RESTARTS = "-restarts"  # suffix to the name of a contender that reads restart shards instead of shards
TORCH = ("torch", "torchvision", "pillow")
DALI = ("nvidia-dali-cuda120", "nvidia-dali-cuda130", "torch")
BY_TORCHVISION, BY_PILLOW = {"decoder": "torchvision"}, {"decoder": "pillow"}
V2 = "decode_jpeg, transforms v2 on uint8"


@dataclass(frozen=True)
class Contender:
    """A way to feed batches: the generator `entry` in this folder reads the format `data`."""

    name: str
    what: str  # description
    entry: str  # module:function
    data: str  # name of the format, and of its folder
    packages: tuple[str, ...]  # packages whose versions the record contains
    options: dict[str, Any] = field(default_factory=dict)
    peer: str = ""  # key in PEERS whose interpreter runs it; "": the interpreter of this command


@dataclass(frozen=True)
class Peer:
    """A peer that is installed in a separate environment."""

    module: str  # that its interpreter must be able to import
    install: str  # how to install it


PEERS = {
    "litdata": Peer("litdata", "pip install litdata torchvision pillow"),
    "mosaicml": Peer("streaming", "pip install mosaicml-streaming torchvision pillow"),
    "spdl": Peer("spdl", "apt-get install ffmpeg; pip install spdl torch torchvision numpy pillow"),
    "ffcv": Peer(
        "ffcv", "apt-get install libopencv-dev libturbojpeg0-dev; pip install setuptools ffcv torch torchvision"
    ),
}

PENSTOCK = Contender(OURS, "build_loader with its defaults, backend dali", "ours:penstock", SHARDS, (OURS, *DALI))
DALI_READER = Contender(
    "dali-reader", "readers.webdataset, image_random_crop, resize, flip", "dali_reader:webdataset", SHARDS, DALI
)
WEBDATASET = Contender(
    "webdataset-v2", f"WebLoader, {V2}", "wds_loader:webdataset", SHARDS, ("webdataset", *TORCH), BY_TORCHVISION
)
TIMM_WDS = Contender(
    "timm-wds", "create_dataset wds/, create_loader, Pillow", "timm_loader:webdataset", SHARDS, ("timm", *TORCH)
)


def on_restarts(contender: Contender) -> Contender:
    """Return a contender that reads the same images from restart shards."""
    return replace(contender, name=contender.name + RESTARTS, data=RESTART_SHARDS)


ORIGINAL = (
    PENSTOCK,
    on_restarts(PENSTOCK),
    DALI_READER,
    Contender(
        "torchvision-v2",
        f"DataLoader, ImageFolder, {V2}",
        "torch_folder:image_folder",
        FOLDER,
        TORCH,
        BY_TORCHVISION,
    ),
    Contender(
        "imagefolder-pillow",
        "DataLoader, ImageFolder, Pillow, transforms v2",
        "torch_folder:image_folder",
        FOLDER,
        TORCH,
        BY_PILLOW,
    ),
    Contender("timm", "create_loader, its prefetcher, Pillow", "timm_loader:prefetching", FOLDER, ("timm", *TORCH)),
    Contender(
        "webdataset-pillow",
        "WebLoader, Pillow, transforms v2",
        "wds_loader:webdataset",
        SHARDS,
        ("webdataset", *TORCH),
        BY_PILLOW,
    ),
    WEBDATASET,
    Contender(
        "litdata-v2",
        f"StreamingDataLoader, {V2}",
        "litdata_loader:streaming",
        "litdata",
        ("litdata", *TORCH),
        BY_TORCHVISION,
        "litdata",
    ),
    Contender(
        "mosaicml-v2",
        f"StreamingDataset, DataLoader, {V2}",
        "mosaic_loader:streaming",
        "mds",
        ("mosaicml-streaming", *TORCH),
        BY_TORCHVISION,
        "mosaicml",
    ),
    Contender(
        "spdl-io", "a pipeline of threads, spdl.io", "spdl_loader:own_decoders", FOLDER, ("spdl", *TORCH), {}, "spdl"
    ),
    Contender(
        "spdl-v2",
        f"a pipeline of threads, {V2}",
        "spdl_loader:torchvision_decoders",
        FOLDER,
        ("spdl", *TORCH),
        BY_TORCHVISION,
        "spdl",
    ),
    Contender(
        "libjpeg-turbo", "upper bound: full decoding, no transform", "turbo:decode_alone", FOLDER, ("simplejpeg",)
    ),
)
SMALLER = (
    replace(PENSTOCK, data=SMALLER_SHARDS),
    replace(PENSTOCK, name=f"{OURS}-original"),
    replace(DALI_READER, data=SMALLER_SHARDS),
    Contender(
        "ffcv",
        "Loader, OrderOption.RANDOM, os_cache",
        "ffcv_loader:beton",
        "beton",
        ("ffcv", "numba", "opencv-python", "torch"),
        {},
        "ffcv",
    ),
)
# Do restart shards cost other readers anything? Each reads the same images with restart markers and without.
READERS = tuple(each for reader in (DALI_READER, WEBDATASET, TIMM_WDS) for each in (reader, on_restarts(reader)))
