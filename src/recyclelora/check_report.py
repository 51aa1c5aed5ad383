"""The check of a data set as text on the terminal and as one self-contained HTML page, from data_check.html.j2."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from recyclelora import plots
from recyclelora.data.check import DataCheck, Problem
from recyclelora.pages import write_page


def print_check(check: DataCheck, console: Console | None = None) -> None:
    """Counts, problems, and how the classes are spread."""
    console = console or Console()
    counts = Table(title=f"{check.name} in {check.root}", title_justify="left")
    counts.add_column("part")
    for heading in ("images", "official", "problems"):
        counts.add_column(heading, justify="right")
    for part in check.parts:
        problems = sum(problem.count for problem in part.problems.values())
        counts.add_row(part.name, *map(number, (part.images, part.official, problems)))
    console.print(counts)
    for part in check.parts:
        for kind, problem in part.problems.items():
            heading = f"{part.name}: {kind}{times(problem)}"
            console.print("\n  ".join([heading, *cases(problem)]), markup=False, highlight=False, soft_wrap=True)
    if check.spreads():
        console.print(_class_table(check))


def _class_table(check: DataCheck) -> Table:
    spreads = check.spreads()
    table = Table(title="Share of the labelled pixels (%), and labels that hold the class", title_justify="left")
    table.add_column("class")
    for split in spreads:
        table.add_column(split, justify="right")
        table.add_column("labels", justify="right")
    for i, name in enumerate(check.names):
        table.add_row(
            name,
            *(text for s in spreads.values() for text in (percent(s.shares[i]), number(int(s.holding[i])))),
        )
    table.add_section()
    table.add_row("ignored, of all", *(text for s in spreads.values() for text in (percent(s.ignored_share), "")))
    return table


def write_check(path: Path, check: DataCheck) -> Path:
    """Write the page; an existing file is replaced."""
    filters: dict[str, Any] = {"percent": percent, "number": number, "times": times, "cases": cases}
    spreads = check.spreads()
    shares = {split: dict(zip(check.names, s.shares.tolist(), strict=True)) for split, s in spreads.items()}
    plot = plots.class_distribution(shares) if shares else ""
    return write_page(path, "data_check.html.j2", filters, check=check, spreads=spreads, plot=plot)


def percent(share: float) -> str:
    """A share of 0..1 in percent; a dash where there is nothing."""
    return "–" if not share else "<0.01" if share < 5e-5 else f"{100 * share:.2f}"


def number(value: int | None) -> str:
    """A number with its thousands apart; a dash where there is none."""
    return "–" if value is None else f"{value:,}"


def times(problem: Problem) -> str:
    """How often a problem occurs, where its examples do not say so."""
    if problem.pixels:
        return f" ({problem.pixels:,} pixels in {problem.count:,} label{'s' * (problem.count > 1)})"
    return f" ({problem.count:,})" if problem.count > 1 else ""


def cases(problem: Problem) -> list[str]:
    """The examples of a problem, and how many more there are."""
    more = problem.count - len(problem.examples)
    return [*problem.examples, *([f"and {more:,} more"] if more else [])]
