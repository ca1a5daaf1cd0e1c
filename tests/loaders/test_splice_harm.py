"""Random damage to restart shards and to SHARD.seg while the loader splices: words or the right pixels, and no crash.

PENSTOCK_SOAK_SPLICE_HARM sets how many times (40 unless told).
"""

import json
import os
import random
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.datasets import prepare_folder
from helpers.ranks import Ended, Ranks
from helpers.restart_jpegs import USUAL, Kind, encoders_of, write_jpeg
from helpers.restarts import needs_transcoder
from helpers.splice_jobs import BATCH_SIZE, SEEN, TRANSFORM

from loaders import Sampling, Split
from loaders.plan import Images, train_plan
from prep.dataset import Options

NUM_TRIALS = int(os.environ.get("PENSTOCK_SOAK_SPLICE_HARM", "40"))
NUM_IMAGES, IMAGES_PER_SHARD, NUM_MOMENTS = 96, 48, 4
BEFORE = -1  # the split is opened
TARS, LISTS = (tuple(f"train-00000{shard}{suffix}" for shard in range(2)) for suffix in (".tar", ".seg"))
BACKENDS = ("dali", "reference")
SECONDS_PER_TRIAL = 20

pytestmark = needs_transcoder


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Restart shards of images of all usual kinds, of several segments each."""
    source, out = tmp_path_factory.mktemp("splice-source"), tmp_path_factory.mktemp("splice-shards")
    (source / "train" / "one").mkdir(parents=True)
    for number in range(NUM_IMAGES):
        colours = USUAL[number % len(USUAL)]
        kind = Kind(colours, 90 + number % 41, 120 + 2 * (number % 37), 0, encoders_of(colours)[0], seed=number)
        (source / "train" / "one" / f"{number:03d}.jpg").write_bytes(write_jpeg(kind))
    prepare_folder(source, "train", out, Options(restarts=True, images_per_shard=IMAGES_PER_SHARD))
    return out


def draw_trial(seed: int) -> dict[str, Any]:
    draw = random.Random(seed)
    return {
        "seed": seed,
        "file": draw.choice((*LISTS, *LISTS, *TARS)),
        "moment": draw.choice((BEFORE, draw.randrange(NUM_MOMENTS))),
        "loader": {"backend": draw.choice(("dali", *BACKENDS)), "most_damaged": draw.choice((0, 1000))},
    }


def see(ranks: Ranks, shards: Path, folder: Path, trials: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], Ended]:
    """Run trials in one process; the lines that it wrote, and how it ended."""
    group = ranks.start("see-damaged", 1, folder, root=str(shards), trials=trials)
    (ended,) = ranks.wait(SECONDS_PER_TRIAL * len(trials))
    return [json.loads(line) for line in (group / SEEN).read_text().splitlines()], ended


@pytest.fixture(scope="module")
def sound(ranks: Ranks, shards: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """The images of undamaged shards, by backend and place: with splicing, which says nothing, and without."""
    folder, digests = tmp_path_factory.mktemp("sound"), {}
    for backend in BACKENDS:
        loaders = [{"backend": backend, "splice": splice} for splice in ("auto", "off")]
        trials = [{"seed": n, "file": "", "moment": BEFORE, "loader": loader} for n, loader in enumerate(loaders)]
        lines, ended = see(ranks, shards, folder, trials)
        assert ended.status == 0, ended.stderr
        spliced, whole = (line for line in lines if "trial" in line)
        assert (spliced["error"], spliced["warnings"]) == (None, []) and len(spliced["digests"]) == NUM_IMAGES
        assert spliced["digests"] == whole["digests"]
        digests[backend] = spliced["digests"]
    return digests


def find_places(shards: Path) -> dict[str, int]:
    """Return the shard of the image at each place of the epoch."""
    split = Split(shards, "train")
    images = Images(widths_N=split.column("width"), heights_N=split.column("height"))
    positions = range(0, NUM_IMAGES, BATCH_SIZE)
    rows = [row for at in positions for row in train_plan(Sampling(), at, range(BATCH_SIZE), images, TRANSFORM).rows_B]
    return {str(place): int(split.column("shard")[row]) for place, row in enumerate(rows)}


def find_faults(line: dict[str, Any], sound: dict[str, str], places: dict[str, int]) -> Iterator[str]:
    """Yield what must not be."""
    file, error, digests = line["trial"]["file"], line["error"], line["digests"]
    stem = Path(file).stem
    if error is not None and (re.search(r"\n|\b\w*Error\b|Errno", error) or f"/{stem}." not in error):
        yield f"unclear words: {error}"
    if error is None and len(digests) != NUM_IMAGES:
        yield f"{len(digests)} images"
    different = [place for place, digest in digests.items() if digest != sound[place]]
    if any(f"train-{places[place]:06d}" != stem for place in different):
        yield "images of the other shard have other pixels"
    if file in LISTS:  # the images are sound
        if different:
            yield f"{len(different)} images have other pixels"
        for words in (*line["warnings"], *([error] if error else ())):
            if file not in words:
                yield f"it blames another file: {words}"


def test_no_random_damage_ends_without_words_or_crashes(
    ranks: Ranks, shards: Path, sound: dict[str, dict[str, str]], tmp_path: Path
) -> None:
    # The last two cut a SHARD.seg and a tar before they are opened, which are errors, however fast the threads are.
    trials = [draw_trial(seed) for seed in range(NUM_TRIALS)]
    trials += [{**draw_trial(seed), "moment": BEFORE} for seed in (2, 17)]
    lines, ended = see(ranks, shards, tmp_path, trials)
    assert ended.status == 0, f"{lines[-1]}: {ended.status} {ended.stderr}"
    seen, places = [line for line in lines if "trial" in line], find_places(shards)
    assert [line["trial"] for line in seen] == trials and all(line["harm"] for line in seen if line["error"] is None)
    faults = [
        f"{line['trial']}, {line['harm']}: {fault}; {line['warnings']}; {line['error']}"
        for line in seen
        for fault in find_faults(line, sound[line["trial"]["loader"]["backend"]], places)
    ]
    assert not faults, "\n".join(faults)

    # The damage is not harmless: all ends are there.
    ends = Counter((line["trial"]["file"] in LISTS, name_end(line)) for line in seen)
    print(dict(ends))
    assert {(True, "error"), (True, "warning"), (False, "error")} <= set(ends)


def name_end(line: dict[str, Any]) -> str:
    if line["error"]:
        return "error"
    return "warning" if line["warnings"] else "silence"
