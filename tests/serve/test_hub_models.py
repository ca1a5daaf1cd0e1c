"""Models on the hub: the real client against a hub on this machine; artifacts, timm's layout, and each failure."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from helpers.checkpoint_kinds import NAME, NUM_CLASSES, SIZE, make_network
from helpers.hub_server import Hub, run_hub
from huggingface_hub import constants
from safetensors.torch import save
from timm.models import save_for_hf

from prep.errors import InputError
from serve.artifact import ARTIFACT
from serve.loading import BareOptions, load_served
from serve.preprocess import Preprocessing

TOKEN = "hf_secret"
REPO = "me/model"
HALF, FOUR_TENTHS = (0.5, 0.5, 0.5), (0.4, 0.4, 0.4)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A hub to which this process is connected, with an empty cache."""
    with run_hub() as hub:
        for name, value in {
            "ENDPOINT": hub.address,
            "HUGGINGFACE_CO_URL_TEMPLATE": hub.address + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DISABLE_XET": True,
            "HF_HUB_CACHE": str(tmp_path / "cache"),
        }.items():
            monkeypatch.setattr(constants, name, value)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        huggingface_hub.close_session()
        yield hub
        huggingface_hub.close_session()


def make_timm_repo(folder: Path, **changes: Any) -> tuple[Any, dict[str, bytes]]:
    """A network, and the files that timm pushes for it; `changes` are of its pretrained_cfg."""
    model = make_network(1)
    details = {"input_size": (3, SIZE, SIZE), "crop_pct": 0.8, "interpolation": "bicubic", "num_classes": NUM_CLASSES}
    details |= {"mean": (0.5, 0.5, 0.5), "std": (0.4, 0.4, 0.4)}
    model.pretrained_cfg = {**model.pretrained_cfg, **details}
    save_for_hf(model, str(folder), model_config={"label_names": list("abcde")}, safe_serialization=True)
    config = json.loads((folder / "config.json").read_text())
    config["pretrained_cfg"] |= changes
    (folder / "config.json").write_text(json.dumps(config))
    return model, {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_model_of_timm_is_served_with_its_preprocessing_and_names(hub: Hub, tmp_path: Path) -> None:
    model, files = make_timm_repo(tmp_path / "timm")
    hub.repos[f"models/{REPO}"] = files | {"pytorch_model.bin": b"a pickle", "optimizer.pt": b"a pickle"}
    served = load_served(f"hf-hub:{REPO}", BareOptions(num_classes=NUM_CLASSES))
    image_BCHW = torch.randn(1, 3, SIZE, SIZE)
    with torch.inference_mode():
        assert torch.equal(served.model(image_BCHW), model(image_BCHW))
    assert served.preprocessing == Preprocessing(40, SIZE, HALF, FOUR_TENTHS, "bicubic")
    assert served.class_names == ("a", "b", "c", "d", "e") and served.recorded is None
    assert served.name == f"{NAME} from hf-hub:{REPO}" and "recorded by config.json" in served.notes[-1]
    assert not list(tmp_path.glob("cache/**/*.bin")) and not list(tmp_path.glob("cache/**/*.pt"))
    assert f"Bearer {TOKEN}" in hub.tokens
    # A Path as argparse makes it, a revision, timm's own name of a repository.
    hub.repos["models/timm/tiny.in1k"] = files
    for where in (Path(f"hf-hub:{REPO}"), f"hf-hub:{REPO}@main", "timm/tiny.in1k"):
        assert load_served(where).name == f"{NAME} from {where}"
    with pytest.raises(InputError, match=r"config\.json records test_resnet for --model, got resnet18: remove --model"):
        load_served(f"hf-hub:{REPO}", BareOptions(model="resnet18"))


def test_a_local_path_comes_before_timms_name(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_timm_repo(tmp_path / "timm" / "mine")
    monkeypatch.chdir(tmp_path)
    assert load_served("timm/mine").name == f"{NAME} from mine" and not hub.tokens


def test_imagenets_names_are_those_of_its_tag(hub: Hub) -> None:
    model = make_network(1, num_classes=1000)
    details = {"input_size": [3, SIZE, SIZE], "tag": "a1_in1k"}
    config = {"architecture": NAME, "num_classes": 1000, "pretrained_cfg": details}
    files = {"config.json": json.dumps(config).encode(), "model.safetensors": save(dict(model.state_dict()))}
    hub.repos[f"models/{REPO}"] = files
    served = load_served(f"hf-hub:{REPO}")
    assert served.class_names is not None and served.class_names[:2] == ("n01440764", "n01443537")
    assert "ImageNet's 1,000 in their usual order, because config.json has the tag a1_in1k" in served.notes[0]
    # Other 1,000 classes have no names.
    details["tag"] = "mine"
    hub.repos["models/me/other"] = {**files, "config.json": json.dumps(config).encode()}
    assert load_served("hf-hub:me/other").class_names is None


def test_a_pickle_is_taken_only_without_safetensors(hub: Hub, tmp_path: Path) -> None:
    model, files = make_timm_repo(tmp_path / "timm")
    torch.save(model.state_dict(), tmp_path / "w.bin")
    hub.repos[f"models/{REPO}"] = {
        "config.json": files["config.json"],
        "pytorch_model.bin": (tmp_path / "w.bin").read_bytes(),
    }
    assert load_served(f"hf-hub:{REPO}").num_classes == NUM_CLASSES
    hub.repos["models/me/empty"] = {"config.json": files["config.json"]}
    with pytest.raises(InputError, match=r"me/empty holds neither model\.safetensors nor pytorch_model\.bin"):
        load_served("hf-hub:me/empty")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"input_size": (1, SIZE, SIZE)}, r"has input_size \[1, 32, 32\], expected 3 channels and a square"),
        ({"crop_mode": "squash"}, "has crop_mode squash, expected center"),
        ({"interpolation": "lanczos"}, "interpolation must be bilinear or bicubic, got lanczos"),
        ({"mean": (0.5,)}, "expected 3 channels"),
    ],
)
def test_preprocessing_that_cannot_be_done_is_refused(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    make_timm_repo(tmp_path, **changes)
    with pytest.raises(InputError, match=words):
        load_served(tmp_path)


def test_a_config_that_contradicts_the_weights_is_refused(tmp_path: Path) -> None:
    make_timm_repo(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    for change, words in (
        ({"architecture": "resnet18"}, r"does not hold the weights of resnet18, which its config\.json names \("),
        ({"architecture": "nothing"}, "timm has no model nothing"),
        ({"label_names": ["a"]}, "names 1 of 5 classes"),
        ({"model_args": {"checkpoint_path": "/x"}}, "model_args must be img_size in pixels"),
        ({"num_classes": "many"}, "records many as num_classes, expected a number"),
    ):
        path.write_text(json.dumps(config | change))
        with pytest.raises(InputError, match=words):
            load_served(tmp_path)
    path.write_text("{")
    with pytest.raises(InputError, match=r"config\.json is damaged"):
        load_served(tmp_path)


@pytest.mark.parametrize(
    ("where", "status", "code", "words"),
    [
        (f"hf-hub:{REPO}", 401, "", "the hub has no model me/model, or it is private: .* log in: `hf auth login`"),
        (
            f"hf-hub:{REPO}",
            403,
            "GatedRepo",
            "me/model is gated: accept its conditions at https://huggingface.co/me/model",
        ),
        (f"hf-hub:{REPO}", 404, "RepoNotFound", "the hub has no model me/model"),
        (f"hf-hub:{REPO}@v9", 404, "RevisionNotFound", "me/model on the hub has no revision v9"),
        (f"hf-hub:{REPO}", 500, "", "me/model was not downloaded|cannot reach the hub"),
        ("hf-hub:me", None, "", "hf-hub:me is not a model on the hub: give hf-hub:OWNER/NAME"),
        ("hf-hub:me/..a", None, "", "hf-hub:me/..a is not a valid name of a model on the hub"),
    ],
)
def test_each_failure_is_one_line_without_the_token(
    hub: Hub, where: str, status: int | None, code: str, words: str
) -> None:
    hub.refusal, hub.error_code = status, code
    with pytest.raises(InputError, match=words) as refused:
        load_served(where)
    assert "\n" not in str(refused.value) and TOKEN not in str(refused.value)


def test_a_hub_out_of_reach_is_one_line(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(InputError, match="cannot reach the hub for me/model: check the network"):
        load_served(f"hf-hub:{REPO}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="me/model is not in the cache, and HF_HUB_OFFLINE is set: unset it"):
        load_served(f"hf-hub:{REPO}")


def test_a_model_in_the_cache_needs_no_network(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, hub.repos[f"models/{REPO}"] = make_timm_repo(tmp_path / "timm")
    first = load_served(f"hf-hub:{REPO}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert load_served(f"hf-hub:{REPO}").notes == first.notes


def test_what_does_not_exist_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nothing does not exist: give .*hf-hub:OWNER/NAME"):
        load_served(tmp_path / "nothing")
    with pytest.raises(InputError, match="holds no model: expected"):
        load_served(tmp_path)
    assert ARTIFACT == "artifact.json"
