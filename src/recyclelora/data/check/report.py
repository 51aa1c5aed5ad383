"""Shows the check of a data set on the terminal and as one self-contained HTML page (data_check.html.j2)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from recyclelora.data.check.check import DataCheck, Problem
from recyclelora.pages import plots
from recyclelora.pages.page import write_page
from recyclelora.pages.tables import print_table, say


def print_check(check: DataCheck) -> None:
    """Print counts, problems, and how the classes are spread."""
    rows = [
        [part.name, *map(number, (part.images, part.official, sum(p.count for p in part.problems.values())))]
        for part in check.parts
    ]
    print_table(["part", "images", "official", "problems"], rows, title=f"{check.name} in {check.root}")
    for note in check.notes:
        say(note)
    for part in check.parts:
        for kind, problem in part.problems.items():
            lines = [f"{part.name}: {kind}{times(problem)}", *cases(problem)]
            say("\n  ".join(line.replace("\n", r"\n") for line in lines))
    spreads = check.spreads()
    if spreads:
        header = ["class", *(heading for split in spreads for heading in (split, "labels"))]
        shares = [
            [name, *(text for s in spreads.values() for text in (percent(s.shares[i]), number(int(s.holding[i]))))]
            for i, name in enumerate(check.names)
        ]
        ignored = ["ignored, of all", *(text for s in spreads.values() for text in (percent(s.ignored_share), ""))]
        title = "Share of the labelled pixels (%), and labels that hold the class"
        print_table(header, shares, title, ignored)
    for split, names in check.absent().items():
        say(
            f"{split}: no label holds {', '.join(names)}; a model cannot learn or be scored on a class that is not "
            "there: compare the ids in the labels with the list of classes if it should be"
        )


def write_check(path: Path, check: DataCheck) -> Path:
    """Write the page; an existing file is replaced."""
    filters: dict[str, Any] = {"percent": percent, "number": number, "times": times, "cases": cases}
    spreads = check.spreads()
    shares = {split: dict(zip(check.names, s.shares.tolist(), strict=True)) for split, s in spreads.items()}
    plot = plots.class_distribution(shares) if shares else ""
    return write_page(path, "data_check.html.j2", filters, check=check, spreads=spreads, plot=plot)


def percent(share: float) -> str:
    """A share (0 to 1) in percent; a dash if it is 0."""
    return "–" if not share else "<0.01" if share < 5e-5 else f"{100 * share:.2f}"


def number(value: int | None) -> str:
    """A number with commas between thousands; a dash for None."""
    return "–" if value is None else f"{value:,}"


def times(problem: Problem) -> str:
    """How often a problem occurs, if its examples do not show it."""
    if problem.pixels:
        return f" ({problem.pixels:,} pixels in {problem.count:,} label{'s' * (problem.count > 1)})"
    return f" ({problem.count:,})" if problem.count > 1 else ""


def cases(problem: Problem) -> list[str]:
    """The examples of a problem, and how many more there are."""
    more = problem.count - len(problem.examples)
    return [*problem.examples, *([f"and {more:,} more"] if more else [])]
