"""`build` and its loader used in ways that cannot work: one line each, and nothing read wrongly or lost."""

import copy
import pickle
import sys
import threading
import types
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from torchvision import transforms

from loaders import AugmentConfig, Epochs, EvalTransform, TrainTransform, build
from prep.errors import InputError

TRAIN = TrainTransform(size=16)
Build = Callable[..., Epochs]


@pytest.fixture
def make(digits: Path) -> Iterator[Build]:
    """`build` for the training digits with some arguments replaced; all loaders are closed in the end."""
    made: list[Epochs] = []

    def make(**changes: Any) -> Epochs:
        usual = {"root": digits, "split": "train", "batch_size": 100, "transform": TRAIN, "backend": "reference"}
        made.append(build(**usual | changes))
        return made[-1]

    yield make
    for loader in made:
        loader.close()


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"transform": transforms.Compose([])}, "must be a TrainTransform or an EvalTransform, got a Compose"),
    ({"transform": TrainTransform}, "got the class TrainTransform itself"),
    ({"transform": "train"}, "got a str"),
    ({"transform": TrainTransform(size=0)}, "size must be a whole number of at least 1 pixel, got 0"),
    ({"transform": EvalTransform(size=224.0)}, "size must be a whole number of at least 1 pixel, got 224.0"),  # type: ignore[arg-type]
    ({"transform": EvalTransform(16, (32, 32))}, "resize must be a whole number"),  # type: ignore[arg-type]
    ({"transform": TrainTransform(16, scale=(8, 100))}, "scale must be two shares of an image's area"),
    ({"transform": TrainTransform(16, scale=(1.0, 0.08))}, "the smaller one first"),
    ({"transform": TrainTransform(16, scale=0.08)}, "scale must be two shares"),  # type: ignore[arg-type]
    ({"transform": TrainTransform(16, ratio=(0, 1))}, "ratio must be two ratios"),
    ({"transform": TrainTransform(16, hflip=50)}, "hflip must be a probability from 0 to 1, got 50"),
    ({"transform": TrainTransform(16, augment="rand")}, r"for example AugmentConfig\('rand'\)"),  # type: ignore[arg-type]
    ({"batch_size": 0}, "batch_size must be a whole number of at least 1, got 0"),
    ({"batch_size": -1}, "got -1"),
    ({"batch_size": 32.0}, r"got 32\.0"),
    ({"batch_size": "32"}, "got '32'"),
    ({"batch_size": True}, "got True"),
    ({"batch_size": None}, "got None"),
    ({"dtype": torch.float64}, r"must be one of uint8, fp32, fp16, bf16, got torch\.float64"),
    ({"dtype": None}, "must be one of uint8, fp32, fp16, bf16, got None"),
    ({"device": "gpu"}, "unknown device gpu: choose auto, cpu, cuda or cuda:N"),
    ({"device": torch.device("meta")}, "unknown device meta"),
    ({"num_worker": 4}, "build has no option num_worker: choose from seed"),
    ({"num_thread": 4}, r"build has no option num_thread: did you mean num_threads\?"),
    ({"shuffle": True}, "build has no option shuffle"),
    ({"seed": "3"}, "seed must be a whole number, got '3'"),
    ({"seed": 1.0}, r"seed must be a whole number, got 1\.0"),
    ({"num_threads": 1.5}, r"num_threads must be a whole number, got 1\.5"),
    ({"pin_threads": 1}, "pin_threads must be True or False, got 1"),
    ({"hw_decoder_load": "all"}, "hw_decoder_load must be a number, got 'all'"),
    ({"backend": None}, "backend must be a string, got None"),
    ({"tuned": 3}, "tuned must be a path, got 3"),
    ({"rank": 0}, "rank= and world_size= must be given together, as whole numbers"),
    ({"rank": 2, "world_size": 2}, "less than world_size=, got rank 2 of 2"),
    ({"root": None}, "root and split must be a folder and the name of a folder in it, got None"),
    ({"split": None}, "and None"),
    ({"split": ""}, "and ''"),
    ({"split": "nowhere"}, "nowhere"),
    ({"root": __file__}, "is a file: pass its folder"),
    # By its name alone a split of training would be shown in order, and not augmented.
    ({"split": "training", "transform": None}, r"pass transform=TrainTransform\(\) or EvalTransform\(\)"),
]


@pytest.mark.parametrize(("changes", "line"), REFUSED, ids=[str(changes)[:50] for changes, _ in REFUSED])
def test_an_argument_that_cannot_be_used_is_one_line(changes: dict[str, Any], line: str, make: Build) -> None:
    with pytest.raises(InputError, match=line) as refusal:
        make(**changes)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"device": torch.device("cpu")},
        {"dtype": torch.float16},
        {"dtype": torch.uint8},
        {"batch_size": np.int64(100)},
        {"seed": np.int64(3)},
        {"hw_decoder_load": 1},
        {"transform": TrainTransform(16, augment=AugmentConfig("rand"), hflip=1)},
        {"rank": 1, "world_size": 2, "batch_size": 50},
    ],
    ids=str,
)
def test_what_users_expect_to_work_works(changes: dict[str, Any], make: Build, tmp_path: Path) -> None:
    loader = make(**changes)
    images, labels = next(iter(loader))
    assert len(images) == len(labels) == len(loader.loader.slots)
    assert not isinstance(changes.get("dtype"), torch.dtype) or images.dtype == changes["dtype"]
    torch.save(loader.state_dict(), tmp_path / "state")
    make(**changes).load_state_dict(torch.load(tmp_path / "state", weights_only=True))


