"""POST /predict over HTTP: right answers, and the right status for everything else."""

import socket
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
import uvicorn
from helpers.app_visitors import encode, make_bomb
from helpers.served import Exported
from PIL import Image
from starlette.responses import PlainTextResponse

from prep.errors import InputError
from serve.app import api
from serve.app.answer import answer_photo, make_cam
from serve.app.api import PredictRoute, read_token
from serve.app.limits import RequestFilter
from serve.app.uploads import Photo
from serve.app.worker import Answerer
from serve.artifact import Served, load_artifact

TOKEN = "a-token-of-the-tests"
RED = Image.new("RGB", (32, 32), "red")
PNG = encode(RED)
JUST_OVER = api.MAX_BODY + 1
ALLOWED = {"authorization": f"Bearer {TOKEN}"}
FORM = "multipart/form-data"


@pytest.fixture(scope="module")
def served(exported: Exported) -> Served:
    return load_artifact(exported.artifact)


@pytest.fixture(scope="module")
def address(served: Served) -> Iterator[str]:
    """The route behind the app's filter, as a server in this process."""
    app = RequestFilter(PlainTextResponse("the page"), predict=PredictRoute(Answerer(served), TOKEN))
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="critical", lifespan="off", ws="none"))
    started = threading.Event()
    running = threading.Thread(target=server.run, daemon=True)

    async def startup(sockets: Any = None) -> None:
        await uvicorn.Server.startup(server, sockets)
        started.set()

    server.startup = startup
    running.start()
    assert started.wait(60)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    running.join(60)


def ask(address: str, content: Any = PNG, query: str = "", **headers: str) -> httpx.Response:
    own = {**ALLOWED, "content-type": "image/png", **{name.replace("_", "-"): value for name, value in headers.items()}}
    return httpx.post(f"{address}/predict{query}", content=content, headers=own, timeout=60)


def test_the_classes_are_those_of_the_page(address: str, served: Served) -> None:
    guesses = answer_photo(served, make_cam(served), Photo(RED)).guesses
    found = ask(address).raise_for_status().json()
    assert set(found) == {"classes", "seconds", "notes"}
    assert found["notes"] == []
    assert 0 < found["seconds"] < 60
    assert [each["name"] for each in found["classes"]] == [each.name for each in guesses]
    assert [each["probability"] for each in found["classes"]] == pytest.approx([g.share for g in guesses], abs=1e-5)
    names = served.class_names
    assert names is not None
    assert all(
        names[each["label"]] == each["name"] and set(each) == {"label", "name", "probability"}
        for each in found["classes"]
    )


def test_maps_are_those_of_grad_cam_scaled_to_their_own_maximum(address: str, served: Served) -> None:
    cam = make_cam(served)
    classes = ask(address, query="?maps=1").raise_for_status().json()["classes"]
    for each in classes:
        map_hw = np.array(each["map"])
        assert map_hw.shape == (cam.stage.height, cam.stage.width)
        assert map_hw.max() in (0, 1)
    assert any(np.any(each["map"]) for each in classes)


def test_a_form_and_bytes_get_the_same_answer(address: str) -> None:
    form = httpx.post(f"{address}/predict", files={"file": ("a.png", PNG)}, headers=ALLOWED, timeout=60)
    assert form.raise_for_status().json()["classes"] == ask(address).json()["classes"]


