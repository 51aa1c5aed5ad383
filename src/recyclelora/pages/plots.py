"""Plots as SVG text, which a page can contain without any other file."""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from jaxtyping import Float64
from matplotlib.figure import Figure

PALETTE = ("#8a94a6", "#1769aa", "#d1495b", "#2a9d8f", "#e9a23b", "#6a4c93")
POINTS = 800
"""More points than this are not told apart in a plot of a page's width, but make the page large."""
STYLE: Any = {
    "font.family": "sans-serif", "font.size": 10, "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": True, "grid.color": "#e6e8ec", "axes.axisbelow": True, "svg.fonttype": "none", "svg.hashsalt": "r",
    "text.parse_math": False,
}  # fmt: skip


def loss_curves(curves: Mapping[str, tuple[Sequence[int], Sequence[float]]]) -> str:
    """Training loss of each model: a faint line for every step, a strong one for the mean over 20 steps."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 2.8), layout="constrained")
        axes = figure.subplots()
        strong = []
        for (steps, losses), colour in zip(curves.values(), itertools.cycle(PALETTE), strict=False):
            strong += _loss_curve(axes, steps, losses, colour)
        axes.set(xlabel="step", ylabel="training loss", ylim=(0, None))
        axes.legend(strong, list(curves), frameon=False)
        return _svg(figure)


def training_curves(
    losses: tuple[Sequence[int], Sequence[float]],
    scores: Mapping[str, tuple[Sequence[int], Sequence[float]]],
    steps: int,
) -> str:
    """Training loss and, in a panel below it, the mIoU in percent of each source's validation, over all `steps`.

    Args:
        losses: steps and their losses.
        scores: steps and mIoU in 0..1, by the name of the line; without any there is no second panel.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 4.6 if scores else 2.8), layout="constrained")
        panels = np.ravel(figure.subplots(1 + bool(scores), 1, sharex=True, squeeze=False))
        if losses[0]:
            _loss_curve(panels[0], *losses, PALETTE[1])
        panels[0].set(ylabel="training loss", ylim=(0, None))
        drawn = []
        for (places, values), colour in zip(scores.values(), itertools.cycle(PALETTE[2:]), strict=False):
            heights = [100 * value for value in values]
            drawn += panels[1].plot(
                places, heights, color=colour, marker="o", markersize=4, linewidth=1.8, clip_on=False
            )
        if scores:
            panels[1].set(ylabel="validation mIoU (%)", ylim=(0, None))
            panels[1].legend(drawn, list(scores), frameon=False, loc="lower right")
        panels[-1].set(xlabel="step", xlim=(0, steps))
        return _svg(figure)


def miou_bars(scores: Mapping[str, Mapping[str, float | None]]) -> str:
    """mIoU in percent, with one group of bars per target and one bar per model: `scores[model][target]` in 0..1."""
    targets = list(next(iter(scores.values())))
    width = 0.8 / len(scores)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 2.8), layout="constrained")
        axes = figure.subplots()
        groups = []
        for i, (values, colour) in enumerate(zip(scores.values(), itertools.cycle(PALETTE), strict=False)):
            heights = [100 * value if (value := values[target]) is not None else np.nan for target in targets]
            places = np.arange(len(targets)) + (i - (len(scores) - 1) / 2) * width
            groups.append(axes.bar(places, heights, width * 0.92, color=colour))
            labels = [f"{height:.1f}" if np.isfinite(height) else "–" for height in heights]
            axes.bar_label(groups[-1], labels, fontsize=8, padding=1)
        axes.set_xticks(np.arange(len(targets)), targets)
        axes.set(ylabel="mIoU (%)")
        axes.grid(axis="x", visible=False)
        legend: Any = figure.legend  # its stubs accept neither bars as handles nor places outside
        legend(groups, list(scores), frameon=False, ncols=len(scores), loc="outside upper right")
        return _svg(figure)