def test_a_state_that_is_none_is_one_line_that_says_what_to_give(make: Build) -> None:
    loader = make()
    state = loader.state_dict()
    wrong: dict[str, Any] = {
        "got a NoneType: load the file first": None,
        "got a PosixPath: load the file first": Path("loader.pt"),
        "got a list": [state],
        "no dataset, seed, order, position, damaged: it has nothing": {},
        "it has model, optimizer": {"model": {}, "optimizer": {}},
        "pass its entry 'loader'": {"model": {}, "loader": state},
        "this one has no position: it has": {name: value for name, value in state.items() if name != "position"},
        "its position is -1": {**state, "position": -1},
        "its position is 1.5": {**state, "position": 1.5},
        f"its position is {10**30}": {**state, "position": 10**30},
        "its damaged is 'abc'": {**state, "damaged": "abc"},
        "has no image abc": {**state, "damaged": ["abc"]},
        "belongs to seed 7, but": {**state, "seed": 7, "position": 500},
    }
    for line, each in wrong.items():
        with pytest.raises(InputError) as refusal:
            loader.load_state_dict(each)
        assert line in str(refusal.value) and "\n" not in str(refusal.value)
        assert loader.state_dict() == state  # nothing of it was taken over
    loader.load_state_dict({"model": {}, "loader": state}["loader"])


@pytest.mark.parametrize("send", [pickle.dumps, copy.deepcopy])
def test_a_loader_is_not_sent_to_another_process(send: Callable[[Epochs], object], make: Build) -> None:
    with pytest.raises(InputError, match=r"build it there \(inside the function that mp.spawn starts\)"):
        send(make())


def test_spawned_workers_of_a_dataloader_are_refused_too(make: Build) -> None:
    """`test_loader_adapter.py` has forked ones."""
    with pytest.raises(InputError, match="num_workers=0"):
        list(DataLoader(make(), batch_size=None, num_workers=1, multiprocessing_context="spawn"))


def test_a_forked_process_does_not_use_its_parents_loader(make: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    loader = make()
    monkeypatch.setattr("os.getpid", lambda: -1)
    with pytest.raises(InputError, match="before its process was forked: build it in the process that uses it"):
        iter(loader)
    next(iter(make()))


ACCELERATE = """
class DataLoaderDispatcher:
    def __init__(self, dataset): self.dataset = dataset
    def __iter__(self): yield from DataLoader(self.dataset, batch_size=None)
class DataLoaderShard(DataLoaderDispatcher): pass
"""


def test_what_splits_one_ranks_batches_is_refused(make: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here by a stand-in; `test_launchers.py` has the real Accelerate."""
    module = types.ModuleType("accelerate.data_loader")
    module.__dict__["DataLoader"] = DataLoader
    exec(ACCELERATE, module.__dict__)
    for each in (types.ModuleType("accelerate"), module):
        monkeypatch.setitem(sys.modules, each.__name__, each)
    part = make(rank=0, world_size=2, batch_size=50)
    with pytest.raises(InputError, match="pass the loader itself to `prepare`"):
        next(iter(module.DataLoaderDispatcher(part)))
    next(iter(module.DataLoaderShard(part)))  # it hands on what this rank has
    next(iter(module.DataLoaderDispatcher(make(rank=0, world_size=1))))  # nothing is lost: rank 0 has all images
    next(iter(part))


def labels_of(batches: Iterator[tuple[torch.Tensor, torch.Tensor]]) -> list[list[int]]:
    return [labels.tolist() for _, labels in batches]


def test_threads_share_an_epoch_and_lose_no_batch(make: Build) -> None:
    alone, loader, taken, failed = make(), make(), [], []

    def take() -> None:
        try:
            taken.extend(labels_of(iter(loader)))
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert sorted(taken) == sorted(labels for _ in threads for labels in labels_of(iter(alone)))


def test_iterators_that_are_left_or_closed_half_way_lose_no_batch(make: Build) -> None:
    alone, loader = make(), make()
    whole = labels_of(islice((pair for _ in range(2) for pair in alone), 20))
    first, second = iter(loader), iter(loader)
    taken = labels_of(iter([next(first), next(second), next(first)]))
    loader.close()
    taken += labels_of(iter([next(first)]))
    del first
    taken += labels_of(islice(loader, 5))
    loader.close()
    taken += labels_of(islice(loader, 11))
    assert taken == whole
    assert len(DataLoader(loader, batch_size=None)) == len(loader) == 14


def test_after_an_error_the_same_loader_continues_at_the_batch_that_failed(make: Build, digits_copy: Path) -> None:
    whole = labels_of(islice(make(root=digits_copy, split="validation", batch_size=60), 3))
    loader = make(root=digits_copy, split="validation", batch_size=60)
    shard = loader.loader.split.shard_paths[0]
    away = shard.rename(shard.with_suffix(".away"))
    for _ in range(2):
        with pytest.raises(InputError, match=shard.name):
            next(iter(loader))
    away.rename(shard)
    assert labels_of(islice(loader, 3)) == whole
