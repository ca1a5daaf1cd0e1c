"""The files with the segments of a shard's images: verified, repaired without the source, and adopted with the tars."""

import errno
import io
import random
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.datasets import tree
from helpers.harm import flip, run, serial
from helpers.restarts import CAN_TRANSCODE, needs_transcoder, why_not
from helpers.tars import adopt, images, one_by_one, write_tar
from PIL import Image

from prep import repair, restarts, verify
from prep.adoption import Adoption, adopt_split
from prep.dataset import MANIFEST, SAMPLES, Options, Split
from prep.errors import InputError
from prep.files import sha256_of
from prep.prepare import prepare_split
from prep.resolve import open_source
from prep.restarts import find_transcoder
from prep.segments import encode_segments, find_segments
from prep.staging import RemoteSplit, measure_missing_bytes
from prep.store import LocalStore, open_store
from prep.tar_sets import find_tars

NUM_FLIPS = 50
PLAIN, RESTARTS = {}, {"restart_marker_blocks": 2}
SEGMENTS = "train/train-000001.seg"


@pytest.fixture(autouse=True)
def _no_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "local_pool", lambda _: serial)


def encode_noise(seed: int, **options: Any) -> bytes:
    """Return a JPEG of noise, 64 x 48 pixels with 4:2:0 chroma: 3 rows of 4 MCUs."""
    pixels, encoded = np.random.default_rng(seed).integers(0, 256, (48, 64, 3), np.uint8), io.BytesIO()
    Image.fromarray(pixels).save(encoded, "JPEG", subsampling="4:2:0", **options)
    return encoded.getvalue()


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Colour images, one of them progressive, so that it has no segments, and one already with restart markers."""
    root = tmp_path_factory.mktemp("source")
    for i in range(12):
        options = {4: {"progressive": True}, 7: RESTARTS}.get(i, PLAIN)
        path = root / "train" / f"class{i // 6}" / f"{i:02}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_noise(i, **options))
    return root


@pytest.fixture(scope="module")
def prepared(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not CAN_TRANSCODE:
        pytest.skip(why_not(find_transcoder))
    out = tmp_path_factory.mktemp("prepared")
    prepare_split(open_source(str(source)), "train", LocalStore(out), Options(4, restarts=True), serial)
    return out


@pytest.fixture
def root(prepared: Path, tmp_path: Path) -> Path:
    """A copy to be harmed."""
    return Path(shutil.copytree(prepared, tmp_path / "dataset"))


# Verifying and repairing.


def test_a_split_with_segments_is_complete(root: Path, capsys: Any) -> None:
    assert Split(root, "train").manifest.format_version == 3
    status, lines = run(capsys, root, "--decode", "all")
    assert (status, len(lines)) == (0, 1), lines


def test_no_flip_in_a_file_of_segments_goes_unnoticed(root: Path, prepared: Path, capsys: Any) -> None:
    """Each is found, named with its file, and repaired without the source."""
    draw = random.Random(5)
    size = (root / SEGMENTS).stat().st_size
    for offset in [*range(24), *(draw.randrange(size) for _ in range(NUM_FLIPS - 24))]:
        flip(root / SEGMENTS, offset)
        status, lines = run(capsys, root, "--decode", "0", "--repair")
        assert status == 0
        assert len(lines) == 2 and lines[0].startswith(f"{root / SEGMENTS} "), (offset, lines)
        assert ("segments of 0000000" in lines[0]) == (offset >= 16), (offset, lines)
        assert ": 1 fault, 1 repaired;" in lines[1]
        assert (root / SEGMENTS).read_bytes() == (prepared / SEGMENTS).read_bytes()
    assert tree(root) == tree(prepared)


def test_a_damaged_tar_and_its_segments_are_written_again_from_the_source(
    root: Path, prepared: Path, source: Path, capsys: Any
) -> None:
    flip(root / "train/train-000001.tar", 700)
    (root / SEGMENTS).unlink()
    status, lines = run(capsys, root, "--repair", "--source", source)
    assert (status, len(lines)) == (0, 2), lines
    assert tree(root) == tree(prepared)


def test_segments_are_repaired_after_the_sample_index(root: Path, prepared: Path, source: Path, capsys: Any) -> None:
    flip(root / "train" / SAMPLES, 999)
    flip(root / SEGMENTS, 30)
    status, lines = run(capsys, root)
    assert status == 1
    assert (
        f"{root / SEGMENTS} does not match its manifest: --repair --source SRC writes it again, with all " in lines[1]
    )
    assert run(capsys, root, "--repair", "--source", source)[0] == 0
    assert tree(root) == tree(prepared)


def test_segments_are_repaired_in_an_object_store(prepared: Path, capsys: Any) -> None:
    url = "memory://segments"
    for name, content in tree(prepared).items():
        folder, _, file = name.rpartition("/")
        (open_store(url).child(folder) if folder else open_store(url)).write(file, content)
    open_store(url).child("train").remove("train-000001.seg")
    status, lines = run(capsys, url, "--repair")
    assert (status, len(lines)) == (0, 2), lines
    assert open_store(url).child("train").read("train-000001.seg") == (prepared / SEGMENTS).read_bytes()


@pytest.fixture
def another_libjpeg(monkeypatch: pytest.MonkeyPatch) -> None:
    """A transcoder that writes the same coefficients in other bytes: with a comment after JFIF's marker."""
    transcode = find_transcoder()

    def transcode_otherwise(data: bytes, interval: int) -> bytes:
        fresh = transcode(data, interval)
        return fresh[:20] + b"\xff\xfe\0\4v9" + fresh[20:]

    monkeypatch.setattr(restarts, "find_transcoder", lambda: transcode_otherwise)


