"""The report holds what was measured, needs no other file, and is not written for a model that guesses."""

import csv
import io
import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.reports import make_predictions, write_sample_page
from helpers.served import Exported, run_here
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from prep.calibration import expected_calibration_error
from serve.artifact import load_artifact
from serve.image_sources import open_images
from serve.predict import Prediction
from serve.report_charts import choose_ticks, draw_calibration, draw_curves
from serve.report_counts import bin_confidences, count_classes, count_matrix, find_confusions
from serve.report_matrix import draw_heat_map, list_mistakes
from serve.report_page import Measured, describe_result, describe_share

EXTERNAL = r'(?:src|href)="(?!data:|#)|url\(|@import|https?://'


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

    # The figures in large type, and the most frequent confusion.
    scores = json.loads((exported.scores / "scores.json").read_text())["ema"]
    assert f'{scores["top1"]:.2f}%</dd><dd class="note">99% interval' in page
    assert f"{scores['top5']:.2f}%" in page and ">360</dd>" in page and "agrees with the accuracy" in page
    with (exported.scores / "confusions.csv").open(newline="") as file:
        first = next(csv.DictReader(file))
    confused = rf">{first['label_name']}</span> predicted as .*?>{first['predicted_name']}</span>: (\d+) image"
    found = re.search(confused, page)
    assert found and found[1] == first["num_images"]
    assert page.count('class="tiles"') == 2 and ">Training</h2>" in page

    # One line per image in predictions.csv, with the predictions of evaluation; nothing else is needed.
    with (exported.scores / "images.csv").open(newline="") as file:
        theirs = {line["key"]: line["ema_predicted"] for line in csv.DictReader(file)}
    with (tmp_path / "out" / "predictions.csv").open(newline="") as file:
        assert {line["key"]: line["predicted"] for line in csv.DictReader(file)} == theirs
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"index.html", "predictions.csv", "contents.json"}
    assert not re.search(EXTERNAL, page), "it needs something else"


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
    counts = count_classes(predictions, 10)
    assert {each.label: (str(each.num_images), str(each.num_hits)) for each in counts} == theirs
    assert [each.top1 for each in counts] == sorted(each.top1 or 0 for each in counts)


def test_a_part_of_the_classes_is_not_compared_with_the_recorded_accuracy(exported: Exported) -> None:
    served = load_artifact(exported.artifact)
    source = open_images(exported.data / "validation", 10, served.class_names)
    predictions = [Prediction(row, str(row), row % 5, row % 5, 0.9, in_top5=True) for row in range(100)]
    part = replace(source, present=frozenset(range(5)))
    assert "The recorded accuracy is of all classes and is not compared" in describe_result(
        Measured(served, part, predictions)
    )
    assert "This does not agree with the accuracy" in describe_result(Measured(served, source, predictions))


def test_an_artifact_that_boasts_is_not_reported(exported: Exported, tmp_path: Path) -> None:
    images = tmp_path / "images"
    for name in ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"):
        (images / name).mkdir(parents=True)
        Image.new("L", (20, 20), 90).save(images / name / "grey.png")
    with pytest.raises(SystemExit) as ended:
        run_here("serve/report.py", exported.artifact, "--data", images, "--out", tmp_path / "out")
    assert re.match(r"error: nothing was written: top-1 is 10\.00% of 10 images", str(ended.value.code))
    assert list(tmp_path.iterdir()) == [images]


def test_words_are_words_and_not_markup() -> None:
    hostile = '<b>"</script><!--'
    page = write_sample_page((hostile, "one", "two"), notes=(f"note {hostile}",), doubts=(f"doubt {hostile}",))
    assert not re.search(r"<b>(?!\d×</b>)|<!--", page)
    assert page.count("</script>") == page.count("<script") == 1
    assert page.count("&lt;b&gt;&#34;&lt;/script&gt;&lt;!--") > 8


# Counts


