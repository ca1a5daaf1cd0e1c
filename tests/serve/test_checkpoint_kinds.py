"""Each trainer's checkpoint gives the weights that the table says, and names them, or is refused in one line."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import checkpoint_kinds as kinds
from helpers.checkpoint_kinds import NAME, NUM_CLASSES, SIZE, Pair, Write, make_network, prefixed, save
from torch import nn

from prep.errors import InputError
from serve.loading import BareOptions, load_served

SMALL = BareOptions(crop=SIZE)
RAW, AVERAGED = "raw", "averaged"

# What writes the checkpoint, which weights are taken, and what the notes say about them.
TAKEN: list[tuple[Write, str, str]] = [
    (kinds.plain, RAW, ""),
    (kinds.safetensors, RAW, ""),
    (kinds.safetensors_named_pth, RAW, ""),
    (kinds.old_format_without_counters, RAW, ""),
    (kinds.half_precision, RAW, ""),
    (kinds.tutorial, RAW, "weights: model_state_dict of w.pt"),
    (kinds.data_parallel, RAW, "weights: state_dict, prefix module. of"),
    (kinds.compiled, RAW, "prefix _orig_mod. of"),
    (kinds.compiled_then_distributed, RAW, "prefix module._orig_mod. of"),
    (kinds.distributed_then_compiled, RAW, "prefix _orig_mod.module. of"),
    (kinds.sharded_names, RAW, "weights: model, prefix _orig_mod._fsdp_wrapped_module. of"),
    (kinds.averaged_model, AVERAGED, "swa_model, prefix module. of w.pth; the file also holds model, not used"),
    (kinds.averaged_model_alone, AVERAGED, "weights: the tensors at the top, prefix module. of"),
    (kinds.average_not_started, RAW, "weights: model of w.pth; the file also holds swa.module, not used"),
    (kinds.timm_saver, AVERAGED, "state_dict_ema of model_best.pth.tar; the file also holds state_dict, not used"),
    (kinds.torchvision_references, AVERAGED, "model_ema, prefix module. of checkpoint.pth; the file also holds model"),
    (kinds.pytorch_examples, RAW, "weights: state_dict, prefix module. of model_best.pth.tar"),
    (kinds.numpy_and_paths, RAW, "weights: state_dict of"),
    (kinds.lightning, RAW, "weights: state_dict, prefix model. of last.ckpt"),
    (kinds.lightning_averaging, AVERAGED, "state_dict, prefix net. of w.ckpt; the file also holds current_model_state"),
    (kinds.lightning_swa, AVERAGED, "callbacks.StochasticWeightAveraging.average_model_state, prefix model. of"),
    (kinds.lightning_swa_not_started, RAW, "weights: state_dict, prefix model. of"),
    (kinds.lightning_ema_member, AVERAGED, "state_dict, prefix ema.module. of w.ckpt; the file also holds state_dict."),
    (kinds.composer, AVERAGED, "state.algorithms.0.1.ema_model, prefix model. of"),
    (kinds.mmengine, AVERAGED, "state_dict, prefix model. of epoch_1.pth; the file also holds ema_state_dict."),
    (kinds.fastai, RAW, "weights: model of m.pth"),
    (kinds.deepspeed, RAW, "weights: module of"),
    (kinds.accelerate, RAW, ""),
    (kinds.sharded_safetensors, RAW, ""),
    (kinds.huggingface_pickle, RAW, ""),
    (kinds.timm_wrapper, RAW, "prefix timm_model. of"),
    (kinds.ema_dictionary, AVERAGED, "ema_state_dict of w.pth; the file also holds model, not used"),
    (kinds.ema_without_statistics, RAW, "averaged weights in ema.shadow do not fit the network and were not used"),
    (kinds.ema_without_names, RAW, "averaged weights in ema.shadow_params do not fit the network and were not used"),
]


@pytest.fixture
def pair() -> Pair:
    return Pair(make_network(1), make_network(2))


def compute_logits(model: Any) -> torch.Tensor:
    images_BCHW = torch.linspace(-2, 2, 2 * 3 * SIZE * SIZE).reshape(2, 3, SIZE, SIZE)
    with torch.inference_mode():
        return model(images_BCHW)


@pytest.mark.parametrize(("write", "expected", "words"), TAKEN, ids=[each[0].__name__ for each in TAKEN])
def test_the_right_weights_are_taken_and_named(
    pair: Pair, tmp_path: Path, write: Write, expected: str, words: str
) -> None:
    served = load_served(write(pair, tmp_path), SMALL)
    assert torch.equal(compute_logits(served.model), compute_logits(getattr(pair, expected)))
    assert not torch.equal(compute_logits(pair.raw), compute_logits(pair.averaged))
    assert served.num_classes == NUM_CLASSES and words in " ".join(served.notes)
    assert served.name.startswith(NAME) and any(note.startswith("preprocessing: short side") for note in served.notes)
    # Without a note of a choice, the file holds nothing else.
    assert words or not any(note.startswith("weights:") for note in served.notes)


def two_different(pair: Pair, folder: Path) -> Path:
    return save({"best": pair.raw.state_dict(), "last": pair.averaged.state_dict()}, folder / "w.pth")


def two_averages(pair: Pair, folder: Path) -> Path:
    content = {"ema_0.99": pair.raw.state_dict(), "ema_0.9999": pair.averaged.state_dict()}
    return save({"model": pair.raw.state_dict(), **content}, folder / "w.pth")


def accelerate_of_two_models(pair: Pair, folder: Path) -> Path:
    kinds.accelerate(pair, folder)
    kinds.save_file(pair.averaged_weights, folder / "model_1.safetensors")
    return folder


def backbone_and_head(pair: Pair, folder: Path) -> Path:
    """mmpretrain's ImageClassifier: backbone. and head., laid out as its checkpoints."""
    weights = {
        f"{'head.' if name.startswith('fc.') else 'backbone.'}{name}": each for name, each in pair.raw_weights.items()
    }
    return save({"meta": {}, "state_dict": weights}, folder / "w.pth")


