"""The work of a contender. Uses the standard library only: it is imported under every peer's interpreter."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

SPLIT = "train"  # of the prepared shards


@dataclass(frozen=True)
class Job:
    """One contender's work: batches of `batch_size` images of `size` pixels from `data`, with `workers`."""

    entry: str  # module:function, a generator of batches that never ends
    data: str  # folder with the images in the format that the entry reads
    evaluates: bool  # resize to `resize` and crop the centre, instead of a random resized crop and a flip
    size: int  # of the square output, in pixels
    resize: int  # of the short side before the centre crop, in pixels
    batch_size: int
    workers: int  # processes or threads, depending on the entry
    num_images: int  # in `data`
    warmup: float  # seconds at the start of each window, in which images do not count
    seconds: float  # of each window after that
    packages: list[str]  # packages whose versions are reported
    options: dict[str, Any]  # further options of the entry

    @property
    def shards(self) -> list[str]:
        """The tars of the prepared shards, in order."""
        return [str(path) for path in sorted(Path(self.data, SPLIT).glob("*.tar"))]
