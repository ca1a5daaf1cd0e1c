"""`prep.remote`: every method against a real S3 server, and its patience with one that does not answer."""

import errno
import json
import random
import ssl
import threading
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from helpers.answers import Answer, AnswerServer, Request, answering, make_certificates, play_imds, s3_error
from helpers.swift_server import SwiftServer

from prep import remote as remote_module
from prep import s3
from prep.errors import InputError
from prep.remote import MissingObjectError, Patience, Remote, RemoteError, ShortObjectError, StoppedError
from prep.store import open_store

pytest.importorskip("obstore", reason="needs obstore")
BUCKET = "remote"
SECONDS = 60.0  # to wait for an event on a busy machine
HOSTILE = "a b&c+d%20?é#x='\"(*).tar"


@pytest.fixture
def remote(server: SwiftServer, monkeypatch: pytest.MonkeyPatch) -> Remote:
    """An empty prefix in a bucket that holds something else."""
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)
    server.make_bucket(BUCKET)
    server.empty_bucket(BUCKET)
    server.open(BUCKET).put("data2/other", b"other")
    return Remote(f"s3://{BUCKET}/data/")


# Methods.


def test_objects_are_written_read_listed_and_deleted(remote: Remote, server: SwiftServer) -> None:
    contents = {"name": b"content", "folder/name": b"", "folder/deep/er": b"x", HOSTILE: b"hostile"}
    assert (remote.list(), remote.folders(), remote.read("name")) == ({}, [], None)
    for name, content in contents.items():
        remote.put(name, content)
    assert server.objects(BUCKET, "data") == contents
    assert {name: remote.read(name) for name in contents} == contents
    sizes = {name: len(content) for name, content in sorted(contents.items())}
    assert list(remote.list().items()) == list(sizes.items())
    assert remote.list("folder") == remote.list("folder/") == {"folder/deep/er": 1, "folder/name": 0}
    assert remote.list("fold") == {}
    assert remote.folders() == sorted(["name", HOSTILE, "folder/"])
    assert str(remote) == f"s3://{BUCKET}/data"

    # A prefix below it, and the whole bucket.
    child = remote.child("folder")
    assert (str(child), child.list()) == (f"s3://{BUCKET}/data/folder", {"deep/er": 1, "name": 0})
    assert child.folders() == ["deep/", "name"]
    child.put("name", b"new")
    assert remote.read("folder/name") == b"new"
    assert Remote(f"s3://{BUCKET}").folders() == ["data/", "data2/"]
    assert Remote(f"s3://{BUCKET}").read("data/name") == b"content"

    for name in ("name", "name", HOSTILE):  # twice: nothing to do
        remote.delete(name)
    assert set(remote.list()) == {"folder/name", "folder/deep/er"}


def test_a_file_is_put_in_parts(remote: Remote, server: SwiftServer, tmp_path: Path) -> None:
    content = random.Random(0).randbytes(20_000_000)
    (tmp_path / "file").write_bytes(content)
    remote.put("file", tmp_path / "file")
    assert remote.read("file") == content
    assert server.open(BUCKET).head("data/file")["e_tag"].endswith('-3"')
    (tmp_path / "empty").write_bytes(b"")
    remote.put("file", tmp_path / "empty")
    assert remote.read("file") == b""
    with pytest.raises(FileNotFoundError, match="No such file"):
        remote.put("file", tmp_path / "none")


def test_ranges_are_whole_or_refused(remote: Remote) -> None:
    remote.put("name", bytes(range(100)))
    for start, stop in ((0, 100), (7, 8), (50, 100), (9, 9)):
        buffer = bytearray(stop - start)
        remote.read_range("name", start, stop, memoryview(buffer))
        assert buffer == bytes(range(start, stop))
    for start, stop, words in (
        (50, 101, "ends after 100 bytes, before byte 101"),
        (100, 101, "ends before byte 100"),
        (200, 300, "ends before byte 200"),
    ):
        buffer = bytearray(b"x" * (stop - start))
        with pytest.raises(ShortObjectError, match=words):
            remote.read_range("name", start, stop, buffer)
        assert set(buffer) == set(b"x")
    with pytest.raises(MissingObjectError, match=f"^s3://{BUCKET}/data/none does not exist$"):
        remote.read_range("none", 0, 1, bytearray(1))


