"""Read the templates, styles and scripts that are files next to the modules; write bytes into a page.

Every value in a template is escaped (jinja2's autoescape), so names and notes cannot add markup.
"""

import base64
from functools import cache
from importlib.resources import files

from jinja2 import Environment, StrictUndefined, Template


def read_file(package: str, name: str) -> str:
    """Return the text of a file in a package, e.g. style.css of serve.app."""
    return files(package).joinpath(name).read_text(encoding="utf-8")


@cache
def load_template(package: str, name: str) -> Template:
    """Return a jinja2 template that is a file in a package.

    Its lines are joined without the whitespace around them: the template can be indented, and no space appears between
    inline elements. Text that must keep a space stays on one line.
    """
    source = "".join(line.strip() for line in read_file(package, name).splitlines())
    return Environment(autoescape=True, undefined=StrictUndefined).from_string(source)


def to_data_uri(content: bytes, kind: str) -> str:
    """Return the content of an image file as a `data:` URI, so that the page needs no second file.

    Args:
        kind: Pillow's name of the format, e.g. PNG.
    """
    return f"data:image/{kind.lower()};base64,{base64.b64encode(content).decode()}"
