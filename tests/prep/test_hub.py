"""Datasets of the hub: read as a folder is, and its refusals in one line on what to do, never with the token.

The hub is played by a server on this machine.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import pytest
from helpers.commands import run_command
from helpers.hub_server import COMMIT, Hub, run_hub
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, OfflineModeIsEnabled, RepositoryNotFoundError

from prep.errors import InputError
from prep.listing import explain_hub_error
from prep.parquet import ParquetRows, open_parquet_dataset
from prep.source import Reading

TOKEN = "hf_secret"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub, and an environment in which it is the only one. No cache can be written: HF_HOME is below a file."""
    (tmp_path / "file").touch()
    with run_hub() as hub:
        settings = {"HF_ENDPOINT": hub.address, "HF_HUB_OFFLINE": "0", "NO_PROXY": "127.0.0.1"}
        for name, value in (settings | {"HF_TOKEN": TOKEN, "HF_HOME": str(tmp_path / "file" / "home")}).items():
            monkeypatch.setenv(name, value)
        constants = huggingface_hub.constants  # which were read from the environment at the import
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, hub.address)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "ENDPOINT", hub.address)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        huggingface_hub.HfFileSystem.clear_instance_cache()
        yield hub
        huggingface_hub.HfFileSystem.clear_instance_cache()


def _parquet(folder: Path, label: str, images: list[bytes]) -> bytes:
    names = datasets.ClassLabel(names=[f"{label} {number}" for number in range(3)])
    features = datasets.Features({"image": datasets.Image(), "label": names})
    rows = {
        "image": [{"bytes": image, "path": None} for image in images],
        "label": [row % 3 for row in range(len(images))],
    }
    datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / "made.parquet")
    return (folder / "made.parquet").read_bytes()


def _card(**header: object) -> bytes:
    return f"---\n{json.dumps(header)}\n---\n# About\n".encode()  # JSON is YAML


def test_a_dataset_is_prepared_from_the_hub(hub: Hub, digits_source: Path, digits: Path, tmp_path: Path) -> None:
    files = {str(path.relative_to(digits_source)): path.read_bytes() for path in digits_source.rglob("*.parquet")}
    strays = dict.fromkeys(("classes.json", "stats.json", "dataset_infos.json", "thumbnails/0.jpg"), b"{}")
    hub.repos["datasets/a/b"] = files | strays
    result = run_command("prep/shard.py", "--source", "a/b", "--out", tmp_path / "out", "--images-per-shard", "300")
    assert (result.returncode, result.stderr) == (0, "")
    for split in ("train", "validation"):
        found, expected = (
            json.loads((out / split / "manifest.json").read_text()) for out in (tmp_path / "out", digits)
        )
        assert found["source"] == {"name": "a/b", "revision": COMMIT}
        assert found["shards"] == expected["shards"]
    assert f"Bearer {TOKEN}" in hub.tokens


@pytest.mark.parametrize("header", [{}, {"license": "other", "license_details": "imagenet-agreement"}])
def test_the_licence_of_a_card_on_the_hub_is_recorded(header: dict[str, str], hub: Hub, tmp_path: Path) -> None:
    card = _card(**header, pretty_name="B")
    hub.repos["datasets/a/b"] = {"data/train-0.parquet": _parquet(tmp_path, "x", [b"x"]), "README.md": card}
    assert open_parquet_dataset("a/b", Reading()).reading("train").get("license", {}) == header


