"""The fast digest of a tar is `TarStream`'s, for any tar and any damage, and so is DALI's index."""

import io
import random
import tarfile
from pathlib import Path

import pytest
from helpers.tars import tar_bytes

from prep import tar_digest
from prep.dataset import Split
from prep.tar import TarStream, dali_index, read_samples
from prep.tar_digest import digest_tar, name_if_whole

PLAIN = [
    (f"n01/{key}.{ext}", key.encode() * size) for key in "abc" for ext, size in (("jpg", 700), ("cls", 1), ("x", 0))
]
OTHERS = [("n01/", b""), ("n01/a.jpg", b"1" * 600), ("._a.jpg", b"2"), ("ü.jpg", b"3"), ("a b.jpg", b"4")]
LONG = [("n/" + "x" * 150 + ".jpg", b"1"), ("a.jpg", b"2" * 600)]
TARS = {
    "plain": tar_bytes(PLAIN),
    "gnu": tar_bytes(PLAIN, tarfile.GNU_FORMAT),
    "others": tar_bytes(OTHERS),
    "long names, ustar": tar_bytes([*LONG[1:], ("p" * 60 + "/" + "q" * 90 + ".jpg", b"3")]),
    "long names, gnu": tar_bytes(LONG, tarfile.GNU_FORMAT),
    "long names, pax": tar_bytes(LONG, tarfile.PAX_FORMAT),
    "joined": tar_bytes(PLAIN) + tar_bytes(PLAIN),
    "no end": tar_bytes(PLAIN[:1])[:1536],
    "no members": tar_bytes([]),
    "text": b"<html>" * 300,
    "empty": b"",
}


def by_stream(content: bytes) -> tuple[str, bytes | None]:
    """What `TarStream` finds."""
    reader = TarStream(io.BytesIO(content), "some.tar")
    try:
        index = dali_index([sample.index_entries() for sample in read_samples(reader)])
    except ValueError:
        index = None
    reader.ends_in_zeros()
    return reader.composite_sha256, index


@pytest.mark.parametrize("content", TARS.values(), ids=TARS)
def test_a_tar_has_the_digest_and_the_index_of_the_stream(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "some.tar").write_bytes(content)
    assert digest_tar(tmp_path / "some.tar") == by_stream(content)


def test_what_prep_wrote_is_plain(digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tar_digest, "_digest_any", None)  # it would be called for any other tar
    for path, shard in zip(Split(digits, "train").shard_paths, Split(digits, "train").manifest.shards, strict=True):
        assert digest_tar(path) == (shard.composite_sha256, path.with_suffix(".idx").read_bytes())


def test_damage_changes_the_digest_as_it_does_that_of_the_stream(tmp_path: Path) -> None:
    path, whole = tmp_path / "some.tar", TARS["plain"]
    draw = random.Random(0)
    for _ in range(500):
        content = bytearray(whole)
        at = draw.randrange(len(content))
        if draw.random() < 0.2:
            del content[at:]
        else:
            content[at] ^= 1 << draw.randrange(8)
        path.write_bytes(content)
        found = digest_tar(path)
        assert found == by_stream(bytes(content)) and found[0] != by_stream(whole)[0]


def test_only_a_tar_that_matches_gets_its_name(tmp_path: Path) -> None:
    partial, tar = tmp_path / ".some.tar.partial", tmp_path / "some.tar"
    sha256, index = by_stream(TARS["plain"])
    for wrong in ("others", "empty", "text"):
        partial.write_bytes(TARS[wrong])
        assert not name_if_whole(partial, tar, sha256)
        assert [path.name for path in tmp_path.iterdir()] == [partial.name]
    partial.write_bytes(TARS["plain"])
    assert name_if_whole(partial, tar, sha256)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {
        "some.tar": TARS["plain"],
        "some.idx": index,
    }
