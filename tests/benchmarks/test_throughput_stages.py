"""The tools of the stages: cold reads are cold, smaller files are those of preparation, closed stages are freed."""

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from weakref import WeakSet

import numpy as np
import pytest
from helpers.datasets import prepare_folder

from loaders import Split, TrainTransform, build_loader
from prep.dataset import Options


def part(name: str) -> Any:
    return importlib.import_module(name)


def test_a_dropped_file_is_out_of_memory_until_it_is_read(tmp_path: Path) -> None:
    page_cache = part("machine")
    path = tmp_path / "shard.tar"
    with path.open("wb") as file:
        file.write(os.urandom(1 << 20))
        os.fsync(file.fileno())
    assert page_cache.share_resident([path]) == 1
    page_cache.drop_from_cache([path])
    if page_cache.share_resident([path]) == 1:
        pytest.skip(f"{tmp_path} is kept in memory, as on tmpfs")
    assert page_cache.share_resident([path]) == 0
    path.read_bytes()
    assert page_cache.share_resident([path]) == 1


def test_reading_that_finds_the_shards_in_memory_is_not_called_cold(
    digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages = part("stages")
    monkeypatch.setattr(stages, "drop_from_cache", lambda _: None)
    for path in Split(digits, "train").shard_paths:
        path.read_bytes()
    loader = build_loader(Split(digits, "train"), TrainTransform(32), 16)
    with stages.open_stages("read", loader, stages.Setting(seconds=0.02)) as opened:
        assert [stage.name for stage in opened] == ["read warm"]


def test_cold_windows_read_no_image_twice(digits: Path) -> None:
    loader = build_loader(Split(digits, "train"), TrainTransform(32), 16)
    with part("stages").ColdReading(loader, 1e9) as cold:
        cold.calibrate(0.05)
        rows = np.concatenate([plan.rows_B for plan in cold.plans])
        assert cold.num_steps >= 1 and len(rows) == len(set(rows.tolist()))
    with part("stages").ColdReading(loader, 0) as cold:
        assert cold.most_steps == 1  # no room in memory: one batch


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Split]]:
    """scikit-learn's two photographs as shards, as they are and as preparation makes them smaller in two ways."""
    folder = tmp_path_factory.mktemp("photos")
    images = Path(str(importlib.import_module("sklearn.datasets").__file__)).parent / "images"
    for name in ("china", "flower"):
        (folder / "source" / "train" / name).mkdir(parents=True)
        (folder / "source" / "train" / name / f"{name}.jpg").write_bytes((images / f"{name}.jpg").read_bytes())
    prepare_folder(folder / "source", "train", folder / "original")
    prepare_folder(folder / "source", "train", folder / "smaller files", Options(max_side=500, quality=90))
    prepare_folder(folder / "source", "train", folder / "files of 256 px", Options(short_side=256, quality=90))
    yield {name: Split(folder / name, "train") for name in ("original", "smaller files", "files of 256 px")}


@pytest.mark.parametrize("name", ["smaller files", "files of 256 px"])
def test_files_made_smaller_in_memory_are_those_of_preparation(photos: dict[str, Split], name: str) -> None:
    stages, probes = part("stages"), part("probes")
    original, prepared = (build_loader(photos[each], TrainTransform(32), 2) for each in ("original", name))
    made = probes.shrink_batches(original, stages.hold_batches(original), name)
    (plan, encoded), (wanted_plan, wanted) = made[0], stages.hold_batches(prepared)[0]
    assert np.array_equal(plan.windows_B4, wanted_plan.windows_B4)
    for ours, theirs in zip(encoded.images, wanted.images, strict=True):
        assert np.array_equal(ours, theirs)
    with stages.Decoding(original, made) as stage:
        stage.take()  # windows are inside the smaller images


# Networks that are measured one after the other fit into the memory of one.


class Noted:
    """A stage in place of one with a network; `alive` has the stages that are still in memory."""

    def __init__(self, alive: "WeakSet[Noted]") -> None:
        assert not alive, "the stages before this one must be gone"
        alive.add(self)


def test_the_networks_of_a_probe_are_freed_before_the_next_one_opens(monkeypatch: pytest.MonkeyPatch) -> None:
    probes, alive, measured = part("probes"), WeakSet(), []

    def open_change(name: str, *_: Any) -> Any:
        return None if name == "impossible" else ([Noted(alive)], 8.0)

    def measure_ratios(pair: Any, seconds: float) -> tuple[float, float]:
        measured.append(seconds)
        return 1.5, 0.5

    monkeypatch.setattr(probes, "open_change", open_change)
    monkeypatch.setattr(probes, "measure_ratios", measure_ratios)
    setting = part("stages").Setting(seconds=4.0)
    found = probes.measure_probes(["first", "impossible", "last"], None, setting, lambda *_: None)
    assert found == dict.fromkeys(("first", "last"), part("verdict").Probe(1.5, 0.5, 8.0))
    assert measured == [2.0, 2.0] and not alive


def test_the_stages_are_freed_before_the_verdict_opens_others(digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command, stages, alive = part("throughput"), part("stages"), WeakSet()

    @contextmanager
    def open_stages(*_: Any) -> Iterator[list[Noted]]:
        yield [Noted(alive)]

    def build_verdict(*_: Any) -> dict[str, Any]:
        return {"num_alive": len(alive)}

    monkeypatch.setattr(stages, "open_stages", open_stages)
    monkeypatch.setattr(stages, "run_rounds", lambda opened, *_: {"as measured": len(opened)})
    monkeypatch.setattr(stages, "describe_stages", lambda windows, _: windows)
    monkeypatch.setattr(part("signs"), "measure_signs", lambda *_: [])
    monkeypatch.setattr(part("probes"), "build_verdict", build_verdict)
    loader = build_loader(Split(digits, "train"), TrainTransform(32), 16)
    record = command.measure_stages(stages.Setting(), loader, lambda *_: None)
    assert record["stages"] == {"as measured": 1} and record["verdict"] == {"num_alive": 0}
