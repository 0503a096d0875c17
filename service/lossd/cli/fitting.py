"""Tables that fit a terminal of any width: numbers are never cut, and texts keep room."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console, ConsoleOptions, RenderResult
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

__all__ = ["FittedTable", "Listing", "console", "number_text"]

GAP = 2
ENOUGH = 12
"""The width to which a name may be cut, if not even one column of numbers fits beside it."""

READABLE, INDENT = 32, 4
"""The least width of a text beside its names. A narrower text is printed below them, indented by as much."""


class FittedTable:
    """A table of names and numbers. Columns that do not fit are left out from the right, and named below it.

    Args:
        *headings: The headings; the first column is of names.
    """

    def __init__(self, *headings: str) -> None:
        self.headings = headings
        self.rows: list[tuple[Sequence[str | Text], str | None]] = []

    def add_row(self, *cells: str | Text, style: str | None = None) -> None:
        """Add a row of as many cells as there are headings."""
        self.rows.append((cells, style))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the table, and what was left out."""
        widths = [self._width(column) for column in range(len(self.headings))]
        shown = len(widths)
        while shown > 2 and sum(widths[:shown]) + GAP * (shown - 1) > options.max_width:
            shown -= 1
        table = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), header_style="dim")
        room = options.max_width - sum(widths[1:shown]) - GAP * (shown - 1)
        table.add_column(self.headings[0], style="dim", no_wrap=True, overflow="ellipsis", max_width=max(room, ENOUGH))
        for heading in self.headings[1:shown]:
            table.add_column(heading, justify="right", no_wrap=True, overflow="crop")
        for cells, style in self.rows:
            table.add_row(*cells[:shown], style=style)
        yield table
        if hidden := self.headings[shown:]:
            yield Text(f"not shown in {options.max_width} columns: {', '.join(hidden)}; --json has them", style="dim")

    def _width(self, column: int) -> int:
        cells = (cells[column] for cells, _ in self.rows if column < len(cells))
        return max(len(self.headings[column]), *(len(cell) for cell in cells), 0)


class Listing:
    """A table of names with a text in each row: beside the names, or below them where the terminal is narrow.

    Args:
        *headings: The headings of the names.
    """

    def __init__(self, *headings: str) -> None:
        self.headings = headings
        self.rows: list[tuple[Sequence[str | Text], Text]] = []

    def add_row(self, *names: str | Text, text: str | Text = "") -> None:
        """Add a row of as many names as there are headings; missing ones are empty."""
        missing = [""] * (len(self.headings) - len(names))
        self.rows.append(([*names, *missing], Text(text) if isinstance(text, str) else text))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the table."""
        columns = zip(self.headings, *(names for names, _ in self.rows), strict=True)
        taken = sum(max(map(len, column)) + GAP for column in columns)
        beside = options.max_width - taken >= READABLE
        table = self._table()
        if beside:
            table.add_column("", overflow="fold")
        for names, text in self.rows:
            table.add_row(*names, *([text] if beside else []))
        if beside:
            yield table
            return
        lines = console.render_lines(table, options.update(width=max(taken, options.max_width)), pad=False)
        for line, text in zip(lines, [Text(), *(text for _, text in self.rows)], strict=True):
            yield from line
            yield Text("\n", end="")
            if text:
                yield Padding(text, (0, 0, 0, INDENT))

    def _table(self) -> Table:
        table = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), header_style="dim")
        for heading in self.headings:
            table.add_column(heading, no_wrap=True)
        return table


def number_text(value: float | None) -> str:
    """Return six digits of a number; a dash for None."""
    return "–" if value is None else f"{value:.6g}"


def console() -> Console:
    """Return the console: as wide as the terminal, or 120 columns without one."""
    plain = Console()
    return plain if plain.is_terminal else Console(width=120)