def test_pieces_are_those_of_the_range(remote: Remote) -> None:
    content, found, positions = random.Random(2).randbytes(3_000_000), bytearray(), []

    def write(piece: memoryview, position: int) -> None:
        positions.append(position)
        found.extend(piece)

    remote.put("name", content)
    remote.read_pieces("name", 1_000, 2_500_000, write)
    assert found == content[1_000:2_500_000]
    assert positions[0] == 1_000
    assert len(positions) > 5
    remote.read_pieces("name", 7, 7, write)
    with pytest.raises(ShortObjectError, match="ends after 3,000,000 bytes, before byte 3,000,001"):
        remote.read_pieces("name", 2_999_000, 3_000_001, write)
    with pytest.raises(ShortObjectError, match="ends before byte 3,000,000"):
        remote.read_pieces("name", 3_000_000, 3_000_001, write)
    with pytest.raises(MissingObjectError):
        remote.read_pieces("none", 0, 1, write)

    def fail(piece: memoryview, position: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "file")

    with pytest.raises(OSError, match="No space left") as caught:
        remote.read_pieces("name", 0, 10, fail)
    assert caught.value.errno == errno.ENOSPC


def test_an_object_is_created_once(remote: Remote) -> None:
    # One after another: Swift, unlike S3, may let two win that create it at the same moment.
    assert [remote.create("claim", b"%d" % number) for number in range(3)] == [True, False, False]
    assert remote.create("claim", b"0")  # as if the answer had been lost
    assert remote.read("claim") == b"0"
    remote.delete("claim")
    assert remote.create("claim", b"other")


@pytest.mark.parametrize("name", ["/name", "name/", "a//b", "..", "a/../b", ".", "a\nb", "a\x00b"])
def test_a_name_that_no_object_has_is_refused(name: str, remote: Remote) -> None:
    for request in (
        lambda: remote.read(name),
        lambda: remote.read_range(name, 0, 1, bytearray(1)),
        lambda: remote.put(name, b""),
        lambda: remote.create(name, b""),
        lambda: remote.delete(name),
        lambda: remote.child(name),
    ):
        with pytest.raises(RemoteError, match="expected the name of an object in") as caught:
            request()
        assert str(caught.value).isprintable()


def test_many_threads_use_one_remote(remote: Remote) -> None:
    def work(number: int) -> bool:
        remote.put(f"{number}", b"%d" % number * 1000)
        return remote.read(f"{number}") == b"%d" % number * 1000

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(work, range(64)))
    assert len(remote.list()) == 64


# Patience.


@pytest.fixture
def reports() -> "Reports":
    """What a patience reports."""
    return Reports()


class Reports:
    """Collects lines, and tells that one came."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.came = threading.Event()
        self.patience: Patience | None = None

    def __call__(self, line: str) -> None:
        if self.patience is not None:
            self.patience.describe()  # as a progress line may: it must not wait for itself
        self.lines.append(line)
        self.came.set()

    def make_patience(self, seconds: float = SECONDS) -> Patience:
        self.patience = Patience(seconds, self)
        return self.patience


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attempts and reports without long pauses."""
    for name, value in (("FIRST_PAUSE", 0.02), ("LONGEST_PAUSE", 0.05), ("SECONDS_BEFORE_REPORT", 0.0)):
        monkeypatch.setattr(remote_module, name, value)


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch, server: SwiftServer) -> Iterator[Callable[..., AnswerServer]]:
    """Start a server that plays S3, and make it the endpoint; it ends with the test."""
    with ExitStack() as stack:

        def start(answer: Callable[[Request], Answer], context: ssl.SSLContext | None = None) -> AnswerServer:
            started = stack.enter_context(answering(answer, context))
            for name, value in {**server.environment(), "AWS_ENDPOINT_URL": started.url}.items():
                monkeypatch.setenv(name, value)
            return started

        yield start


class Failing:
    """Answers a number of requests with an error, and then with content."""

    def __init__(self, num_failures: int, failure: Answer) -> None:
        self.num_left, self.failure, self.lock = num_failures, failure, threading.Lock()

    def __call__(self, request: Request) -> Answer:
        with self.lock:
            self.num_left -= 1
            return self.failure if self.num_left >= 0 else Answer(body=b"content")


