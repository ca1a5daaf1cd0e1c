"""Pushing: real client code against a hub on this machine, and back through timm; the token is in no message."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import pytest
import yaml
from helpers.commands import CHECKOUT, run_command
from helpers.hub_server import TEMPLATE, Hub, run_hub
from helpers.served import Exported, run_here

from prep.errors import InputError
from serve.contents import CONTENTS, format_contents
from serve.hub import Kind, Push, Pushed, check_hardware, check_push, commit_push, prepare_push, request_hardware

# The hub's client sends a large file in a way that httpx advises against.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
TOKEN = "hf_secret"
SPACE, MODEL = "spaces/me/space", "models/me/model"
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


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A hub to which this process, and those that it starts, are logged in."""
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
        use_in_this_process(hub.address, monkeypatch)
        yield hub


def use_in_this_process(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set what huggingface_hub read from the environment when it was imported."""
    constants = huggingface_hub.constants
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)


def write_files(folder: Path, files: dict[str, str]) -> dict[str, Path]:
    """Write files below a folder, and return where each is."""
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return {name: folder / name for name in files}


def push(folder: Path, files: dict[str, str], repo: str = "me/space", kind: Kind = "space", **flags: object) -> Pushed:
    given = {name: frozenset({value}) if isinstance(value, str) else value for name, value in flags.items()}
    return commit_push(prepare_push(replace(Push(repo, kind, write_files(folder, files)), **given)))


def list_names(hub: Hub, repo: str = SPACE) -> set[str]:
    return hub.repos[repo].keys() - {".gitattributes", CONTENTS}


@pytest.mark.needs("gradio")
def test_a_space_and_its_model_are_pushed(hub: Hub, exported: Exported, tmp_path: Path) -> None:
    space = tmp_path / "space"
    flags = ("--push", "me/space", "--push-model", "me/model", "--title", "Digits: 0 to 9", "--private")
    done = run_command("serve/publish.py", exported.artifact, "--out", space, *flags, "--hardware", "t4-small")
    assert done.returncode == 0, done.stderr
    assert f"model: {hub.address}/me/model" in done.stdout and f"pushed: {hub.address}/spaces/me/space" in done.stdout
    assert f"Bearer {TOKEN}" in hub.tokens and TOKEN not in done.stdout + done.stderr
    files = {path.relative_to(space).as_posix(): path.read_bytes() for path in space.rglob("*") if path.is_file()}
    assert hub.repos[SPACE].pop(".gitattributes") and hub.repos[SPACE] == files
    model = {path.name: path.read_bytes() for path in exported.artifact.iterdir()}
    assert list_names(hub, MODEL) == model.keys() and "README.md" in model
    assert hub.repos[MODEL] | model == hub.repos[MODEL]
    assert set(json.loads(hub.repos[MODEL][CONTENTS])) == model.keys()
    kinds = {(each["name"], each["type"], each.get("sdk")) for each in hub.created}
    assert kinds == {("model", "model", None), ("space", "space", "gradio")}
    assert hub.private == {SPACE, MODEL} and hub.hardware == {"me/space": "t4-small"}
    front = yaml.safe_load(files["README.md"].split(b"---\n")[1])
    assert front["models"] == ["me/model"] and front["title"] == "Digits: 0 to 9"
    scores = json.loads((exported.scores / "scores.json").read_text())["ema"]
    assert f"{scores['top1']:.2f}% ({scores['num_top1']} images)" in model["README.md"].decode()


def test_timm_loads_the_model_from_the_hub(hub: Hub, exported: Exported) -> None:
    files = {path.name: path for path in exported.artifact.iterdir()}
    commit_push(prepare_push(Push("me/model", "model", files)))
    done = run_command("-c", LOAD, "me/model", exported.artifact)
    assert done.stdout.strip() == "True", done.stderr


def test_a_second_push_deletes_only_what_the_first_wrote(hub: Hub, tmp_path: Path) -> None:
    first = push(tmp_path, {"README.md": "# one", "serve/old.py": "old", "serve/edited.py": "old", "serve/app.py": "1"})
    assert first == Pushed(f"{hub.address}/spaces/me/space", ("created, public: anyone can see it",))
    theirs = {
        "assets/banner.png": b"banner",
        "data/flagged/log.csv": b"log",
        ".github/workflows/sync.yml": b"sync",
        "examples/my_dog.jpg": b"dog",
        "notes.md": b"notes",
        "serve/edited.py": b"edited on the hub",
        "weights.safetensors": b"large, so that the hub tells its SHA-256",
    }
    hub.commit(SPACE, theirs)
    second = push(tmp_path, {"README.md": "# two", "serve/app.py": "2"})
    assert list_names(hub) == {"README.md", "serve/app.py", *theirs}
    assert theirs.items() <= hub.repos[SPACE].items() and hub.repos[SPACE]["serve/app.py"] == b"2"
    assert second.notes == (
        "deleted, from an earlier push: serve/old.py",
        "left as they are: .github/workflows/sync.yml, assets/banner.png, data/flagged/log.csv and 4 more",
    )
    assert push(tmp_path, {"README.md": "# two", "serve/app.py": "2"}).notes[-1].startswith("nothing had changed")


@pytest.mark.parametrize("kind", ["space", "model"])
def test_a_card_that_was_edited_on_the_hub_is_not_overwritten(kind: Kind, hub: Hub, tmp_path: Path) -> None:
    push(tmp_path, {"README.md": "# one", "app.py": "1"}, kind=kind)
    repo = f"{kind}s/me/space"
    hub.commit(repo, {"README.md": b"# mine"})
    before = dict(hub.repos[repo])
    new = {"README.md": "# two", "app.py": "2"}
    with pytest.raises(InputError, match=r"README.md there was not written by Penstock or was changed since: give "):
        push(tmp_path, new, kind=kind)
    assert hub.repos[repo] == before
    for _ in range(2):  # a file that was kept is still the user's at the next push
        kept = push(tmp_path, new | {"app.py": "3"}, kind=kind, keep="README.md")
        assert hub.repos[repo]["README.md"] == b"# mine" and hub.repos[repo]["app.py"] == b"3"
        assert "left as they are: README.md" in kept.notes
    push(tmp_path, new, kind=kind, replace="README.md")
    assert hub.repos[repo]["README.md"] == b"# two"
    push(tmp_path, {"README.md": "# three"}, kind=kind)
    assert list_names(hub, repo) == {"README.md"}


def test_another_space_is_left_alone(hub: Hub, tmp_path: Path) -> None:
    hub.commit(SPACE, {"app.py": b"theirs", "README.md": TEMPLATE, CONTENTS: b'{"app.py": "of another program"}'})
    before = dict(hub.repos[SPACE])
    with pytest.raises(InputError, match=r"it holds README.md, app.py and no contents.json of Penstock, so it is "):
        push(tmp_path, {"README.md": "# new", "requirements.txt": "torch"})
    assert hub.repos[SPACE] == before
    push(tmp_path, {"README.md": "# new", "requirements.txt": "torch"}, replace="all")
    assert hub.repos[SPACE]["app.py"] == b"theirs" and hub.repos[SPACE]["README.md"] == b"# new"


def test_a_new_space_of_the_hub_is_filled_unless_its_card_was_written(hub: Hub, tmp_path: Path) -> None:
    hub.commit(SPACE, {".gitattributes": b"", "README.md": TEMPLATE + b"\n# My notes\n"})
    with pytest.raises(InputError, match=r"it holds README\.md and no contents"):
        push(tmp_path, {"README.md": "# new"})
    hub.commit(SPACE, {"README.md": TEMPLATE})
    push(tmp_path, {"README.md": "# new"})
    assert hub.repos[SPACE]["README.md"] == b"# new"


def test_other_files_of_a_model_repository_stay(hub: Hub, tmp_path: Path) -> None:
    hub.commit(MODEL, {"onnx/model.onnx": b"theirs", "model.safetensors": b"theirs"})
    with pytest.raises(InputError, match=r"the model me/model was not pushed: model.safetensors there was not"):
        push(tmp_path, {"model.safetensors": "new"}, "me/model", "model")
    hub.repos[MODEL].pop("model.safetensors")
    push(tmp_path, {"model.safetensors": "new", "README.md": "card"}, "me/model", "model")
    assert list_names(hub, MODEL) == {"onnx/model.onnx", "model.safetensors", "README.md"}


def test_a_push_at_the_same_time_is_not_overwritten(hub: Hub, tmp_path: Path) -> None:
    push(tmp_path, {"README.md": "# one"})
    hub.before_commit = lambda: hub.commit(SPACE, {"README.md": b"# somebody else's"})
    with pytest.raises(
        InputError, match=r"another push changed the space me/space at the same time, and nothing was pushed"
    ):
        push(tmp_path, {"README.md": "# two"})
    assert hub.repos[SPACE]["README.md"] == b"# somebody else's"


def test_a_contents_file_that_names_more_than_there_is_deletes_nothing_else(hub: Hub, tmp_path: Path) -> None:
    digest = "0" * 64
    hub.commit(SPACE, {CONTENTS: format_contents({"gone.py": digest, "notes.md": digest}).encode(), "notes.md": b"x"})
    push(tmp_path, {"app.py": "1"})
    assert list_names(hub) == {"app.py", "notes.md"}


def test_private_is_not_promised_for_a_public_repository(hub: Hub, tmp_path: Path) -> None:
    push(tmp_path, {"README.md": "# one"}, private=True)
    assert hub.private == {SPACE}
    assert push(tmp_path, {"README.md": "# two"}, private=True).notes == ()
    hub.private.clear()
    with pytest.raises(InputError, match="exists and is public, and --private applies to a new one"):
        push(tmp_path, {"README.md": "# three"}, private=True)
    assert hub.repos[SPACE]["README.md"] == b"# two"


def test_hardware_that_the_hub_refuses_is_one_line(hub: Hub) -> None:
    hub.no_hardware = 402
    with pytest.raises(InputError, match=r"was pushed, but the hub refused the hardware t4-small \(") as refused:
        request_hardware("me/space", "t4-small")
    assert "Payment required" in str(refused.value) and "\n" not in str(refused.value)
    with pytest.raises(InputError, match="--hardware must be one of cpu-basic, "):
        check_hardware("h900")


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (403, "the hub does not let you write to the space me/space: `hf auth login`, or set HF_TOKEN"),
        (400, "the space me/space was not pushed: "),
    ],
)
def test_a_refusal_is_one_line_without_the_token(hub: Hub, status: int, words: str, tmp_path: Path) -> None:
    hub.refusal = status
    with pytest.raises(InputError) as refused:
        push(tmp_path, {"README.md": "# one"})
    assert f"Bearer {TOKEN}" in hub.tokens  # it was there to be leaked
    assert str(refused.value).startswith(words) and "\n" not in str(refused.value) and TOKEN not in str(refused.value)


def test_a_hub_out_of_reach_is_one_line(hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    use_in_this_process("http://127.0.0.1:9", monkeypatch)
    with pytest.raises(InputError) as refused:
        push(tmp_path, {"README.md": "# one"})
    assert str(refused.value) == "cannot reach the hub for me/space: check the network and run the same command again"


@pytest.mark.parametrize(
    ("repo", "token", "words"),
    [
        ("me/space", "", "cannot push me/space, you are not logged in: `hf auth login`, or set HF_TOKEN"),
        ("space", TOKEN, "space has no owner: give OWNER/NAME"),
        ("me/sp ace", TOKEN, "me/sp ace is not a valid name of a repository"),
    ],
)
def test_what_cannot_be_pushed_is_refused_without_a_request(
    repo: str, token: str, words: str, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(InputError) as refused:
        check_push(repo)
    assert str(refused.value).startswith(words)
    assert not hub.tokens


def test_offline_mode_is_named(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=r"HF_HUB_OFFLINE \(or TRANSFORMERS_OFFLINE\) is set: unset it"):
        check_push("me/space")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--push", "space"), "space has no owner: give OWNER/NAME"),
        (("--private",), "--private is for a push: give --push OWNER/NAME too"),
        (("--push-model", "me/model", "--hardware", "t4-small"), "--hardware is for a Space: give --push"),
        (("--push", "me/space", "--hardware", "h900"), "--hardware must be one of"),
        (("--push", "me/space", "--keep", "a", "--replace", "a"), "--replace and --keep both name a"),
        (("--title", "two\nlines"), "--title must be one line of text"),
    ],
)
def test_wrong_flags_are_refused_before_anything_is_assembled(
    flags: tuple[str, ...], words: str, hub: Hub, exported: Exported, tmp_path: Path
) -> None:
    with pytest.raises(SystemExit, match=f"error: {words}"):
        run_here("serve/publish.py", exported.artifact, "--out", tmp_path / "space", *flags)
    assert not (tmp_path / "space").exists() and not hub.tokens
