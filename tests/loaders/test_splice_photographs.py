"""Real ImageNet JPEGs as `prep/shard.py --restarts` writes them: every sample inside training windows is the same.

PENSTOCK_SOAK_SPLICES is the number of windows of each of the 400 images (unless told: 2 windows of 24 images).
"""

import os
from dataclasses import dataclass

import numpy as np
import pytest
from helpers.datasets import SHARED_DATA, prepare_folder
from helpers.restarts import needs_transcoder
from helpers.splices import cut, decode_strictly

from loaders import Sampling, Split, TrainTransform
from loaders.plan import Images, train_plan
from loaders.splice import find_cuts, find_spans, splice_jpeg
from prep.dataset import Options
from prep.segments import lengths_of, parse_records

NUM_WINDOWS = int(os.environ.get("PENSTOCK_SOAK_SPLICES", "0"))
FOLDER = SHARED_DATA / "imagenet-samples"
# The aims, of all bytes and MCUs of the images.
MOST_READ, MOST_MCUS = 0.75, 0.55


@dataclass
class Totals:
    """Sums over all windows."""

    windows: int = 0
    samples: int = 0  # compared
    different: int = 0
    file_bytes: int = 0  # of the complete JPEGs
    read_bytes: int = 0  # the tables, and from the first to the last needed segment
    decode_bytes: int = 0  # of the spliced JPEGs
    mcus: int = 0  # of the complete JPEGs
    decode_mcus: int = 0


pytestmark = needs_transcoder


@pytest.fixture(scope="module")
def splits(tmp_path_factory: pytest.TempPathFactory) -> list[Split]:
    if not FOLDER.is_dir():
        pytest.skip(f"needs real ImageNet images in {FOLDER} (set PENSTOCK_TEST_DATA)")
    out, names = tmp_path_factory.mktemp("photographs"), ("train", "validation")
    for name in names:
        prepare_folder(FOLDER, name, out, Options(restarts=True, limit=None if NUM_WINDOWS else 12))
    return [Split(out, name) for name in names]


def compare(split: Split, num_windows: int, totals: Totals) -> int:
    """Compare windows of each image that has segments; return the number of these images."""
    heights_N, widths_N = (split.column(name).astype(np.int64) for name in ("height", "width"))
    plans = [
        train_plan(
            Sampling(seed=7),
            epoch * len(split),
            range(len(split)),
            Images(widths_N=split.column("width"), heights_N=split.column("height")),
            TrainTransform(),
        )
        for epoch in range(num_windows)
    ]
    num_images, undamaged_B = 0, np.zeros(num_windows, bool)
    for shard in range(len(split.manifest.shards)):
        rows = np.flatnonzero(split.column("shard") == shard)
        tar, content = split.shard_paths[shard].read_bytes(), split.segments_path(shard).read_bytes()
        records = parse_records(content, "x.seg", len(rows))
        for record, row in zip(records, rows.tolist(), strict=True):
            if record["interval"] == 0:
                continue
            num_images += 1
            start, size = int(split.column("offset")[row]), int(split.column("size")[row])
            data, lengths = tar[start : start + size], lengths_of(content, record)
            windows_B4 = np.stack([plan.windows_B4[plan.rows_B.tolist().index(row)] for plan in plans])
            heights_B, widths_B = (np.full(num_windows, sides_N[row]) for sides_N in (heights_N, widths_N))
            spans = find_spans(np.repeat(record[None], num_windows), heights_B, widths_B, windows_B4, undamaged_B)
            whole = decode_strictly(data)
            for i, window in enumerate(windows_B4.tolist()):
                spliced = splice_jpeg(data, record, lengths, spans, i)
                pixels = decode_strictly(spliced)
                assert pixels.shape[:2] == tuple(spans.sizes_B2[i])
                ours, theirs = cut(pixels, spans.windows_B4[i]), cut(whole, window)
                totals.windows += 1
                totals.samples += theirs.size
                totals.different += int((ours != theirs).sum())
                needed = lengths[: spans.bottoms_B[i] * spans.columns_B[i]]
                cuts = find_cuts(spans, np.array([i]), np.array([len(lengths)]), needed, np.zeros(1, np.int64))
                totals.file_bytes += size
                totals.read_bytes += int(record["tables_size"]) + int(cuts.stops_P[0] - cuts.starts_P[0])
                totals.decode_bytes += len(spliced)
                totals.mcus += len(lengths) * int(record["interval"])
                totals.decode_mcus += len(cuts.ends_K) * int(record["interval"])
    return num_images


def test_samples_inside_windows_are_the_same(splits: list[Split]) -> None:
    totals = Totals()
    num_images = sum(compare(split, NUM_WINDOWS or 2, totals) for split in splits)
    shares = {
        "read": totals.read_bytes / totals.file_bytes,
        "decoded": totals.decode_bytes / totals.file_bytes,
        "MCUs": totals.decode_mcus / totals.mcus,
    }
    print(f"{num_images} images of {sum(map(len, splits))}, {totals}, shares {shares}")
    assert num_images >= 0.95 * sum(map(len, splits)) > 0
    assert totals.windows == (NUM_WINDOWS or 2) * num_images and totals.samples > 1e5 * num_images / 2
    assert totals.different == 0
    if NUM_WINDOWS:  # few windows say little about the mean
        assert shares["read"] <= MOST_READ and shares["MCUs"] <= MOST_MCUS
