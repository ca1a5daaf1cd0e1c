"""Pushing: real client code against a hub on this machine, and back through timm; the token is in no message."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from helpers.commands import CHECKOUT, run_command
from helpers.hub_server import Hub, run_hub
from helpers.served import Exported, run_here

TOKEN = "hf_secret"
LOAD = """
import sys, timm, torch
from pathlib import Path
from serve.artifact import load_artifact
from PIL import Image
from prep.preprocess import draw_pattern
from serve.preprocess import to_tensor
served = load_artifact(Path(sys.argv[2]))
theirs = timm.create_model(f"hf-hub:{sys.argv[1]}", pretrained=True).eval()
image_BCHW = to_tensor(Image.fromarray(draw_pattern(served.preprocessing.crop)), served.preprocessing)[None]
with torch.inference_mode():
    print(torch.equal(theirs(image_BCHW), served.model(image_BCHW)))
"""
PUSH = """
import sys
from pathlib import Path
from serve.hub import check_push, push_folder
from prep.errors import run
def main():
    check_push(sys.argv[1])
    print(push_folder(Path(sys.argv[2]), sys.argv[1], sys.argv[3], ("*",)))
run(main)
"""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A hub to which the processes that are started here are logged in."""
    with run_hub() as hub:
        settings = {
            "HF_ENDPOINT": hub.address,
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "NO_PROXY": "127.0.0.1",
            "HF_TOKEN": TOKEN,
            "HF_HOME": str(tmp_path / "home"),
            "PYTHONPATH": str(CHECKOUT),
        }
        for name, value in settings.items():
            monkeypatch.setenv(name, value)
        yield hub


def push_folder(repo: str, folder: Path, kind: str = "space") -> subprocess.CompletedProcess[str]:
    return run_command("-c", PUSH, repo, folder, kind)


@pytest.mark.needs("gradio")
def test_a_space_and_its_model_are_pushed(hub: Hub, exported: Exported, tmp_path: Path) -> None:
    space = tmp_path / "space"
    pushed = ("--push", "me/space", "--push-model", "me/model")
    done = run_command("serve/publish.py", exported.artifact, "--out", space, *pushed)
    assert done.returncode == 0, done.stderr
    assert f"model: {hub.address}/me/model" in done.stdout and f"pushed: {hub.address}/spaces/me/space" in done.stdout
    assert f"Bearer {TOKEN}" in hub.tokens and TOKEN not in done.stdout + done.stderr
    files = {path.relative_to(space).as_posix(): path.read_bytes() for path in space.rglob("*") if path.is_file()}
    assert hub.repos["spaces/me/space"] == files
    model = {path.name: path.read_bytes() for path in exported.artifact.iterdir()}
    assert hub.repos["models/me/model"] == model and "README.md" in model
    kinds = {(each["name"], each["type"], each.get("sdk")) for each in hub.created}
    assert kinds == {("model", "model", None), ("space", "space", "gradio")}
    assert yaml.safe_load(files["README.md"].split(b"---\n")[1])["models"] == ["me/model"]
    scores = json.loads((exported.scores / "scores.json").read_text())["ema"]
    assert f"{scores['top1']:.2f}% ({scores['num_top1']} images)" in model["README.md"].decode()


def test_timm_loads_the_model_from_the_hub(hub: Hub, exported: Exported) -> None:
    assert push_folder("me/model", exported.artifact, "model").returncode == 0
    done = run_command("-c", LOAD, "me/model", exported.artifact)
    assert done.stdout.strip() == "True", done.stderr


def test_modules_of_an_earlier_space_are_deleted_there(hub: Hub, tmp_path: Path) -> None:
    hub.repos["spaces/me/space"] = {"serve/old.py": b"old", ".gitattributes": b"kept", "notes.md": b"kept"}
    (tmp_path / "space" / "serve").mkdir(parents=True)
    (tmp_path / "space" / "serve" / "app.py").write_text("new")
    done = push_folder("me/space", tmp_path / "space")
    assert (done.returncode, done.stdout) == (0, f"{hub.address}/spaces/me/space\n"), done.stderr
    assert set(hub.repos["spaces/me/space"]) == {"serve/app.py", ".gitattributes", "notes.md"}


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (403, "error: the hub does not let you write to the space me/space: `hf auth login`, or set HF_TOKEN"),
        (400, "error: the space me/space was not pushed: "),
    ],
)
def test_a_refusal_is_one_line_without_the_token(hub: Hub, status: int, words: str, tmp_path: Path) -> None:
    hub.refusal = status
    done = push_folder("me/space", tmp_path)
    assert done.returncode == 1 and f"Bearer {TOKEN}" in hub.tokens  # it was there to be leaked
    assert done.stderr.startswith(words) and done.stderr.count("\n") == 1
    assert TOKEN not in done.stderr + done.stdout


def test_a_hub_out_of_reach_is_one_line(hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    done = push_folder("me/space", tmp_path)
    assert done.stderr == "error: cannot reach the hub for me/space: check the network and run the same command again\n"


@pytest.mark.parametrize(
    ("repo", "token", "words"),
    [
        ("me/space", "", "cannot push me/space, you are not logged in: `hf auth login`, or set HF_TOKEN"),
        ("space", TOKEN, "space has no owner: give OWNER/NAME"),
        ("me/sp ace", TOKEN, "me/sp ace is not a valid name of a repository"),
    ],
)
def test_what_cannot_be_pushed_is_refused_without_a_request(
    repo: str, token: str, words: str, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    done = push_folder(repo, tmp_path)
    assert done.returncode == 1 and done.stderr.startswith(f"error: {words}"), done.stderr
    assert not hub.tokens


def test_a_wrong_name_is_refused_before_anything_is_assembled(exported: Exported, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="error: space has no owner: give OWNER/NAME"):
        run_here("serve/publish.py", exported.artifact, "--out", tmp_path / "space", "--push", "space")
    assert not any(tmp_path.iterdir())
