"""The app over HTTP, with hostile requests and with many visitors at once."""

import base64
import io
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from helpers.app_visitors import (
    API,
    Server,
    Visitor,
    encode,
    is_refused,
    make_bomb,
    read_guesses,
    read_html,
    read_words,
)
from helpers.served import Exported
from PIL import Image

from serve.app.answer import answer_photo, make_cam
from serve.app.page import format_share
from serve.app.uploads import open_photo
from serve.artifact import load_artifact
from serve.image_sources import open_images

NUM_VISITORS = 50
MIB = 1024 * 1024
GROWTH_MB = 150  # while many visitors are answered


@pytest.fixture
def visitor(server: Server) -> Visitor:
    return Visitor(server.url)


@pytest.fixture(scope="module")
def scans(exported: Exported) -> list[bytes]:
    """Digits, all different from one another."""
    source = open_images(exported.data / "validation", 10, None)
    return [each.content for each in source.read(range(NUM_VISITORS))]


@pytest.fixture(scope="module")
def expected(
    exported: Exported, scans: list[bytes], tmp_path_factory: pytest.TempPathFactory
) -> list[list[tuple[str, str]]]:
    """Return the network's answer to each scan, computed here."""
    served = load_artifact(exported.artifact)
    cam, path, found = make_cam(served), tmp_path_factory.mktemp("scans") / "scan", []
    for scan in scans:
        path.write_bytes(scan)
        guesses = answer_photo(served, cam, open_photo(path)).guesses
        found.append([(each.name, format_share(each.share)) for each in guesses])
    return found


def test_the_page_says_what_the_model_was_measured_at(server: Server) -> None:
    page = httpx.get(server.url).text
    assert "of 360 images (99% interval" in page
    assert "test_resnet" in page


def test_fifty_visitors_at_once_get_their_own_answers(
    server: Server, scans: list[bytes], expected: list[list[tuple[str, str]]]
) -> None:
    assert len({tuple(each) for each in expected}) > NUM_VISITORS / 2
    Visitor(server.url).ask(scans[0])
    before = server.resident_mb()
    with ThreadPoolExecutor(NUM_VISITORS) as pool:
        answers = list(pool.map(lambda scan: Visitor(server.url).ask(scan, "scan.jpg"), scans))
    assert [read_guesses(each) for each in answers] == expected
    assert server.resident_mb() - before < GROWTH_MB


def test_answers_come_in_the_order_of_the_questions(
    visitor: Visitor, scans: list[bytes], expected: list[list[tuple[str, str]]]
) -> None:
    paths = [visitor.upload(scan) for scan in scans]
    asked = [visitor.join({"upload": path}).raise_for_status().json()["event_id"] for path in paths]
    finished = visitor.listen(len(scans))
    assert [each["event_id"] for each in finished] == asked
    assert [read_guesses(read_html(each)) for each in finished] == expected


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "../../../etc/passwd",
        "artifact.json",
        "",
        "\0",
        "http://127.0.0.1:1/x",
        "data:image/png;base64,AA",
        7,
        None,
        [],
        {},
    ],
)
def test_only_uploads_are_opened(path: object, visitor: Visitor) -> None:
    visitor.join({"upload": path}).raise_for_status()
    assert is_refused(visitor.listen()[0])


@pytest.mark.parametrize(
    "event", [None, [], "x", 3, {"example": -1}, {"example": 4}, {"example": "0"}, {"path": "/etc/passwd"}]
)
def test_odd_events_are_answered(event: object, visitor: Visitor) -> None:
    visitor.join(event).raise_for_status()
    assert is_refused(visitor.listen()[0])


def test_the_uploads_of_another_app_are_out_of_reach(visitor: Visitor, tmp_path: Path) -> None:
    content = encode(Image.new("RGB", (9, 9)))
    (tmp_path / "theirs.png").write_bytes(content)
    own = Path(visitor.upload(content))
    for path in (tmp_path / "theirs.png", own.parent / ".." / ".." / ".." / own.name, own.parent):
        visitor.join({"upload": str(path)}).raise_for_status()
        assert is_refused(visitor.listen()[0])


