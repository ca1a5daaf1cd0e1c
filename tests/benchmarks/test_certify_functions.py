"""The certificates as functions of what was taken: a uniform permutation passes at the stated rate, faults do not."""

import dataclasses
import importlib
import itertools
import random
from typing import Any

import numpy as np
import pytest

NUM_IMAGES, BATCH_SIZE = 1200, 40
LABELS = np.repeat(np.arange(12), [160, 40] * 6)  # sorted, of two sizes
NUM_TRIALS, CHANCE = 400, 0.05


def load(name: str) -> Any:
    return importlib.import_module(f"certificates.{name}")


def taken(rows: Any, labels: Any = None, first: int = 0) -> Any:
    """Return images as taken from a loader, with the right labels unless others are given."""
    rows = np.asarray(rows, np.int64)
    return load("epochs").Taken(rows, LABELS[rows] if labels is None else np.asarray(labels, np.int64), first)


def permutations(seed: int, count: int = 2) -> list[Any]:
    draw = np.random.Generator(np.random.Philox(seed))
    return [taken(draw.permutation(NUM_IMAGES)) for _ in range(count)]


def shuffled_in_a_buffer(size: int, seed: int) -> Any:
    """A sorted list through a shuffle buffer: each time any of `size` images waiting."""
    draw, waiting, out = random.Random(seed), [], []
    for row in range(NUM_IMAGES):
        waiting.append(row)
        if len(waiting) == size:
            out.append(waiting.pop(draw.randrange(size)))
    draw.shuffle(waiting)
    return taken(out + waiting)


def test_uniform_permutations_pass_at_the_stated_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    mixing = load("mixing")
    monkeypatch.setattr(mixing, "CHANCE", CHANCE)
    trials = [permutations(seed) for seed in range(NUM_TRIALS)]
    classes = [mixing.certify_classes(epochs, LABELS, BATCH_SIZE).passed for epochs in trials]
    moved = [mixing.certify_displacement(epochs, NUM_IMAGES).passed for epochs in trials]
    refused = [NUM_TRIALS - sum(passed) for passed in (classes, moved)]
    most = NUM_TRIALS * CHANCE + 3 * (NUM_TRIALS * CHANCE * (1 - CHANCE)) ** 0.5
    assert max(refused) <= most
    assert refused[0] > 0  # so the limit of the classes is not too wide


def test_classes_that_hardly_ever_miss_a_batch_are_not_refused_for_it() -> None:
    mixing, labels = load("mixing"), np.arange(1_440) % 10
    batches = np.zeros((44, 64), np.int64) + np.arange(64) % 10
    batches[:3] %= 9  # three batches lack a class, where one in two epochs is expected
    rows = [taken(np.arange(22 * 64), each) for each in batches.reshape(2, -1)]
    assert mixing.certify_classes(rows, labels, 64).passed
    batches[:9] %= 9
    rows = [taken(np.arange(22 * 64), each) for each in batches.reshape(2, -1)]
    assert not mixing.certify_classes(rows, labels, 64).passed


@pytest.mark.parametrize("counts", [[3, 2, 1, 2], [1, 1, 1, 5], [8], [4, 0, 4]])
@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_expected_classes_are_those_of_all_draws(counts: list[int], batch_size: int) -> None:
    labels = np.repeat(np.arange(len(counts)), counts)
    found = [len(set(draw)) for draw in itertools.combinations(labels.tolist(), batch_size)]
    mean, deviation = load("mixing").expect_classes(np.array(counts), batch_size)
    assert mean == pytest.approx(np.mean(found)) and deviation == pytest.approx(np.std(found), abs=1e-6)


def test_batches_that_are_alike_in_their_classes_are_judged_without_a_deviation() -> None:
    mixing = load("mixing")
    one_class = np.zeros(NUM_IMAGES, np.int64)
    epochs = [taken(np.arange(NUM_IMAGES), one_class)] * 2
    assert mixing.certify_classes(epochs, one_class, BATCH_SIZE).passed
    assert mixing.certify_classes(epochs, one_class, NUM_IMAGES + 1).passed is None
    assert mixing.certify_displacement([taken([1, 2]), taken([3, 4])], NUM_IMAGES).passed is None


def test_batches_are_counted_from_where_one_begins_and_only_whole() -> None:
    labels = [9, 1, 1, 2, 3, 3, 3, 5]
    assert load("mixing").count_classes(taken(range(8), labels, first=1), 3).tolist() == [2, 1]