@pytest.mark.parametrize(
    "failure",
    [
        s3_error(503, "SlowDown", "reduce your request rate"),
        s3_error(500, "InternalError"),
        s3_error(400, "RequestTimeout"),
        s3_error(429, "TooManyRequests"),
        Answer(502, b"<html>a proxy's</html>"),
    ],
    ids=["503", "500", "400", "429", "502"],
)
def test_a_server_that_fails_is_asked_again(
    failure: Answer, serve: Callable[..., AnswerServer], reports: Reports, soon: None
) -> None:
    started = serve(Failing(9, failure))
    remote = Remote(f"s3://{BUCKET}/data", reports.make_patience())
    assert remote.read("name") == b"content"
    assert len(started.requests) == 10
    assert remote.patience.describe() == ""
    assert len(reports.lines) == 2, "one line when waiting begins, one when it ends"
    assert reports.lines[0].startswith("waiting since ")
    assert f": s3://{BUCKET}/data/name: " in reports.lines[0]
    assert reports.lines[0].endswith("; giving up after 60 s")
    assert reports.lines[1].startswith("S3 answers again, after ")


def test_answers_that_are_cut_are_continued(serve: Callable[..., AnswerServer], reports: Reports, soon: None) -> None:
    content, size = random.Random(1).randbytes(2_000_000), 500_000

    def answer(request: Request) -> Answer:
        """Answer with the range that was asked for, and close the connection after some of it."""
        start, _, stop = request.headers.get("Range", "").removeprefix("bytes=").partition("-")
        found = content[int(start) : int(stop) + 1]
        return Answer(206, found, {"Content-Range": f"bytes {start}-{stop}/{len(content)}"}, cut=size)

    serve(answer)
    remote, buffer = Remote(f"s3://{BUCKET}/data", reports.make_patience()), bytearray(1_990_000)
    remote.read_range("name", 10_000, 2_000_000, buffer)
    assert buffer == content[10_000:]

    # In pieces it goes on from where it was cut, however often that happens.
    size, pieces = 100_000, bytearray()
    remote.read_pieces("name", 10_000, 2_000_000, lambda piece, position: pieces.extend(piece))
    assert pieces == content[10_000:]


def test_threads_report_together(serve: Callable[..., AnswerServer], reports: Reports, soon: None) -> None:
    serve(Failing(80, s3_error(503, "SlowDown")))
    remote = Remote(f"s3://{BUCKET}/data", reports.make_patience())
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(remote.read, ["name"] * 16)) == {b"content"}
    assert sum(line.startswith("waiting since") for line in reports.lines) == 1
    assert sum(line.startswith("S3 answers again") for line in reports.lines) == 1


def test_single_failures_are_not_reported(serve: Callable[..., AnswerServer], reports: Reports) -> None:
    serve(Failing(6, s3_error(503, "SlowDown")))
    remote = Remote(f"s3://{BUCKET}/data", reports.make_patience())
    assert remote.read("name") == b"content"
    assert reports.lines == []


def test_patience_ends(serve: Callable[..., AnswerServer], reports: Reports, soon: None) -> None:
    serve(lambda request: s3_error(503, "SlowDown") if request.path.endswith("/slow") else Answer(body=b"content"))
    remote = Remote(f"s3://{BUCKET}/data", reports.make_patience(0.5))
    assert remote.read("name") == b"content"
    with pytest.raises(RemoteError, match=r"data/slow cannot be read \(SlowDown: a message\)") as caught:
        remote.read("slow")
    assert caught.value.code == "SlowDown"
    assert remote.read("name") == b"content"


def test_the_first_contact_is_waited_for_a_minute_only(
    serve: Callable[..., AnswerServer], soon: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_module, "FIRST_CONTACT_SECONDS", 0.2)
    serve(lambda request: s3_error(503, "SlowDown") if request.path.endswith("/slow") else Answer(body=b"content"))
    remote = Remote(f"s3://{BUCKET}/data", Patience(SECONDS, lambda _: None))
    with pytest.raises(RemoteError, match="SlowDown"):
        remote.read("slow")
    assert remote.read("name") == b"content"
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(remote.read, "slow")
        with pytest.raises(TimeoutError):
            asked.result(1.0)  # now it is patient
        remote.stop()
        assert isinstance(asked.exception(SECONDS), StoppedError)


def test_stop_ends_the_waiting_of_all_threads(
    serve: Callable[..., AnswerServer], reports: Reports, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("FIRST_PAUSE", 1e4), ("LONGEST_PAUSE", 1e4), ("SECONDS_BEFORE_REPORT", 0.0)):
        monkeypatch.setattr(remote_module, name, value)
    monkeypatch.setattr(remote_module, "FIRST_CONTACT_SECONDS", 1e6)
    serve(lambda _: s3_error(503, "SlowDown"))
    remote = Remote(f"s3://{BUCKET}/data", reports.make_patience(1e6))
    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(remote.child("folder").read, "name") for _ in range(4)]
        assert reports.came.wait(SECONDS)
        remote.stop()
        for each in asked:
            assert isinstance(each.exception(SECONDS), StoppedError)
    with pytest.raises(StoppedError):
        remote.read("name")


