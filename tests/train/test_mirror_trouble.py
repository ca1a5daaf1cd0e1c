"""A mirror that cannot be reached or written, two runs with one mirror, nodes without a shared folder."""

import json
import re
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.commands import free_port
from helpers.mirror_runs import FILES, MIRRORED, URL, Bucket
from helpers.ranks import Ranks
from helpers.s3_door import Door, door
from helpers.starts import change_run, newest_checkpoint, refuse, small_recipe
from helpers.train_runs import PATIENCE, SAVE_OFTEN, Run, assert_ended, assert_same_end, await_that

from loaders import World
from prep import remote
from prep.errors import InputError
from train import mirror, mirror_upload
from train.arguments import parse_command
from train.batch_augment import BatchAugment
from train.config import Recipe
from train.fit import fit
from train.mirror_upload import MinuteReport, Mirror
from train.preemption import LEFT_EARLY
from train.step import Step
from train.watchdog import Watchdog


@pytest.fixture
def recipe(bucket: Bucket, digits: Path, tmp_path: Path) -> Recipe:
    """A run of three steps, each with a checkpoint."""
    return change_run(small_recipe(digits, tmp_path / "run"), mirror=URL, save_every=0.2)


@pytest.fixture
def way(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> Iterator[Door]:
    """A door on the way of this process to the server; and a run that does not wait long for it."""
    with door(bucket.server.endpoint) as way:
        monkeypatch.setenv("AWS_ENDPOINT_URL", way.url)
        monkeypatch.setattr(remote, "FIRST_CONTACT_SECONDS", 0.1)
        yield way


def at_step(monkeypatch: pytest.MonkeyPatch, number: int, act: Callable[[], Any]) -> None:
    """Do something after a step of the run."""
    step, taken = Step.__call__, []

    def call(self: Step, *arguments: Any) -> None:
        step(self, *arguments)
        taken.append(0)
        if len(taken) == number:
            act()

    monkeypatch.setattr(Step, "__call__", call)


def read_marker(recipe: Recipe) -> dict[str, Any] | None:
    path = recipe.run_dir / "continue.json"
    return json.loads(path.read_text()) if path.exists() else None


def assert_uploaded(bucket: Bucket, recipe: Recipe) -> None:
    """The newest checkpoint and the log are there."""
    path = newest_checkpoint(recipe)
    assert [names for folder, names in bucket.checkpoints().items() if folder.startswith(path.name)] == [FILES]
    assert bucket.read("metrics.jsonl") == (recipe.run_dir / "metrics.jsonl").read_bytes()


# Away.


def test_a_mirror_that_is_away_at_the_start_is_one_line(recipe: Recipe, way: Door) -> None:
    way.close()
    line = refuse(recipe)
    assert line.startswith(f"{URL} cannot be listed (no answer, ") and "check the network" in line


def test_a_mirror_that_is_away_for_a_while_delays_nothing(
    bucket: Bucket,
    recipe: Recipe,
    way: Door,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(mirror_upload, "RETRY_SECONDS", 0.1)
    at_step(monkeypatch, 1, way.close)
    save = Mirror.finish

    def open_and_finish(self: Mirror, *arguments: Any, **named: Any) -> bool:
        for _ in range(3):
            assert way.refused.acquire(timeout=PATIENCE)  # it has tried
        way.is_open = True
        return save(self, *arguments, **named)

    monkeypatch.setattr(Mirror, "finish", open_and_finish)
    assert fit(recipe, World())
    assert_uploaded(bucket, recipe)
    assert read_marker(recipe) is None
    warnings = [line for line in capfd.readouterr().err.splitlines() if "warning: mirror: " in line]
    assert len(warnings) <= 1


def test_a_run_that_is_trained_and_not_uploaded_is_not_finished(
    bucket: Bucket,
    recipe: Recipe,
    way: Door,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(mirror_upload, "FINISH_SECONDS", 0.1)
        at_step(patch, 1, way.close)
        assert not fit(recipe, World())
    assert f"trained to the end, but {URL} does not have all of it: the same command" in capfd.readouterr().out
    marker = read_marker(recipe)
    assert marker is not None and marker["reason"] == "NOT_UPLOADED"
    way.is_open = True
    assert fit(recipe, World())  # nothing is left to train
    assert_uploaded(bucket, recipe)
    assert read_marker(recipe) is None and "continue.json" not in bucket.objects()


def test_a_run_that_leaves_does_not_wait_long_for_its_mirror(
    bucket: Bucket,
    recipe: Recipe,
    way: Door,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def leave() -> None:
        way.close()
        signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(mirror_upload, "LEAVE_SECONDS", 0.1)
        at_step(patch, 2, leave)
        assert not fit(recipe, World())
    said = (
        f"SIGTERM: saved at image 96 in {recipe.run_dir}, not all of it in {URL}; the same command resumes from there"
    )
    assert said in capfd.readouterr().out
    marker = read_marker(recipe)
    assert marker is not None and marker["reason"] == "SIGTERM"
    way.is_open = True
    assert fit(recipe, World())
    assert_uploaded(bucket, recipe)


def test_an_upload_that_never_ends_delays_no_step(
    bucket: Bucket, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    put, goes_on, began = remote.Remote.put, threading.Event(), threading.Event()

    def block(self: remote.Remote, name: str, data: bytes | Path) -> None:
        if name.endswith(".safetensors"):
            began.set()
            goes_on.wait()
        put(self, name, data)

    monkeypatch.setattr(remote.Remote, "put", block)
    monkeypatch.setattr(mirror_upload, "FINISH_SECONDS", 0.1)
    at_step(monkeypatch, 2, lambda: began.wait(PATIENCE))
    try:
        assert not fit(change_run(recipe, keep=1), World())
        assert began.is_set()
        # The checkpoint that is being uploaded is kept besides the newest one.
        assert len(list((recipe.run_dir / "checkpoints").glob("step_*"))) == 2
        assert not bucket.checkpoints()
    finally:
        goes_on.set()


def test_a_policy_that_forbids_to_write_is_found_before_training(bucket: Bucket, recipe: Recipe, way: Door) -> None:
    way.forbidden = (b"PUT ",)
    line = refuse(recipe)
    assert line.startswith(f"{URL}/claims/000001.json cannot be written (AccessDenied")
    assert line.endswith("the policy must allow s3:PutObject there")
    assert bucket.objects() == {}


def test_warnings_come_once_a_minute(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    now = [1000.0]
    monkeypatch.setattr("train.mirror_upload.time.monotonic", lambda: now[0])
    report = MinuteReport()
    for seconds in (0.0, 1.0, 58.0, 1.0, 59.0, 1.0):
        now[0] += seconds
        report(f"at {now[0]:g}")
    assert capsys.readouterr().err.splitlines() == [f"warning: mirror: at {at}" for at in (1000, 1060, 1120)]


# Refused.


@pytest.mark.parametrize(
    "url",
    ["runs/first", "s3:/bucket/a", "https://b.s3.amazonaws.com/a?X-Amz-Signature=planted", "s3://b/a?planted", ""],
)
def test_a_mirror_that_is_no_url_is_refused(digits: Path, tmp_path: Path, url: str) -> None:
    line = refuse(change_run(small_recipe(digits, tmp_path / "run"), mirror=url))
    assert line.startswith("run.mirror must be a URL such as s3://BUCKET/runs/NAME, got ")
    assert "planted" not in line


def test_the_command_refuses_what_holds_no_run(bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for url, expected in (
        ("s3://b/a?planted", "URL must be a URL such as"),
        (URL, f"{URL} holds no run: give the URL"),
    ):
        monkeypatch.setattr(sys, "argv", ["train/mirror.py", url, "--to", str(tmp_path / "to")])
        with pytest.raises(InputError, match=re.escape(expected)) as error:
            mirror.main()
        assert "planted" not in str(error.value)
    assert not (tmp_path / "to").exists()


def test_a_mirror_of_another_recipe_is_refused_before_anything_is_written(bucket: Bucket, recipe: Recipe) -> None:
    other = change_run(recipe, dir=recipe.run_dir.with_name("other"))
    assert fit(other, World())
    before = bucket.objects()
    line = refuse(change_run(small_recipe(Path(recipe.data.root), recipe.run_dir, name="resnet10t"), mirror=URL))
    assert line == f"{URL} holds a run of another recipe, model.name differs: choose another --run.mirror"
    assert bucket.objects() == before


def test_a_dry_run_shows_the_mirror() -> None:
    recipe = parse_command(["demo", "--run.mirror", URL]).recipe
    fields = json.loads(json.dumps(recipe.to_dict()))
    assert fields["run"]["mirror"] == Recipe.from_dict(fields).run.mirror == URL


# What a run leaves when it ends otherwise.


def test_the_images_of_a_loss_that_is_not_finite_are_uploaded(
    bucket: Bucket, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    augment = BatchAugment.__call__

    def poison(self: BatchAugment, images_BCHW: torch.Tensor, position: int) -> Any:
        augmented_BCHW, mix = augment(self, images_BCHW, position)
        return augmented_BCHW * float("nan"), mix

    monkeypatch.setattr(BatchAugment, "__call__", poison)
    with pytest.raises(InputError, match="the loss was not finite for 1 steps"):
        fit(change_run(recipe, most_bad_steps=1), World())
    assert bucket.read("bad_batches.json") == (recipe.run_dir / "bad_batches.json").read_bytes()


def test_the_report_of_a_hang_is_uploaded(bucket: Bucket, recipe: Recipe) -> None:
    for name in ("metrics.jsonl", "starts.jsonl"):
        path = recipe.run_dir / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    with Mirror(recipe, World()) as copy:
        copy.claim(0)
        copy.start(lambda reason: None)
        Watchdog(1, recipe.run_dir, World(), after=copy.put_hang)._write_file("hung: no step")
    assert bucket.read("hang.txt").startswith(b"hung: no step\n")


# Two runs, and two nodes.


def test_of_two_machines_with_one_mirror_the_first_one_stops(
    trainers: Ranks, bucket: Bucket, calm: Callable[[int], Run], digits: Path, tmp_path: Path
) -> None:
    run = Run(digits, tmp_path / "run", (*MIRRORED, *SAVE_OFTEN))
    group = tmp_path / "group"
    trainers.start("fit-rivals", 2, group, arguments=run.arguments, port=free_port(), settings={**bucket.settings})
    first, second = trainers.wait(PATIENCE)
    assert (first.status, second.status) == (1, 0), (first, second)
    claims = bucket.claims()
    line = first.stderr.partition("\n")[0]
    assert line.startswith(f"error: {URL} was taken over by process {claims[1]['process']} on {claims[1]['host']}")
    assert "Traceback" not in first.stderr
    assert not (run.folder / "0" / "continue.json").exists()  # a script must not take it back
    assert len(claims) == 2
    winner = Run(digits, run.folder / "1", run.flags)
    assert_same_end(winner, calm(1))
    assert {folder.rpartition("-")[2] for folder in bucket.checkpoints()} <= {"000001", "000002"}
    bucket.assert_no_half(tmp_path / "seen")
    newest = Run(digits, tmp_path / "seen").checkpoints[-1]
    assert (newest / "meta.json").read_bytes() == (winner.checkpoints[-1] / "meta.json").read_bytes()


def test_nodes_need_no_shared_folder(
    trainers: Ranks, bucket: Bucket, calm: Callable[[int], Run], digits: Path, tmp_path: Path
) -> None:
    def train(held: bool) -> None:
        for rank in range(2):
            (tmp_path / "nodes" / str(rank)).mkdir(parents=True, exist_ok=True)
        run = Run(digits, Path("run"), MIRRORED)
        group = trainers.start(
            "script-on-nodes",
            2,
            tmp_path / "groups",
            script=script,
            arguments=run.arguments,
            port=free_port(),
            nodes=str(tmp_path / "nodes"),
            settings=bucket.settings,
        )
        await_that(lambda: len(list(group.glob("held-*"))) == 2, "both in the middle of the run")
        if held:
            trainers.signal(1, signal.SIGTERM)
        (group / "go").touch()
        assert_ended(trainers.wait(PATIENCE), LEFT_EARLY if held else 0)

    script = str(Path(mirror_upload.__file__).with_name("main.py"))
    train(held=True)
    # Another machine in place of the second node; and the upload of the last checkpoint did not come to its end.
    shutil.rmtree(tmp_path / "nodes" / "1")
    (folder,) = bucket.checkpoints()
    bucket.delete(f"checkpoints/{folder}/meta.json")
    train(held=False)
    assert_same_end(Run(digits, tmp_path / "nodes" / "0" / "run"), calm(2))
    assert [path.name for path in Run(digits, tmp_path / "nodes" / "1" / "run").checkpoints] == [folder[:-7]]