def test_displacements_are_shares_of_an_epoch() -> None:
    mixing = load("mixing")
    moved = mixing.measure_displacements(taken([0, 1, 2, 3]), taken([3, 1, 2, 0]), 4)
    assert moved.tolist() == [0.75, 0, 0, 0.75]
    certificate = mixing.certify_displacement(permutations(0), NUM_IMAGES)
    assert sum(certificate.figures["histogram"]) == NUM_IMAGES
    assert certificate.figures["observed_mean"] == pytest.approx(1 / 3, abs=0.03)


@pytest.mark.parametrize("size", [1, 100, NUM_IMAGES // 3])
def test_a_buffer_over_a_sorted_list_fails(size: int) -> None:
    mixing = load("mixing")
    epochs = [shuffled_in_a_buffer(size, seed) for seed in (0, 1)]
    assert load("mixing").certify_coverage(epochs, LABELS).passed
    assert not mixing.certify_classes(epochs, LABELS, BATCH_SIZE).passed
    assert not mixing.certify_displacement(epochs, NUM_IMAGES).passed


def test_the_same_order_in_each_epoch_fails_and_so_do_batches_with_too_many_classes() -> None:
    mixing = load("mixing")
    assert not mixing.certify_displacement(permutations(0, 1) * 2, NUM_IMAGES).passed
    dealt = taken(np.argsort(np.arange(NUM_IMAGES) % 30, kind="stable"))  # each batch has every class
    certificate = mixing.certify_classes([dealt, dealt], LABELS, BATCH_SIZE)
    figures = certificate.figures
    assert not certificate.passed and figures["observed_mean"] > figures["expected_mean"]


def test_of_three_epochs_each_pair_is_judged() -> None:
    first, second = permutations(0)
    certificate = load("mixing").certify_displacement([first, second, second], NUM_IMAGES)
    assert not certificate.passed and sum(certificate.figures["histogram"]) == 2 * NUM_IMAGES


def test_each_fault_of_counting_is_found_and_named() -> None:
    certify = load("mixing").certify_coverage
    whole = np.arange(NUM_IMAGES)
    assert certify([taken(whole), taken(whole[::-1])], LABELS).passed
    wrong = LABELS.copy()
    wrong[7] += 1
    repeated = np.append(whole, 5)
    foreign = np.append(whole, [-1, NUM_IMAGES])
    faults = {
        "missing": taken(whole[1:]),
        "repeated": taken(repeated),
        "foreign": taken(foreign, np.append(LABELS, [0, 0])),
        "mislabelled": taken(whole, wrong),
    }
    for name, epoch in faults.items():
        certificate = certify([taken(whole), epoch], LABELS)
        assert not certificate.passed and f"{2 if name == 'foreign' else 1} {name}" in certificate.measured
        assert [each for each, count in certificate.figures["epochs"][1].items() if count] == [name]


def test_ranks_that_overlap_or_leave_images_out_fail() -> None:
    certify = load("mixing").certify_ranks
    parts = [taken(part) for part in np.array_split(permutations(0)[0].rows_M, 3)]
    assert certify({3: parts, 2: [taken(np.arange(700)), taken(np.arange(700, NUM_IMAGES))]}, NUM_IMAGES).passed
    overlapping = certify({3: [*parts[:2], taken(np.append(parts[2].rows_M, parts[0].rows_M[:4]))]}, NUM_IMAGES)
    assert not overlapping.passed and "overlap 4, missing 0" in overlapping.measured
    lacking = certify({3: [*parts[:2], taken(parts[2].rows_M[:-2])]}, NUM_IMAGES)
    assert not lacking.passed and "overlap 0, missing 2" in lacking.measured


@pytest.mark.parametrize("batch_size, epochs, most", [(50, 2, 10**6), (50, 3, 300), (7, 2, 100), (5000, 2, 100)])
def test_spans_are_whole_batches_of_all_epochs_and_decode_no_more_than_they_may(
    batch_size: int, epochs: int, most: int
) -> None:
    spans = load("epochs").place_spans(batch_size, NUM_IMAGES, epochs, most)
    assert spans[0].start == 0 and NUM_IMAGES * epochs <= spans[-1].stop < NUM_IMAGES * epochs + batch_size
    assert all(before.stop == after.start for before, after in itertools.pairwise(spans))
    assert all(span.start % batch_size == 0 == span.stop % batch_size for span in spans)
    decoded = sum(span.stop - span.start for span in spans if span.decoded)
    assert decoded == spans[-1].stop if most == 10**6 else decoded <= most
    if batch_size < most < 10**6:
        assert {span.start // NUM_IMAGES for span in spans if span.decoded} <= set(range(epochs))
        assert sum(span.decoded for span in spans) == epochs


def test_a_log_tells_the_rate_and_the_time_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    epochs, clock = load("epochs"), itertools.count(step=50)
    monkeypatch.setattr(epochs.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(epochs, "describe_left", lambda started, done, total: f"{done} of {total} since {started}")
    monkeypatch.setattr(epochs, "SECONDS_BETWEEN_LINES", 60)
    with epochs.show_progress("nothing yet", 400) as report:
        report(0)
        report(0)
    clock = itertools.count(step=50)
    with epochs.show_progress("ours", 400) as report:
        for _ in range(4):
            report(100)
    first, second = capsys.readouterr().err.splitlines()  # a line in a minute, of the reports at 50, 100, 150 and 200 s
    assert (first, second) == ("ours: 200 of 400 since 0, 2 images/s", "ours: 400 of 400 since 0, 2 images/s")


def test_the_time_left_is_that_of_the_rate_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    record = importlib.import_module("record")
    monkeypatch.setattr(record.time, "monotonic", lambda: 100.0)
    assert record.describe_left(40.0, 1000, 3000) == "1,000 of 3,000 done, 0:02:00 left"
    assert record.describe_left(40.0, 64, 60) == "64 of 60 done, 0:00:00 left"  # the last batch crosses the epoch's end


def test_a_resumed_stream_that_differs_is_found() -> None:
    resume = load("epochs")
    rows, digests = np.arange(100, 110), np.array([f"{row:02x}" for row in range(10)])
    whole = {"positions": np.arange(10), "rows": rows, "digests": digests}

    def part(low: int, high: int, **others: np.ndarray) -> dict[str, np.ndarray]:
        return {name: array[low:high] for name, array in (whole | others).items()}

    assert not any(resume.count_differences(whole, part(0, 4), part(4, 10)).values())
    assert resume.count_differences(whole, part(0, 4), part(5, 10))["positions"] == 1
    assert resume.count_differences(whole, part(0, 4), part(3, 10))["positions"] > 0
    assert resume.count_differences(whole, part(0, 4), part(4, 10, rows=rows[::-1]))["rows"] == 6
    assert resume.count_differences(whole, part(0, 4, digests=np.roll(digests, 1)), part(4, 10))["pixels"] == 4
    ranks = [{name: array[start::2] for name, array in whole.items()} for start in (1, 0)]
    assert np.array_equal(resume.in_order(ranks)["rows"], rows)


def test_decoders_are_compared_on_the_way_that_is_in_use() -> None:
    """No GPU here: which ways there are follows from the job alone."""
    list_ways, job = load("pixels").list_ways, load("epochs").Job("penstock", "data", "train", 16, seed=0, threads=1)

    def ways(**changes: Any) -> list[tuple[str, str, str, str]]:
        found = list_ways(dataclasses.replace(job, **changes))
        return [(name, way.device, way.placement, way.decode) for name, way in found.items()]

    alone = ("CPU", "cpu", "cpu", "roi")
    assert ways() == [alone] and ways(decode="full") == [("CPU", "cpu", "cpu", "full")]
    assert ways(device="cuda") == [alone, ("CPU, uploaded to the GPU", "cuda", "cpu", "roi")]
    assert ways(device="cuda", placement="gpu", decode="full") == [alone, ("GPU", "cuda", "gpu", "full")]


def test_parity_fails_by_pixels_by_logits_and_by_what_a_trained_model_takes_for_first() -> None:
    pixels = load("pixels")
    right = np.random.Generator(np.random.Philox(0)).normal(size=(20, 5))
    trained, random_weights = (pixels.ProbeNetwork("a model", is_trained, None, None) for is_trained in (True, False))

    def conclude(apart: float, logits: Any, model: Any, kind: str = "4:2:0", on_gpu: bool = False) -> bool:
        shown = {"ours": logits, "reference": right, "noise": right + 0.1}
        return pixels.judge_parity("parity", [(kind, apart, 9)] * 20, shown, model, on_gpu).passed

    assert conclude(0.2, right + 0.05, trained) and conclude(0.2, right + 0.05, random_weights)
    assert not conclude(1.1, right + 0.05, trained)
    assert conclude(3.9, right + 0.05, trained, on_gpu=True)
    assert not conclude(3.9, right + 0.05, trained, "4:4:4", on_gpu=True)
    assert not conclude(0.2, right + 0.2, trained)
    # Two classes that are almost equal change places by much less than noise, which here changes no order.
    second = np.argsort(right[0])[-2]
    right[0, second] = right[0].max() - 1e-3
    turned = right.copy()
    turned[0, second] += 2e-3
    assert not conclude(0.1, turned, trained, "grey")
    assert conclude(0.1, turned, random_weights, "grey")
