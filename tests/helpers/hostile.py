"""A folder of hostile image files, made from the two photographs that ship inside scikit-learn."""

import io
import os
import random
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import sklearn.datasets
from PIL import Image

PHOTOS = ("china.jpg", "flower.jpg")


def photo(name: str, side: int = 160) -> Image.Image:
    """A photograph, its centre scaled to `side` pixels."""
    with Image.open(Path(sklearn.datasets.__file__).parent / "images" / name) as image:
        return image.convert("RGB").crop((106, 0, 534, 427)).resize((side, side * 3 // 4))


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    """An image file's bytes."""
    encoded = io.BytesIO()
    image.save(encoded, kind, **options)
    return encoded.getvalue()


def repairable() -> Iterator[tuple[str, bytes]]:
    """Images that no GPU's decoder takes, under JPEG names; each a photograph."""
    for number, name in enumerate(PHOTOS):
        image = photo(name, 150 + 11 * number)
        for mode in ("RGB", "RGBA", "L", "LA", "P", "1"):
            yield f"png {mode} {number}.jpg", encode(image.convert(mode), "PNG")
        sixteen = np.asarray(image.convert("L")).astype(np.uint16) * 257
        yield f"sixteen bits {number}.JPEG", encode(Image.fromarray(sixteen), "PNG")
        yield f"cmyk {number}.jpg", encode(image.convert("CMYK"), "JPEG", quality=92)
        yield f"rgb {number}.jpg", encode(image, "JPEG", quality=92, keep_rgb=True)
        yield f"bmp {number}.jpg", encode(image, "BMP")
        yield f"tiff {number}.jpeg", encode(image.convert("CMYK"), "TIFF")
        yield f"webp {number}.JPG", encode(image, "WEBP", quality=90)
        yield f"ppm {number}.jpg", encode(image, "PPM")
        turned = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        yield f"animated {number}.jpg", encode(image, "GIF", save_all=True, append_images=[turned], loop=0)


def odd() -> Iterator[tuple[str, bytes]]:
    """JPEGs that are kept, of kinds and names that have broken other tools."""
    names = [
        "ünïcode 猫.jpg",
        "a\nnewline.jpg",
        "..dots.jpg",
        "-rf.jpg",
        "100%s.jpg",
        "'\"$(x).jpg",
        "x" * 200 + ".jpg",
    ]
    for number, name in enumerate(names):
        yield name, encode(photo("china.jpg", 100 + number), "JPEG")
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        yield (
            f"orientation {orientation}.jpg",
            encode(photo("flower.jpg", 110), "JPEG", exif=exif, quality=60 + orientation),
        )
    for quality in (30, 60, 90):
        yield f"progressive {quality}.jpg", encode(photo("china.jpg"), "JPEG", progressive=True, quality=quality)
        yield f"grey {quality}.jpg", encode(photo("china.jpg").convert("L"), "JPEG", quality=quality)
        yield f"trailing {quality}.jpg", encode(photo("china.jpg"), "JPEG", quality=quality + 1) + bytes(quality)
    yield "mpo.jpg", encode(photo("china.jpg"), "MPO", save_all=True, append_images=[photo("flower.jpg")])


def broken(seed: int) -> Iterator[tuple[str, bytes]]:
    """Truncated at every kind of place, flipped bits, bombs, and what never was an image."""
    draw = random.Random(seed)
    whole = encode(photo("flower.jpg"), "JPEG", quality=88)
    scan = whole.index(b"\xff\xda")
    for number, cut in enumerate(
        [0, 1, 2, 3, 10, 20, 21, scan - 1, scan, scan + 5, scan + 14, len(whole) - 2, len(whole) - 1]
    ):
        yield f"cut {number}.jpg", whole[:cut]
    for number in range(70):
        yield f"cut at random {number}.jpg", whole[: draw.randrange(len(whole))]
    for number in range(50):
        damaged = bytearray(encode(photo("flower.jpg"), "JPEG", quality=40 + number))
        for _ in range(draw.choice([1, 1, 5, 100])):
            damaged[draw.randrange(len(damaged))] ^= 1 << draw.randrange(8)
        yield f"flipped {number}.jpg", bytes(damaged)
    for number in range(10):
        yield f"random {number}.jpg", draw.randbytes(draw.randrange(1, 3000))
    yield "bomb.png", png_bomb()
    yield (
        "bomb.jpg",
        whole[: whole.index(b"\xff\xc0") + 5]
        + struct.pack(">HH", 13000, 13000)
        + whole[whole.index(b"\xff\xc0") + 9 :],
    )
    yield "page.jpg", b"<!doctype html><title>404</title>"
    yield "notes.txt", b"these are not images\n"
    yield "zip.jpg", b"PK\x03\x04" + bytes(100)


def png_bomb() -> bytes:
    """A PNG of some hundred bytes with a header that promises 30,000 x 30,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def write_hostile_folder(root: Path, seed: int = 0) -> int:
    """Fill `root/train/CLASS/` with all of the above, links and special files; how many files it offers."""
    inside, other, empty = (root / "train" / name for name in ("n01 hostile", "n02-ünï", "n03-empty"))
    for folder in (inside / "below", other, empty):
        folder.mkdir(parents=True)
    files = [*repairable(), *odd(), *broken(seed)]
    for number, (name, data) in enumerate(files):
        (inside, inside / "below", other)[number % 3].joinpath(name).write_bytes(data)
    (other / "copy.jpg").write_bytes(encode(photo("china.jpg"), "JPEG", quality=77))
    (other / "same again.jpg").write_bytes(encode(photo("china.jpg"), "JPEG", quality=77))
    (other / "link.jpg").symlink_to(other / "copy.jpg")
    (other / "dangling.jpg").symlink_to(root / "nowhere")
    (other / "itself.jpg").symlink_to(other / "itself.jpg")
    (inside / "loop").symlink_to(inside)
    os.mkfifo(other / "pipe.jpg")
    (inside / os.fsdecode("café.jpg".encode("latin-1"))).write_bytes(encode(photo("china.jpg", 90), "JPEG"))
    return len(files) + 7