@pytest.mark.usefixtures("another_libjpeg")
def test_a_repair_with_another_libjpeg_keeps_the_images_that_are_whole(root: Path, source: Path, capsys: Any) -> None:
    flip(root / "train/train-000001.tar", Split(root, "train").column("offset")[4] + 700)
    before = tree(root)
    status, lines = run(capsys, root, "--repair", "--source", source)
    assert status == 1
    said = f"{root}/train/train-000001.tar came out different from its manifest (another libjpeg or Pillow, or "
    said += "a changed source?), and its files are kept: "
    assert [line for line in lines if line.startswith(f"not repaired: {said}")], lines
    assert " 1 fault;" in lines[-1]
    assert tree(root) == before


@needs_transcoder
@pytest.mark.usefixtures("another_libjpeg")
@pytest.mark.parametrize("lost", [".seg", ".idx"])
def test_a_run_with_another_libjpeg_keeps_the_images_of_a_shard_that_lost_a_file(
    root: Path, prepared: Path, source: Path, lost: str, capsys: Any
) -> None:
    (root / "train/train-000001").with_suffix(lost).unlink()
    before = tree(root)
    with pytest.raises(
        InputError, match=r"train-000001\.tar came out different .*`python prep/verify\.py .* --repair`"
    ):
        prepare_split(open_source(str(source)), "train", LocalStore(root), Options(4, restarts=True), serial)
    assert tree(root) == before
    assert run(capsys, root / "train", "--repair")[0] == 0
    assert tree(root) == tree(prepared)


