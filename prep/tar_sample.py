"""Choose the image and the label of one WebDataset sample; pure functions of its members.

A sample with one image and one label needs no choice. If there are several, the documented extensions (`jpg`, `cls`,
`json`) are used and the others are reported. If none of them is documented, the sample cannot be used, and the reason
names the flag of `prep/adopt.py` that chooses. The key of a sample ends at the first dot, so files with more dots in
their names become one sample: `photo.1.jpg` and `photo.2.jpg` are two images of the sample `photo`.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from prep.images import UnusableImageError
from prep.tar import Component, TarSample

JPEGS = ("jpg", "jpeg")
IMAGES = frozenset(
    [
        *("jpg", "jpeg", "jpe", "jfif", "png", "webp", "ppm", "pgm", "pbm", "bmp", "gif", "tif", "tiff", "tga"),
        *("jp2", "j2k", "jxl", "avif", "heic", "heif", "exr", "hdr"),
    ]
)
LABELS = ("cls", "json")
JSON_LABELS = ("label", "cls")
MAX_LABEL = 999_999  # a larger one is a mistake; class names are generated up to the largest label
MOST_NAMED = 3


@dataclass(frozen=True)
class Fields:
    """The members of a sample to use, from the flags of `prep/adopt.py`; None: the flag was not given.

    An extension is what follows the first dot of a member's name, in lower case.
    """

    image_ext: str | None = None
    label_ext: str | None = None
    label_key: str | None = None  # of a JSON member; a dot leads into an object: meta.label

    def is_wanted(self, extension: str) -> bool:
        """Check whether a member with this extension may hold an image or a label."""
        last = last_part(extension)
        return last in IMAGES or last in LABELS or extension.lower() in (self.image_ext, self.label_ext)

    def to_reading(self) -> dict[str, str]:
        """Return the flags that were given, for the manifest's `reading`."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    @classmethod
    def from_reading(cls, reading: dict[str, Any]) -> "Fields":
        """Return the fields that a manifest's `reading` was made with."""
        return cls(reading.get("image_ext"), reading.get("label_ext"), reading.get("label_key"))


ANY = Fields()


@dataclass(frozen=True)
class Choice:
    """The image and the label chosen from a sample; `passed_over` describes its other candidates."""

    image: Component
    label: int
    passed_over: tuple[str, ...]


def last_part(extension: str) -> str:
    """Return the part of an extension after its last dot, in lower case: "png" for "Seg.PNG"."""
    return extension.lower().rpartition(".")[2]


def list_images(sample: TarSample, fields: Fields) -> list[Component]:
    """Return the members whose names are those of images."""
    return [c for c in sample.components if last_part(c.extension) in IMAGES or c.extension.lower() == fields.image_ext]


def has_label_member(sample: TarSample, fields: Fields) -> bool:
    """Check whether any member can hold a label, readable or not."""
    return any(last_part(c.extension) in LABELS or c.extension.lower() == fields.label_ext for c in sample.components)


def choose_members(sample: TarSample, fields: Fields) -> Choice:
    """Return the image and the label of a sample.

    Raises:
        UnusableImageError: it has none, or has several and none of them is the documented one.
    """
    extensions = [component.extension.lower() for component in sample.components]
    if len(set(extensions)) < len(extensions):
        raise UnusableImageError("two members of one name")  # webdataset refuses these as well
    image, passed_over = _choose_image(sample, fields)
    member, label, more = _choose_label(sample, fields)
    if not (fields.image_ext or fields.label_ext):
        _check_belongs(image, member)
    if not 0 <= label <= MAX_LABEL:
        raise UnusableImageError(f"label {label} is outside 0 to {MAX_LABEL:,}")
    return Choice(image, label, (*passed_over, *more))


def _choose_image(sample: TarSample, fields: Fields) -> tuple[Component, list[str]]:
    """Return the image, and a text for each other image."""
    images = list_images(sample, fields)
    if fields.image_ext:
        image = _find(sample, fields.image_ext)
    elif not images:
        raise UnusableImageError(f"no image among its members: it has {_list_names(sample.components)}")
    elif len(images) == 1:
        image = images[0]
    else:
        # Use the one plain .jpg, if the others are clearly something else.
        plain = [each for each in images if each.extension.lower() in JPEGS]
        if len(plain) != 1 or not all(_is_of_another_kind(each) for each in images if each is not plain[0]):
            raise UnusableImageError(
                f"{len(images)} images in one sample ({_list_names(images)}): a sample's name ends at its first dot; "
                "rename files that have more dots, or choose one of several images with --image-ext"
            )
        image = plain[0]
    others = [each for each in images if each is not image]
    return image, [f".{each.extension.lower()} next to .{image.extension.lower()}" for each in others]


def _is_of_another_kind(image: Component) -> bool:
    """Check whether an image next to a plain `jpg` is something else (`seg.png`), not another photograph.

    `1.png` is the rest of a file name and thus another photograph; so is any other JPEG.
    """
    parts = image.extension.lower().split(".")
    return parts[-1] not in JPEGS and all(re.fullmatch(r"[^\W\d]\w*", part) for part in parts[:-1])


