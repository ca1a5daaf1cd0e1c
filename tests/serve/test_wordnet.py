"""Classes are shown in words where the data gives WordNet's numbers, and matched by what the data gives."""

from pathlib import Path

from PIL import Image

from serve.class_names import find_class, to_words
from serve.image_sources import open_images

NUMBERS = ("n01443537", "n02012849", "n03126707")


def test_numbers_become_words_and_nothing_else_does() -> None:
    assert to_words(NUMBERS) == ("goldfish, Carassius auratus", "crane", "crane")
    assert to_words(("n01443537", "n99999999")) == ("goldfish, Carassius auratus", "n99999999")
    assert to_words(("n01443537", "cat")) == ("n01443537", "cat")
    assert to_words(()) == ()


def test_folders_named_by_numbers_are_shown_in_words_and_matched_by_number(tmp_path: Path) -> None:
    for name in NUMBERS:
        (tmp_path / name).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / name / "grey.png")
    source = open_images(tmp_path, 2, (NUMBERS[2], NUMBERS[0]))  # a model of two of them, in another order
    assert source.class_names == ("crane", "goldfish, Carassius auratus")
    assert {each.key: each.label for each in source.read(range(3))} == {
        f"{NUMBERS[2]}/grey.png": 0,
        f"{NUMBERS[0]}/grey.png": 1,
    }
    assert [find_class(word, source.class_names) for word in ("goldfish", NUMBERS[0], "crane")] == [1, 1, 0]