@st.composite
def predictions_of(draw: st.DrawFn) -> tuple[int, list[Prediction]]:
    """Draw a number of classes, and predictions with some images that cannot be decoded."""
    num_classes = draw(st.integers(2, 6))
    guesses = st.tuples(st.integers(0, num_classes - 1), st.integers(-1, num_classes - 1), st.floats(0, 1))
    found = draw(st.lists(guesses, min_size=1, max_size=40))
    return num_classes, [
        Prediction(row, str(row), label, guess, confidence if guess >= 0 else 0.0)
        for row, (label, guess, confidence) in enumerate(found)
    ]


@given(predictions_of())
def test_all_counts_agree(drawn: tuple[int, list[Prediction]]) -> None:
    num_classes, predictions = drawn
    counts = {each.label: each for each in count_classes(predictions, num_classes)}
    matrix_KK = count_matrix(predictions, num_classes)
    confusions = find_confusions(predictions, 1000)
    assert sorted(counts) == list(range(num_classes))
    assert sum(each.num_images for each in counts.values()) == len(predictions)
    assert matrix_KK.sum() == sum(each.guess >= 0 for each in predictions)
    assert [counts[label].num_hits for label in counts] == [matrix_KK[label, label] for label in counts]

    # The confusions are the cells off the diagonal, and so is the list for the script.
    pairs = {(each.label, each.guess): len(each.predictions) for each in confusions}
    expected = Counter((each.label, each.guess) for each in predictions if each.guess not in (-1, each.label))
    assert pairs == expected
    flat = list_mistakes(matrix_KK)
    assert {(flat[at], flat[at + 1]): flat[at + 2] for at in range(0, len(flat), 3)} == expected
    for label, each in counts.items():
        most = max((count for (true, _), count in expected.items() if true == label), default=0)
        assert each.num_wrong_guess == most and (each.wrong_guess is None) == (most == 0)
        assert most == 0 or expected[label, each.wrong_guess or 0] == most
    assert sum(each.num_images for each in bin_confidences(predictions)) == matrix_KK.sum()


def test_classes_without_images_come_last() -> None:
    counts = count_classes([Prediction(0, "0", 3, 3, 0.9), Prediction(1, "1", 1, 3, 0.9)], 4)
    assert [(each.label, each.top1) for each in counts] == [(1, 0), (3, 100), (0, None), (2, None)]


@pytest.mark.parametrize("num_classes", [31, 500])
def test_the_heat_map_shows_hits_and_mistakes(num_classes: int) -> None:
    shares_KK = np.zeros((num_classes, num_classes))
    shares_KK[7, 7], shares_KK[7, 20], shares_KK[15, 15] = 0.9, 0.1, 1.0
    with Image.open(io.BytesIO(draw_heat_map(shares_KK))) as picture:
        pixels = np.asarray(picture)
    scale = len(pixels) // num_classes
    right, wrong, empty = (pixels[scale * row, scale * column] for row, column in ((7, 7), (7, 20), (25, 2)))
    assert right[1] > right[0] and wrong[0] > wrong[1] and right[3] > wrong[3] > 100 and empty[3] == 0
    assert pixels[scale * 15, scale * 15, 3] == 255


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6))
def test_ticks_are_few_and_within_their_axis(low: float, width: float) -> None:
    ticks = choose_ticks(low, low + width)
    assert 1 <= len(ticks) <= 7
    assert all(low - 1e-6 * width <= each <= low + width * (1 + 1e-6) for each in ticks)


def test_charts_of_little_or_strange_data() -> None:
    assert "polyline" in draw_calibration(bin_confidences([]), 0.0)
    one = draw_curves([{"kind": "train", "epoch": 1, "loss": 0.0, "top1": float("nan")}])
    assert [title for title, _ in one] == ["Loss"]
    assert "NaN" not in one[0][1] and "nan" not in one[0][1]
    assert draw_curves([]) == []


@pytest.mark.parametrize(
    ("percent", "words"),
    [(0, "none"), (0.2, "fewer than 1"), (79.4, "about 79"), (99.72, "more than 99"), (100, "all")],
)
def test_shares_are_rounded_but_never_to_all_or_none(percent: float, words: str) -> None:
    assert describe_share(percent) == words


def test_made_up_predictions_reach_from_never_to_always_right() -> None:
    assert {each.top1 for each in count_classes(make_predictions(5), 5)} == {0, 25, 50, 75, 100}
