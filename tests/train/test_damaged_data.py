"""Training and evaluation by two processes over damaged data: they continue and count, or both end and report why."""

import json
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from helpers.commands import CHECKOUT, free_port
from helpers.ranks import HUNG, Ranks

from loaders import Sampling, Split
from loaders.order import epoch_order
from train.checkpoint import list_checkpoints, read_meta

BATCH_SIZE = 40
FLAGS = [
    *("--epochs", "1"),
    *("--batch-size", str(BATCH_SIZE)),
    *("--transform.size", "16"),
    *("--evaluation.size", "16"),
    *("--evaluation.resize", "16"),
    *("--optim.warmup-epochs", "0.5"),
    *("--device", "cpu"),
]
PATIENCE = 120.0  # seconds


@dataclass(frozen=True)
class Damage:
    """A copy of the digits with zeros instead of one image in each split."""

    root: Path
    keys: dict[str, str]  # by split
    shards: dict[str, Path]


@pytest.fixture(scope="module")
def damage(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Damage:
    """The image of training is met by rank 1 alone, which saves nothing: rank 0 has to hear of it."""
    root = Path(shutil.copytree(digits, tmp_path_factory.mktemp("damage") / "digits"))
    train, validation = Split(root, "train"), Split(root, "validation")
    row = int(epoch_order(Sampling(), 0, len(train))[3 * BATCH_SIZE + BATCH_SIZE // 2 + 5])
    keys, shards = {}, {}
    for split, damaged in ((train, row), (validation, 200)):
        name = split.folder.name
        shard, offset, size = (int(split.column(column)[damaged]) for column in ("shard", "offset", "size"))
        keys[name], shards[name] = split.keys([damaged])[0], split.shard_paths[shard]
        with shards[name].open("r+b") as file:
            file.seek(offset)
            file.write(bytes(size))
    return Damage(root, keys, shards)


def _start(ranks: Ranks, size: int, folder: Path, *command: object) -> Path:
    """Start a script of the checkout as torchrun does, but without its care for what is left when one ends."""
    port = free_port()
    script, *arguments = map(str, command)
    return ranks.start("script", size, folder, script=str(CHECKOUT / script), arguments=arguments, port=port)


@pytest.fixture(scope="module")
def trained(ranks: Ranks, damage: Damage, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a run of two processes over it, and what they said on stderr."""
    folder = tmp_path_factory.mktemp("trained")
    run = folder / "run"
    command = ("train/main.py", "demo", "--data.root", damage.root, "--run.dir", run, *FLAGS)
    group = _start(ranks, 2, folder, *command)
    ended = ranks.wait(PATIENCE)
    assert [rank.status for rank in ended] == [0, 0], ended
    assert f"finished: {run} " in (group / "stdout-0").read_text()
    return run, "".join(rank.stderr for rank in ended)


def test_training_goes_on_to_its_end_and_its_checkpoint_names_the_image(
    trained: tuple[Path, str], damage: Damage
) -> None:
    run, said = trained
    meta = read_meta(list_checkpoints(run / "checkpoints")[-1])
    assert meta["clock"] >= 1437
    assert meta["loader"]["damaged"] == [damage.keys["train"]]
    for split in ("train", "validation"):
        where = f"{damage.keys[split]} in {damage.shards[split]} cannot be decoded: "
        assert 1 <= said.count(where) <= 2  # by the rank that met it, and by rank 0 when it heard of it
    assert "Traceback" not in said


def test_the_metrics_count_the_image(trained: tuple[Path, str]) -> None:
    entries = [json.loads(line) for line in (trained[0] / "metrics.jsonl").read_text().splitlines()]
    last = {entry["kind"]: entry for entry in entries}["validation"]
    assert (last["num_images"], last["num_damaged"]) == (360, 1)


def _evaluate(ranks: Ranks, run: Path, damage: Damage, folder: Path, size: int) -> dict[str, Any]:
    group = _start(ranks, size, folder, "train/evaluate.py", run, "--data", damage.root, "--device", "cpu")
    for ended in ranks.wait(PATIENCE):
        assert ended.status == 0, ended.stderr
    return json.loads((group / "stdout-0").read_text())


def test_evaluation_counts_the_image_whatever_the_number_of_processes(
    ranks: Ranks, trained: tuple[Path, str], damage: Damage, tmp_path: Path
) -> None:
    one, two = (_evaluate(ranks, trained[0], damage, tmp_path, size) for size in (1, 2))
    assert (one["num_processes"], two["num_processes"]) == (1, 2)
    for name in ("model", "ema"):
        for figure in ("num_images", "num_damaged", "num_top1", "num_top5"):
            assert one[name][figure] == two[name][figure]
        assert (one[name]["num_images"], one[name]["num_damaged"]) == (360, 1)
        assert two[name]["loss_sum"] == pytest.approx(one[name]["loss_sum"], rel=1e-6)


def _train(ranks: Ranks, data: Path, folder: Path, *flags: str) -> Path:
    """Start to train with two processes; the run's folder."""
    run = folder / "run"
    _start(ranks, 2, folder, "train/main.py", "demo", "--data.root", data, "--run.dir", run, *FLAGS, *flags)
    return run


def _assert_rank_1_says_why(ranks: Ranks, words: str) -> None:
    """Both ended by themselves, not well, and rank 1 with one line; rank 0 lost its connection to it."""
    ended = ranks.wait(PATIENCE)
    assert all(each.status not in (0, HUNG) and each.status > 0 for each in ended), ended
    complaints = [line for each in ended for line in each.stderr.splitlines() if line.startswith("error: ")]
    assert len(complaints) == 1, ended
    assert complaints[0].startswith(f"error: rank 1: {words}"), complaints
    assert "Traceback" not in ended[1].stderr


def test_more_damage_than_allowed_ends_both_with_one_line(ranks: Ranks, damage: Damage, tmp_path: Path) -> None:
    _train(ranks, damage.root, tmp_path, "--loader.most-damaged", "0")
    _assert_rank_1_says_why(ranks, f"cannot decode {damage.keys['train']} in {damage.shards['train']}: ")


def test_a_shard_that_shrinks_while_they_train_ends_both_with_one_line(
    ranks: Ranks, digits: Path, tmp_path: Path
) -> None:
    """The last image of validation is rank 1's: rank 0 cannot know what is wrong."""
    data = Path(shutil.copytree(digits, tmp_path / "digits"))
    split = Split(data, "validation")
    run, given_up = _train(ranks, data, tmp_path), time.monotonic() + PATIENCE
    while not (run / "recipe.json").exists():  # written once the splits are opened
        assert time.monotonic() < given_up, "it never began"
        time.sleep(0.01)
    path, last = split.shard_paths[1], len(split) - 1
    assert last % BATCH_SIZE >= BATCH_SIZE // 2
    os.truncate(path, int(split.column("offset")[last]) + 1)
    _assert_rank_1_says_why(ranks, f"{path} ends before its image {split.keys([last])[0]}: ")