def test_a_server_that_stops_is_waited_for(
    remote: Remote, server: SwiftServer, reports: Reports, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote.put("name", b"content")
    monkeypatch.setattr(s3, "READ_SECONDS", 1)
    remote = Remote(remote.url, reports.make_patience())
    assert remote.read("name") == b"content"
    with ThreadPoolExecutor(1) as pool:
        with server.stopped():
            asked = pool.submit(remote.read, "name")
            assert reports.came.wait(SECONDS)
            assert remote.patience.describe().startswith("waiting since ")
            assert "no answer, timed out" in remote.patience.describe()
        assert asked.result(SECONDS) == b"content"
    assert reports.lines[-1].startswith("S3 answers again, after ")


def test_credentials_that_are_late_are_waited_for_in_mid_run(
    serve: Callable[..., AnswerServer], reports: Reports, soon: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    role = "/latest/meta-data/iam/security-credentials/"
    credentials = {"AccessKeyId": "key", "SecretAccessKey": "secret", "Token": "token", "Code": "Success"}
    dates = {"LastUpdated": "2020-01-01T00:00:00Z", "Expiration": "2020-01-01T06:00:00Z"}  # asked for every time
    texts = {role: "trainer", f"{role}trainer": json.dumps({**credentials, **dates, "Type": "AWS-HMAC"})}
    serve(lambda _: Answer(body=b"content"))
    with answering(play_imds(texts)) as imds, ThreadPoolExecutor(1) as pool:
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", imds.url)
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_EC2_METADATA_DISABLED"):
            monkeypatch.delenv(name)
        remote = Remote(f"s3://{BUCKET}/data", reports.make_patience())
        assert remote.read("name") == b"content"
        name = texts.pop(role)
        asked = pool.submit(remote.read, "name")
        assert reports.came.wait(SECONDS)
        assert remote.patience.describe().endswith(f"s3://{BUCKET}/data/name: no credentials")
        texts[role] = name
        assert asked.result(SECONDS) == b"content"


def test_a_created_object_whose_answer_was_lost_is_ours(serve: Callable[..., AnswerServer], soon: None) -> None:
    objects: dict[str, bytes] = {}

    def answer(request: Request) -> Answer:
        if request.method == "GET":
            return Answer(body=objects[request.path]) if request.path in objects else s3_error(404, "NoSuchKey")
        if request.path in objects:
            return s3_error(412, "PreconditionFailed")
        assert request.headers["If-None-Match"] == "*"
        objects[request.path] = request.body
        return s3_error(500, "InternalError")  # although it was written

    serve(answer)
    remote = Remote(f"s3://{BUCKET}/data")
    assert remote.create("claim", b"mine")
    assert not remote.create("claim", b"other's")
    assert objects == {f"/{BUCKET}/data/claim": b"mine"}


def test_a_conflict_of_creations_is_tried_again(serve: Callable[..., AnswerServer]) -> None:
    conflict, conflicts = s3_error(409, "ConditionalRequestConflict"), [1, 1]
    answers = {"GET": lambda: s3_error(404, "NoSuchKey"), "PUT": lambda: conflict if conflicts.pop() else Answer()}
    serve(lambda request: answers[request.method]())
    conflicts[:] = [0, 1, 1]
    assert Remote(f"s3://{BUCKET}/data").create("claim", b"mine")
    conflicts[:] = [1, 1, 1]
    with pytest.raises(RemoteError, match="others are writing it"):
        Remote(f"s3://{BUCKET}/data").create("claim", b"mine")


# Certificates.


@pytest.mark.parametrize("variable", ["AWS_CA_BUNDLE", "SSL_CERT_FILE"])
def test_a_certificate_of_the_users_own_is_trusted(
    variable: str, serve: Callable[..., AnswerServer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_CA_BUNDLE", raising=False)
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    authority, context = make_certificates(tmp_path)
    serve(lambda _: Answer(body=b"content"), context)
    with pytest.raises(RemoteError, match=r"certificate is not trusted\): set AWS_CA_BUNDLE"):
        Remote(f"s3://{BUCKET}/data").read("name")  # and it is not waited for
    monkeypatch.setenv(variable, str(authority))
    assert Remote(f"s3://{BUCKET}/data").read("name") == b"content"
    nonsense = tmp_path / "nonsense.pem"
    nonsense.write_text("-----BEGIN CERTIFICATE-----\nnonsense\n")
    monkeypatch.setenv(variable, str(nonsense))
    with pytest.raises(InputError, match=r"certificate.*\(PEM\)|certificate is not trusted"):
        Remote(f"s3://{BUCKET}/data").read("name")


# Datasets that are written: `prep.object_store` on S3.


def test_an_object_that_cannot_be_read_further_is_told_in_one_line(serve: Callable[..., AnswerServer]) -> None:
    pytest.importorskip("fsspec")
    there = b"<Contents><Key>data/name</Key><Size>1</Size><LastModified>2026-11-26T00:00:00Z</LastModified>"
    start = b'<?xml version="1.0"?><ListBucketResult><IsTruncated>false</IsTruncated>'
    listing = start + there + b'<ETag>"tag"</ETag></Contents></ListBucketResult>'

    def answer(request: Request) -> Answer:
        if "list-type" in request.path:
            return Answer(body=listing)
        return Answer(body=bytes(1000)) if request.method == "HEAD" else s3_error(403, "AccessDenied")

    serve(answer)
    store = open_store(f"s3://{BUCKET}/data")
    for request in (
        lambda: store.open("name").read(10),
        lambda: store.read("name"),
        lambda: store.write("name", b""),
        lambda: store.remove("name"),
    ):
        with pytest.raises(InputError, match=r"^s3://remote/data/name cannot be .* \(AccessDenied") as caught:
            request()
        assert "testing" not in "".join(traceback.format_exception(caught.value))
    assert store.read("absent") is None, "it is forbidden as well, but not listed"


def test_an_object_that_is_forbidden_and_not_listed_does_not_exist(serve: Callable[..., AnswerServer]) -> None:
    """S3 answers 403 for an absent object where the policy allows to list some prefixes alone."""
    there = b"<Contents><Key>data/folder/there</Key><Size>1</Size><LastModified>2026-11-26T00:00:00Z</LastModified>"
    start = b'<?xml version="1.0"?><ListBucketResult><IsTruncated>false</IsTruncated>'
    listing = start + there + b'<ETag>"tag"</ETag></Contents></ListBucketResult>'
    may_list = True

    def answer(request: Request) -> Answer:
        is_list = "list-type" in request.path and "prefix=data%2Ffolder%2F" in request.path
        return Answer(body=listing) if is_list and may_list else s3_error(403, "AccessDenied")

    serve(answer)
    remote = Remote(f"s3://{BUCKET}/data")
    assert remote.read("folder/absent") is None
    with pytest.raises(MissingObjectError):
        remote.read_range("folder/absent", 0, 4, bytearray(4))
    with pytest.raises(RemoteError, match="the policy must allow s3:GetObject"):
        remote.read("folder/there")
    may_list = False
    with pytest.raises(RemoteError, match="the policy must allow s3:GetObject"):
        remote.read("folder/absent")


def test_names_with_special_characters_are_kept(remote: Remote) -> None:
    pytest.importorskip("fsspec")
    store: Any = open_store(f"s3://{BUCKET}/a#b?".removesuffix("?")).child("c d")
    store.write("e#f", b"content")
    assert store.names() == ["e#f"]
    assert Remote(f"s3://{BUCKET}").read("a#b/c d/e#f") == b"content"
    with store.open("e#f") as file:
        assert file.read() == b"content"


def test_requests_are_made_in_the_thread_that_asks(remote: Remote, monkeypatch: pytest.MonkeyPatch) -> None:
    """One in the background may still use Python at the end of the process, which then crashes."""
    asyn = pytest.importorskip("fsspec.asyn")
    monkeypatch.setattr(asyn, "sync", lambda *_, **__: pytest.fail("a background thread was asked"))
    store: Any = open_store(f"s3://{BUCKET}/same-thread")
    store.write("folder/name", b"content")
    assert (store.names(), store.size("folder/name"), store.read("folder/name")) == (["folder"], 7, b"content")
    with store.open("folder/name") as file:
        assert file.read() == b"content"
    store.remove("folder")
    assert store.names() == []
    assert store.read("folder/name") is None