def layer_on_top(pair: Pair, folder: Path) -> Path:
    """A complete network with a layer after it: without that layer it would be another network."""
    weights = prefixed(pair.raw_weights, "model.") | {"classifier.weight": torch.ones(2, NUM_CLASSES)}
    return save({"state_dict": weights}, folder / "w.ckpt")


def module_inside(pair: Pair, folder: Path) -> Path:
    return save(pair.raw_weights | {"attention.weight": torch.ones(3)}, folder / "w.pth")


def parametrized(pair: Pair, folder: Path) -> Path:
    """torch.nn.utils.parametrizations: the stored tensor is not the weight that is used."""
    nn.utils.parametrizations.orthogonal(pair.raw.fc)
    return save(pair.raw.state_dict(), folder / "w.pth")


def integers(pair: Pair, folder: Path) -> Path:
    weights = {name: each.to(torch.int8) if each.ndim > 1 else each for name, each in pair.raw_weights.items()}
    return save(weights, folder / "w.pth")


def optimizer_only(pair: Pair, folder: Path) -> Path:
    """Moments by the names of parameters and buffers have the network's names and shapes, and are not its weights."""
    return save({"optimizer": {"exp_avg": pair.raw_weights}}, folder / "w.pth")


def whole_model(pair: Pair, folder: Path) -> Path:
    return save({"model": pair.raw}, folder / "w.pth")


def pickle_named_safetensors(pair: Pair, folder: Path) -> Path:
    return save(pair.raw.state_dict(), folder / "w.safetensors")


def distributed_checkpoint(pair: Pair, folder: Path) -> Path:
    (folder / ".metadata").write_bytes(b"")
    (folder / "__0_0.distcp").write_bytes(b"")
    return folder


def several_files(pair: Pair, folder: Path) -> Path:
    save(pair.raw.state_dict(), folder / "checkpoint-1.pth.tar")
    save(pair.averaged.state_dict(), folder / "checkpoint-2.pth.tar")
    return folder


def lost_shard(pair: Pair, folder: Path) -> Path:
    (kinds.sharded_safetensors(pair, folder) / "model-00001-of-00002.safetensors").unlink()
    return folder


def no_tensors(pair: Pair, folder: Path) -> Path:
    return save({"epoch": 3}, folder / "w.pth")


