"""A table: a figure is told once, and shown as Markdown (RESULTS.md, README.md) or in the terminal."""

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TextIO

LEAST_TERMINAL_WIDTH = 180  # columns, also of files and narrow terminals: the widest race needs 173
LONGEST_CELL = 110  # characters of a cell in a table with terminal columns
MOST_WIDTH = 1 << 20  # columns: no table is wider


@dataclass(frozen=True)
class Table:
    """A title, rows under a header, and notes below; each of them may be empty.

    `detail` is a title for rows or notes that are long: Markdown collapses them, the terminal leaves them out.
    `in_terminal` names the columns that the terminal shows, in its order (default: all), with one line for each row:
    of a log that is kept, often only the last 12,000 characters are.
    """

    title: str = ""
    header: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    notes: Sequence[str] = ()
    detail: str = ""
    in_terminal: Sequence[str] = ()

    def kept_columns(self) -> list[int]:
        """Return the columns that have a value in a row; the first one always."""
        return [i for i in range(len(self.header)) if i == 0 or any(row[i] for row in self.rows)]

    def for_terminal(self) -> "Table":
        """Return the table without the columns that the terminal does not show, and with cut cells."""
        if not self.in_terminal:
            return self
        shown = [self.header.index(name) for name in self.in_terminal]
        rows = [[row[i][:LONGEST_CELL] for i in shown] for row in self.rows]
        return replace(self, header=self.in_terminal, rows=rows)


def to_markdown(tables: Iterable[Table]) -> str:
    """Return tables as Markdown."""
    return "\n".join(line for table in tables for line in _markdown_lines(table))


def _markdown_lines(table: Table) -> Iterator[str]:
    if table.title:
        yield from (f"**{table.title}**", "")
    is_collapsed = bool(table.detail and (table.rows or table.notes))
    if is_collapsed:
        yield from (f"<details><summary>{table.detail}</summary>", "")
    if table.rows:
        kept = table.kept_columns()
        for number, row in enumerate([table.header, *table.rows]):
            yield f"| {' | '.join(_escape(row[i]) for i in kept)} |"
            if number == 0:
                yield f"|{'|'.join('---' for _ in kept)}|"
        yield ""
    if table.notes:
        yield from (f"* {note}" for note in table.notes)
        yield ""
    if is_collapsed:
        yield from ("</details>", "")


def _escape(cell: str) -> str:
    return " ".join(cell.replace("|", "\\|").split())


def print_tables(tables: Iterable[Table], file: TextIO | None = None) -> None:
    """Print tables on `file` (default: standard output): with rich and the width of the terminal, or plain columns.

    A table that needs more is wider, because rich would cut words and figures; a narrow terminal folds its lines.
    """
    shown = [each.for_terminal() for each in tables if not each.detail and (each.title or each.rows or each.notes)]
    try:
        from rich.console import Console  # noqa: PLC0415
        from rich.table import Table as RichTable  # noqa: PLC0415
    except ImportError:  # on a bare GPU machine: what was measured must be seen
        for table in shown:
            _print_plain(table, file)
        return

    console = Console(file=file or sys.stdout, highlight=False, markup=False, emoji=False)
    usual_width = max(console.width, LEAST_TERMINAL_WIDTH)
    for table in shown:
        if table.in_terminal:  # rich would wrap the rows
            _print_plain(table, file)
            continue
        if table.title:
            console.print(table.title, style="bold", soft_wrap=True)
        if table.rows:
            kept = table.kept_columns()
            grid = RichTable(box=None, pad_edge=False)
            for number, i in enumerate(kept):
                grid.add_column(table.header[i], justify="right" if number and _is_numeric(table, i) else "left")
            for row in table.rows:
                grid.add_row(*(row[i] for i in kept))
            needed = console.measure(grid, options=console.options.update(max_width=MOST_WIDTH)).minimum
            console.width = max(usual_width, needed)
            console.print(grid)
        for note in table.notes:
            console.print(note, soft_wrap=True)
        console.print()


def _print_plain(table: Table, file: TextIO | None) -> None:
    """Print a table with aligned columns, and nothing wrapped."""
    lines = [table.title] if table.title else []
    if table.rows:
        columns = []
        for number, i in enumerate(table.kept_columns()):
            cells = [table.header[i], *(row[i] for row in table.rows)]
            width, side = max(map(len, cells)), ">" if number and _is_numeric(table, i) else "<"
            columns.append([f"{cell:{side}{width}}" for cell in cells])
        lines += ["  ".join(cells).rstrip() for cells in zip(*columns, strict=True)]
    print(*lines, *table.notes, "", sep="\n", file=file)


def _is_numeric(table: Table, column: int) -> bool:
    """Check whether every value of a column begins with a digit."""
    return all(row[column][:1].isdigit() for row in table.rows if row[column])
