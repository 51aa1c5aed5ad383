"""The summary of a grid: means over seeds, paired differences with intervals, costs; and its page."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recyclelora.errors import UserError
from recyclelora.evaluation.bootstrap import difference_interval
from recyclelora.evaluation.report import Example
from recyclelora.pages import plots
from recyclelora.pages.page import write_page
from recyclelora.pages.pictures import PICTURE_FILTERS
from recyclelora.pages.tables import print_table
from recyclelora.study.cell import CellResult

UNSEEN = "unseen"
"""The mean over targets of domains that were not trained on."""


@dataclass(frozen=True)
class Comparison:
    """The variants of a comparison side by side; `variants` has one row per variant, by name.

    baseline: the variant that the others are compared to.
    seen: labels of the targets whose domain was trained on.
    columns: labels of all targets, and `unseen` for the mean over the others.
    variants: a row holds `seeds`, `scale`, `lr`, costs, `scores` (mean, std and values by column) and `difference`
        (mean, low, high and seeds by column); or the `error` of a training that diverged.
    images: the number of images by target.
    protocol: of the evaluation.
    """

    baseline: str
    seen: Sequence[str]
    columns: Sequence[str]
    variants: Mapping[str, Mapping[str, Any]]
    images: Mapping[str, int]
    protocol: str

    def to_json(self) -> dict[str, Any]:
        """The content of the results file, as plain values."""
        return dict(vars(self))

    @property
    def scored(self) -> dict[str, Mapping[str, Any]]:
        """The rows that have scores."""
        return {name: row for name, row in self.variants.items() if "scores" in row}


def summarise(cells: Sequence[CellResult], baseline: str, seen: Sequence[str]) -> Comparison:
    """Means and deviations over seeds, and differences to the baseline with 95 % intervals, from a grid's results."""
    by_variant: dict[str, list[CellResult]] = {}
    for cell in cells:
        by_variant.setdefault(cell.variant, []).append(cell)
    first = next((cell for cell in cells if cell.error is None), None)
    targets = first.targets if first else ()
    unseen = [score.label for score in targets if score.label not in seen]
    columns = {score.label: [score.label] for score in targets} | ({UNSEEN: unseen} if unseen else {})
    rows = {name: _row(own, columns) for name, own in by_variant.items()}
    for name, row in rows.items():
        if name != baseline and "scores" in row:
            theirs = by_variant.get(baseline, ())
            row["difference"] = {
                column: _difference(by_variant[name], theirs, group) for column, group in columns.items()
            }
    images = {score.label: score.images for score in targets}
    return Comparison(baseline, list(seen), list(columns), rows, images, first.protocol if first else "")


def _row(cells: Sequence[CellResult], columns: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    first = cells[0]
    frozen = first.settings["method"] == "frozen"
    rate = (frozen and first.settings.get("optim.head_lr")) or first.settings["optim.lr"]
    row: dict[str, Any] = {"seeds": [cell.seed for cell in cells], "scale": first.scale, "lr": rate}
    if errors := [cell.error for cell in cells if cell.error is not None]:
        return row | {"error": errors[0]}
    costs = {key: _cost(cells, key) for key in ("step_seconds", "peak_gib")}
    scores = {column: _spread(cells, group) for column, group in columns.items()}
    return row | costs | {"parameters": first.parameters, "scores": scores}


def _cost(cells: Sequence[CellResult], key: str) -> float | None:
    values = [value for cell in cells if (value := getattr(cell, key)) is not None]
    return statistics.median(values) if values else None


def _miou(cell: CellResult, labels: Sequence[str]) -> float:
    values = [score.miou for score in cell.targets if score.label in labels]
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        raise UserError(f"target {', '.join(labels)}: no pixel has a class that is scored; leave it out")
    return statistics.fmean(known)


def _resampled(cell: CellResult, labels: Sequence[str]) -> list[list[float | None]]:
    return [score.resampled for score in cell.targets if score.label in labels]


def _spread(cells: Sequence[CellResult], labels: Sequence[str]) -> dict[str, Any]:
    values = [_miou(cell, labels) for cell in cells]
    return {
        "mean": statistics.fmean(values),
        "std": statistics.stdev(values) if len(values) > 1 else None,
        "values": values,
    }


def _difference(
    ours: Sequence[CellResult], theirs: Sequence[CellResult], labels: Sequence[str]
) -> dict[str, float | int] | None:
    """The mean difference over the seeds that both have, the number of these seeds, and the interval of the mean."""
    pairs = [
        (own, other)
        for own in ours
        for other in theirs
        if own.seed == other.seed and own.error is None and other.error is None
    ]
    if not pairs:
        return None
    mean = statistics.fmean(_miou(own, labels) - _miou(other, labels) for own, other in pairs)
    low, high = difference_interval(
        mean, [_resampled(own, labels) for own, _ in pairs], [_resampled(other, labels) for _, other in pairs]
    )
    return {"mean": mean, "low": low, "high": high, "seeds": len(pairs)}


def draw_comparison(found: Comparison) -> tuple[str, str]:
    """Two SVG plots: scores, one dot per seed; differences to the baseline, unseen mean or else the first target."""
    column = UNSEEN if UNSEEN in found.columns else next(iter(found.columns), "")
    differences = {name: row.get("difference", {}).get(column) for name, row in found.scored.items()}
    return (
        plots.spread_dots({name: row["scores"] for name, row in found.scored.items()}, found.columns),
        plots.difference_forest({name: d for name, d in differences.items() if d}, column, found.baseline),
    )


def write_comparison(
    path: Path, title: str, found: Comparison, examples: Mapping[str, Sequence[Example]] | None = None
) -> Path:
    """Write the page of a comparison; an existing file is replaced."""
    scored = found.scored
    dots, forest = draw_comparison(found)
    return write_page(
        path,
        "compare.html.j2",
        PICTURE_FILTERS,
        title=title,
        summary=found,
        scored=scored,
        diverged={name: row["error"] for name, row in found.variants.items() if "error" in row},
        best={
            column: max((row["scores"][column]["mean"] for row in scored.values()), default=None)
            for column in found.columns
        },
        differences={name: row["difference"] for name, row in scored.items() if row.get("difference")},
        dots=dots,
        forest=forest,
        examples=examples or {},
    )


def print_comparison(found: Comparison) -> None:
    """Print mIoU in percent, mean and deviation over seeds, and the difference to the baseline in the last column."""
    last = found.columns[-1] if found.columns else ""
    rows = []
    for name, row in found.variants.items():
        cells = [_mean_and_std(row["scores"][c]) for c in found.columns] if "scores" in row else [row["error"]]
        difference = row.get("difference", {}).get(last)
        cells += [""] * (len(found.columns) - len(cells))
        rows.append([name, *cells, _with_interval(difference) if difference else ""])
    print_table(["method", *found.columns, f"{last} − {found.baseline}"], rows)


def _mean_and_std(score: Mapping[str, Any]) -> str:
    return f"{100 * score['mean']:.2f}" + (f" ± {100 * score['std']:.2f}" if score["std"] is not None else "")


def _with_interval(found: Mapping[str, float]) -> str:
    return f"{100 * found['mean']:+.2f} [{100 * found['low']:+.2f}, {100 * found['high']:+.2f}]"
