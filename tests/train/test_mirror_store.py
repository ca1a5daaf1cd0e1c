"""What is in the bucket: a checkpoint counts when all of it is there, and of two writers the later one."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers.ctrl_c import press_while_reading
from helpers.mirror_runs import FILES, URL, Bucket
from helpers.train_runs import small_state

from prep.errors import InputError
from train import mirror_fetch
from train.checkpoint import prune, take_snapshot, write_checkpoint
from train.config import Recipe, complete
from train.mirror_fetch import fetch_newest
from train.mirror_store import RunStore, Stored, TakenOverError
from train.recipe import demo

KEEP = 2


class Machine:
    """A run folder and its claim; what the trainer does, without training."""

    def __init__(self, folder: Path, clock: int = 0, seed: int = 0) -> None:
        self.folder, self.store, self.state = folder, RunStore(URL), small_state(seed)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.log(0)
        self.claim = self.store.take(clock, None)

    def log(self, clock: int) -> None:
        """Write metrics.jsonl up to a clock, and starts.jsonl."""
        (self.folder / "metrics.jsonl").write_text("".join(f'{{"clock": {each}}}\n' for each in range(0, clock, 100)))
        (self.folder / "starts.jsonl").write_text('{"date": "today"}\n')

    def write(self, clock: int, **metrics: float) -> Path:
        """Write a checkpoint into the folder."""
        self.state.clock = clock
        self.log(clock)
        facts = {"metrics": metrics, "recipe": demo().to_dict()}
        return write_checkpoint(self.folder / "checkpoints", take_snapshot(self.state), facts)

    def save(self, clock: int, **metrics: float) -> Path:
        """Write a checkpoint and upload it."""
        path = self.write(clock, **metrics)
        self.store.put_checkpoint(path)
        self.store.prune(KEEP)
        return path


def fetch(folder: Path, local_clock: int = -1) -> tuple[str | None, list[str]]:
    """Fetch as a new machine does; the name of what was fetched, and the lines about damage."""
    said: list[str] = []
    return fetch_newest(RunStore(URL), folder, local_clock, said.append), said


def assert_same(ours: Path, theirs: Path) -> None:
    """Two checkpoints hold the same bytes."""
    for name in ("meta.json", "model.safetensors", "ema.safetensors", "optimizer.pt"):
        assert (ours / name).read_bytes() == (theirs / name).read_bytes(), name


def test_a_checkpoint_and_its_log_come_back(bucket: Bucket, tmp_path: Path) -> None:
    machine, to = Machine(tmp_path / "a"), tmp_path / "b"
    assert fetch(to) == (None, [])
    path = machine.save(400)
    machine.log(700)  # what came after the checkpoint
    machine.store.put_logs(machine.folder)
    assert fetch(to, local_clock=400) == (None, [])
    assert fetch(to, local_clock=399) == ("step_0000000400-000001", [])
    assert_same(to / "checkpoints" / path.name, path)
    assert (to / "metrics.jsonl").read_text().count("\n") == 4
    assert complete(json.loads((to / "recipe.json").read_text())) == demo().to_dict()
    assert sorted(each.name for each in (to / "checkpoints").iterdir()) == [path.name]


def _flip(content: bytes) -> bytes:
    return content[:100] + bytes([content[100] ^ 1]) + content[101:]


HARM: dict[str, tuple[str, Callable[[bytes], bytes | None]]] = {
    "a bit": ("model.safetensors", _flip),
    "the end": ("optimizer.pt", lambda content: content[:-1]),
    "a file": ("ema.safetensors", lambda content: None),
    "the log": ("metrics.jsonl", lambda content: content.replace(b"0", b"1")),
    "meta.json": ("meta.json", lambda content: content[: len(content) // 2]),
    "another clock": ("meta.json", lambda content: content.replace(b'"clock": 200', b'"clock": 300')),
}


def test_a_damaged_checkpoint_is_passed_over(bucket: Bucket, tmp_path: Path) -> None:
    machine = Machine(tmp_path / "a")
    path, _ = machine.save(100), machine.save(200)
    for kind, (name, harm) in HARM.items():
        key, to = f"checkpoints/step_0000000200-000001/{name}", tmp_path / kind
        content = bucket.read(key)
        harmed = harm(content)
        bucket.delete(key) if harmed is None else bucket.write(key, harmed)
        found, said = fetch(to)
        assert found == "step_0000000100-000001", kind
        assert len(said) == 1 and f"{URL}/checkpoints/step_0000000200-000001 is damaged (" in said[0], said
        assert said[0].endswith(": using the previous one") and "\n" not in said[0]
        assert_same(to / "checkpoints" / path.name, path)
        assert (to / "metrics.jsonl").read_text().count("\n") == 1
        assert sorted(each.name for each in (to / "checkpoints").iterdir()) == [path.name]  # nothing half-written
        bucket.write(key, content)
    assert fetch(tmp_path / "b") == ("step_0000000200-000001", [])


def test_the_bucket_keeps_what_the_folder_keeps(bucket: Bucket, tmp_path: Path) -> None:
    machine = Machine(tmp_path / "a")
    for clock, top1 in ((100, 1.0), (200, 9.0), (300, 2.0), (400, 3.0)):
        machine.save(clock, top1=top1, ema_top1=-top1)
        prune(machine.folder / "checkpoints", KEEP)
        local = sorted(each.name for each in (machine.folder / "checkpoints").iterdir())
        assert bucket.checkpoints() == {f"{name}-000001": FILES for name in local}
    # Another machine has only the newest one, and does not forget the best ones.
    second = Machine(tmp_path / "b", clock=400)
    second.save(500)
    assert list(bucket.checkpoints()) == [
        *(f"step_0000000{clock}-000001" for clock in (100, 200, 400)),
        "step_0000000500-000002",
    ]


def test_what_is_missing_is_found_and_only_what_would_be_kept(bucket: Bucket, tmp_path: Path) -> None:
    machine, since = Machine(tmp_path / "a"), 0
    paths = [machine.write(clock, top1=top1) for clock, top1 in ((100, 9.0), (200, 0.0), (300, 0.0), (400, 0.0))]
    found = []
    while (path := machine.store.find_missing(machine.folder, since, KEEP)) is not None:
        machine.store.put_checkpoint(path)
        machine.store.prune(KEEP)
        found.append(path)
    assert found == [paths[3], paths[2], paths[0]]  # the newest first
    damaged = machine.write(500)
    (damaged / "model.safetensors").write_bytes(b"")
    assert machine.store.find_missing(machine.folder, since, KEEP) is None
    assert machine.store.find_missing(machine.folder, since, KEEP + 2) == paths[1]
    assert machine.store.find_missing(machine.folder, 300, KEEP + 2) is None


def _put_late(machine: Machine, path: Path, meanwhile: Callable[[], Any]) -> None:
    """Upload a checkpoint; the machine is suspended between its look at the claims and its last put."""
    confirm = machine.store.confirm

    def suspended() -> None:
        confirm()
        meanwhile()

    machine.store.confirm = suspended
    machine.store.put_checkpoint(path)
    machine.store.confirm = confirm


def test_a_machine_that_was_suspended_cannot_disturb_the_one_that_took_over(bucket: Bucket, tmp_path: Path) -> None:
    first = Machine(tmp_path / "a")
    first.save(100)
    second: list[Machine] = []
    saved: list[Path] = []

    def take_over() -> None:
        # The second one trains from 100 on, with other rounding, and reaches the same clock.
        second.append(Machine(tmp_path / "b", clock=100, seed=1))
        saved.append(second[0].save(200))

    _put_late(first, first.write(200), take_over)
    first.store.put_logs(first.folder)  # it also overwrites the logs that people read
    assert list(bucket.checkpoints()) == [
        "step_0000000100-000001",
        "step_0000000200-000001",
        "step_0000000200-000002",
    ]
    assert fetch(tmp_path / "c") == ("step_0000000200-000002", [])
    assert_same(tmp_path / "c" / "checkpoints" / saved[0].name, saved[0])
    assert (tmp_path / "c" / "metrics.jsonl").read_text().count("\n") == 2
    with pytest.raises(TakenOverError, match=f"{URL} was taken over by process [0-9]+ on "):
        first.store.put_checkpoint(first.write(300))
    second[0].save(300)
    assert list(bucket.checkpoints()) == ["step_0000000200-000002", "step_0000000300-000002"]


def test_what_comes_late_is_not_part_of_the_history(bucket: Bucket, tmp_path: Path) -> None:
    first = Machine(tmp_path / "a")
    first.save(100)
    # The second one has saved nothing yet, and ends; what the first one still saves is beyond its start.
    _put_late(first, first.write(200), lambda: Machine(tmp_path / "b", clock=100))
    assert fetch(tmp_path / "c") == ("step_0000000100-000001", [])
    third = Machine(tmp_path / "c", clock=100)
    assert [third.claim.number, third.claim.earlier] == [3, [[1, 0], [2, 100]]]
    third.save(150)
    assert list(bucket.checkpoints()) == ["step_0000000100-000001", "step_0000000150-000003"]


def test_a_checkpoint_that_is_deleted_while_it_is_fetched_is_not_damaged(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(tmp_path / "a")
    for clock in (100, 200):
        machine.save(clock)
    fetching, find = RunStore(URL), RunStore.find_checkpoints

    def find_and_save(store: RunStore, *arguments: Any) -> Any:
        found = list(find(store, *arguments))
        if store is fetching and machine.state.clock == 200:  # the run is still at work
            for clock in (300, 400):
                machine.save(clock)
        return iter(found)

    monkeypatch.setattr(RunStore, "find_checkpoints", find_and_save)
    said: list[str] = []
    assert fetch_newest(fetching, tmp_path / "b", -1, said.append) == "step_0000000400-000001"
    assert said == []


@pytest.mark.parametrize("is_lost", [False, True])
def test_ctrl_c_ends_a_download_that_waits_for_s3(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_lost: bool
) -> None:
    store, stored = RunStore(URL), Stored("x", 1, 1, {"a": 100})

    def fetch() -> None:
        mirror_fetch._fetch_file(store, stored, "a", tmp_path / "a")

    press_while_reading(monkeypatch, store.remote, fetch, is_lost)


def test_two_starts_at_the_same_moment_get_two_numbers(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = RunStore(URL), RunStore(URL)
    read = one.read_newest_claim

    def read_and_wait() -> Any:
        found = read()
        if two.claim is None:
            two.take(0, None)
        return found

    monkeypatch.setattr(one, "read_newest_claim", read_and_wait)
    assert one.take(0, None).number == 2
    assert [claim["number"] for claim in bucket.claims()] == [1, 2]
    with pytest.raises(TakenOverError):
        two.confirm()
    one.confirm()


def test_of_two_starts_with_one_number_the_one_whose_claim_stayed_goes_on(bucket: Bucket) -> None:
    """A server may let two simultaneous create-only puts both succeed, as Swift does."""
    one, two = RunStore(URL), RunStore(URL)
    one.take(0, None)
    bucket.delete("claims/000001.json")
    assert two.take(0, None).number == 1
    with pytest.raises(TakenOverError, match=f"{URL} was taken over by process "):
        one.confirm()
    two.confirm()


def test_claims_that_a_rule_of_the_bucket_deleted_are_not_used_again(bucket: Bucket, tmp_path: Path) -> None:
    machine = Machine(tmp_path / "a")
    machine.save(100)
    bucket.delete("claims/000001.json")
    machine.store.confirm()
    assert Machine(tmp_path / "b").claim.number == 2


def _check(recipe: Recipe, folder: Path) -> str:
    with pytest.raises(InputError) as error:
        RunStore(URL).check(recipe, folder)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_is_not_this_run_is_refused(bucket: Bucket, tmp_path: Path) -> None:
    recipe, folder = demo(), tmp_path / "a"
    RunStore(URL).check(recipe, folder)
    bucket.write("train/manifest.json", b"{}")
    assert _check(recipe, folder) == f"{URL} holds no run, but train/: choose another --run.mirror"
    bucket.delete("train/manifest.json")

    # A recipe that was written before the first checkpoint; and one of a checkpoint.
    bucket.write("recipe.json", json.dumps(replace(recipe, batch_size=7).to_dict()).encode())
    assert "holds a run of another recipe, batch_size differs: choose another --run.mirror" in _check(recipe, folder)
    machine = Machine(folder)
    machine.save(100)
    RunStore(URL).check(replace(recipe, epochs=99), folder)
    other = replace(recipe, optim=replace(recipe.optim, lr=0.3))
    assert "another recipe, optim.lr differs" in _check(other, folder)

    # A recipe with a field of a newer version, and a newer layout.
    key = "checkpoints/step_0000000100-000001/meta.json"
    meta = json.loads(bucket.read(key))
    meta["recipe"]["momentum_of_tomorrow"] = 1
    bucket.write(key, json.dumps(meta).encode())
    assert "another recipe, momentum_of_tomorrow differs" in _check(recipe, folder)
    bucket.write("claims/000002.json", b'{"format": 2, "number": 2, "more": 1}')
    assert "was written by another version of Penstock (format 1 is expected, found 2)" in _check(recipe, folder)


def test_another_run_of_the_same_recipe_is_refused(bucket: Bucket, tmp_path: Path) -> None:
    machine = Machine(tmp_path / "a")
    machine.save(100)
    machine.store.put_logs(machine.folder)
    RunStore(URL).check(demo(), machine.folder)
    (machine.folder / "starts.jsonl").write_text('{"date": "yesterday"}\n')
    assert f"{URL} holds another run than {machine.folder}: choose another" in _check(demo(), machine.folder)
