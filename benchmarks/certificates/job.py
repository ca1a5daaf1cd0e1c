"""The job of one process: the images that it takes from a loader, as one rank of a world."""

from dataclasses import dataclass

OURS = "penstock"
ENTRIES = {OURS: "ours", "webdataset": "peer_webdataset", "dali-reader": "peer_dali"}  # loaders and their modules here


@dataclass(frozen=True)
class Span:
    """A range of positions in the endless training stream, in complete batches; planned only if not decoded."""

    start: int
    stop: int
    decoded: bool


@dataclass(frozen=True)
class Job:
    """The work of one process: the first `epochs` of a peer, or `spans` of our stream."""

    loader: str
    data: str  # folder of a prepared dataset
    split: str
    batch_size: int  # of all ranks together
    seed: int
    threads: int  # decoding threads; 0: an equal share of the cores
    out: str = ""  # file for the arrays, .npz
    rank: int = 0
    size: int = 1  # of the world
    # For a peer.
    epochs: int = 1
    buffer: int = 1000  # images to shuffle among
    # For our loader.
    pixels: int = 224  # of the square output
    device: str = "cpu"
    placement: str = "cpu"  # where images are decoded; never "auto", so that any number of ranks does the same
    decode: str = "roi"
    spans: tuple[Span, ...] = ()
    kept: tuple[int, ...] = ()  # positions whose images are returned
    digests: bool = False  # return the sha256 of each image's pixels
    state_in: str = ""  # file of a saved loader state: the spans begin at its position
    state_out: str = ""  # file to which rank 0 writes the loader state after the last batch
