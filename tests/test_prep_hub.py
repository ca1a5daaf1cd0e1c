"""The hub's refusals: one line on what to do, and never the token. The hub is played by a server on this machine."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import datasets
import pytest
from conftest import run_command
from datasets.exceptions import DatasetNotFoundError

from prep.dataset import InputError
from prep.hugging_face import open_dataset
from prep.parquet import ParquetRows
from prep.source import Reading

TOKEN = "hf_secret"


@contextmanager
def _hub(status: int, error_code: str) -> Iterator[tuple[str, list[str]]]:
    """A hub that refuses everything and repeats the token it was sent: its address and those tokens."""
    tokens: list[str] = []

    class Refuse(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            token = self.headers.get("Authorization", "none")
            tokens.append(token)
            body = f"Refused, you sent {token}".encode()
            self.send_response(status)
            self.send_header("X-Error-Code", error_code)
            self.send_header("X-Error-Message", body.decode())
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_POST = do_GET

        def log_message(self, format: str, *args: object) -> None:
            """Quiet."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Refuse) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", tokens
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("status", "error_code", "line"),
    [
        (
            403,
            "GatedRepo",
            "a/b is gated: accept its terms at https://huggingface.co/datasets/a/b, "
            "then `hf auth login` or set HF_TOKEN to a read token",
        ),
        (
            404,
            "RepoNotFound",
            "a/b is not on the hub, or private: check the name, then `hf auth login` if it is private",
        ),
    ],
    ids=["gated", "missing"],
)
def test_a_dataset_the_hub_refuses_is_one_line_without_the_token(
    status: int, error_code: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with _hub(status, error_code) as (address, tokens):
        settings = {"HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0", "NO_PROXY": "127.0.0.1"}
        for name, value in (settings | {"HF_TOKEN": TOKEN, "HF_HOME": str(tmp_path / "home")}).items():
            monkeypatch.setenv(name, value)
        result = run_command("prep/shard.py", "--source", "a/b", "--out", tmp_path / "out")
    assert f"Bearer {TOKEN}" in tokens  # it was there to be leaked
    assert (result.returncode, result.stdout, result.stderr) == (1, "", f"error: {line}\n")
    assert not (tmp_path / "out").exists()


def test_a_hub_out_of_reach_is_one_line_without_the_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"HF_HUB_OFFLINE": "1", "HF_TOKEN": TOKEN, "HF_HOME": str(tmp_path / "home")}.items():
        monkeypatch.setenv(name, value)
    result = run_command("prep/shard.py", "--source", "a/b", "--out", tmp_path / "out")
    assert result.returncode == 1
    assert result.stderr == (
        "error: cannot reach the hub for a/b: check the network, or give --source a local folder\n"
    )
    assert not (tmp_path / "out").exists()


GATED = "is a gated dataset on the Hub. You must be authenticated to access it."
MISSING = "doesn't exist on the Hub or cannot be accessed."


@pytest.mark.parametrize(
    ("source", "error", "words"),
    [
        ("a/b", DatasetNotFoundError(f"Dataset 'a/b' {GATED}"), "a/b is gated: accept its terms"),
        ("a/b", DatasetNotFoundError(f"Dataset 'a/b' {MISSING}"), "a/b is not on the hub, or private: check the name"),
        ("a/gated-401", DatasetNotFoundError(f"Dataset 'a/gated-401' {MISSING}"), "is not on the hub, or private"),
        ("a/b", ConnectionError("Couldn't reach 'a/b' on the Hub (ConnectError)"), "cannot reach the hub for a/b"),
        ("a/b", TimeoutError("The read operation timed out"), "cannot reach the hub for a/b"),
        (
            "a/b",
            FileNotFoundError("a/b holds no\ndata files"),
            "cannot open a/b: a/b holds no data files",
        ),
        ("a/b", ValueError("Feature type 'X' not found"), "cannot open a/b: Feature type 'X' not found"),
    ],
)
def test_what_datasets_raises_becomes_one_line_with_a_fix(
    source: str, error: Exception, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: str) -> None:
        raise error

    monkeypatch.setattr(datasets, "load_dataset_builder", refuse)
    with pytest.raises(InputError) as refusal:
        open_dataset(source, Reading())
    assert words in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_local_folder_is_never_blamed_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str) -> None:
        raise PermissionError(13, "Permission denied", path)

    folder = tmp_path / "gated"
    folder.mkdir()
    monkeypatch.setattr(datasets, "load_dataset_builder", refuse)
    with pytest.raises(InputError, match=r"^cannot open .*/gated: .*Permission denied"):
        open_dataset(str(folder), Reading())


def test_a_connection_lost_between_rows_names_the_file_and_says_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    class ConnectError(Exception):
        """As the hub's HTTP client raises it: no OSError."""

    def refuse(url: str, mode: str) -> None:
        raise ConnectError("[Errno -2] Name or\nservice not known")

    monkeypatch.setattr("prep.parquet.fsspec.open", refuse)
    url = f"hf://datasets/a/b@{os.urandom(20).hex()}/train.parquet"
    with pytest.raises(InputError) as refusal:
        list(ParquetRows(((url, 0, 1),), "image", "label"))
    assert str(refusal.value).startswith(f"{url} cannot be read ([Errno -2] Name or service not known): run again")
