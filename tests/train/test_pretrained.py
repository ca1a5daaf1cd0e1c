"""--model.pretrained: timm's weights by tag, from a hub on this machine and from the cache; offline it is one line."""

import copy
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import timm
import torch
from helpers.hub_server import Hub, run_hub
from helpers.starts import change_model, first_checkpoint, newest_checkpoint, read_starts, refuse, small_recipe
from safetensors.torch import load_file, save

from loaders import World
from train import pretrained
from train.arguments import parse_command
from train.checkpoint import EMA, MODEL
from train.fit import fit
from train.pretrained import convert_file, describe_conversion, list_tags, resolve_tag

NAME, TAG = "test_resnet", "r160_in1k"
REPO = f"models/timm/{NAME}.{TAG}"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with timm's weights of one tag, whose numbers are random, and an empty cache."""
    constants = huggingface_hub.constants
    with run_hub() as hub:
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, hub.address)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "ENDPOINT", hub.address)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        hub.repos[REPO] = {"model.safetensors": save(make_published())}
        yield hub


def make_published() -> dict[str, torch.Tensor]:
    torch.manual_seed(11)
    return timm.create_model(NAME).state_dict()


def test_published_weights_come_from_the_hub_once_and_are_recorded(
    hub: Hub, digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs, content = make_published(), hub.repos[REPO]["model.safetensors"]
    recipe = small_recipe(digits, tmp_path / "run", pretrained=TAG)
    assert fit(recipe, World())
    out = capsys.readouterr().out
    assert f"weights of {NAME}.{TAG} ({tmp_path / 'cache'}" in out
    assert "a new classifier; 1,000 classes there, 10 here; trained on images normalized with --model.mean 0.5" in out
    for name in (MODEL, EMA):
        ours = load_file(first_checkpoint(recipe) / name)
        assert {key for key in ours if not torch.equal(ours[key], theirs[key])} == {"fc.weight", "fc.bias"}

    # The cache serves the next run, also under timm's default; a resumed run needs neither of them.
    hub.refusal = 404
    other = small_recipe(digits, tmp_path / "other", pretrained="default")
    assert fit(other, World())
    assert (newest_checkpoint(other) / MODEL).read_bytes() == (newest_checkpoint(recipe) / MODEL).read_bytes()
    for path in (tmp_path / "cache").rglob("*.safetensors"):
        path.unlink()
    assert fit(recipe, World())
    digest = hashlib.sha256(content).hexdigest()
    assert [entry["origin"]["files"] for entry in read_starts(recipe)] == [{"model.safetensors": digest}] * 2
    assert "the hub cannot be reached for them" in refuse(small_recipe(digits, tmp_path / "new", pretrained=TAG))


@pytest.mark.parametrize("offline", [True, False], ids=["HF_HUB_OFFLINE", "no network"])
def test_without_the_hub_one_line_says_what_to_do(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offline: bool
) -> None:
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nothing listens there
    line = refuse(small_recipe(digits, tmp_path / "run", pretrained=TAG))
    assert line.startswith(f"the weights {NAME}.{TAG} are not in the local cache, and the hub cannot be reached")
    assert line.endswith("check the network, or download them elsewhere and give --model.init FILE")


def test_weights_that_are_not_on_the_hub_are_downloaded_from_their_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def download(url: str, path: str, progress: bool) -> None:
        calls.append(url)
        Path(path).write_bytes(b"weights")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    for _ in range(2):
        path = pretrained.fetch_weights("gcvit_xxtiny", "in1k")
        assert path.read_bytes() == b"weights" and path.parent == tmp_path / "checkpoints"
    assert calls == [timm.get_pretrained_cfg("gcvit_xxtiny.in1k").url]  # pyright: ignore[reportOptionalMemberAccess]


def test_an_unknown_tag_lists_those_that_timm_knows(digits: Path, tmp_path: Path) -> None:
    recipe = small_recipe(digits, tmp_path / "run", name="resnet50", pretrained="a1in1k")
    line = refuse(recipe)
    assert line.startswith(
        "timm has no weights a1in1k for resnet50 (did you mean a1_in1k?): give --model.pretrained one of"
    )
    assert all(tag in line for tag in list_tags("resnet50")) and len(list_tags("resnet50")) > 10
    assert resolve_tag("resnet50", "default") == "a1_in1k"
    none = next(name for name in timm.list_models() if not timm.is_model_pretrained(name))
    assert f"timm has no weights for {none}: give --model.init FILE" in refuse(change_model(recipe, name=none))


def test_the_command_lines_weights_replace_those_of_the_recipe() -> None:
    assert parse_command(["finetune"]).recipe.model.pretrained == "default"
    for flags in (["--model.init", "x"], ["--run.from=x"]):
        assert parse_command(["finetune", *flags]).recipe.model.pretrained == ""
    assert parse_command(["finetune", "--model.init", "None"]).recipe.model.pretrained == "default"
    both = parse_command(["finetune", "--model.init", "x", "--model.pretrained", "a1_in1k"]).recipe.model
    assert both.pretrained == "a1_in1k" and both.init == Path("x")
    assert parse_command(["finetune", "--run.from-head", "new"]).recipe.model.pretrained == "default"


def test_a_conversion_leaves_nothing_random_even_where_timm_is_lenient() -> None:
    """timm itself loads Inception v3 from a file without one of its tensors, and says nothing to the caller."""
    model: Any = timm.create_model("inception_v3", aux_logits=True, num_classes=5)
    weights = model.state_dict()
    converted = convert_file("inception_v3", 5, {}, weights)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in converted.items())
    dropped = len([name for name in weights.keys() - converted.keys() if not name.endswith("num_batches_tracked")])
    assert describe_conversion(weights, converted) == (f"timm left out {dropped} tensors",)
    del weights["Mixed_5b.branch1x1.bn.bias"]
    with pytest.raises(RuntimeError, match=r"missing: Mixed_5b\.branch1x1\.bn\.bias"):
        convert_file("inception_v3", 5, {}, weights)


def test_a_conversion_draws_no_random_number_of_the_run() -> None:
    weights = make_published()
    before = torch.get_rng_state()
    kept = copy.deepcopy(weights)
    convert_file(NAME, 1000, {}, weights)
    assert torch.equal(torch.get_rng_state(), before)
    assert weights.keys() == kept.keys() and all(torch.equal(weights[name], kept[name]) for name in kept)
