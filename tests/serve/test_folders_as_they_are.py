"""Folders as people have them: litter is left out and counted, and what Pillow reads is read."""

import io
import struct
from collections import Counter
from pathlib import Path

import pytest
from helpers.tars import adopt, encode_image, write_tar
from PIL import Image

from prep.errors import InputError
from prep.file_kinds import IMAGE_SUFFIXES as SUFFIXES_OF_PREP
from prep.folder_tree import JUNK_FOLDERS as JUNK_OF_PREP
from serve.image_sources import GROUND_TRUTH, SOLUTION, open_images
from serve.picture_files import (
    IMAGE_SUFFIXES,
    JUNK_FOLDERS,
    NEXT_TO_CLASSES,
    describe_left_out,
    expand_paths,
    list_pictures,
)
from serve.pictures import decode_image, read_picture

RED = (200, 10, 10)
FORMATS = {
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".jpe": "JPEG",
    ".jfif": "JPEG",
    ".png": "PNG",
    ".webp": "WEBP",
    ".bmp": "BMP",
    ".gif": "GIF",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".avif": "AVIF",
    ".ppm": "PPM",
    ".pgm": "PPM",
    ".jp2": "JPEG2000",
}


def encode(form: str, mode: str = "RGB") -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (32, 24), RED).convert(mode).save(content, form)
    return content.getvalue()


