"""Curves and TensorBoard show the values of metrics.jsonl."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.commands import run_command
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from loaders import EvalTransform, TrainTransform, World
from prep.curves import draw_panels, read_metrics
from prep.errors import InputError
from train.curves import PANELS
from train.fit import fit
from train.recipe import demo


def _write_run(folder: Path, top1: float) -> Path:
    folder.mkdir()
    entries = []
    for epoch in (1, 2):
        loss = 2 / epoch
        entries.append({"kind": "train", "epoch": epoch, "loss": loss, "top1": top1 * epoch, "lr": 0.1 / epoch})
        scores = {"loss": loss, "top1": top1 * epoch, "ema_top1": top1 * epoch + 1}
        entries.append({"kind": "validation", "epoch": epoch, **scores})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return folder


def _num_colors(path: Path) -> int:
    with Image.open(path) as image:
        assert image.size == (1440, 960)
        return len(image.convert("RGB").getcolors(1440 * 960) or [])


def test_two_runs_make_a_picture(tmp_path: Path) -> None:
    runs = [_write_run(tmp_path / name, top1) for name, top1 in (("one", 20.0), ("two", 30.0))]
    done = run_command("train/curves.py", *runs, "--out", tmp_path / "new" / "curves.png")
    assert done.returncode == 0, done.stderr
    assert _num_colors(tmp_path / "new" / "curves.png") > 100


def test_a_second_run_draws_in_a_second_colour(tmp_path: Path) -> None:
    metrics = read_metrics(_write_run(tmp_path / "one", 20.0))
    blue, orange = (11, 107, 203), (224, 122, 31)  # C0 and C1 of prep/penstock.mplstyle
    for runs, has_orange in (({"one": metrics}, False), ({"one": metrics, "two": metrics[:2]}, True)):
        draw_panels(PANELS, runs, tmp_path / "curves.png")
        with Image.open(tmp_path / "curves.png") as image:
            colors = {color for _, color in image.convert("RGB").getcolors(1440 * 960) or []}
        assert blue in colors
        assert (orange in colors) is has_orange


def test_a_folder_without_metrics_is_refused_in_one_line(tmp_path: Path) -> None:
    done = run_command("train/curves.py", tmp_path, "--out", tmp_path / "curves.png")
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {tmp_path}") and done.stderr.count("\n") == 1
    assert not (tmp_path / "curves.png").exists()


ENDS = {
    "half a line": b'{"kind": "validation", "ep',
    "half a line that is a number": b"12",
    "half a character": '{"kind": "validaté'.encode()[:-1],
    "zeros of a power failure": b"\0" * 300,
    "half a line and zeros": b'{"kind": "val' + b"\0" * 300,
    "zeros and a newline": b"\0" * 300 + b"\n",
}


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS.keys())
def test_an_end_that_is_not_whole_is_passed_over_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], end: bytes
) -> None:
    run = _write_run(tmp_path / "one", 20.0)
    expected, path = read_metrics(run), run / "metrics.jsonl"
    path.write_bytes(path.read_bytes().replace(b"\n", b"\n \n\n", 1) + end)
    assert read_metrics(run) == expected  # blank lines are nothing
    warning = capsys.readouterr().err
    assert warning.startswith(f"warning: {path}, line 7 is not complete") and warning.count("\n") == 1
    path.write_bytes(path.read_bytes().rstrip(b"\n") + b"\n" + path.read_bytes()[: -len(end)])
    with pytest.raises(InputError, match=r"line 7 is not complete .*not the last line: repair or delete that line"):
        read_metrics(run)
    lines = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join([*lines[:6], *lines[7:]]))  # as advised
    assert read_metrics(run) == expected * 2


def test_a_whole_last_line_without_its_newline_counts(tmp_path: Path) -> None:
    run = _write_run(tmp_path / "one", 20.0)
    expected, path = read_metrics(run), run / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-1])
    assert read_metrics(run) == expected


def test_tensorboard_holds_the_same_accuracy_as_the_metrics(digits: Path, tmp_path: Path) -> None:
    recipe = demo()
    recipe = replace(
        recipe,
        epochs=0.2,
        batch_size=32,
        optim=replace(recipe.optim, warmup_epochs=0.1),
        transform=TrainTransform(size=16, hflip=0.0),
        evaluation=EvalTransform(size=16, resize=16),
        data=replace(recipe.data, root=digits),
        run=replace(recipe.run, dir=tmp_path / "run", evaluate_every=0.1),
    )
    fit(recipe, World())
    expected = [(e["clock"], e["top1"]) for e in read_metrics(recipe.run_dir) if e["kind"] == "validation"]
    assert len(expected) == 2
    events = EventAccumulator(str(recipe.run_dir / "tensorboard"))
    events.Reload()
    found = events.Scalars("validation/top1")
    assert [event.step for event in found] == [clock for clock, _ in expected]
    assert [event.value for event in found] == pytest.approx([top1 for _, top1 in expected], rel=1e-6)
