"""prep/stage.py against a real S3 server: the folder becomes what prep wrote, through kills, corruption and silence."""

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.commands import CHECKOUT, run_command, start_command
from helpers.datasets import prepare_folder, tree
from helpers.disks import Disk
from helpers.forwarder import Forwarder, forwarding
from helpers.restarts import CAN_TRANSCODE, needs_transcoder
from helpers.swift_server import SwiftServer

from prep import progress, stage, transfer, verify
from prep.dataset import MANIFEST, SAMPLES, STAGING_FOLDER, Options, Split
from prep.errors import InputError
from prep.files import hold_lock
from prep.remote import Remote
from prep.staging import fetch_index, find_splits

NUM_KILLS = int(os.environ.get("PENSTOCK_SOAK_STAGE_KILLS", "2"))
SECONDS_STOPPED = float(os.environ.get("PENSTOCK_SOAK_STAGE_STOPPED", "0"))
BUCKET = "staged"
URL = f"s3://{BUCKET}/data/digits"
PER_SHARD = 100
NUM_SHARDS = {"train": 15, "validation": 4}
OF_ALL_SPLITS = ("_info.json", "leaks.jsonl", "README.md")  # about all splits, so not there before the last one
SECONDS_TO_DIE = 20.0
# The command, where a connection is given up after a second instead of half a minute.
IMPATIENT = """
from datetime import timedelta
from prep import progress, remote, s3
s3.READ_SECONDS, progress.SECONDS_BETWEEN_LINES, remote.SECONDS_BEFORE_REPORT = 1, 0.5, 0
s3.RETRIES = {"max_retries": 0, "retry_timeout": timedelta(seconds=1)}
from prep import stage
from prep.errors import run
run(stage.main)
"""