class Lure:
    """A server on this machine that must get no request; it counts those that it gets."""

    def __init__(self) -> None:
        self.num_calls = 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}/x.png"
        threading.Thread(target=self.count, daemon=True).start()

    def count(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            self.num_calls += 1
            connection.close()


@pytest.fixture
def lure() -> Iterator[Lure]:
    made = Lure()
    yield made
    made.listener.close()


def test_nothing_is_fetched_on_a_visitors_word(lure: Lure, visitor: Visitor) -> None:
    meta = {"meta": {"_type": "gradio.FileData"}, "orig_name": "x.png"}
    inside = "data:image/png;base64," + base64.b64encode(encode(Image.new("RGB", (9, 9)))).decode()
    for url in (lure.url, inside, "data:,", "file:///etc/passwd"):
        for file in ({"path": url}, {"path": "x.png", "url": url}, {"path": url, "url": url}):
            visitor.join({"upload": url, **file}, [{**file, **meta}]).raise_for_status()
            assert is_refused(visitor.listen()[0])
    for route in ("file", "proxy"):
        assert visitor.get(f"{API}/{route}={lure.url}").status_code == 404
    assert lure.num_calls == 0
    with pytest.raises(httpx.HTTPError):  # it does count, and never answers
        httpx.get(lure.url)
    assert lure.num_calls == 1


CLOSED = (
    f"{API}/file=/etc/passwd",
    f"{API}/file=serve/app.py",
    f"{API}/file/etc/passwd",
    f"{API}/file=../../etc/passwd",
    "/file=/etc/passwd",
    f"{API}/info",
    f"{API}/openapi.json",
    f"{API}/queue/status",
    f"{API}/login_check",
    f"{API}/user",
    f"{API}/upload_progress?upload_id=x",
    f"{API}/dev/reload",
    "/manifest.json",
    "/predict",
    "/docs",
    "/openapi.json",
    "/monitoring",
    f"{API}/runs",
    f"{API}/deep_link",
    f"{API}/custom_component/x/client/y/z",
    f"{API}/run-history/buckets",
    "/static/../../../../etc/passwd",
    "/assets/..%2f..%2fapp.py",
)


@pytest.mark.parametrize("route", CLOSED)
def test_routes_that_the_page_does_not_need_are_closed(route: str, visitor: Visitor) -> None:
    assert visitor.get(route).status_code == 404


def test_what_a_page_asks_in_trouble_is_answered(visitor: Visitor) -> None:
    assert visitor.get(f"{API}/app_id").json()["app_id"]
    assert visitor.get("/config").json()["dependencies"]
    for route in ("cancel", "reset"):
        assert visitor.post(f"{API}/{route}", content=b"\xff" * 100).json() == {"success": True}


def test_nginx_is_told_not_to_hold_back_the_stream_of_an_answer(visitor: Visitor) -> None:
    visitor.join({"example": 0}).raise_for_status()
    with httpx.stream("GET", f"{visitor.url}{API}/queue/data?session_hash={visitor.session}") as response:
        assert response.headers["x-accel-buffering"] == "no"
    assert "x-accel-buffering" not in visitor.get("/").headers


def test_a_link_to_the_page_shows_the_model_and_nothing_of_gradio(server: Server) -> None:
    page = httpx.get(server.url, headers={"host": "x.example", "x-forwarded-proto": "https"}).text
    head = page[: page.index("<script")]
    assert "<title>What is in this photo? – test_resnet, 10 things</title>" in head
    assert '<meta property="og:title" content="What is in this photo? – test_resnet, 10 things" />' in head
    assert '<meta property="og:url" content="https://x.example/" />' in head
    assert '<meta property="og:image" content="https://x.example/preview.jpg" />' in head
    assert "gradio" not in head.lower()
    assert "try out the app" not in page
    assert page.count("og:title") == 1
    assert "manifest" not in page[page.index("</script>") : page.index("</head>")].replace("data-gradio", "")
    config = httpx.get(f"{server.url}/config").json()
    assert config["title"] == "What is in this photo? – test_resnet, 10 things"


def test_the_icon_and_the_picture_of_links_are_our_own(server: Server) -> None:
    for path, kind, size in (("/favicon.ico", "PNG", (64, 64)), ("/preview.jpg", "JPEG", (1200, 630))):
        response = httpx.get(server.url + path).raise_for_status()
        with Image.open(io.BytesIO(response.content)) as picture:
            assert (picture.format, picture.size) == (kind, size)
            assert response.headers["content-type"] == f"image/{kind.lower()}"
        assert httpx.head(server.url + path).status_code == 200
    assert httpx.head(server.url).status_code == 200


def test_an_upload_cannot_be_read_back(visitor: Visitor) -> None:
    path = visitor.upload(b"a private note")
    assert visitor.get(f"{API}/file={path}").status_code == 404


@pytest.mark.parametrize(
    "route",
    ["run/respond", "api/respond", "call/respond", "component_server", "process_recording", "vibe-edit", "stream/x"],
)
def test_functions_are_reached_through_the_queue_alone(route: str, visitor: Visitor) -> None:
    body = {"data": [], "fn_index": 0, "session_hash": "x", "event_data": {"example": 0}}
    assert visitor.post(f"{API}/{route}", json=body).status_code == 404


def test_a_file_that_is_too_large_is_refused_and_not_kept(visitor: Visitor) -> None:
    folder = Path(visitor.upload(b"a")).parent.parent
    kept = sum(path.stat().st_size for path in folder.rglob("*"))
    refused = visitor.post(f"{API}/upload", files={"files": ("large.png", bytes(21 * MIB))})
    assert (refused.status_code, refused.text) == (413, "A file may have 20 MB at most.")
    assert sum(path.stat().st_size for path in folder.rglob("*")) == kept


def test_a_body_without_an_end_is_cut_off(visitor: Visitor) -> None:
    folder = Path(visitor.upload(b"a")).parent.parent
    num_sent = 0

    def send() -> Iterator[bytes]:
        nonlocal num_sent
        yield b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
        for num_sent in range(100):  # noqa: B007
            yield bytes(MIB)

    headers = {"content-type": "multipart/form-data; boundary=x"}
    try:
        assert visitor.post(f"{API}/upload", content=send(), headers=headers).is_error
    except httpx.HTTPError:
        assert num_sent < 99  # the connection was closed: as good
    left = [path.stat().st_size for path in folder.rglob("tmp*")]
    assert max(left, default=0) <= 20 * MIB  # where serve/app/uploads.py finds it
    assert visitor.post(f"{API}/queue/join", content=bytes(100_000)).status_code == 413


def test_bombs_and_waste_do_not_cost_memory(server: Server, visitor: Visitor) -> None:
    bomb = make_bomb(30_000)
    visitor.ask(encode(Image.new("RGB", (64, 64), "red")))
    before = server.peak_mb()
    for _ in range(3):
        assert "the limit is 89" in read_words(visitor.ask(bomb))
    assert "empty (0 bytes)" in read_words(visitor.ask(b""))
    assert "not a picture" in read_words(visitor.ask(b"hello", "hello.txt"))
    assert server.peak_mb() - before < GROWTH_MB
    assert len(read_guesses(visitor.ask(encode(Image.new("RGB", (64, 64), "red"))))) == 5


def test_names_of_files_and_classes_are_words_and_not_markup(visitor: Visitor) -> None:
    answered = visitor.ask(encode(Image.new("RGB", (64, 64))), "<img src=x onerror=alert(1)>.png")
    assert "onerror" not in answered