def lfs_pointer(pair: Pair, folder: Path) -> Path:
    (folder / "w.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
    return folder / "w.safetensors"


REFUSED: list[tuple[Write, str]] = [
    (two_different, r"different weights that fit equally, best and last: choose with --weights, e\.g\. --weights best"),
    (two_averages, r"fit equally, ema_0\.99 and ema_0\.9999: choose with --weights"),
    (accelerate_of_two_models, r"fit equally, model\.safetensors and model_1\.safetensors"),
    (backbone_and_head, r"holds the tensors of test_resnet under different prefixes, backbone\. and head\.: rename"),
    (layer_on_top, r"holds classifier\.weight next to state_dict\.model, which may be a part of the network"),
    (
        module_inside,
        r"holds all tensors of .* and others, unknown: attention\.weight: .* without them",
    ),
    (parametrized, r"fits no ResNet.*missing: fc\.weight"),
    (integers, r"fits no ResNet"),
    (optimizer_only, r"fits no ResNet.*none of its tensors fit"),
    (whole_model, r"holds more than tensors.*it needs the type timm\.models\.resnet\.ResNet, which is not allowed"),
    (pickle_named_safetensors, r"is a pickle of torch\.save, not safetensors: rename it to w\.pth"),
    (distributed_checkpoint, r"python -m torch\.distributed\.checkpoint\.format_utils dcp_to_torch .* FILE\.pth"),
    (several_files, r"holds checkpoint-1\.pth\.tar, checkpoint-2\.pth\.tar: give one of these files"),
    (lost_shard, r"names model-00001-of-00002\.safetensors, which are missing"),
    (no_tensors, r"holds no named tensors: save a network's state_dict\(\)"),
    (lfs_pointer, r"is a Git LFS pointer instead of the file: run `git lfs pull`"),
]


@pytest.mark.parametrize(("write", "words"), REFUSED, ids=[each[0].__name__ for each in REFUSED])
def test_what_is_not_clear_is_refused_in_one_line(pair: Pair, tmp_path: Path, write: Write, words: str) -> None:
    path = write(pair, tmp_path)
    with pytest.raises(InputError, match=words) as refused:
        load_served(path, SMALL)
    message = str(refused.value)
    assert "\n" not in message and "weights_only" not in message and "Check the documentation" not in message
    # Commands without these flags do not name them.
    with pytest.raises(InputError) as refused:
        load_served(path)
    assert not re.search(r"(set|choose with|remove) --", str(refused.value))


@pytest.mark.parametrize(("wanted", "expected"), [("best", RAW), ("last", AVERAGED)])
def test_the_user_chooses_among_equal_sets(pair: Pair, tmp_path: Path, wanted: str, expected: str) -> None:
    served = load_served(two_different(pair, tmp_path), BareOptions(crop=SIZE, weights=wanted))
    assert torch.equal(compute_logits(served.model), compute_logits(getattr(pair, expected)))
    other = load_served(kinds.timm_saver(pair, tmp_path), BareOptions(crop=SIZE, weights="state_dict"))
    assert torch.equal(compute_logits(other.model), compute_logits(pair.raw))
    with pytest.raises(InputError, match="--weights nothing"):
        load_served(tmp_path / "w.pth", BareOptions(weights="nothing"))
    with pytest.raises(InputError, match=r"--weights nothing: expected one of .*, found: best, last"):
        load_served(tmp_path / "w.pth", BareOptions(model=NAME, weights="nothing"))


def test_a_part_that_the_user_excludes_is_left_out(pair: Pair, tmp_path: Path) -> None:
    served = load_served(layer_on_top(pair, tmp_path), BareOptions(crop=SIZE, weights="state_dict.model"))
    assert torch.equal(compute_logits(served.model), compute_logits(pair.raw))


def test_equal_sets_need_no_choice(pair: Pair, tmp_path: Path) -> None:
    path = save({"best": pair.raw.state_dict(), "last": pair.raw.state_dict()}, tmp_path / "w.pth")
    assert torch.equal(compute_logits(load_served(path).model), compute_logits(pair.raw))


def test_another_number_of_classes_is_one_line(pair: Pair, tmp_path: Path) -> None:
    path = kinds.plain(pair, tmp_path)
    for model in (None, NAME):
        with pytest.raises(InputError, match=r"has 5 classes, expected 7: set --num_classes 5"):
            load_served(path, BareOptions(model=model, num_classes=7))
    with pytest.raises(InputError, match=r"does not fit the network resnet18 \(missing: .*\): set --model to the arch"):
        load_served(path, BareOptions(model="resnet18"))
