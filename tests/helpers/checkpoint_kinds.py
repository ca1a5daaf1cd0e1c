"""Checkpoints as trainers write them: the library itself where it is installed, else laid out as its source does.

Each function writes the weights of `Pair` into a folder and returns what a user gives to --checkpoint_path.
"""

import argparse
import collections
import json
import pathlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from safetensors.torch import save_file
from timm.utils import CheckpointSaver, ModelEmaV3
from torch import nn
from torch.distributed.fsdp._common_utils import FSDP_PREFIX
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

NAME, NUM_CLASSES, SIZE = "test_resnet", 5, 32
Weights = dict[str, torch.Tensor]
Write = Callable[["Pair", Path], Path]


def make_network(seed: int, name: str = NAME, num_classes: int = NUM_CLASSES) -> Any:
    """Return a network with random weights and statistics, in evaluation mode."""
    torch.manual_seed(seed)
    model = timm.create_model(name, num_classes=num_classes)
    for buffer_name, buffer in model.named_buffers():
        if "running" in buffer_name:
            buffer.uniform_(0.5, 1.5)
    return model.eval()


@dataclass(frozen=True)
class Pair:
    """The last weights of a training and their average."""

    raw: Any
    averaged: Any

    @property
    def raw_weights(self) -> Weights:
        return dict(self.raw.state_dict())

    @property
    def averaged_weights(self) -> Weights:
        return dict(self.averaged.state_dict())

    def optimizer(self) -> dict[str, Any]:
        """Return the state of an optimizer after a step, which has tensors of the network's shapes."""
        optimizer = torch.optim.Adam(self.raw.parameters(), 0.0)
        for parameter in self.raw.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        optimizer.zero_grad()
        return optimizer.state_dict()


def prefixed(weights: Weights, prefix: str) -> Weights:
    return {f"{prefix}{name}": tensor for name, tensor in weights.items()}


def save(content: Any, path: Path) -> Path:
    torch.save(content, path)
    return path


@contextmanager
def process_group() -> Iterator[None]:
    """One process as a group of its own, which DistributedDataParallel needs."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


# torch


def plain(pair: Pair, folder: Path) -> Path:
    return save(pair.raw.state_dict(), folder / "w.pth")


def safetensors(pair: Pair, folder: Path) -> Path:
    save_file(pair.raw_weights, folder / "w.safetensors")
    return folder / "w.safetensors"


def safetensors_named_pth(pair: Pair, folder: Path) -> Path:
    return safetensors(pair, folder).rename(folder / "w.pth")


def old_format_without_counters(pair: Pair, folder: Path) -> Path:
    weights = {name: each for name, each in pair.raw_weights.items() if "num_batches" not in name}
    torch.save(weights, folder / "w.pth", _use_new_zipfile_serialization=False)
    return folder / "w.pth"


def half_precision(pair: Pair, folder: Path) -> Path:
    # The test's expectation is rounded too: its network has weights that half precision can hold.
    for tensor in pair.raw.state_dict().values():
        tensor.copy_(tensor.half() if tensor.is_floating_point() else tensor)
    return save(
        {name: each.half() if each.is_floating_point() else each for name, each in pair.raw_weights.items()},
        folder / "w.pth",
    )


def tutorial(pair: Pair, folder: Path) -> Path:
    """pytorch.org/tutorials/recipes/recipes/saving_and_loading_a_general_checkpoint.html."""
    content = {"epoch": 5, "model_state_dict": pair.raw.state_dict(), "loss": torch.tensor(0.4)}
    return save(content | {"optimizer_state_dict": pair.optimizer()}, folder / "w.pt")


def data_parallel(pair: Pair, folder: Path) -> Path:
    return save({"state_dict": nn.DataParallel(pair.raw).state_dict()}, folder / "w.pth")


def compiled(pair: Pair, folder: Path) -> Path:
    wrapped: Any = torch.compile(pair.raw)
    return save(wrapped.state_dict(), folder / "w.pth")


def compiled_then_distributed(pair: Pair, folder: Path) -> Path:
    with process_group():
        return save(DistributedDataParallel(torch.compile(pair.raw)).state_dict(), folder / "w.pth")  # pyright: ignore


def distributed_then_compiled(pair: Pair, folder: Path) -> Path:
    with process_group():
        wrapped: Any = torch.compile(DistributedDataParallel(pair.raw))
        return save(wrapped.state_dict(), folder / "w.pth")


def sharded_names(pair: Pair, folder: Path) -> Path:
    """FSDP around the network and each stage, with torch's own prefix, inside of torch.compile."""
    names = {name: name.replace("layer1.", f"layer1.{FSDP_PREFIX}") for name in pair.raw_weights}
    weights = {f"_orig_mod.{FSDP_PREFIX}{names[name]}": tensor for name, tensor in pair.raw_weights.items()}
    return save({"model": weights}, folder / "w.pth")


