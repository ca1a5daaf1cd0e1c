"""The report holds what was measured, needs no other file, and is not written for a model that guesses."""

import base64
import csv
import io
import json
import re
from collections import Counter
from pathlib import Path

import pytest
from helpers.served import Exported, run_here
from PIL import Image

from prep.calibration import expected_calibration_error
from serve.predict import Prediction
from serve.report_page import (
    ClassTable,
    Page,
    Pair,
    Picture,
    bin_confidences,
    count_classes,
    find_confusions,
    write_page,
)


def report(exported: Exported, out: Path, *flags: object) -> None:
    data = exported.data / "validation"
    run_here("serve/report.py", exported.artifact, "--data", data, "--out", out, "--num_show", 2, *flags)


def test_the_page_says_what_evaluation_found(exported: Exported, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    lines = [
        {"kind": kind, "epoch": epoch, "top1": 5, "loss": 2} for kind in ("train", "validation") for epoch in (1, 2)
    ]
    (run / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    report(exported, tmp_path / "out", "--run", run)
    page = (tmp_path / "out" / "index.html").read_text()
    scores = json.loads((exported.scores / "scores.json").read_text())["ema"]
    assert f"top-1 {scores['top1']:.2f}% of 360 images" in page and f"top-5 {scores['top5']:.2f}%" in page
    with (exported.scores / "confusions.csv").open(newline="") as file:
        first = next(csv.DictReader(file))
    assert f"{first['label_name']} predicted as {first['predicted_name']}: {first['num_images']} images" in page
    pictures = [base64.b64decode(each) for each in re.findall(r'src="data:image/png;base64,([^"]+)"', page)]
    for each in pictures:
        with Image.open(io.BytesIO(each)) as opened:
            opened.load()
    names = {path.name for path in (tmp_path / "out").glob("*.png")}
    assert {"calibration.png", "curves.png", "gallery.png"} < names and len(names) == len(pictures)
    assert not re.search(r"<script|https?://|src=\"(?!data:)", page), "it needs something else"


def test_the_figures_are_those_of_evaluation(exported: Exported) -> None:
    with (exported.scores / "images.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    columns = ("label", "ema_predicted", "ema_confidence")
    predictions = [
        Prediction(row, line["key"], int(line[columns[0]]), int(line[columns[1]]), float(line[columns[2]]))
        for row, line in enumerate(lines)
    ]
    scores = json.loads((exported.scores / "scores.json").read_text())["ema"]
    assert expected_calibration_error(bin_confidences(predictions)) == pytest.approx(scores["ece_percent"], abs=1e-4)
    with (exported.scores / "per_class.csv").open(newline="") as file:
        theirs = {int(line["class"]): (line["num_images"], line["ema_num_top1"]) for line in csv.DictReader(file)}
    counts = count_classes(predictions)
    assert {each.label: (str(each.num_images), str(each.num_hits)) for each in counts} == theirs
    assert [each.top1 for each in counts] == sorted(each.top1 for each in counts)
    expected = Counter((each.label, each.guess) for each in predictions if not each.is_right)
    assert {pair[:2]: len(pair[2]) for pair in find_confusions(predictions, 100)} == expected


def test_an_artifact_that_boasts_is_not_reported(exported: Exported, tmp_path: Path) -> None:
    images = tmp_path / "images"
    for name in ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"):
        (images / name).mkdir(parents=True)
        Image.new("L", (20, 20), 90).save(images / name / "grey.png")
    with pytest.raises(SystemExit) as ended:
        run_here("serve/report.py", exported.artifact, "--data", images, "--out", tmp_path / "out")
    assert re.match(r"error: nothing was written: top-1 is 10\.00% of 10 images", str(ended.value.code))
    assert not (tmp_path / "out").exists()


def test_words_are_words_and_not_markup() -> None:
    hostile = '<b>"'
    picture = Picture("data:,", hostile)
    page = write_page(
        Page(
            title=hostile,
            figures=[hostile],
            warnings=[hostile],
            tables=[ClassTable(hostile, [(hostile, "1.0", 3)])],
            pairs=[Pair(hostile, [picture])],
            calibration=picture,
            curves=picture,
            gallery=picture,
        )
    )
    assert "<b>" not in page
    assert page.count("&lt;b&gt;&#34;") == 11