def test_what_was_changed_in_the_picture_is_said(address: str) -> None:
    whole = encode(Image.effect_noise((200, 200), 80), "JPEG")
    content = whole[: len(whole) * 9 // 10]
    notes = ask(address, content, content_type="image/jpeg").raise_for_status().json()["notes"]
    assert notes == ["The file ends early: its lower part may be missing."]


REFUSED = {
    "no token": (401, {"headers": {}}),
    "another token": (401, {"headers": {"authorization": "Bearer a-token-of-the-test"}}),
    "a longer token": (401, {"headers": {"authorization": f"Bearer {TOKEN}x"}}),
    "no Bearer": (401, {"headers": {"authorization": TOKEN}}),
    "odd bytes": (401, {"headers": {"authorization": b"Bearer \xff\xfe"}}),
    "two tokens": (401, {"headers": [("authorization", f"Bearer {TOKEN}")] * 2}),
    "GET": (405, {"method": "GET"}),
    "DELETE": (405, {"method": "DELETE"}),
    "no type": (415, {"content": PNG}),
    "a text": (415, {"content": PNG, "headers": {**ALLOWED, "content-type": "text/plain"}}),
    "an address": (415, {"json": {"url": "http://127.0.0.1:1/x"}}),
    "no field": (400, {"files": {"picture": ("a.png", PNG)}}),
    "two files": (400, {"files": [("file", ("a.png", PNG)), ("file", ("b.png", PNG))]}),
    "a field too": (400, {"files": {"file": ("a.png", PNG)}, "data": {"x": "y"}}),
    "no boundary": (400, {"content": PNG, "headers": {**ALLOWED, "content-type": FORM}}),
    "a damaged form": (
        400,
        {"content": b"--x\r\n\xff", "headers": {**ALLOWED, "content-type": "multipart/form-data; boundary=x"}},
    ),
    "an odd charset": (
        400,
        {"content": b"--x--", "headers": {**ALLOWED, "content-type": f"{FORM}; boundary=x; charset=none"}},
    ),
    "too long": (413, {"files": {"file": ("a.png", bytes(JUST_OVER))}}),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_wrong_request_gets_its_status_and_a_reason(name: str, address: str) -> None:
    status, request = REFUSED[name]
    response = httpx.request(
        **{"method": "POST", "url": f"{address}/predict", "headers": ALLOWED, "timeout": 60, **request}
    )
    assert response.status_code == status
    assert response.json()["error"].endswith((".", "`"))
    assert "content-security-policy" in response.headers
    assert TOKEN not in response.text
    if status == 401:
        assert response.headers["www-authenticate"] == "Bearer"
    if status == 405:
        assert response.headers["allow"] == "POST"


@pytest.mark.parametrize(
    ("content", "status", "words"),
    [
        (b"", 400, "empty"),
        (b"hello", 400, "not a picture"),
        (PNG[:50], 400, "damaged|not a picture"),
        (b"GIF89a" + bytes(20), 400, "damaged|not a picture"),
        (make_bomb(10_000), 422, "100 megapixels; the limit is 89"),
        (encode(Image.new("RGB", (3000, 2))), 422, "too thin a strip"),
    ],
)
def test_a_wrong_picture_gets_its_status_and_a_reason(content: bytes, status: int, words: str, address: str) -> None:
    response = ask(address, content)
    assert response.status_code == status
    assert any(each in response.json()["error"] for each in words.split("|"))
    assert ask(address).status_code == 200


@pytest.mark.parametrize("query", ["?maps=2", "?maps=", "?maps=1&maps=1", "?x=1", "?maps=1&url=http://127.0.0.1"])
def test_an_unknown_parameter_is_refused(query: str, address: str) -> None:
    assert ask(address, query=query).status_code == 400


def test_a_body_without_an_end_is_cut_off(address: str) -> None:
    num_sent = 0

    def send() -> Iterator[bytes]:
        nonlocal num_sent
        for num_sent in range(1000):  # noqa: B007
            yield bytes(1 << 20)

    try:
        assert ask(address, send()).status_code == 413
    except httpx.HTTPError:  # the connection was closed: as good
        assert num_sent < 999
    assert ask(address).status_code == 200


def test_a_body_that_does_not_arrive_in_time_gives_its_place_back(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api, "READ_SECONDS", 0.05)
    monkeypatch.setattr(api, "MAX_INSIDE", 1)
    lines = ("POST /predict HTTP/1.1", "Host: x", f"Authorization: Bearer {TOKEN}", "Content-Type: image/png")
    start = "\r\n".join((*lines, "Content-Length: 1000", "", "half of a picture")).encode()
    for _ in range(2):
        with socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2])), timeout=60) as connection:
            connection.sendall(start)
            assert connection.recv(100).startswith(b"HTTP/1.1 408")


def test_nothing_is_written_to_disk(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of a form goes to disk from 1 MB on in Starlette's own parser."""
    opened: list[Any] = []
    monkeypatch.setattr("tempfile.SpooledTemporaryFile.rollover", opened.append)
    large = encode(Image.effect_noise((2000, 2000), 80))
    assert len(large) > 2 << 20
    response = httpx.post(f"{address}/predict", files={"file": ("a.png", large)}, headers=ALLOWED, timeout=60)
    assert response.status_code == 200
    assert opened == []


def test_a_failure_of_the_server_is_a_500_without_its_inside(
    address: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_arguments: Any) -> None:
        raise RuntimeError("/a/private/path")

    monkeypatch.setattr(Answerer, "classify", fail)
    response = ask(address)
    assert (response.status_code, response.json()) == (500, {"error": "The server failed. Its log has the reason."})
    assert "/a/private/path" in capsys.readouterr().err


@pytest.mark.parametrize("token", [None, "", "short", "x" * 15, "with spaces in the token", "ümlauts-in-the-token"])
def test_a_weak_token_is_refused(token: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(api.TOKEN_VARIABLE, raising=False)
    if token is not None:
        monkeypatch.setenv(api.TOKEN_VARIABLE, token)
    with pytest.raises(InputError, match=r"--api needs a secret token: expected at least 16 ASCII .* found") as caught:
        read_token()
    assert not token or token not in str(caught.value)


def test_a_good_token_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(api.TOKEN_VARIABLE, TOKEN)
    assert read_token() == TOKEN
