"""What one process is asked to take from a loader, as one rank of a world."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Span:
    """Positions of the endless training stream, whole batches; what is not decoded is only planned."""

    start: int
    stop: int
    decoded: bool


@dataclass(frozen=True)
class Job:
    """One process's work: a peer's `epochs` from their beginning, or `spans` of our stream."""

    loader: str
    data: str  # folder of a prepared dataset
    split: str
    batch_size: int  # of all ranks together
    seed: int
    threads: int  # that decode, 0: a share of the cores
    out: str = ""  # file for the arrays, .npz
    rank: int = 0
    size: int = 1  # of the world
    # of a peer
    epochs: int = 1
    buffer: int = 1000  # images to shuffle among
    # of ours
    pixels: int = 224  # of the square output
    device: str = "cpu"
    placement: str = "cpu"  # where images are decoded; explicit, so that it is the same for any number of ranks
    decode: str = "roi"
    spans: tuple[Span, ...] = ()
    kept: tuple[int, ...] = ()  # positions whose images are handed back
    digests: bool = False  # sha256 of each image's pixels
    state_in: str = ""  # file of a saved state: the spans begin where that was taken
    state_out: str = ""  # file for the state after the last batch, which rank 0 writes