def averaged_model(pair: Pair, folder: Path) -> Path:
    averaged = AveragedModel(pair.averaged, use_buffers=True)
    averaged.update_parameters(pair.averaged)
    return save({"model": pair.raw.state_dict(), "swa_model": averaged.state_dict()}, folder / "w.pth")


def averaged_model_alone(pair: Pair, folder: Path) -> Path:
    averaged = AveragedModel(pair.averaged, use_buffers=True)
    averaged.update_parameters(pair.averaged)
    return save(averaged.state_dict(), folder / "w.pth")


def average_not_started(pair: Pair, folder: Path) -> Path:
    return save({"model": pair.raw.state_dict(), "swa": AveragedModel(pair.averaged).state_dict()}, folder / "w.pth")


# Trainers


def timm_saver(pair: Pair, folder: Path) -> Path:
    ema = ModelEmaV3(pair.averaged)
    args = argparse.Namespace(model=NAME, lr=np.float64(0.1), output=pathlib.Path("out"))
    saver = CheckpointSaver(
        pair.raw,
        torch.optim.SGD(pair.raw.parameters(), 0.1),
        args,
        ema,
        checkpoint_dir=str(folder),
        recovery_dir=str(folder),
    )
    saver.save_checkpoint(3, metric=70.0)
    return folder / "model_best.pth.tar"


def torchvision_references(pair: Pair, folder: Path) -> Path:
    """references/classification/train.py; its ExponentialMovingAverage is torch's AveragedModel."""
    averaged = AveragedModel(pair.averaged, use_buffers=True)
    averaged.update_parameters(pair.averaged)
    content = {"model": pair.raw.state_dict(), "optimizer": pair.optimizer(), "lr_scheduler": {"last_epoch": 3}}
    args = argparse.Namespace(model=NAME, val_resize_size=36, val_crop_size=SIZE, interpolation="bicubic")
    return save({**content, "epoch": 3, "args": args, "model_ema": averaged.state_dict()}, folder / "checkpoint.pth")


def pytorch_examples(pair: Pair, folder: Path) -> Path:
    """imagenet/main.py of pytorch/examples, save_checkpoint."""
    weights = nn.DataParallel(pair.raw).state_dict()
    content = {"epoch": 9, "arch": NAME, "state_dict": weights, "best_acc1": torch.tensor(71.5)}
    content |= {"optimizer": pair.optimizer(), "scheduler": {"base_lrs": [0.1]}}
    return save(content, folder / "model_best.pth.tar")


def numpy_and_paths(pair: Pair, folder: Path) -> Path:
    """Values that trainers add: NumPy scalars and arrays, paths, defaultdicts, sizes, types."""
    log: dict[str, list[float]] = collections.defaultdict(list)
    log["loss"].append(0.5)
    extras = {"best": np.float32(0.7), "curve": np.arange(3), "dir": pathlib.Path("runs"), "log": log}
    extras |= {"size": torch.Size([3]), "dtype": torch.float16, "device": torch.device("cuda:0")}
    return save({"state_dict": collections.OrderedDict(pair.raw_weights), **extras}, folder / "w.pth.tar")


def lightning(pair: Pair, folder: Path) -> Path:
    """CheckpointConnector.dump_checkpoint, of a module with `self.model` and a criterion that has weights."""
    weights = prefixed(pair.raw_weights, "model.") | {"loss_fn.weight": torch.ones(NUM_CLASSES)}
    content = {"epoch": 1, "global_step": 9, "pytorch-lightning_version": "2.5.0", "state_dict": weights, "loops": {}}
    content |= {"callbacks": {"ModelCheckpoint": {"best_model_score": torch.tensor(0.7), "dirpath": "x"}}}
    return save(content | {"optimizer_states": [pair.optimizer()], "lr_schedulers": []}, folder / "last.ckpt")


def lightning_averaging(pair: Pair, folder: Path) -> Path:
    """WeightAveraging.on_save_checkpoint: the average is in state_dict."""
    content: dict[str, Any] = {"state_dict": prefixed(pair.averaged_weights, "net.")}
    content |= {"current_model_state": prefixed(pair.raw_weights, "net.")}
    return save(content | {"averaging_state": {"n_averaged": torch.tensor(4)}}, folder / "w.ckpt")


def lightning_swa(pair: Pair, folder: Path, count: int = 2) -> Path:
    """StochasticWeightAveraging.state_dict, in the state of callbacks."""
    callback = {"n_averaged": count, "average_model_state": prefixed(pair.averaged_weights, "model.")}
    content = {"state_dict": prefixed(pair.raw_weights, "model."), "callbacks": {"StochasticWeightAveraging": callback}}
    return save(content, folder / "w.ckpt")