def spread_dots(scores: Mapping[str, Mapping[str, Mapping[str, Any]]], columns: Sequence[str]) -> str:
    """mIoU in percent: one panel per column, one line per method, one dot per seed, and a bar at their mean.

    `scores[method][column]` holds `values` and `mean` in 0..1.
    """
    if not scores or not columns:
        return ""
    methods = list(scores)[::-1]
    with mpl.rc_context(STYLE):
        across = min(4, len(columns))
        down = -(-len(columns) // across)
        figure = Figure(figsize=(2.3 * across + 1.2, down * (0.6 + 0.2 * len(methods))), layout="constrained")
        panels = np.ravel(figure.subplots(down, across, sharey=True, squeeze=False))
        for axes, column in zip(panels, columns, strict=False):
            for place, method in enumerate(methods):
                score = scores[method][column]
                axes.plot([100 * value for value in score["values"]], [place] * len(score["values"]), "o",
                          color=PALETTE[1], alpha=0.55, markersize=4)  # fmt: skip
                axes.plot([100 * score["mean"]] * 2, [place - 0.3, place + 0.3], color=PALETTE[2], linewidth=2)
            axes.set_title(column, fontsize=10)
            axes.set_yticks(range(len(methods)), methods)
            axes.set_ylim(-0.6, len(methods) - 0.4)
        for axes in panels[len(columns) :]:
            axes.set_visible(False)
        figure.supxlabel("mIoU (%)", fontsize=10)
        return _svg(figure)


def difference_forest(differences: Mapping[str, Mapping[str, float]], column: str, baseline: str) -> str:
    """Differences to a baseline in points, with intervals; one line per method: `mean`, `low` and `high` in 0..1.

    Intervals that exclude 0 are coloured, except those of one seed (`seeds`), which cover only the images.
    """
    if not differences:
        return ""
    methods = list(differences)[::-1]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 0.8 + 0.24 * len(methods)), layout="constrained")
        axes = figure.subplots()
        axes.axvline(0, color=PALETTE[0], linewidth=1)
        for place, method in enumerate(methods):
            low, mean, high = (100 * differences[method][key] for key in ("low", "mean", "high"))
            told = differences[method]["seeds"] > 1
            colour = PALETTE[1] if told and low > 0 else PALETTE[2] if told and high < 0 else PALETTE[0]
            axes.plot([low, high], [place, place], color=colour, linewidth=2, solid_capstyle="round")
            axes.plot([mean], [place], "o", color=colour, markersize=6)
        axes.set_yticks(range(len(methods)), methods)
        axes.set(xlabel=f"mIoU minus that of {baseline}, {column} (points)", ylim=(-0.6, len(methods) - 0.4))
        axes.grid(axis="y", visible=False)
        return _svg(figure)


