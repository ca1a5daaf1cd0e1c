"""Classes of pictures become the right outputs of a model, or the command says that it cannot tell."""

import io
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.served import Exported, run_here
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from prep.errors import InputError
from serve.accuracy_check import Count, find_source_doubts
from serve.artifact import Recorded, Served, load_artifact
from serve.class_matching import SAMPLE, Sample, choose_matching, find_candidates, find_equal_names
from serve.class_names import are_imagenet, list_imagenet_wnids, look_up_words, simplify_first
from serve.image_sources import open_images, open_matched
from serve.pictures import Encoded, Source
from serve.preprocess import Preprocessing

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SIDE = 8  # pixels of a picture
PER_CLASS = 20
CRANES = ("n02012849", "n03126707")  # both are `crane` in words


class ReadsNumber(nn.Module):
    """Answers the output whose number the grey level of a picture says: pixel value // 4, times `step`."""

    def __init__(self, num_outputs: int, step: int = 1) -> None:
        super().__init__()
        self.num_outputs, self.step = num_outputs, step
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        numbers_B = (images_BCHW.mean((1, 2, 3)) * 255).round().long() // 4 * self.step
        return nn.functional.one_hot(numbers_B, self.num_outputs).float()


def serve_reader(num_outputs: int, names: Sequence[str] | None = None, step: int = 1) -> Served:
    preprocessing = Preprocessing(SIDE, SIDE, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    return Served(
        ReadsNumber(num_outputs, step), "reader", num_outputs, preprocessing, None if names is None else tuple(names)
    )


def make_png(number: int) -> bytes:
    content = io.BytesIO()
    Image.new("L", (SIDE, SIDE), 4 * number + 1).save(content, "PNG")
    return content.getvalue()


def write_classes(folder: Path, numbers: dict[str, int]) -> Path:
    """Write folders of pictures that say a number."""
    for name, number in numbers.items():
        (folder / name).mkdir(parents=True)
        for index in range(PER_CLASS):
            (folder / name / f"{index}.png").write_bytes(make_png(number))
    return folder


def make_source(names: Sequence[str], read: Callable[[Container[int]], Iterator[Encoded]] | None = None) -> Source:
    return Source("data", tuple(names), 0, read or (lambda _: iter(())))


def match(names: Sequence[str], num_outputs: int, class_names: Sequence[str] | None) -> dict[str, dict[int, int]]:
    found = find_candidates(make_source(names), {}, num_outputs, class_names)
    return {each.kind: dict(each.outputs) for each in found}


def read_labels(source: Source) -> dict[str, int]:
    """Folder -> label."""
    return {each.key.partition("/")[0]: each.label for each in source.read(range(source.num_images))}


# Names


def test_ten_wnid_folders_are_matched_with_a_model_of_imagenet(tmp_path: Path) -> None:
    wnids = list_imagenet_wnids()
    chosen = [wnids[label] for label in (0, 217, 482, 491)]
    write_classes(tmp_path, dict.fromkeys(chosen, 0))
    for names in (wnids, [look_up_words(each) for each in wnids], [simplify_first(look_up_words(w)) for w in wnids]):
        source = open_images(tmp_path, 1000, names)
        assert read_labels(source) == dict(zip(chosen, (0, 217, 482, 491), strict=True))
        assert source.num_present == 4 and len(source.class_names) == 1000
        assert source.notes == ("the images show 4 of the model's 1,000 classes",)


def test_folders_in_words_are_matched_with_wnids() -> None:
    wnids = list_imagenet_wnids()
    assert match(("English_springer", "tench"), 1000, wnids)["name"] == {0: 217, 1: 0}


def test_two_classes_of_one_name_are_told_apart_by_number_and_not_otherwise() -> None:
    wnids = list_imagenet_wnids()
    assert are_imagenet([look_up_words(each) for each in wnids])
    by_number = match(CRANES, 1000, [look_up_words(each) for each in wnids])["name"]
    assert by_number == {0: wnids.index(CRANES[0]), 1: wnids.index(CRANES[1])}
    assert "name" not in match(("crane",), 1000, [look_up_words(each) for each in wnids])
    assert match(("crane", "gull"), 3, ("crane", "crane", "gull"))["name"] == {1: 2}


def test_a_list_that_repeats_a_name_is_equal_to_itself() -> None:
    source = make_source(CRANES)
    (found, *_) = find_candidates(source, {}, 2, ("crane", "crane"))
    assert found.is_certain and found.outputs == {0: 0, 1: 1}


@settings(max_examples=200, deadline=None)
@given(
    names=st.lists(st.text(st.characters(categories=("L", "Nd"))).map(str.strip).filter(bool), min_size=1, max_size=9),
    data=st.data(),
)
def test_a_pair_shares_a_name_that_no_other_entry_has(names: list[str], data: st.DataObject) -> None:
    known = data.draw(st.permutations(names))
    pairs = find_equal_names([{name} for name in names], [{name} for name in known])
    assert len(set(pairs.values())) == len(pairs)
    for own, other in pairs.items():
        assert simplify_first(names[own]) == simplify_first(known[other])
    # What occurs once is found; what is repeated exactly is not guessed.
    for index, name in enumerate(names):
        if names.count(name) == 1:
            assert pairs[index] == known.index(name)
        else:
            assert index not in pairs


# Position, numbers, and refusals


def test_fewer_folders_than_outputs_are_matched_by_position(tmp_path: Path) -> None:
    source = open_images(write_classes(tmp_path, {"ant": 0, "bee": 1}), 5, None)
    assert read_labels(source) == {"ant": 0, "bee": 1}
    assert source.class_names == ("ant", "bee", "output 2", "output 3", "output 4")
    assert source.notes[0] == "2 classes, 5 outputs: class i is output i (position)"


def test_a_folder_named_10_never_gets_the_name_of_class_2(tmp_path: Path) -> None:
    write_classes(tmp_path, {str(number): number for number in range(12)})
    names = tuple(map(str, range(12)))
    assert read_labels(open_images(tmp_path, 12, names)) == {name: int(name) for name in names}
    with pytest.raises(InputError, match=r"in several ways: choose --match number .* or --match position"):
        open_images(tmp_path, 12, None)


def test_numbers_from_one_and_from_zero() -> None:
    assert match(sorted(map(str, range(1, 13))), 12, None)["number"][1] == 9, "10 is the second string"
    assert match(["0", "7"], 12, None)["number"] == {0: 0, 1: 7}
    assert "number" not in match(["0", "12"], 12, None)
    assert "number" not in match(["1", "01"], 12, None)


def test_more_folders_than_outputs_are_refused(tmp_path: Path) -> None:
    write_classes(tmp_path, {"ant": 0, "bee": 1, "cat": 2})
    with pytest.raises(InputError, match="has 3 classes and the model 2: give images of the model's classes"):
        open_images(tmp_path, 2, None)
    with pytest.raises(InputError, match="cannot be matched with the model by name: use --match position"):
        open_matched(serve_reader(3), tmp_path, "name")


def test_one_folder_or_splits_are_no_classes(tmp_path: Path) -> None:
    write_classes(tmp_path / "one", {"ILSVRC2012": 0})
    with pytest.raises(InputError, match="has 1 classes and the model 1,000"):
        open_images(tmp_path / "one", 1000, None)
    write_classes(tmp_path / "splits", {"train": 0, "test": 0})
    with pytest.raises(InputError, match="holds splits, not classes: give one of its folders, test, train"):
        open_images(tmp_path / "splits", 1000, None)


# The measured accuracy decides


def test_the_accuracy_finds_labels_by_number(tmp_path: Path) -> None:
    write_classes(tmp_path, {str(number): number for number in range(12)})
    source = open_matched(serve_reader(12), tmp_path)
    assert read_labels(source) == {str(number): number for number in range(12)}
    assert source.notes[0].startswith("12 classes, 12 outputs: the class named n is output n (number): top-1 100.00%")
    assert "by position top-1 16.67% of 240 images" in source.notes[0], "folders 0 and 1 agree"


def test_the_accuracy_finds_the_position_of_torchvision(tmp_path: Path) -> None:
    names = sorted(map(str, range(12)))
    write_classes(tmp_path, {name: names.index(name) for name in names})
    source = open_matched(serve_reader(12), tmp_path)
    assert read_labels(source) == {name: names.index(name) for name in names}
    assert read_labels(open_matched(serve_reader(12), tmp_path, "number"))["10"] == 10, "the flag is obeyed"


@pytest.mark.parametrize(("step", "kind"), [(7, "name"), (1, "position")])
def test_wnids_on_1000_outputs_without_names(tmp_path: Path, step: int, kind: str) -> None:
    wnids = list_imagenet_wnids()
    write_classes(tmp_path, {wnids[7 * number]: number for number in range(30)})
    source = open_matched(serve_reader(1000, step=step), tmp_path)
    assert read_labels(source)[wnids[140]] == 20 * step
    assert f"({kind}): top-1 100.00% of 512 images" in source.notes[0]
    expected = look_up_words(wnids[500]) if kind == "name" else "output 500"
    assert source.class_names[500] == expected
    assert source.class_names[20 * step] == look_up_words(wnids[140])


def test_the_sample_obeys_the_limit_and_shows_what_it_measures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_classes(tmp_path, {str(number): number for number in range(12)})
    monkeypatch.setattr("prep.progress.SECONDS_BETWEEN_LINES", -1.0)
    source = open_matched(serve_reader(12), tmp_path, sample=Sample(limit=100, workers=1, show_progress=True))
    assert "(number): top-1 100.00% of 100 images" in source.notes[0]
    assert "matching classes 100/100" in capsys.readouterr().err
    assert Sample(limit=9999).num_images == Sample().num_images == SAMPLE


def test_a_model_that_guesses_is_refused_with_both_figures(tmp_path: Path) -> None:
    write_classes(tmp_path, dict.fromkeys(map(str, range(12)), 30))
    with pytest.raises(InputError, match=r"accuracy does not decide: by number top-1 0\.00% .*; by position top-1 0\."):
        open_matched(serve_reader(40), tmp_path)


def test_names_that_contradict_the_positions_are_measured(tmp_path: Path) -> None:
    write_classes(tmp_path, {"a": 2, "b": 1, "c": 0})
    served = serve_reader(3, ("c", "bird", "a"))
    assert read_labels(open_matched(served, tmp_path)) == {"a": 2, "c": 0}
    assert read_labels(open_matched(served, tmp_path, "position")) == {"a": 0, "b": 1, "c": 2}


def test_a_renamed_class_does_not_prevent_the_positions(tmp_path: Path) -> None:
    write_classes(tmp_path, {"ant": 0, "bee": 1, "cat": 2})
    assert read_labels(open_images(tmp_path, 3, ("ant", "wasp", "cat"))) == {"ant": 0, "bee": 1, "cat": 2}


def test_a_sample_without_images_of_a_candidate_does_not_count_for_it() -> None:
    def read(wanted: Container[int]) -> Iterator[Encoded]:
        yield from (Encoded(row, str(row), 1, make_png(1)) for row in range(40) if row in wanted)

    source = replace(make_source(("dog", "2"), read), num_images=40)
    candidates = find_candidates(source, {}, 3, ("x", "y", "dog"))
    with pytest.raises(InputError, match=r"by name top-1 0\.00% of 1 images"):
        choose_matching(serve_reader(3), source, [replace(each, is_certain=False) for each in candidates])


# Chance, and the recorded accuracy


def test_chance_counts_the_classes_that_have_images() -> None:
    source = replace(make_source([f"c{n}" for n in range(1000)]), present=frozenset(range(200)))
    served = replace(serve_reader(1000), recorded=Recorded(50_000, 38_000, "validation", None))
    always_the_same = Count(50, 10_000)
    (doubt,) = find_source_doubts(always_the_same, served, source)
    assert "not better than chance (0.5%)" in doubt
    assert find_source_doubts(Count(2_000, 10_000), served, source) == [], "76% is of all classes"
    whole = replace(source, present=None)
    assert "records 76.00%" in find_source_doubts(Count(2_000, 10_000), served, whole)[0]
    one = replace(source, present=frozenset([3]))
    assert "all images are of one class" in find_source_doubts(Count(40, 40), served, one)[0]


def test_the_gallery_of_a_part_of_the_classes_says_so(
    exported: Exported, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = open_images(exported.data / "validation", 10, DIGITS)
    for each in source.read(range(source.num_images)):
        if each.label >= 5:
            path = tmp_path / "data" / DIGITS[each.label].title() / f"{each.row}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(each.content)
    flags = ("--validation_img_path", tmp_path / "data", "--output_path", tmp_path / "gallery.png", "--num_show", 1)
    run_here("serve/gradcam_viz.py", "--checkpoint_path", exported.artifact, *flags, "--all")
    said = capsys.readouterr().out
    assert "the images show 5 of the model's 10 classes\nthe recorded accuracy is of all classes" in said
    with pytest.raises(SystemExit, match="not better than chance"):
        run_here("serve/gradcam_viz.py", "--checkpoint_path", exported.artifact, *flags, "--match", "position")
    assert load_artifact(exported.artifact).class_names == DIGITS
