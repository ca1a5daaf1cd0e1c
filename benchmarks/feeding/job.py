"""What a contender is asked to do. The standard library alone: it is read under every peer's interpreter."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

SPLIT = "train"  # of the prepared shards


@dataclass(frozen=True)
class Job:
    """One contender's work: batches of `batch_size` images of `size` pixels from `data`, with `workers`."""

    entry: str  # module:function, a generator of batches that never ends
    data: str  # folder, in the format that the entry reads
    evaluates: bool  # resize to `resize` and crop the centre, instead of a random resized crop and a flip
    size: int  # pixels, of the square output
    resize: int  # pixels, of the short side before the centre crop
    batch_size: int
    workers: int  # processes or threads, whichever the entry has
    num_images: int  # in `data`
    warmup: float  # seconds of each window before its images count
    seconds: float  # of each window, in which they do
    packages: list[str]  # whose versions are reported
    options: dict[str, Any]  # of the entry's own

    @property
    def shards(self) -> list[str]:
        """The tars of prepared shards, in order."""
        return [str(path) for path in sorted(Path(self.data, SPLIT).glob("*.tar"))]
