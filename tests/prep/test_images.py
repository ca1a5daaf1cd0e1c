"""Odd and broken images: kept as they are, repaired, or left out with a reason; none is lost without a word."""

import io
import json
import os
import re
import tarfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import numpy as np
import pytest
from helpers.commands import run_command
from helpers.datasets import prepare_folder
from helpers.hostile import png_bomb
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, JpegImagePlugin

from prep.dataset import Options, Split
from prep.images import UnusableImageError, as_jpeg

WIDTH, HEIGHT = 64, 48
MOST_MEAN_ERROR = 2.0  # grey levels between an image and its JPEG of quality 95


def _encode(image: Image.Image, format: str, **options: Any) -> bytes:
    encoded = io.BytesIO()
    image.save(encoded, format, **options)
    return encoded.getvalue()


def _colour_ramp() -> Image.Image:
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    return Image.fromarray(np.stack([x * 4, y * 5, (x + y) * 2], axis=-1).astype(np.uint8))


RAMP = _colour_ramp()
RAMP_16_BIT = np.arange(WIDTH * HEIGHT, dtype=np.uint16).reshape(HEIGHT, WIDTH) * 21


def _rotated_exif() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turn by 90 degrees to show it
    return exif


TURNED, MIRRORED = RAMP.rotate(180), RAMP.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
UPSIDE_DOWN = RAMP.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
PLAIN = _encode(RAMP, "JPEG", quality=93)
KEPT = {
    "grey.jpg": _encode(RAMP.convert("L"), "JPEG"),
    "progressive.jpg": _encode(RAMP, "JPEG", progressive=True),
    "orientation6.jpg": _encode(RAMP, "JPEG", exif=_rotated_exif()),
    "mpo.jpg": _encode(RAMP, "MPO", save_all=True, append_images=[RAMP.rotate(180)]),
    "with spaces, ünïcode & 100%.JPEG": _encode(RAMP, "JPEG", quality=90),
    "..dots.and...more.jpg": _encode(RAMP, "JPEG", quality=91),
    "trailing.jpg": PLAIN + b"<html>",
    "two.jpg": PLAIN + _encode(RAMP, "JPEG", quality=50),
    "cut inside.jpg": PLAIN[:-100] + PLAIN[-2:],
    "no tags.jpg": _encode(RAMP, "JPEG", quality=92, exif=b"Exif\0\0garbage"),
}
FOUND = {
    "progressive.jpg": ("progressive", ""),
    "orientation6.jpg": ("exif_orientation", "6"),
    "mpo.jpg": ("trailing_bytes", "bytes after the end of the image"),
    "trailing.jpg": ("trailing_bytes", "6 bytes after the end of the image"),
    "two.jpg": ("trailing_bytes", "bytes after the end of the image"),
    "cut inside.jpg": ("suspect", "Corrupt JPEG data: premature end of data segment"),
}
REPAIRED = {
    "png.jpg": (_encode(RAMP, "PNG"), RAMP, "PNG RGB made RGB JPEG"),
    "cmyk.jpg": (
        _encode(UPSIDE_DOWN.convert("CMYK"), "JPEG", quality=95),
        UPSIDE_DOWN,
        "JPEG CMYK baseline CMYK made RGB JPEG",
    ),
    "rgb.jpg": (
        _encode(MIRRORED, "JPEG", quality=95, keep_rgb=True),
        MIRRORED,
        "JPEG RGB baseline RGB made RGB JPEG",
    ),
    "rgba.png": (_encode(TURNED.convert("RGBA"), "PNG"), TURNED, "PNG RGBA made RGB JPEG"),
    "sixteen.png": (
        _encode(Image.fromarray(RAMP_16_BIT), "PNG"),
        Image.fromarray((RAMP_16_BIT // 257).astype(np.uint8)),
        "PNG I;16 made RGB JPEG",
    ),
    "palette.jpg": (
        _encode(RAMP.quantize(4, dither=Image.Dither.NONE), "GIF"),
        RAMP.quantize(4, dither=Image.Dither.NONE),
        "GIF P made RGB JPEG",
    ),
}
REJECTED = {
    "nothing.jpg": (b"", "0 bytes"),
    "text.jpg": (b"<html>404 Not Found</html>", "not an image"),
    "truncated.jpg": (_encode(RAMP, "JPEG")[:-200], "damaged: "),
    "bomb.png": (png_bomb(), "damaged: Image size (900000000 pixels) exceeds limit"),
}


OFFERED = {**KEPT, **{n: c[0] for n, c in REPAIRED.items()}, **{n: r[0] for n, r in REJECTED.items()}}


@dataclass(frozen=True)
class Outcome:
    """The result of preparing all of the above by `python prep/shard.py`."""

    result: CompletedProcess[str]
    folder: Path
    ledger: dict[str, dict[str, Any]]  # by the file's own name, its one entry
    samples: list[tuple[dict[str, Any], bytes]]  # row of the sample index and the JPEG in the tar


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    root = tmp_path_factory.mktemp("odd")
    (root / "images" / "thing").mkdir(parents=True)
    for name, data in OFFERED.items():
        (root / "images" / "thing" / name).write_bytes(data)
    arguments = ["--source", root / "images", "--out", root / "out", "--images-per-shard", 4, "--workers", 2]
    result = run_command("prep/shard.py", *arguments)
    split = Split(root / "out", "train")
    tars = [path.read_bytes() for path in split.shard_paths]
    samples = [(row, tars[row["shard"]][row["offset"] :][: row["size"]]) for row in split.samples.to_pylist()]
    entries = [json.loads(line) for line in (split.folder / "ledger.jsonl").read_text().splitlines()]
    ledger = {Path(entry["name"]).name: entry for entry in entries}
    assert len(ledger) == len(entries)
    return Outcome(result, split.folder, ledger, samples)


def test_unusable_images_are_told_in_one_line_and_stop_nothing(outcome: Outcome) -> None:
    assert outcome.result.returncode == 0
    assert outcome.result.stderr.startswith(f"warning: {outcome.folder}: {len(REJECTED)} images left out (")
    assert outcome.result.stderr.count("\n") == 1
    assert all(f"/{name}: {reason}" in outcome.result.stderr for name, (_, reason) in REJECTED.items())


def test_every_image_offered_is_kept_or_listed_as_left_out(outcome: Outcome) -> None:
    manifest = json.loads((outcome.folder / "manifest.json").read_text())
    assert manifest["num_images"] == len(outcome.samples) == len(KEPT) + len(REPAIRED)
    assert manifest["findings"]["rejected"] == len(REJECTED)
    assert manifest["num_images"] + manifest["findings"]["rejected"] == len(OFFERED)
    rows = {int(row["key"][:8]) for row, _ in outcome.samples}
    assert rows | {outcome.ledger[name]["row"] for name in REJECTED} == set(range(len(OFFERED)))


def test_the_ledger_lists_what_was_found_with_the_reason_and_nothing_else(outcome: Outcome) -> None:
    expected = {name: ("repaired", reason) for name, (_, _, reason) in REPAIRED.items()} | FOUND
    expected |= {name: ("rejected", reason) for name, (_, reason) in REJECTED.items()}
    assert set(outcome.ledger) == set(expected)
    for name, (event, reason) in expected.items():
        assert outcome.ledger[name]["event"] == event
        assert reason in outcome.ledger[name]["reason"]


def test_the_summary_and_the_manifest_count_what_the_ledger_lists(outcome: Outcome) -> None:
    counts = Counter(entry["event"] for entry in outcome.ledger.values())
    assert json.loads((outcome.folder / "manifest.json").read_text())["findings"] == counts
    sums = f"{len(OFFERED)} offered = {len(KEPT)} kept + {len(REPAIRED)} repaired + {len(REJECTED)} rejected"
    assert sums in outcome.result.stdout
    for event, count in counts.items():
        assert re.search(rf"^ +{count} {event} ", outcome.result.stdout, re.MULTILINE)


def test_strictly_the_first_damaged_image_stops_the_command(tmp_path: Path) -> None:
    (tmp_path / "images" / "thing").mkdir(parents=True)
    for name in ("cut inside.jpg", "grey.jpg", "mpo.jpg"):
        (tmp_path / "images" / "thing" / name).write_bytes(KEPT[name])
    command = ["prep/shard.py", "--source", tmp_path / "images", "--out", tmp_path / "out"]
    result = run_command(*command, "--strict")
    assert result.returncode == 1
    pattern = r"error: row \d \(thing/cut inside\.jpg\) is suspect: Corrupt .* without --strict\n"
    assert re.fullmatch(pattern, result.stderr)
    assert not (tmp_path / "out" / "train" / "manifest.json").exists()
    assert run_command(*command, "--strict").stderr == result.stderr  # shards that exist already are checked too
    assert run_command(*command).returncode == 0


@pytest.mark.parametrize("name", KEPT)
def test_a_colour_or_grey_jpeg_is_kept_bit_for_bit_with_its_stored_size(name: str, outcome: Outcome) -> None:
    (row,) = [row for row, jpeg in outcome.samples if jpeg == KEPT[name]]
    assert (row["width"], row["height"]) == (WIDTH, HEIGHT)  # of orientation 6 too, which is shown upright


@pytest.mark.parametrize("name", REPAIRED)
def test_another_format_becomes_an_rgb_jpeg_near_the_original(name: str, outcome: Outcome) -> None:
    number = outcome.ledger[name]["row"]
    ((row, jpeg),) = [(row, jpeg) for row, jpeg in outcome.samples if int(row["key"][:8]) == number]
    with Image.open(io.BytesIO(jpeg)) as image:
        assert (image.format, image.mode) == ("JPEG", "RGB")
        assert image.size == (row["width"], row["height"]) == (WIDTH, HEIGHT)
        assert JpegImagePlugin.get_sampling(image) == 0  # 4:4:4: colours at full resolution
        error = np.asarray(image).astype(float) - np.asarray(REPAIRED[name][1].convert("RGB"))
    assert np.abs(error).mean() < MOST_MEAN_ERROR


def test_a_tar_holds_only_safe_names_whatever_the_files_were_called(outcome: Outcome) -> None:
    names = []
    for path in outcome.folder.glob("*.tar"):
        with tarfile.open(path) as tar:
            names += tar.getnames()
    assert len(set(names)) == len(names) == 2 * len(outcome.samples)
    assert all(re.fullmatch(r"[0-9]{8}-[A-Za-z0-9_-]+\.(jpg|cls)", name) for name in names)


def test_without_the_decode_check_only_a_full_decode_would_have_found_the_cut() -> None:
    cut = KEPT["cut inside.jpg"]
    assert as_jpeg(cut, Options(decode_check=False)).findings == ()
    assert as_jpeg(cut, Options()).findings == (("suspect", "Corrupt JPEG data: premature end of data segment"),)


def test_a_file_without_its_end_is_decoded_whether_checked_or_not() -> None:
    with pytest.raises(UnusableImageError, match=r"^damaged: image file is truncated"):
        as_jpeg(PLAIN[:-100], Options(decode_check=False))


def test_a_progressive_file_of_too_many_scans_is_refused_before_it_is_decoded() -> None:
    data = KEPT["progressive.jpg"]
    scan = data.index(b"\xff\xda")
    with pytest.raises(UnusableImageError, match="more than 500 scans"):
        as_jpeg(data[:scan] + data[scan:-2] * 600 + data[-2:], Options())


def test_a_split_without_one_usable_image_is_refused(tmp_path: Path) -> None:
    (tmp_path / "images" / "thing").mkdir(parents=True)
    (tmp_path / "images" / "thing" / "a.jpg").write_bytes(b"")
    result = run_command("prep/shard.py", "--source", tmp_path / "images", "--out", tmp_path / "out")
    assert result.returncode == 1
    assert result.stderr == "error: no image of train is usable (thing/a.jpg: 0 bytes, ...)\n"
    assert [path.name for path in (tmp_path / "out" / "train").iterdir()] == [".prep"]


def test_names_that_are_not_utf_8_are_prepared_too(tmp_path: Path) -> None:
    name = os.fsdecode("café".encode("latin-1"))
    (tmp_path / "images" / name).mkdir(parents=True)
    (tmp_path / "images" / name / f"{name}.jpg").write_bytes(KEPT["grey.jpg"])
    manifest = prepare_folder(tmp_path / "images", "train", tmp_path / "out")
    split = Split(tmp_path / "out", "train")
    assert split.class_names == manifest.class_names == (name,)
    assert split.samples.column("key").to_pylist() == ["00000000-caf_"]


def _result_of(data: bytes) -> str:
    """The contract: a JPEG that is these very bytes, one made of another format, or a refusal; nothing else."""
    try:
        jpeg = as_jpeg(data, Options())
    except UnusableImageError as refusal:
        assert str(refusal)
        return "refused"
    assert jpeg.width > 0
    assert jpeg.height > 0
    if "repaired" in dict(jpeg.findings):
        assert jpeg.data != data
        return "repaired"
    assert jpeg.data == data
    return "kept"


@settings(deadline=None, max_examples=200)
@given(data=st.binary(max_size=2000))
def test_random_bytes_are_refused_and_never_raise_anything_else(data: bytes) -> None:
    assert _result_of(data) != "kept"


@settings(deadline=None, max_examples=200)
@given(data=st.data(), name=st.sampled_from(["grey.jpg", "progressive.jpg", "orientation6.jpg", "mpo.jpg"]))
def test_a_damaged_jpeg_is_kept_or_refused_and_never_raises_anything_else(data: st.DataObject, name: str) -> None:
    damaged = bytearray(KEPT[name])
    flips = st.tuples(st.integers(0, len(damaged) - 1), st.integers(1, 255))
    for position, mask in data.draw(st.lists(flips, max_size=4)):
        damaged[position] ^= mask
    kept_bytes = data.draw(st.one_of(st.just(len(damaged)), st.integers(0, len(damaged))))
    _result_of(bytes(damaged[:kept_bytes]))
