"""A model that guesses, or is not the one it says it is, is not drawn."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from prep.errors import InputError
from serve.accuracy_check import Count, find_doubts
from serve.artifact import Recorded


@pytest.mark.parametrize(("hits", "images"), [(0, 1), (1, 1), (0, 360), (360, 360), (37, 360), (38_000, 50_000)])
def test_the_interval_is_wilsons(hits: int, images: int) -> None:
    expected = binomtest(hits, images).proportion_ci(confidence_level=0.99, method="wilson")
    assert Count(hits, images).interval() == pytest.approx((expected.low, expected.high), rel=1e-12, abs=1e-12)


@settings(max_examples=300, deadline=None)
@given(images=st.integers(1, 100_000), share=st.floats(0, 1), end=st.sampled_from([0, 1, None]))
def test_a_model_that_is_as_good_as_recorded_is_never_doubted_for_it(
    images: int, share: float, end: int | None
) -> None:
    hits = round(images * share) if end is None else images * end
    doubts = find_doubts(Count(hits, images), 10**9, Recorded(images, hits, "validation", None))
    assert not any("records" in doubt for doubt in doubts)


@pytest.mark.parametrize(
    ("count", "num_classes", "recorded", "words"),
    [
        (Count(36, 360), 10, None, ["not better than chance"]),
        (Count(50, 50_000), 1000, None, ["not better than chance"]),
        (Count(0, 360), 10, None, ["not better than chance"]),
        (Count(3, 4), 2, None, ["not better than chance"]),
        (Count(300, 360), 10, None, []),
        (Count(300, 360), 10, Recorded(360, 310, "validation", None), []),
        (Count(200, 360), 10, Recorded(360, 310, "validation", "digits"), ["records 86.11% on validation of digits"]),
        (Count(350, 360), 10, Recorded(360, 310, "validation", None), ["records 86.11%"]),
        (Count(36, 360), 10, Recorded(360, 310, "validation", None), ["not better than chance", "records 86.11%"]),
    ],
)
def test_doubts(count: Count, num_classes: int, recorded: Recorded | None, words: list[str]) -> None:
    doubts = find_doubts(count, num_classes, recorded)
    assert len(doubts) == len(words)
    assert all(word in doubt for word, doubt in zip(words, doubts, strict=True))


def test_no_images_are_refused() -> None:
    with pytest.raises(InputError, match="found no image"):
        find_doubts(Count(0, 0), 10, None)
