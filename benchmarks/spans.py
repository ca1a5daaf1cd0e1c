"""Count what restart shards save in an epoch: bytes that are read and decoded, and MCUs that are decoded. No timing."""

from pathlib import Path
from typing import Any

import simplejpeg

from loaders import Split, TrainTransform, build_loader
from loaders.plan import Plan
from loaders.reader import Encoded
from loaders.stats import Counters
from prep.segments import parse_records

BATCH_SIZE, NUM_THREADS = 64, 2
# Pixels of an MCU, height and width, by the name that simplejpeg gives to the subsampling of the chroma.
MCU_SIDES = {"Gray": (8, 8), "444": (8, 8), "422": (8, 16), "440": (16, 8), "420": (16, 16), "411": (8, 32)}


def count_epoch(folder: Path, split_name: str, size: int) -> dict[str, Any]:
    """Read the training images of an epoch of restart shards as the loader does; return the shares read and decoded.

    Returns:
        `read_share` and `decoded_share` of the JPEGs' bytes (what is read includes SHARD.seg), and `mcu_share` of their
        MCUs, of `num_images` images; `spliced_share` of all images; `size_ratio`, the bytes of the JPEGs relative to
        those of the source; `index_bytes_per_image` of SHARD.seg.
    """
    split, counters, decoded_mcus, mcus = Split(folder, split_name), Counters(), 0, 0
    loader = build_loader(split, TrainTransform(size), min(BATCH_SIZE, len(split)))
    num_batches = len(split) // loader.batch_size
    with loader.open_reader(NUM_THREADS, 1, counters) as reader:
        for plan, encoded in reader.read(loader.plan(i * loader.batch_size) for i in range(num_batches)):
            decoded, complete = count_mcus(split, plan, encoded)
            decoded_mcus, mcus = decoded_mcus + decoded, mcus + complete
            reader.release(encoded)

    # The files with the segments.
    segments = [split.segments_path(shard).read_bytes() for shard in range(len(split.manifest.shards))]
    counts = [shard.num_images for shard in split.manifest.shards]
    records = [parse_records(content, split_name, num) for content, num in zip(segments, counts, strict=True)]
    return {
        "num_images": num_batches * loader.batch_size,
        "spliced_share": sum(int((each["interval"] > 0).sum()) for each in records) / len(split),
        "read_share": counters.read_bytes / counters.image_bytes,
        "decoded_share": counters.decode_bytes / counters.image_bytes,
        "mcu_share": decoded_mcus / mcus,
        "size_ratio": split.manifest.size_bytes / split.manifest.source_size_bytes,
        "index_bytes_per_image": sum(map(len, segments)) / len(split),
    }


def count_mcus(split: Split, plan: Plan, encoded: Encoded) -> tuple[int, int]:
    """Return the MCUs of a batch's JPEGs as they are decoded, and those of the complete images."""
    decoded = complete = 0
    heights_B, widths_B = (split.column(name)[plan.rows_B].tolist() for name in ("height", "width"))
    for image, whole_height, whole_width in zip(encoded.images, heights_B, widths_B, strict=True):
        height, width, _, subsampling = simplejpeg.decode_jpeg_header(image)
        mcu_height, mcu_width = MCU_SIDES[subsampling]
        decoded += -(-int(height) // mcu_height) * -(-int(width) // mcu_width)
        complete += -(-whole_height // mcu_height) * -(-whole_width // mcu_width)
    return decoded, complete