@pytest.mark.parametrize("suffix", [".seg", ".idx"])
@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error", "x"), InputError("Input/output error")])
def test_a_file_next_to_a_tar_that_cannot_be_read_is_written_again(
    root: Path, prepared: Path, suffix: str, error: Exception, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An object store raises InputError."""
    usual, failed = LocalStore.read, False

    def read(store: LocalStore, name: str) -> bytes | None:
        nonlocal failed
        if name == f"train-000001{suffix}" and not failed:
            failed = True
            raise error
        return usual(store, name)

    monkeypatch.setattr(LocalStore, "read", read)
    path = root / f"train/train-000001{suffix}"
    path.write_bytes(b"")
    status, lines = run(capsys, root, "--decode", "0", "--repair")
    assert (status, len(lines)) == (0, 2), lines
    assert lines[0] == f"{path} cannot be read (Input/output error): --repair writes it again from its tar"
    assert tree(root) == tree(prepared)


def test_the_sample_index_is_read_once_for_all_segments(
    root: Path, prepared: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual, num_reads = repair.read_samples_table, 0

    def read_samples_table(content: bytes) -> Any:
        nonlocal num_reads
        num_reads += 1
        return usual(content)

    monkeypatch.setattr(repair, "read_samples_table", read_samples_table)
    for path in (root / "train").glob("*.seg"):
        path.unlink()
    assert run(capsys, root, "--repair")[0] == 0
    assert num_reads == 1
    assert tree(root) == tree(prepared)


def test_staging_measures_the_tar_that_it_fetches_again(root: Path) -> None:
    """If only the segments are missing, the tar is fetched again too."""
    split = RemoteSplit("train", Split(root, "train").manifest, b"")
    there = {name: len(content) for name, content in tree(root).items()}
    assert measure_missing_bytes(split, there, root) == 0
    (root / SEGMENTS).unlink()
    tar, index, segments = (there[f"train/train-000001{suffix}"] for suffix in (".tar", ".idx", ".seg"))
    expected = sum(-(-size // 4096) * 4096 for size in (tar, index, segments))
    assert measure_missing_bytes(split, there, root) == expected


def forge(split: Split, shard: int, content: bytes) -> None:
    """Replace the segments of a shard, and their digest in the manifest too."""
    shards = list(split.manifest.shards)
    shards[shard] = replace(shards[shard], segments_sha256=sha256_of(content))
    (split.folder / MANIFEST).write_text(replace(split.manifest, shards=tuple(shards)).to_json())
    split.segments_path(shard).write_bytes(content)


def test_segments_that_contradict_an_undamaged_tar_are_told(root: Path, source: Path, capsys: Any) -> None:
    """The files match their digests, so neither is damaged: only preparing again can help."""
    split = Split(root, "train")
    progressive = next(row for row, key in enumerate(split.keys(range(12))) if key.endswith("-04"))
    shard = int(split.column("shard")[progressive])
    rows = np.flatnonzero(split.column("shard") == shard)
    tar, path = split.shard_paths[shard].read_bytes(), split.segments_path(shard)
    places = zip(split.column("offset")[rows].tolist(), split.column("size")[rows].tolist(), strict=True)
    found, content = [find_segments(tar[offset : offset + size]) for offset, size in places], path.read_bytes()
    assert [segments is None for segments in found] == (rows == progressive).tolist()
    assert content == encode_segments(found)

    # An image that cannot be cut, and one that can.
    usable = next(segments for segments in found if segments)
    forge(split, shard, encode_segments([segments or usable for segments in found]))
    status, lines = run(capsys, root, "--repair", "--source", source)
    assert status == 1
    (key,), advice = split.keys([progressive]), "delete its folder and prepare it again"
    assert lines[0] == f"{path} lists segments of {key}, which cannot be cut into segments: {advice}"
    forge(split, shard, encode_segments([None] * 4))
    first = next(int(row) for row in rows if row != progressive)
    assert f" lists other segments of {split.keys([first])[0]} than its tar has: {advice}" in run(capsys, root)[1][0]

    # The file is damaged too, or is missing.
    path.write_bytes(content)
    assert f" does not match its manifest, and its tar gives another one: {advice}" in run(capsys, root)[1][0]
    path.unlink()
    assert f" is missing, and its tar gives another one: {advice}" in run(capsys, root)[1][0]


# Adopting.


@pytest.fixture
def tars(prepared: Path, tmp_path: Path) -> Path:
    """The tars of a split with segments, copied alone."""
    (tmp_path / "tars").mkdir()
    for path in (prepared / "train").glob("*.tar"):
        shutil.copy(path, tmp_path / "tars")
    return tmp_path / "tars"


def test_tars_with_segments_are_adopted_with_them(prepared: Path, tars: Path, tmp_path: Path, capsys: Any) -> None:
    split = adopt(tmp_path / "out", tars)
    assert split.manifest.has_segments and split.manifest.format_version == 3
    for name, content in tree(prepared / "train").items():
        if name.endswith((".seg", ".idx")):
            assert (split.folder / name).read_bytes() == content, name
    assert not [name for name in tree(split.folder) if name.startswith(".")]
    status, lines = run(capsys, tmp_path / "out")
    assert (status, len(lines)) == (0, 1), lines


def test_lost_segments_of_adopted_tars_are_restored(tars: Path, tmp_path: Path, capsys: Any) -> None:
    split = adopt(tmp_path / "out", tars)
    before = tree(split.folder)
    (split.folder / "train-000002.seg").unlink()
    adopt(tmp_path / "out", tars)
    assert tree(split.folder) == before
    flip(split.folder / "train-000002.seg", 20)
    assert run(capsys, tmp_path / "out", "--repair")[0] == 0
    assert tree(split.folder) == before


def test_segments_that_contradict_an_adopted_tar_name_the_command_that_adopts(
    tars: Path, tmp_path: Path, capsys: Any
) -> None:
    split = adopt(tmp_path / "out", tars)
    forge(split, 0, encode_segments([None] * 4))
    status, lines = run(capsys, tmp_path / "out")
    assert status == 1
    assert lines[0].endswith(" than its tar has: delete its folder and run prep/adopt.py again")


def test_segments_of_other_images_are_not_restored(tmp_path: Path, capsys: Any) -> None:
    """The tar is unchanged, but without --no-decode-check an image of it is rejected that was adopted."""
    undecodable = bytearray(encode_noise(3))
    undecodable[undecodable.index(b"\xff\xda") + 6] = 0x33  # tables of Huffman codes that do not exist
    members = [("3.jpg", bytes(undecodable)), ("3.cls", b"0"), ("7.jpg", encode_noise(7, **RESTARTS)), ("7.cls", b"1")]
    tar = write_tar(tmp_path / "a.tar", members)
    found, store = find_tars([str(tar)], "train"), LocalStore(tmp_path / "out")
    adopt_split(Adoption(found, decode_check=False), store, one_by_one)
    folder = tmp_path / "out/train"
    before = tree(folder)

    # The index alone does not depend on it.
    (folder / "a.idx").unlink()
    adopt(tmp_path / "out", tar, split="train")
    assert tree(folder) == before
    (folder / "a.seg").unlink()
    advice = re.escape(f"`python prep/verify.py {folder} --repair` writes a.seg again")
    with pytest.raises(InputError, match=rf"a\.tar is unchanged, but its usable images are not those .*{advice}"):
        adopt(tmp_path / "out", tar, split="train")
    run(capsys, folder, "--repair", "--decode", "0")
    assert tree(folder) == before


def test_one_image_with_segments_is_enough_for_a_split(tmp_path: Path, capsys: Any) -> None:
    plain = write_tar(tmp_path / "a.tar", images(0, 1))
    assert adopt(tmp_path / "plain", plain).manifest.format_version == 2
    assert not list((tmp_path / "plain" / "train").glob("*.seg"))
    members = [("7.jpg", encode_noise(7, **RESTARTS)), ("7.cls", b"1")]
    other = write_tar(tmp_path / "b.tar", [*images(0, start=5), *members])
    split = adopt(tmp_path / "out", plain, other)
    assert split.manifest.format_version == 3
    found = [split.segments_path(shard).read_bytes() for shard in range(2)]
    assert found[0] == encode_segments([None, None])
    assert found[1] == encode_segments([None, find_segments(encode_noise(7, **RESTARTS))])
    assert run(capsys, tmp_path / "out")[0] == 0
    (split.folder / "a.seg").unlink()
    adopt(tmp_path / "out", plain, other)
    assert (split.folder / "a.seg").read_bytes() == found[0]


def test_tars_that_lost_their_segments_meanwhile_are_refused(tmp_path: Path) -> None:
    members = [("7.jpg", encode_noise(7, **RESTARTS)), ("7.cls", b"1")]
    tar = write_tar(tmp_path / "a.tar", members)
    split = adopt(tmp_path / "out", tar)
    (split.folder / "a.seg").unlink()
    other = bytearray(tar.read_bytes())
    other[512 + other[512:].index(b"\xff\xd0") + 1] ^= 1  # RST0 becomes RST1
    tar.write_bytes(other)
    with pytest.raises(InputError, match=r"a\.tar has changed since it was adopted"):
        adopt(tmp_path / "out", tar)


def test_an_unfinished_adoption_of_other_tars_leaves_no_segments(tmp_path: Path) -> None:
    """The tars are exchanged after they were read, and before the split is complete."""
    tar = write_tar(tmp_path / "a.tar", [("7.jpg", encode_noise(7, **RESTARTS)), ("7.cls", b"1")])
    split = adopt(tmp_path / "out", tar)
    (split.folder / MANIFEST).unlink()
    write_tar(tar, images(0, 1))
    split = adopt(tmp_path / "out", tar)
    assert split.manifest.format_version == 2
    assert not (split.folder / "a.seg").exists()


@needs_transcoder
def test_an_image_with_restart_markers_that_is_not_transcoded_is_consistent(tmp_path: Path, capsys: Any) -> None:
    """Bytes that belong to no code, before a marker: libjpeg warns, so that preparation keeps the image as it is."""
    data = encode_noise(7, **RESTARTS)
    at = data.index(b"\xff\xd0")
    path = tmp_path / "source" / "train" / "one" / "odd.jpg"
    path.parent.mkdir(parents=True)
    path.write_bytes(data[:at] + b"\x12\x34" + data[at:])
    prepare_split(
        open_source(str(tmp_path / "source")), "train", LocalStore(tmp_path / "out"), Options(restarts=True), serial
    )
    split = Split(tmp_path / "out", "train")
    assert split.manifest.findings == {"no_restarts": 1, "suspect": 1}
    assert run(capsys, tmp_path / "out")[0] == 0


def test_an_adoption_that_ends_at_any_file_goes_on_to_the_same_bytes(
    tars: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = tree(adopt(tmp_path / "whole", tars).folder)
    usual, written = LocalStore.write, 0

    def write(store: LocalStore, name: str, content: bytes) -> None:
        nonlocal written
        written += 1
        if written > most:
            raise KeyboardInterrupt
        usual(store, name, content)

    monkeypatch.setattr(LocalStore, "write", write)
    ends = 0
    for most in range(100):
        written = 0
        try:
            split = adopt(tmp_path / f"ended{most}", tars)
        except KeyboardInterrupt:
            ends += 1
            links = list((tmp_path / f"ended{most}" / "train").glob("*.tar"))
            assert all(link.with_suffix(suffix).is_file() for link in links for suffix in (".idx", ".seg")), most
            with monkeypatch.context() as patch:
                patch.setattr(LocalStore, "write", usual)
                split = adopt(tmp_path / f"ended{most}", tars)
        assert tree(split.folder) == expected, most
        if written <= most:
            break
    assert ends >= 3 * 4 + 3, "index, segments twice and record of each tar; ledger, sample index and manifest"
