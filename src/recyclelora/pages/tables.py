"""Lines and tables for the terminal."""

from __future__ import annotations

import os
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text


def say(text: str) -> None:
    """Print a line for the user; if several processes train together, only the first prints."""
    if os.environ.get("LOCAL_RANK", "0") == "0":
        Console().print(text, highlight=False, markup=False, soft_wrap=True)


def print_table(
    header: Sequence[str], rows: Sequence[Sequence[str]], title: str | None = None, footer: Sequence[str] = ()
) -> None:
    """Print a table whose first column is text and whose other columns are numbers, wide enough for all of them.

    Args:
        footer: a last row, separated by a line.
    """
    table = Table(title=title, title_justify="left")
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