def write(path: Path, content: bytes = b"") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def make_bmp(alphas: tuple[int, int]) -> bytes:
    """A BMP of two pixels, red, with 32 bits each and a header that has a mask for alpha."""
    pixels = b"".join(bytes((10, 10, 200, alpha)) for alpha in alphas)
    masks = (0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    header = struct.pack("<IiiHHIIiiII4I68x", 124, 2, 1, 1, 32, 3, len(pixels), 0, 0, 0, 0, *masks)
    return struct.pack("<2sIHHI", b"BM", 14 + len(header) + len(pixels), 0, 0, 14 + len(header)) + header + pixels


# Which files count


def test_what_counts_is_what_preparation_takes_for_an_image() -> None:
    assert IMAGE_SUFFIXES == SUFFIXES_OF_PREP - {".heic", ".heif"} == FORMATS.keys()
    assert {name for name in JUNK_OF_PREP if not name.startswith(".")} == JUNK_FOLDERS


@pytest.mark.parametrize("suffix", sorted(FORMATS))
def test_every_suffix_can_be_decoded(suffix: str) -> None:
    grey = suffix == ".pgm"
    picture = decode_image(encode(FORMATS[suffix], "L" if grey else "RGB"))
    assert picture is not None and picture.mode == "RGB" and picture.size == (32, 24)
    if not grey:
        assert max(abs(a - b) for a, b in zip(picture.getpixel((16, 12)), RED, strict=True)) < 8  # pyright: ignore[reportArgumentType]


def test_litter_is_left_out_and_counted_at_every_level(tmp_path: Path) -> None:
    png = encode("PNG")
    for name in ("a/1.png", "a/2.GIF", "a/deep/3.tif", "b/4.jpe"):
        write(tmp_path / name, encode("TIFF") if name.endswith("tif") else png)
    litter = ("._1.png", ".DS_Store", "a/._1.png", "a/deep/._3.tif", "a/.ipynb_checkpoints/1-checkpoint.png")
    for name in (*litter, "__MACOSX/a/._1.png", "a/__MACOSX/1.png", ".ipynb_checkpoints/x.png", ".hidden/x/1.png"):
        write(tmp_path / name, png)
    for name in ("a/notes.txt", "a/raw.heic", "b/raw.heic", "README"):
        write(tmp_path / name)
    source = open_images(tmp_path, 2, ("a", "b"))
    keys = {each.key: each.label for each in source.read(range(100))}
    assert keys == {"a/1.png": 0, "a/2.GIF": 0, "a/deep/3.tif": 0, "b/4.jpe": 1}
    assert source.notes == ("13 files were left out: 2 .heic, 1 without a suffix, 1 .txt, 9 hidden",)


def test_images_outside_of_class_folders_and_empty_classes_are_said(tmp_path: Path) -> None:
    for name in ("a/1.png", "b/1.png", "loose.png"):
        write(tmp_path / name, encode("PNG"))
    (tmp_path / "c").mkdir()
    source = open_images(tmp_path, 3, ("a", "b", "c"))
    assert source.num_images == 2 and source.num_present == 2
    assert source.notes == (
        "1 file was left out: 1 image next to the class folders",
        "1 of 3 class folders hold no images: c",
        "the images show 2 of the model's 3 classes",
    )


def test_links_are_followed_and_loops_are_not(tmp_path: Path) -> None:
    write(tmp_path / "elsewhere" / "1.png", encode("PNG"))
    (tmp_path / "data" / "a").mkdir(parents=True)
    (tmp_path / "data" / "a" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "a" / "loop").symlink_to(tmp_path / "data")
    (tmp_path / "data" / "a" / "gone.png").symlink_to(tmp_path / "nothing")
    listing = list_pictures(tmp_path / "data")
    assert [path.name for path in listing.pictures] == ["1.png"]
    assert listing.left_out == {"broken links": 1}


def test_suffixes_are_named_before_litter_and_counts_agree_with_their_words() -> None:
    many = Counter({"hidden": 90, "broken links": 40, ".txt": 2, ".heic": 30, ".csv": 1, "special files": 1})
    assert describe_left_out(many) == ("164 files were left out: 30 .heic, 2 .txt, 1 .csv, 90 hidden, 41 others",)
    few = Counter({"broken links": 1, "special files": 1, NEXT_TO_CLASSES: 2})
    assert describe_left_out(few) == (
        "4 files were left out: 2 images next to the class folders, 1 broken link, 1 special file",
    )
    five = Counter({".a": 5, ".b": 4, ".c": 3, ".d": 2, "broken links": 1})
    assert describe_left_out(five)[0].endswith("2 .d, 1 other")


def test_only_what_is_left_out_is_named_in_the_refusal(tmp_path: Path) -> None:
    write(tmp_path / "a" / "1.heic")
    with pytest.raises(InputError, match=r"holds no images \(1 file was left out: 1 \.heic\): give a split"):
        open_images(tmp_path, 1, None)


def test_files_folders_and_patterns_keep_their_order(tmp_path: Path) -> None:
    for name in ("z/2.png", "z/1.png", "a.png", "p/b.png", "p/a.png", "p/x.txt", "named.dat"):
        write(tmp_path / name, encode("PNG"))
    words = [str(tmp_path / name) for name in ("z", "a.png", "p/*", "named.dat")]
    listing = expand_paths(words)
    names = [str(path.relative_to(tmp_path)) for path in listing.pictures]
    assert names == ["z/1.png", "z/2.png", "a.png", "p/a.png", "p/b.png", "named.dat"]
    assert listing.left_out == {".txt": 1}
    for skipped in (expand_paths([str(tmp_path)], tmp_path / "z"), expand_paths([f"{tmp_path}/**"], tmp_path / "z")):
        assert [path.name for path in skipped.pictures] == ["a.png", "a.png", "b.png"]
    with pytest.raises(InputError, match=r"missing\*\.png does not exist: give files, folders, or patterns"):
        expand_paths([str(tmp_path / "missing*.png")])


# Kaggle's flat validation folder


def write_kaggle(root: Path) -> Path:
    val = root / "ILSVRC" / "Data" / "CLS-LOC" / "val"
    for number in (1, 2, 3):
        write(val / f"ILSVRC2012_val_0000000{number}.JPEG", encode("JPEG"))
    return val


def test_a_flat_folder_has_the_labels_of_kaggles_table(tmp_path: Path) -> None:
    val = write_kaggle(tmp_path)
    lines = ["ImageId,PredictionString"]
    boxes = ("n03126707 1 1 2 2", "n01443537 1 1 2 2 n01443537 3 3 4 4", "n03126707 5 5 6 6")
    lines += [f"ILSVRC2012_val_0000000{number},{each} " for number, each in enumerate(boxes, start=1)]
    (tmp_path / SOLUTION).write_text("\n".join(lines))
    (tmp_path / "LOC_synset_mapping.txt").write_text("n01443537 goldfish\nn03126707 crane\n")
    for path in (val, tmp_path):
        (val.parent / "train").mkdir(exist_ok=True)
        source = open_images(path, 2, None)
        assert [source.class_names[each.label] for each in source.read(range(3))] == ["crane", "goldfish", "crane"]
    write(val / "other.JPEG", encode("JPEG"))
    with pytest.raises(InputError, match=r"LOC_val_solution\.csv has no label for other\.JPEG"):
        open_images(val, 2, None)


def test_a_flat_folder_without_labels_says_what_is_needed(tmp_path: Path) -> None:
    val = write_kaggle(tmp_path)
    with pytest.raises(InputError, match=r"holds 3 images that are not in class folders.*: move each into .* or put"):
        open_images(val, 1000, None)
    (val / GROUND_TRUTH).write_text("1\n2\n3\n")
    with pytest.raises(InputError, match="numbers the classes in an order of its own"):
        open_images(val, 1000, None)


# Decoding


def test_a_bitmap_whose_alpha_is_unset_keeps_its_colours() -> None:
    for alphas, colors in (((0, 0), [RED, RED]), ((0, 255), [(255, 255, 255), RED])):
        with Image.open(io.BytesIO(make_bmp(alphas))) as opened:
            assert opened.mode == "RGBA", "Pillow reads the mask for alpha"
        picture = read_picture(make_bmp(alphas))
        assert [picture.getpixel((x, 0)) for x in range(2)] == colors
    content = io.BytesIO()
    Image.new("RGBA", (2, 1), (*RED, 0)).save(content, "PNG")
    assert read_picture(content.getvalue()).getpixel((0, 0)) == (255, 255, 255), "a PNG says that it is transparent"


@pytest.mark.parametrize(("mode", "form"), [("F", "TIFF"), ("I", "TIFF"), ("LAB", "TIFF")])
def test_values_without_a_defined_white_are_refused(mode: str, form: str) -> None:
    content = io.BytesIO()
    Image.new(mode, (8, 8)).save(content, form)
    with pytest.raises(InputError, match=f"values of mode {mode} have no defined white"):
        read_picture(content.getvalue())


def test_the_reason_is_named() -> None:
    jpeg = encode("JPEG")
    for content, words in ((b"", "empty"), (b"<html>", "not a picture of a format"), (jpeg[:-9], "it is damaged")):
        with pytest.raises(InputError, match=words):
            read_picture(content)
        assert decode_image(content) is None


def test_only_for_people_a_photograph_is_turned_upright() -> None:
    content, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    Image.new("RGB", (32, 24)).save(content, "JPEG", exif=exif)
    assert read_picture(content.getvalue()).size == (32, 24)
    assert read_picture(content.getvalue(), upright=True).size == (24, 32)


# Adopted tars


def test_of_several_images_in_a_sample_the_adopted_one_is_read(tmp_path: Path) -> None:
    mask, photograph = encode_image("L", "PNG", grey=7), encode_image()
    tar = write_tar(tmp_path / "a.tar", [("1.mask.png", mask), ("1.jpg", photograph), ("1.cls", b"1")])
    adopt(tmp_path / "out", tar)
    source = open_images(tmp_path / "out" / "train", 2, None)
    assert [each.content for each in source.read(range(2))] == [photograph]
    tar.write_bytes(tar.read_bytes()[:1600])
    with pytest.raises(InputError, match=r"a\.tar cannot be read \(it ends inside of 1\)"):
        list(source.read(range(2)))