def lightning_swa_not_started(pair: Pair, folder: Path) -> Path:
    return lightning_swa(pair, folder, count=0)


def lightning_ema_member(pair: Pair, folder: Path) -> Path:
    """A module with `self.net` and `self.ema = AveragedModel(self.net)`: both are in one dictionary."""
    averaged = prefixed(pair.averaged_weights, "ema.module.") | {"ema.n_averaged": torch.tensor(3)}
    return save({"state_dict": prefixed(pair.raw_weights, "net.") | averaged}, folder / "w.ckpt")


def composer(pair: Pair, folder: Path) -> Path:
    """State.state_dict and EMA.state_dict: the algorithms are tuples of name and state."""
    ema = {"ema_model": prefixed(pair.averaged_weights, "model."), "ema_started": True}
    ema |= {"training_model": prefixed(pair.raw_weights, "model."), "ema_weights_active": True}
    state = {"model": prefixed(pair.averaged_weights, "model."), "algorithms": [("EMA", ema)], "run_name": "r"}
    return save({"state": state, "rng": [{"torch": torch.zeros(3)}]}, folder / "ep1.pt")


def mmengine(pair: Pair, folder: Path) -> Path:
    """EMAHook._swap_ema_state_dict: state_dict holds the average, ema_state_dict the last weights."""
    last = prefixed(pair.raw_weights, "module.model.") | {"steps": torch.tensor(8)}
    content = {"meta": {"mmengine_version": "0.10.4"}, "state_dict": prefixed(pair.averaged_weights, "model.")}
    return save({**content, "message_hub": {"log_scalars": {}}, "ema_state_dict": last}, folder / "epoch_1.pth")


def fastai(pair: Pair, folder: Path) -> Path:
    """Learner.save: {'model': …, 'opt': …}."""
    return save({"model": pair.raw.state_dict(), "opt": {"state": [], "hypers": [{"lr": 0.1}]}}, folder / "m.pth")


def deepspeed(pair: Pair, folder: Path) -> Path:
    """DeepSpeedEngine._save_checkpoint without partitioned weights: `module`."""
    return save({"module": pair.raw.state_dict(), "dp_world_size": 1, "optimizer": None}, folder / "mp_rank_00.pt")


def accelerate(pair: Pair, folder: Path) -> Path:
    """Accelerator.save_state."""
    save_file(pair.raw_weights, folder / "model.safetensors")
    save(pair.optimizer(), folder / "optimizer.bin")
    (folder / "random_states_0.pkl").write_bytes(b"x")
    return folder


def sharded_safetensors(pair: Pair, folder: Path) -> Path:
    """save_pretrained of huggingface_hub and transformers, with an index."""
    names = list(pair.raw_weights)
    places = {name: f"model-0000{1 + number % 2}-of-00002.safetensors" for number, name in enumerate(names)}
    for file in set(places.values()):
        save_file({name: pair.raw_weights[name] for name in names if places[name] == file}, folder / file)
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def huggingface_pickle(pair: Pair, folder: Path) -> Path:
    save(pair.raw.state_dict(), folder / "pytorch_model.bin")
    (folder / "config.json").write_text(json.dumps({"architectures": ["ResNetForImageClassification"]}))
    return folder


def timm_wrapper(pair: Pair, folder: Path) -> Path:
    """TimmWrapperForImageClassification of transformers: names begin with timm_model."""
    save_file(prefixed(pair.raw_weights, "timm_model."), folder / "model.safetensors", {"format": "pt"})
    config = {"architecture": NAME, "num_classes": NUM_CLASSES, "pretrained_cfg": {"input_size": [3, SIZE, SIZE]}}
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "timm_wrapper"}))
    return folder


def ema_dictionary(pair: Pair, folder: Path) -> Path:
    return save({"model": pair.raw.state_dict(), "ema_state_dict": pair.averaged.state_dict()}, folder / "w.pth")


def ema_without_statistics(pair: Pair, folder: Path) -> Path:
    """The usual small EMA class: a `shadow` of the parameters alone."""
    shadow = {name: each.detach() for name, each in pair.averaged.named_parameters()}
    return save({"model": pair.raw.state_dict(), "ema": {"decay": 0.99, "shadow": shadow}}, folder / "w.pth")


def ema_without_names(pair: Pair, folder: Path) -> Path:
    """torch_ema.ExponentialMovingAverage.state_dict: a list."""
    shadow = [each.detach() for each in pair.averaged.parameters()]
    return save({"model": pair.raw.state_dict(), "ema": {"shadow_params": shadow}}, folder / "w.pth")
