"""Lines and tables for the terminal."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from recyclelora.errors import printable
from recyclelora.stopping import is_first_process


def say(text: str) -> None:
    """Print lines for the user, without what would steer the terminal.

    If several processes train together, only the first prints.
    """
    if is_first_process():
        shown = "\n".join(map(printable, text.split("\n")))
        Console().print(shown, highlight=False, markup=False, soft_wrap=True)


class SaidOnce(logging.Handler):
    """Prints each line that is logged once, however often it is."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.said: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        """Print a line that is new."""
        text = printable(record.getMessage())
        if text not in self.said:
            self.said.add(text)
            say(text)


def print_table(
    header: Sequence[str], rows: Sequence[Sequence[str]], title: str | None = None, footer: Sequence[str] = ()
) -> None:
    """Print a table whose first column is text and whose other columns are numbers, wide enough for all of them.

    What would steer the terminal is written out. If several processes train together, only the first prints.

    Args:
        footer: a last row, separated by a line.
    """
    if not is_first_process():
        return
    header, footer = [printable(cell) for cell in header], [printable(cell) for cell in footer]
    rows = [[printable(cell) for cell in row] for row in rows]
    table = Table(title=Text(printable(title)) if title else None, title_justify="left")
    for place, name in enumerate(header):
        table.add_column(Text(name), justify="right" if place else "left")
    for row in rows:
        table.add_row(*map(Text, row))
    if footer:
        table.add_section()
        table.add_row(*map(Text, footer))
    every = [header, *rows, footer] if footer else [header, *rows]
    wide = sum(3 + max(len(row[i]) for row in every) for i in range(len(header))) + 1
    Console(width=max(80, wide)).print(table)