@pytest.fixture(scope="module")
def prepared(digits_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits as prep writes them, `train` with segments if it can be transcoded here. Tests must only read them."""
    out = tmp_path_factory.mktemp("prepared")
    for split in NUM_SHARDS:
        restarts = split == "train" and CAN_TRANSCODE
        prepare_folder(digits_source, split, out, Options(images_per_shard=PER_SHARD, restarts=restarts))
    return out


@pytest.fixture
def forwarder(server: SwiftServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Forwarder]:
    """Commands find the server through a forwarder; the bucket exists."""
    server.make_bucket(BUCKET)
    with forwarding(server.endpoint) as forwarder:
        for name, value in {**server.environment(), "AWS_ENDPOINT_URL": forwarder.endpoint}.items():
            monkeypatch.setenv(name, value)
        yield forwarder


@pytest.fixture
def remote(server: SwiftServer, forwarder: Forwarder, prepared: Path, monkeypatch: pytest.MonkeyPatch) -> Remote:
    """The dataset in the bucket, whole; it does not go through the forwarder."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.endpoint)
    remote = Remote(URL)
    monkeypatch.setenv("AWS_ENDPOINT_URL", forwarder.endpoint)
    there = remote.list()
    for name, content in tree(prepared).items():
        if there.get(name) != len(content):
            remote.put(name, content)
    return remote


def start(to: Path, *options: object) -> subprocess.Popen[str]:
    return start_command("prep/stage.py", URL, "--to", to, *options)


def refusal(*arguments: object) -> str:
    """Run the command in this process; return the line with which it refuses."""
    with pytest.raises(InputError) as caught:
        stage.main([str(argument) for argument in arguments])
    assert "\n" not in str(caught.value)
    return str(caught.value)


def assert_verified(folder: Path) -> None:
    assert verify.main([str(folder), "--decode", "10", "--workers", "1"]) == 0


# What is staged.


def test_a_staged_folder_is_what_prep_wrote(
    remote: Remote,
    forwarder: Forwarder,
    prepared: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(transfer, "RANGE_BYTES", 30_000)  # a shard is several ranges
    stage.main([URL, "--to", str(tmp_path / "to")])
    assert tree(tmp_path / "to") == tree(prepared)
    assert forwarder.count("train-000003.tar") == -(-(prepared / "train" / "train-000003.tar").stat().st_size // 30_000)
    said, _ = capsys.readouterr()
    assert said.startswith(f"{URL}: ") and f" MB in 19 shards are missing in {tmp_path / 'to'}\n" in said
    assert f"{tmp_path / 'to'} is whole (train, validation): " in said
    assert_verified(tmp_path / "to")

    # Again: nothing is fetched besides the manifests and the files next to the splits.
    forwarder.requests.clear()
    capsys.readouterr()
    stage.main([URL, "--to", str(tmp_path / "to")])
    assert capsys.readouterr().out == f"{tmp_path / 'to'} is whole (train, validation): nothing to fetch\n"
    assert not [
        request for request in forwarder.requests if request.endswith((".tar", ".idx", ".seg", ".arrow", ".jsonl"))
    ]


def test_a_users_readme_stays(remote: Remote, forwarder: Forwarder, prepared: Path, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("mine")
    stage.main([URL, "--to", str(tmp_path)])
    assert tree(tmp_path) == {**tree(prepared), "README.md": b"mine"}
    (tmp_path / "README.md").unlink()
    (tmp_path / "leaks.jsonl").unlink()
    stage.main([URL, "--to", str(tmp_path)])
    assert tree(tmp_path) == tree(prepared)


def test_shards_that_were_lost_are_fetched_again(
    remote: Remote, forwarder: Forwarder, prepared: Path, tmp_path: Path
) -> None:
    to = tmp_path / "to"
    shutil.copytree(prepared, to)
    (to / "train" / "train-000004.tar").unlink()
    os.truncate(to / "train" / "train-000007.tar", 1000)
    for left in ("._info.json.0123456789abcdef.partial", "train/.train-000004.tar.partial"):  # of a killed run
        (to / left).write_bytes(b"half")
    stage.main([URL, "--to", str(to)])
    assert tree(to) == tree(prepared)
    assert forwarder.count(".tar") == 2


def test_some_splits_alone_name_no_other_split(remote: Remote, prepared: Path, tmp_path: Path) -> None:
    stage.main([URL, "--to", str(tmp_path), "--split", "validation"])
    assert b"train" not in (tmp_path / "_info.json").read_bytes()
    assert not (tmp_path / "train").exists()
    assert_verified(tmp_path)
    stage.main([URL, "--to", str(tmp_path), "--split", "train"])
    assert tree(tmp_path) == tree(prepared)


def test_shards_are_fetched_in_the_order_of_a_list(remote: Remote, forwarder: Forwarder, tmp_path: Path) -> None:
    first = ["validation/validation-000002.tar", "train/train-000011.tar", "other/other-000000.tar"]
    (tmp_path / "order").write_text("\n".join(first))
    options = ("--order", str(tmp_path / "order"), "--connections", "1")
    stage.main([URL, "--to", str(tmp_path / "to"), *options])
    fetched = [request.partition(f"{BUCKET}/data/digits/")[2] for request in forwarder.requests]
    fetched = [name for name in fetched if name.endswith(".tar")]
    rest = [f"{split}/{split}-{number:06}.tar" for split, count in NUM_SHARDS.items() for number in range(count)]
    assert fetched == [*first[:2], *(name for name in rest if name not in first)]


# While it is staged.


@pytest.fixture
def held(forwarder: Forwarder) -> Iterator[tuple[threading.Event, threading.Event]]:
    """Hold back the shards after the third; return the events "there is one" and "let them pass"."""
    reached, may_pass, shards = threading.Event(), threading.Event(), []

    def hold(request: str) -> None:
        shards.append(request) if request.endswith(".tar") else None
        if len(shards) > 3 and request.endswith(".tar"):
            reached.set()
            may_pass.wait(120)

    forwarder.on_request = hold
    yield reached, may_pass
    may_pass.set()


def test_the_index_is_there_before_the_shards_and_the_manifest_last(
    remote: Remote, held: tuple[threading.Event, threading.Event], prepared: Path, tmp_path: Path
) -> None:
    reached, may_pass = held
    process = start(tmp_path, "--connections", "1")
    assert reached.wait(60)
    folder = tmp_path / "train"
    assert (folder / STAGING_FOLDER / MANIFEST).read_bytes() == (prepared / "train" / MANIFEST).read_bytes()
    assert (folder / SAMPLES).read_bytes() == (prepared / "train" / SAMPLES).read_bytes()
    assert not (folder / MANIFEST).exists()
    assert len(list(folder.glob(".*.partial"))) <= 4 and not (folder / "train-000005.tar").exists()
    for name, content in tree(tmp_path).items():
        assert "/." in name or content == tree(prepared)[name]
    assert fetch_index(remote, "train", tmp_path) == Split(prepared, "train").manifest  # as read-through calls it

    # Others are refused, or wait.
    assert "is being written by another process: wait for it, or give --wait" in refusal(URL, "--to", tmp_path)
    with pytest.raises(InputError, match="not all of its shards are here yet: wait for"):
        Split(tmp_path, "train")
    assert verify.main([str(tmp_path), "--workers", "1"]) == 1
    waiting = start(tmp_path, "--wait")
    may_pass.set()
    said = [each.communicate(timeout=120) for each in (process, waiting)]
    assert (process.returncode, waiting.returncode) == (0, 0), said
    assert said[1][0].endswith(" is whole (train, validation): nothing to fetch\n")
    assert tree(tmp_path) == tree(prepared)


def test_ctrl_c_is_one_line_and_leaves_nothing_unfinished(
    remote: Remote, held: tuple[threading.Event, threading.Event], tmp_path: Path
) -> None:
    process = start(tmp_path, "--connections", "2")
    assert held[0].wait(60)
    os.killpg(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=60)  # although the server does not answer
    assert (process.returncode, stderr) == (1, "interrupted: run the same command again to continue\n")
    assert not list(tmp_path.rglob("*.partial"))


def _draw_moment(draw: random.Random, to: Path) -> Callable[[], bool]:
    """Return a condition that becomes true at a random moment: after seconds, or after a number of shards."""
    if draw.random() < 0.3:
        deadline = time.monotonic() + draw.uniform(0, 1.5)
        return lambda: time.monotonic() > deadline
    awaited = len(list(to.glob("*/*.tar"))) + draw.randrange(sum(NUM_SHARDS.values()))
    return lambda: len(list(to.glob("*/*.tar"))) >= awaited


def test_killed_at_any_moment_it_goes_on_to_the_same_bytes(
    remote: Remote, forwarder: Forwarder, prepared: Path, tmp_path: Path
) -> None:
    draw, whole, landed = random.Random(3), tree(prepared), 0
    forwarder.on_request = lambda request: time.sleep(0.02) if request.endswith(".tar") else None
    for number in range(NUM_KILLS):
        to = tmp_path / f"to{number // 2}"  # two in a row
        process, is_moment = start(to, "--connections", 1 + number % 3), _draw_moment(draw, to)
        while process.poll() is None and not is_moment():
            time.sleep(0.002)
        landed += process.poll() is None
        process.kill()  # the parent alone: its workers must die with it
        process.communicate(timeout=SECONDS_TO_DIE)  # to the end of the pipes, which the workers have too
        for name, content in tree(to).items():
            assert (
                name in OF_ALL_SPLITS
                or any(part.startswith(".") for part in name.split("/"))
                or (content == whole[name])
            ), name
        assert not CAN_TRANSCODE or all(path.with_suffix(".seg").is_file() for path in to.glob("train/*.tar"))
        if number % 2 or number == NUM_KILLS - 1:
            result = run_command("prep/stage.py", URL, "--to", to)
            assert (result.returncode, result.stderr) == (0, "")
            assert tree(to) == whole
            assert_verified(to)
    assert landed


def test_a_server_that_stops_is_waited_out_and_that_is_said(
    remote: Remote, server: SwiftServer, held: tuple[threading.Event, threading.Event], prepared: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-c", IMPATIENT] if not SECONDS_STOPPED else [sys.executable, "prep/stage.py"]
    process = subprocess.Popen([*command, URL, "--to", tmp_path], cwd=CHECKOUT, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert held[0].wait(60)
    lines = []
    with server.stopped():
        held[1].set()
        stopped = time.monotonic()
        while not (lines and lines[-1].startswith("stage ") and " ETA " in lines[-1] and "waiting since " in lines[-1]):
            lines.append(process.stderr.readline())
            assert lines[-1], "the command ended"
        time.sleep(max(0.0, SECONDS_STOPPED - (time.monotonic() - stopped)))
    lines += process.communicate(timeout=120)[1].splitlines()
    assert process.returncode == 0, lines
    assert any("S3 answers again, after " in line for line in lines)
    assert tree(tmp_path) == tree(prepared)


def test_the_line_of_progress_says_what_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress.time, "monotonic", iter([0.0, 100.0]).__next__)
    meter = progress.ByteMeter("stage", 149_000_000_000)
    meter.done_bytes = 100_000_000_000
    line = meter.describe("waiting since 12:00:00: timed out")
    assert line == "100.0 GB/149.0 GB 1.00 GB/s ETA 0:00:49 waiting since 12:00:00: timed out"


# Objects that do not match.


def _flip(content: bytes) -> bytes:
    at = len(content) // 2
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


@contextmanager
def harmed(remote: Remote, prepared: Path, suffix: str) -> Iterator[list[str]]:
    """Harm the objects of three shards: flipped, cut and deleted. In the end they are whole again."""
    names = [f"train/train-00000{number}{suffix}" for number in (4, 6, 8)]
    contents = [(prepared / name).read_bytes() for name in names]
    remote.put(names[0], _flip(contents[0]))
    remote.put(names[1], contents[1][:1000])
    remote.delete(names[2])
    try:
        yield names
    finally:
        for name, content in zip(names, contents, strict=True):
            remote.put(name, content)


@pytest.mark.parametrize("suffix", [".tar", pytest.param(".seg", marks=needs_transcoder)])
def test_damaged_objects_are_fetched_three_times_and_named(
    remote: Remote, forwarder: Forwarder, prepared: Path, tmp_path: Path, suffix: str
) -> None:
    with harmed(remote, prepared, suffix) as names:
        forwarder.requests.clear()
        line = refusal(URL, "--to", tmp_path)
    assert line.endswith(f": repair it with `python prep/verify.py {URL} --repair --source SRC`, then run this again")
    assert f"{URL}/{names[0]} does not match its manifest, fetched 3 times" in line
    size = (prepared / names[1]).stat().st_size
    short = "does not match its manifest" if suffix == ".seg" else f"ends after 1,000 bytes, before byte {size:,}"
    assert f"{URL}/{names[1]} {short}, fetched 3 times" in line
    assert f"{URL}/{names[2]} does not exist" in line
    assert [forwarder.count(name) for name in names] == [3, 3, 1]

    # All others are there, and their splits; not this one's manifest.
    assert len(list(tmp_path.glob("*/*.tar"))) == sum(NUM_SHARDS.values()) - 3
    assert not any((tmp_path / name).exists() for name in names) and not list(tmp_path.rglob("*.partial"))
    assert not (tmp_path / "train" / MANIFEST).exists() and (tmp_path / "validation" / MANIFEST).exists()

    # When they are repaired, they alone are fetched, and a shard that lost a file here.
    (tmp_path / "train" / f"train-000001{'.seg' if suffix == '.seg' else '.idx'}").unlink()
    forwarder.requests.clear()
    stage.main([URL, "--to", str(tmp_path)])
    assert (forwarder.count(".tar"), forwarder.count(".seg")) == (4, 4 if suffix == ".seg" else 0)
    assert tree(tmp_path) == tree(prepared)


def test_a_damaged_sample_index_is_named_before_any_shard(
    remote: Remote, forwarder: Forwarder, prepared: Path, tmp_path: Path
) -> None:
    name = f"train/{SAMPLES}"
    content = (prepared / name).read_bytes()
    remote.put(name, _flip(content))
    try:
        forwarder.requests.clear()
        line = refusal(URL, "--to", tmp_path)
        assert line.startswith(f"{URL}/{name} does not match its manifest, fetched 3 times: repair it with ")
        assert (forwarder.count(name), forwarder.count(".tar")) == (3, 0)
    finally:
        remote.put(name, content)


# The disk.


def test_what_does_not_fit_is_refused_before_anything_is_written(
    remote: Remote, forwarder: Forwarder, disk: Callable[[str], Disk]
) -> None:
    small = disk("1m").seen
    line = refusal(URL, "--to", small)
    assert line.startswith(f"{small} has 1.0 MB free, 5.")
    assert line.endswith(" MB in 19 shards are missing: free some, or choose another --to")
    assert not list(small.iterdir())
    assert not forwarder.count(".tar")


def test_a_disk_that_fills_meanwhile_is_told_and_the_next_run_goes_on(
    remote: Remote, forwarder: Forwarder, prepared: Path, disk: Callable[[str], Disk]
) -> None:
    small = disk("8m").seen
    filler = small / "other"

    def fill(request: str) -> None:
        if request.endswith("train-000002.tar") and not filler.exists():
            try:
                filler.write_bytes(bytes(8_000_000))
            except OSError:
                assert filler.stat().st_size

    forwarder.on_request = fill
    with pytest.raises(OSError, match="No space left on device") as caught:
        stage.main([URL, "--to", str(small), "--connections", "1"])
    assert str(caught.value.filename).startswith(f"{small}/train/")
    assert not list(small.rglob("*.partial"))
    filler.unlink()
    forwarder.on_request = lambda _: None
    stage.main([URL, "--to", str(small)])
    assert tree(small) == tree(prepared)


def test_a_folder_that_cannot_be_written_is_told(remote: Remote, disk: Callable[[str], Disk], tmp_path: Path) -> None:
    small = disk("16m")
    small.remount("ro")
    result = run_command("prep/stage.py", URL, "--to", small.seen)
    assert result.returncode == 1
    words = "read-only file system: mount it for writing, or choose another folder"
    assert result.stderr == f"error: {small.seen}/train: {words}\n"
    (tmp_path / "file").write_text("years of work")
    assert refusal(URL, "--to", tmp_path / "file") == f"--to {tmp_path / 'file'} is a file: choose a folder"
    assert (tmp_path / "file").read_text() == "years of work"


# Refusals.


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("s3://no-such-bucket/data", "NoSuchBucket"),
        (f"s3://{BUCKET}/dat", f"s3://{BUCKET}/dat holds nothing: s3://{BUCKET} has data/"),
        (f"s3://{BUCKET}/data", "no folder in it has a manifest.json: it has digits/"),
        (f"{URL}/train", f"{URL}/train is one split: give the folder above it, {URL} --split train"),
        ("/nvme/imagenet", "expected a URL such as s3://BUCKET/PREFIX, got /nvme/imagenet"),
    ],
)
def test_a_prefix_that_is_no_dataset_is_refused(url: str, words: str, remote: Remote, tmp_path: Path) -> None:
    assert words in refusal(url, "--to", tmp_path / "to")
    assert not (tmp_path / "to").exists()


def test_a_split_that_is_not_there_is_refused(remote: Remote, tmp_path: Path) -> None:
    line = refusal(URL, "--to", tmp_path / "to", "--split", "test")
    assert line == f"{URL} has no prepared split test: it has train, validation"
    assert not (tmp_path / "to").exists()


def test_manifests_that_cannot_be_used_are_refused(remote: Remote, prepared: Path, tmp_path: Path) -> None:
    content = (prepared / "train" / MANIFEST).read_bytes()
    other = Remote(f"s3://{BUCKET}/other")
    for harmed, words in (
        (
            content.replace(b'"format_version": ', b'"format_version": 9'),
            "has format 9",
        ),
        (
            content.replace(b'"num_images": 1437', b'"num_images": 1438'),
            "does not match its own digest: repair it with",
        ),
        (content[:-20], "is damaged ("),
    ):
        assert harmed != content
        other.put(f"train/{MANIFEST}", harmed)
        assert f"s3://{BUCKET}/other/train/{MANIFEST} {words}" in refusal(other.url, "--to", tmp_path / "to")
    outside = Split(prepared, "train").manifest
    outside = replace(outside, shards=(replace(outside.shards[0], name="../../x.tar"), *outside.shards[1:]))
    other.put(f"train/{MANIFEST}", outside.to_json().encode())
    assert "names a shard '../../x.tar', which prep/shard.py never does" in refusal(other.url, "--to", tmp_path / "to")
    assert not (tmp_path / "to").exists()


def test_a_split_that_is_being_prepared_is_left_out(remote: Remote, capsys: pytest.CaptureFixture[str]) -> None:
    remote.put("extra/.prep/job.json", b"{}")
    try:
        assert [split.name for split in find_splits(remote, ["validation"])] == ["validation"]
        assert capsys.readouterr().err == ""
        assert [split.name for split in find_splits(remote)] == ["train", "validation"]
        assert capsys.readouterr().err == f"warning: {URL} has no manifest.json in extra: left out\n"
    finally:
        remote.delete("extra/.prep/job.json")


def test_a_folder_with_something_else_is_refused(remote: Remote, prepared: Path, tmp_path: Path) -> None:
    # Another dataset, whole or half staged; files of anybody.
    advice = "choose another --to, or delete it"
    for place in (f"train/{MANIFEST}", f"train/{STAGING_FOLDER}/{MANIFEST}"):
        to = tmp_path / place.replace("/", "-")
        (to / place).parent.mkdir(parents=True)
        (to / place).write_bytes((prepared / "validation" / MANIFEST).read_bytes())
        before = tree(to)
        assert refusal(URL, "--to", to) == f"{to / place} is of another dataset than {URL}/train: {advice}"
        assert tree(to) == before
    to = tmp_path / "photos"
    (to / "train" / "cats").mkdir(parents=True)
    words = f"{to / 'train'} holds files that prep/stage.py did not fetch (cats): {advice}"
    assert refusal(URL, "--to", to) == words


def test_a_folder_in_use_is_refused(remote: Remote, tmp_path: Path) -> None:
    with hold_lock(tmp_path):
        line = refusal(URL, "--to", tmp_path)
    assert line == f"{tmp_path} is being written by another process: wait for it, or give --wait"
