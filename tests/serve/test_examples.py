"""Example pictures: photographs that fit the classes, with their licences; or the user's own, checked."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image
from timm.data import ImageNetInfo

from prep.errors import InputError
from serve.app.examples import LICENSES, PHOTOGRAPHS, SUBJECTS, choose_examples, copy_examples, list_examples
from serve.app.page import write_chooser
from serve.class_names import WORDNET_NUMBER
from serve.dependencies import find_dependencies


def list_imagenet() -> list[str]:
    return list(ImageNetInfo().label_names())


def read_words(numbers: list[str]) -> list[str]:
    info = ImageNetInfo()
    return [info.label_name_to_description(number, detailed=False) for number in numbers]


def test_photographs_are_offered_for_imagenet(tmp_path: Path) -> None:
    numbers = list_imagenet()
    assert len(numbers) == 1000
    assert {name for classes in SUBJECTS.values() for name in classes if WORDNET_NUMBER.fullmatch(name)} <= set(numbers)
    for number, names in enumerate((numbers, read_words(numbers))):
        folder = tmp_path / str(number)
        folder.mkdir()
        paths = choose_examples(folder, names)
        assert [path.stem for path in paths] == ["cat", "cup_of_coffee", "dog", "hens"]
        assert paths == list_examples(folder)
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
            path.name: path.read_bytes() for path in PHOTOGRAPHS.iterdir()
        }


@pytest.mark.parametrize(
    ("class_names", "chosen"),
    [
        (["airplane", "cat", "deer", "dog"], ["cat", "dog"]),
        (["Egyptian_cat", "German_shepherd"], ["cat", "dog"]),
        (["n01514859", "n01514668"], ["hens"]),
        (["catfish", "hotdog", "hen of the woods"], ["balloon", "orange", "traffic light", "umbrella"]),
        (["one", "two", "three"], ["four", "seven", "three", "two"]),
        (None, ["balloon", "orange", "traffic light", "umbrella"]),
    ],
)
def test_only_pictures_that_fit_are_offered(class_names: list[str] | None, chosen: list[str], tmp_path: Path) -> None:
    assert [path.stem for path in choose_examples(tmp_path, class_names)] == chosen
    assert (tmp_path / LICENSES).exists() == (chosen[0] in ("cat", "hens"))


def test_each_photograph_has_a_licence_and_is_small() -> None:
    names = sorted(path.name for path in PHOTOGRAPHS.iterdir() if path.name != LICENSES)
    assert names == sorted(SUBJECTS)
    sections = (PHOTOGRAPHS / LICENSES).read_text().split("\n\n")[1:]
    assert [section.partition("\n")[0] for section in sections] == names
    for section in sections:
        facts = dict(line.strip().split(": ", 1) for line in section.splitlines()[1:] if ": " in line[:11])
        assert facts.keys() == {"Author", "Licence", "Source", "Changed"}
        assert facts["Licence"].strip().startswith(("CC0 1.0", "public domain"))
    assert sum(path.stat().st_size for path in PHOTOGRAPHS.iterdir()) < 500_000
    for name in names:
        with Image.open(PHOTOGRAPHS / name) as picture:
            assert max(picture.size) <= 1024 and not picture.getexif() and "icc_profile" not in picture.info


def test_the_page_shows_each_photograph_with_its_caption(tmp_path: Path) -> None:
    chooser = write_chooser(choose_examples(tmp_path, list_imagenet()))
    found = re.findall(r'<img alt="" src="data:image/jpeg;base64,([^"]+)">\s*<span>(.*?)</span>', chooser)
    assert [caption for _, caption in found] == ["cat", "cup of coffee", "dog", "hens"]
    assert len({content for content, _ in found}) == 4


def test_a_space_contains_the_photographs() -> None:
    files = find_dependencies("serve.app").files
    assert {f"serve/app/photographs/{name}" for name in (*SUBJECTS, LICENSES)} <= set(files)


def save_picture(path: Path, exif: Image.Exif | None = None) -> Path:
    pixels_HWC = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    Image.fromarray(pixels_HWC).save(path, exif=exif or Image.Exif())
    return path


def test_pictures_of_the_user_are_copied_with_their_licence(tmp_path: Path) -> None:
    source, folder = tmp_path / "source", tmp_path / "copied"
    source.mkdir()
    folder.mkdir()
    mine = [save_picture(source / name) for name in ("my_dog.jpg", "tree.png")]
    for name in ("LICENSE.txt", "._my_dog.jpg", "private notes.txt"):
        (source / name).write_text(name)
    assert copy_examples(source, folder) == [folder / path.name for path in mine]
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        path.name: path.read_bytes() for path in (*mine, source / "LICENSE.txt")
    }


def test_a_picture_that_cannot_be_published_is_named(tmp_path: Path) -> None:
    source, folder = tmp_path / "source", tmp_path / "copied"
    source.mkdir()
    folder.mkdir()
    (source / "broken.jpg").write_bytes(b"not a picture")
    with pytest.raises(InputError, match=r"--examples: .*/broken.jpg: This file is not a picture"):
        copy_examples(source, folder)
    (source / "broken.jpg").unlink()

    exif = Image.Exif()
    exif[ExifTags.IFD.GPSInfo] = {ExifTags.GPS.GPSLatitudeRef: "N", ExifTags.GPS.GPSLatitude: (52.0, 31.0, 12.0)}
    save_picture(source / "home.jpg", exif)
    with pytest.raises(InputError, match=r"home.jpg records where it was taken \(GPS\)"):
        copy_examples(source, folder)
    assert not any(folder.iterdir())