def lines(values: Mapping[str, Sequence[float]], xlabel: str, ylabel: str) -> str:
    """One line per entry over 0, 1, 2, ..."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 3.0), layout="constrained")
        axes = figure.subplots()
        styles = itertools.product(("-", "--", ":"), PALETTE[1:])
        drawn = []
        for heights, (style, colour) in zip(values.values(), itertools.cycle(styles), strict=False):
            drawn += axes.plot(range(len(heights)), heights, style, color=colour, marker="o", markersize=3)
        axes.set(xlabel=xlabel, ylabel=ylabel)
        legend: Any = figure.legend  # its stubs accept no places outside
        legend(drawn, list(values), frameon=False, loc="outside right upper", fontsize=8)
        return _svg(figure)


def layer_maps(grids: Mapping[str, Mapping[str, Sequence[float | None]]]) -> str:
    """Heat maps of a measure by kind of layer and block, `grids[label][kind]`; empty if no layer has a value."""
    grids = {label: grid for label, grid in grids.items() if any(v is not None for row in grid.values() for v in row)}
    if not grids:
        return ""
    arrays = {
        label: np.array([[np.nan if v is None else v for v in row] for row in grid.values()])
        for label, grid in grids.items()
    }
    low, high = (f([f(a[np.isfinite(a)]) for a in arrays.values()]) for f in (np.min, np.max))
    with mpl.rc_context({**STYLE, "axes.grid": False}):
        across = min(2, len(grids))
        down = -(-len(grids) // across)
        rows = max(len(grid) for grid in grids.values())
        figure = Figure(figsize=(4.6 * across + 0.6, down * (0.8 + 0.26 * rows)), layout="constrained")
        panels = np.ravel(figure.subplots(down, across, squeeze=False))
        for axes, (label, array) in zip(panels, arrays.items(), strict=False):
            image = axes.imshow(array, aspect="auto", cmap="viridis", vmin=low, vmax=high)
            axes.set_title(label, fontsize=9)
            axes.set_yticks(range(len(array)), list(grids[label]), fontsize=8)
            axes.set_xticks(range(0, array.shape[1], max(1, array.shape[1] // 6)))
            axes.set_xlabel("block", fontsize=8)
        for axes in panels[len(grids) :]:
            axes.set_visible(False)
        figure.colorbar(image, ax=list(panels), shrink=0.8)
        return _svg(figure)


def class_distribution(shares: Mapping[str, Mapping[str, float]]) -> str:
    """Share of each class in the labelled pixels in percent, on a logarithmic axis: `shares[split][class]` in 0..1.

    There is one group of bars per class and one bar per split; a class that does not occur has no bar.
    """
    classes = list(next(iter(shares.values())))
    width = 0.8 / len(shares)
    present = [share for values in shares.values() for share in values.values() if share > 0]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(max(7.2, 0.55 * len(classes)), 3.2), layout="constrained")
        axes = figure.subplots()
        groups = []
        for i, (values, colour) in enumerate(zip(shares.values(), itertools.cycle(PALETTE[1:]), strict=False)):
            seen = [place for place, name in enumerate(classes) if values[name]]
            places = np.array(seen) + (i - (len(shares) - 1) / 2) * width
            heights = [100 * values[classes[place]] for place in seen]
            groups.append(axes.bar(places, heights, width * 0.92, color=colour))
        axes.set_yscale("log")
        lowest = 10 ** math.floor(math.log10(100 * min(present, default=0.01)) - 0.1)
        axes.set(ylabel="labelled pixels (%)", ylim=(lowest, 100), xlim=(-0.7, len(classes) - 0.3))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.set_xticks(np.arange(len(classes)), classes, rotation=40, ha="right", rotation_mode="anchor")
        axes.grid(axis="x", visible=False)
        if len(shares) > 1:
            legend: Any = figure.legend  # its stubs accept neither bars as handles nor places outside
            legend(groups, list(shares), frameon=False, ncols=len(shares), loc="outside upper right")
        return _svg(figure)


def _loss_curve(axes: Any, steps: Sequence[int], losses: Sequence[float], colour: str) -> list[Any]:
    """A faint line for single steps and a strong one for the mean over 20; at most `POINTS` points each."""
    shown = np.unique(np.linspace(0, len(steps) - 1, min(len(steps), POINTS)).astype(int))
    places, single = np.asarray(steps)[shown], np.asarray(losses, float)
    axes.plot(places, single[shown], color=colour, alpha=0.25, linewidth=0.8)
    strong: list[Any] = axes.plot(places, running_mean(single, 20)[shown], color=colour, linewidth=1.8)
    return strong


def running_mean(values: Float64[np.ndarray, " n"], width: int) -> Float64[np.ndarray, " n"]:
    """The mean of each value and of the `width` - 1 values before it, or of as many as there are."""
    sums = np.cumsum(np.concatenate([[0.0], values]))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - width)
    means: Float64[np.ndarray, " n"] = (sums[ends] - sums[starts]) / (ends - starts)
    return means


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]