def test_a_configuration_of_the_hub_is_chosen_by_name(hub: Hub, tmp_path: Path) -> None:
    configs = [{"config_name": name, "data_files": f"{name}/*.parquet"} for name in ("coarse", "fine")]
    files = {f"{name}/0.parquet": _parquet(tmp_path, name, [name.encode()]) for name in ("coarse", "fine")}
    hub.repos["datasets/a/b"] = files | {"README.md": _card(configs=configs)}
    with pytest.raises(InputError) as refusal:
        open_parquet_dataset("a/b", Reading())
    advice = "a/b: it has the configurations coarse, fine: choose one with --config coarse"
    assert str(refusal.value) == advice
    source = open_parquet_dataset("a/b", Reading(config=advice.rpartition(" ")[2]))
    assert source.class_names == ("coarse 0", "coarse 1", "coarse 2")
    assert [bytes(item.data) for item in source.rows("train", 0, 9)] == [b"coarse"]
    assert source.reading("train")["config"] == "coarse"
    assert source.reading("train")["passed_over"] == ["configuration fine"]
    with pytest.raises(InputError, match=r"unknown configuration 'fin', it has coarse, fine; did you mean 'fine'\?"):
        open_parquet_dataset("a/b", Reading(config="fin"))


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (
            {"b.py": b"class B: ..."},
            "a/b is a loading script (b.py): get the hub's parquet form with `hf download a/b ",
        ),
        ({"train.tar": b"x", "README.md": b"# B"}, "a/b has no parquet file, it has train.tar: get the hub's parquet"),
        ({}, "a/b has no parquet file, it has nothing"),
    ],
)
def test_a_dataset_without_parquet_names_the_hubs_own_conversion(files: dict[str, bytes], words: str, hub: Hub) -> None:
    hub.repos["datasets/a/b"] = files
    with pytest.raises(InputError) as refusal:
        open_parquet_dataset("a/b", Reading())
    assert words in str(refusal.value)
    assert "--revision refs/convert/parquet --local-dir DIR`, then --source DIR" in str(refusal.value)


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
        (
            429,
            "",
            "the hub refuses more requests for a/b now (429): wait some minutes and run again; "
            "`hf auth login` raises the limit",
        ),
    ],
    ids=["gated", "missing", "busy"],
)
def test_a_dataset_the_hub_refuses_is_one_line_without_the_token(
    status: int, error_code: str, line: str, hub: Hub, tmp_path: Path
) -> None:
    hub.refusal, hub.error_code = status, error_code
    result = run_command("prep/shard.py", "--source", "a/b", "--out", tmp_path / "out")
    assert f"Bearer {TOKEN}" in hub.tokens  # it was there to be leaked
    assert (result.returncode, result.stdout, result.stderr) == (1, "", f"error: {line}\n")
    assert not (tmp_path / "out").exists()


def test_a_hub_out_of_reach_is_one_line_without_the_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"HF_HUB_OFFLINE": "1", "HF_TOKEN": TOKEN, "HF_HOME": str(tmp_path / "home")}.items():
        monkeypatch.setenv(name, value)
    result = run_command("prep/shard.py", "--source", "a/b", "--out", tmp_path / "out")
    assert result.returncode == 1
    assert result.stderr == (
        "error: cannot reach the hub for a/b: HF_HUB_OFFLINE is set; unset it, or give --source a local folder\n"
    )
    assert not (tmp_path / "out").exists()


@dataclass(frozen=True)
class Answer:
    """The attributes of a response that the client's errors use, with any HTTP library."""

    status_code: int
    headers: dict[str, str] = field(default_factory=dict)
    request: None = None


class ConnectError(Exception):
    """An error of the hub's HTTP client, which is not an OSError."""


def _refused(kind: type[HfHubHTTPError], status: int) -> HfHubHTTPError:
    answer: Any = Answer(status)
    return kind(f"you sent {TOKEN}", response=answer)


def _caused_by(error: BaseException) -> Exception:
    outer = FileNotFoundError("a/b")
    outer.__cause__ = error
    return outer


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (_refused(GatedRepoError, 403), "a/b is gated: accept its terms"),
        (_caused_by(_refused(GatedRepoError, 401)), "a/b is gated: accept its terms"),
        (_refused(RepositoryNotFoundError, 404), "a/b is not on the hub, or private: check the name"),
        (_refused(HfHubHTTPError, 401), "the hub refuses access to a/b (401): `hf auth login`, or set HF_TOKEN"),
        (_refused(HfHubHTTPError, 503), "the hub fails for a/b (503): run again later"),
        (OfflineModeIsEnabled("offline"), "HF_HUB_OFFLINE is set; unset it"),
        (ConnectError("[Errno -2] Name or service not known"), "cannot reach the hub for a/b: check the network"),
        (_caused_by(TimeoutError("The read operation timed out")), "cannot reach the hub for a/b"),
        (ValueError("line\nbreak"), "cannot open a/b: ValueError line break"),
    ],
)
def test_what_the_hubs_client_raises_becomes_one_line_with_a_fix(error: Exception, words: str) -> None:
    line = explain_hub_error("a/b", error)
    assert words in line
    assert "\n" not in line
    assert TOKEN not in line


def test_a_connection_lost_between_rows_names_the_file_and_says_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(url: str, mode: str) -> None:
        raise ConnectError("[Errno -2] Name or\nservice not known")

    monkeypatch.setattr("prep.parquet.fsspec.open", refuse)
    url = f"hf://datasets/a/b@{os.urandom(20).hex()}/train.parquet"
    with pytest.raises(InputError) as refusal:
        list(ParquetRows(((url, 0, 1),), "image", "label"))
    assert str(refusal.value).startswith(f"{url} cannot be read ([Errno -2] Name or service not known): run again")
