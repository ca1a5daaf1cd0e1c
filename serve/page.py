"""A report as one HTML page that needs nothing else: pictures lie in it, no script, nothing from the network."""

import base64
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

STYLE = """
:root { color-scheme: light }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 0 auto; padding: 1rem; color: #1a1a1a }
h1, h2 { line-height: 1.2 } img { max-width: 100% } .warning { color: #b3261e; font-weight: bold }
table { border-collapse: collapse; margin: 0 2rem 1rem 0 }
td, th { padding: .2rem 0 .2rem .8rem; text-align: right; vertical-align: top; white-space: nowrap }
td:first-child, th:first-child { padding-left: 0; text-align: left; white-space: normal; max-width: 20rem }
.beside { display: flex; flex-wrap: wrap }
.pairs { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(30rem, 100%), 1fr)); gap: 0 2rem }
.examples img { width: calc(25% - .5rem); max-width: 7rem; image-rendering: pixelated; margin-right: .5rem }
.wide { overflow-x: auto } .wide img { min-width: 54rem }
"""


def picture(path: Path, words: str) -> str:
    """A PNG in the page itself; `words` for those who cannot see it."""
    return f'<img alt="{escape(words)}" src="data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}">'


def table(headings: Sequence[str], lines: Iterable[Sequence[object]]) -> str:
    """A table; its first column is of words, the others of numbers."""
    rows = "".join(f"<tr>{''.join(f'<td>{escape(str(value))}</td>' for value in line)}</tr>" for line in lines)
    return f"<table><tr>{''.join(f'<th>{escape(each)}</th>' for each in headings)}</tr>{rows}</table>"


def paragraph(words: str, kind: str = "") -> str:
    """A paragraph of plain words."""
    return f'<p class="{kind}">{escape(words)}</p>' if kind else f"<p>{escape(words)}</p>"


def write_page(title: str, sections: Sequence[tuple[str, str]]) -> str:
    """The page from its sections: heading (none where empty) and HTML."""
    parts = [
        f"<section>{f'<h2>{escape(heading)}</h2>' if heading else ''}{body}</section>" for heading, body in sections
    ]
    head = (
        f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{escape(title)}</title>'
        f"<style>{STYLE}</style>"
    )
    body = f"<h1>{escape(title)}</h1>{''.join(parts)}"
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{body}</body></html>\n'