def _choose_label(sample: TarSample, fields: Fields) -> tuple[Component, int, list[str]]:
    """Return the member that holds the label, the label, and a text for each other candidate."""
    # The user chose the member.
    if fields.label_ext:
        member = _find(sample, fields.label_ext)
        if fields.label_key or last_part(fields.label_ext) == "json":
            return member, _require(_read_fields(member, fields.label_key), member), []
        return member, _require(_read_integer(member.data), member), []

    # A .cls with an integer comes first, then a .json with a label.
    text, document = (None if fields.label_key and ext == "cls" else _find_one(sample, ext) for ext in LABELS)
    label = _read_integer(text.data) if text else None
    passed_over = _list_other_texts(sample, text) if text else []
    if text is not None and label is not None:
        values = _list_values(document, None) if document else {}
        passed_over += [f"{key} of .json where it differs from .cls" for key, v in values.items() if v != label]
        return text, label, passed_over
    if document is not None:
        label = _read_fields(document, fields.label_key)
        if text is not None and label is not None:
            passed_over.append(".cls where it holds no integer and .json has a label")
    return document or _require_member(text), _require(label, text or document), passed_over


def _find_one(sample: TarSample, extension: str) -> Component | None:
    """Return the member with this extension, else the only one whose extension ends in it; None if there is none.

    Raises:
        UnusableImageError: several end in it.
    """
    found = [each for each in sample.components if last_part(each.extension) == extension]
    plain = [each for each in found if each.extension.lower() == extension]
    if not plain and len(found) > 1:
        raise UnusableImageError(
            f"{len(found)} labels in one sample ({_list_names(found)}): a sample's name ends at its first dot; "
            "rename files that have more dots, or choose one of several labels with --label-ext"
        )
    return next(iter(plain or found), None)


def _list_other_texts(sample: TarSample, chosen: Component) -> list[str]:
    others = [each for each in sample.components if last_part(each.extension) == "cls" and each is not chosen]
    return [f".{each.extension.lower()} next to .{chosen.extension.lower()}" for each in others]


def _require_member(member: Component | None) -> Component:
    if member is None:
        raise UnusableImageError("no label: it has neither a .cls nor a .json")
    return member


def _require(label: int | None, member: Component | None) -> int:
    if label is None:
        found = _require_member(member)
        content = (found.data or b"")[:40].decode(errors="replace")
        raise UnusableImageError(f"no label: an integer is needed, {base_name(found)} holds {content!r}")
    return label


def _find(sample: TarSample, extension: str) -> Component:
    found = [each for each in sample.components if each.extension.lower() == extension]
    if not found:
        raise UnusableImageError(f"no member .{extension}: it has {_list_names(sample.components)}")
    return found[0]


def _check_belongs(image: Component, label: Component) -> None:
    """Check that the label belongs to the image: `photo.1.jpg` and `photo.2.cls` are one sample of two photographs.

    Raises:
        UnusableImageError: their names differ.
    """
    parts = [each.extension.lower().rpartition(".")[0] for each in (image, label)]
    is_numbered = any(re.search(r"(^|\.)\d+($|\.)", part) for part in parts)
    if parts[0] != parts[1] and (all(parts) or is_numbered):
        raise UnusableImageError(
            f"{base_name(image)} and {base_name(label)} are in one sample and have different names: a sample's name "
            "ends at its first dot; rename files that have more dots, or choose with --image-ext and --label-ext"
        )


def _read_integer(data: bytes | None) -> int | None:
    found = re.fullmatch(rb"\s*([+-]?[0-9]{1,18})\s*", data or b"")
    return int(found[1]) if found else None


def _read_fields(member: Component, key: str | None) -> int | None:
    """Return the label of a JSON member: the integer under `key`, else under "label" or "cls"; None if it has none."""
    values = _list_values(member, key)
    if len(set(values.values())) > 1:
        found = ", ".join(f"{name} {value}" for name, value in values.items())
        raise UnusableImageError(f"labels differ in {base_name(member)} ({found}): choose one with --label-key")
    return next(iter(values.values()), None)


def _list_values(member: Component, key: str | None) -> dict[str, int]:
    """Return the integers under the names that may hold a label; true and false are not integers here."""
    try:
        fields = json.loads(member.data or b"")
    except (ValueError, RecursionError):
        return {}
    found = {name: _look_up(fields, name.split(".") if key else [name]) for name in ([key] if key else JSON_LABELS)}
    return {name: value for name, value in found.items() if type(value) is int}


def _look_up(fields: Any, path: Sequence[str]) -> Any:
    for name in path:
        fields = fields.get(name) if isinstance(fields, dict) else None
    return fields


def base_name(member: Component) -> str:
    """Return a member's name without its folder."""
    return member.name.rpartition("/")[2]


def _list_names(members: Sequence[Component]) -> str:
    more = ", ..." if len(members) > MOST_NAMED else ""
    return ", ".join(base_name(member) for member in members[:MOST_NAMED]) + more
