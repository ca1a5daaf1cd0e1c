"""What other places show of the page: the name in a browser's tab, its icon, and the preview of a link in a chat.

Gradio's HTML gives its own name, text and picture for link previews. `serve/app/limits.py` passes the HTML of `/`
through `rewrite_head`, which puts the model's in their place.
"""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from serve.accuracy_check import count_recorded, describe_accuracy
from serve.app.uploads import open_photo
from serve.artifact import Served

IMAGE_PATH, ICON_PATH = "/preview.jpg", "/favicon.ico"
IMAGE_SIZE = (1200, 630)  # pixels; the shape that chats and networks show
ICON_SIDE, FINE = 64, 4  # pixels; drawn four times as large, for smooth edges
QUESTION = "What is in this photo?"
TAG = re.compile(r"""\s*<meta\s[^>]*?(?:property|name)\s*=\s*["'](?:og|twitter):[^>]*>""")
TITLE_TAG = re.compile(r"\s*<title>.*?</title>", re.DOTALL)
MANIFEST = re.compile(r"\s*<link\s[^>]*rel=[\"']manifest[\"'][^>]*>")  # names Gradio and its icons
HOST = re.compile(r"[\w.-]+(?::\d{1,5})?|\[[\da-fA-F:.]+\](?::\d{1,5})?")


@dataclass(frozen=True)
class Preview:
    """The model's name, text and pictures for tabs and link previews."""

    title: str
    description: str
    icon: bytes  # PNG
    image: bytes | None = None  # JPEG


def write_title(served: Served) -> str:
    """Return the page's title, e.g. "What is in this photo? – resnet50d, 1,000 things"."""
    return f"{QUESTION} – {_name_model(served)}, {served.num_classes:,} things"


def _name_model(served: Served) -> str:
    """Return the architecture, without the recipe, the number of images or the file that follow it in the name."""
    return re.split(r",| from ", served.name, maxsplit=1)[0]


def make_preview(served: Served, examples: Sequence[Path] = ()) -> Preview:
    """Return what others show of a model's page; the picture is made of the first example, if there is one.

    Raises:
        InputError: the example is not a picture.
    """
    words = (
        f"Choose a photo: {_name_model(served)} says which of {served.num_classes:,} things is in it, "
        "and shows where it looked."
    )
    if served.recorded is not None:
        words += f" Measured accuracy: {describe_accuracy(count_recorded(served.recorded))}."
    return Preview(write_title(served), words, draw_icon(), _make_image(examples[0]) if examples else None)


def _make_image(path: Path) -> bytes:
    """Return a picture in the middle of a grey page as JPEG, 1200 x 630 pixels."""
    picture = open_photo(path).picture
    width, height = picture.size
    scale = min(IMAGE_SIZE[0] / width, IMAGE_SIZE[1] / height)
    picture = picture.resize((max(1, round(scale * width)), max(1, round(scale * height))), Image.Resampling.LANCZOS)
    page = Image.new("RGB", IMAGE_SIZE, "#f5f5f4")
    page.paste(picture, ((page.width - picture.width) // 2, (page.height - picture.height) // 2))
    content = io.BytesIO()
    page.save(content, "JPEG", quality=85)
    return content.getvalue()


def draw_icon() -> bytes:
    """Return the icon of the tab as PNG: a lens in the page's colour."""
    side = FINE * ICON_SIDE
    icon = Image.new("RGBA", (side, side))
    draw = ImageDraw.Draw(icon)
    draw.line((0.62 * side, 0.62 * side, 0.88 * side, 0.88 * side), "#0f766e", round(0.14 * side))
    draw.ellipse((0.08 * side, 0.08 * side, 0.72 * side, 0.72 * side), "#ccfbf1", "#0f766e", round(0.1 * side))
    content = io.BytesIO()
    icon.resize((ICON_SIDE, ICON_SIDE), Image.Resampling.LANCZOS).save(content, "PNG")
    return content.getvalue()


def rewrite_head(html: str, preview: Preview, address: str | None) -> str:
    """Return a page's HTML with the title, icon and link preview of `preview` in its head.

    HTML without `<head>` is returned unchanged: another version of Gradio may build its page in another way, and the
    page must work even so.

    Args:
        address: the page's public address without a slash at the end; None leaves out the tags that need it.
    """
    before, tag, after = html.partition("<head>")
    if not tag:
        return html

    # Remove Gradio's tags. The scripts may contain the same words as data, so the tags are searched in front of them.
    head, script, rest = after.partition("<script")
    head = TITLE_TAG.sub("", TAG.sub("", head), 1)
    inside, end, body = rest.partition("</head>")
    inside = MANIFEST.sub("", inside, 1)
    return f"{before}{tag}{head.rstrip()}{_write_tags(preview, address)}\n\t\t{script}{inside}{end}{body}"


def _write_tags(preview: Preview, address: str | None) -> str:
    """Return the tags as HTML."""
    tags = {"og:type": "website", "og:title": preview.title, "og:description": preview.description}
    has_image = preview.image is not None and address is not None
    if address is not None:
        tags["og:url"] = f"{address}/"
    if has_image:
        tags["og:image"] = f"{address}{IMAGE_PATH}"
    tags["twitter:card"] = "summary_large_image" if has_image else "summary"
    lines = [
        f"<title>{escape(preview.title)}</title>",
        f'<meta name="description" content="{escape(preview.description)}" />',
        f'<link rel="icon" type="image/png" href=".{ICON_PATH}" />',
        *(
            f'<meta {"name" if name.startswith("twitter") else "property"}="{name}" content="{escape(content)}" />'
            for name, content in tags.items()
        ),
    ]
    return "".join(f"\n\t\t{line}" for line in lines)


def find_address(scope: Any) -> str | None:
    """Return the address at which a visitor sees the page, without a slash at the end; None if it is not valid.

    A proxy gives it in X-Forwarded-Proto and X-Forwarded-Host, or in Host; GRADIO_ROOT_PATH may be a whole address.
    """
    root = scope.get("root_path", "").rstrip("/")
    if root.startswith(("http://", "https://")):
        return root
    headers = {name: value.decode("latin-1") for name, value in reversed(scope["headers"])}  # the first of each name
    # Each proxy on the way adds its own after a comma; the first is the visitor's.
    scheme = headers.get(b"x-forwarded-proto", scope.get("scheme", "http")).split(",")[0].strip()
    host = (headers.get(b"x-forwarded-host") or headers.get(b"host", "")).split(",")[0].strip()
    if scheme not in ("http", "https") or not HOST.fullmatch(host):
        return None
    return f"{scheme}://{host}{root}"
