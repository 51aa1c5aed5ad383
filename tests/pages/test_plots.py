"""Plots are read back from their SVG: what they name, and whether their heights are right."""

import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recyclelora.pages.plots import (
    PALETTE,
    POINTS,
    class_distribution,
    difference_forest,
    layer_maps,
    lines,
    loss_curves,
    miou_bars,
    running_mean,
    spread_dots,
    training_curves,
)

SCORES = {
    "frozen": {"clear": 0.5, "fog": 0.25, "night": 0.125},
    "R&D <one>": {"clear": 0.6, "fog": 0.3, "night": 0.0625},
}
RNG = np.random.default_rng(0)
CURVES = {name: (list(range(1, 61)), RNG.uniform(0.5, 3, 60).tolist()) for name in ("frozen", "recyclelora")}
SHARES = {"train": {"road": 0.4, "sky": 0.04, "train": 0.0}, "val": {"road": 0.04, "sky": 0.0004, "train": 0.004}}
SVG = "{http://www.w3.org/2000/svg}"


def texts(svg):
    return [element.text for element in ET.fromstring(svg).iter(f"{SVG}text")]


def paths(svg):
    """Style and points of what is drawn inside the axes."""
    for element in ET.fromstring(svg).iter(f"{SVG}path"):
        if element.get("clip-path"):
            style = dict(part.split(": ") for part in element.get("style").split("; "))
            yield style, np.array(re.findall(r"[ML] (\S+) (\S+)", element.get("d")), float)


def bars(svg):
    """(colour, height) of every bar, from left to right."""
    drawn = [(points[:, 0].min(), style["fill"], np.ptp(points[:, 1])) for style, points in paths(svg)
             if style["fill"] in PALETTE]  # fmt: skip
    return [(colour, height) for _, colour, height in sorted(drawn)]


@pytest.mark.parametrize(("draw", "data"), [(miou_bars, SCORES), (loss_curves, CURVES), (class_distribution, SHARES)])
def test_a_plot_is_one_svg_element_with_all_names_and_always_the_same(draw, data):
    svg = draw(data)
    assert svg.startswith("<svg")  # without a prologue, which a page could not hold
    assert ET.fromstring(svg).tag == f"{SVG}svg"
    assert set(texts(svg)) >= set(data)
    assert draw(data) == svg
    outside = [value for value in re.findall(r'(?:href|src)="([^"]*)"', svg) if not value.startswith("#")]
    assert outside == []


def test_every_model_has_a_bar_at_every_target_as_high_as_its_score():
    svg = miou_bars(SCORES)
    drawn = bars(svg)
    values = [scores[target] for target in ("clear", "fog", "night") for scores in SCORES.values()]
    assert [colour for colour, _ in drawn] == list(PALETTE[:2]) * 3
    heights = np.array([height for _, height in drawn])
    np.testing.assert_allclose(heights / heights[0], np.array(values) / values[0], rtol=1e-4)
    assert [text for text in texts(svg) if text in ("clear", "fog", "night")] == ["clear", "fog", "night"]
    assert {"50.0", "25.0", "12.5", "60.0", "30.0", "6.2"} <= set(texts(svg))


@pytest.mark.parametrize("models", [1, 2, 6])
def test_there_are_as_many_bars_as_models_times_targets(models):
    svg = miou_bars({f"model {i}": {"clear": 0.5, "fog": 0.25} for i in range(models)})
    assert len(bars(svg)) == 2 * models
    assert len({colour for colour, _ in bars(svg)}) == models


def test_loss_is_drawn_as_it_is_and_as_its_mean_over_twenty_steps():
    lines = [(s, points) for s, points in paths(loss_curves(CURVES)) if s.get("stroke") in PALETTE]
    assert [style["stroke"] for style, _ in lines] == [colour for colour in PALETTE[:2] for _ in range(2)]
    for (steps, losses), (_, raw), (_, mean) in zip(CURVES.values(), lines[::2], lines[1::2], strict=True):
        scale, origin = np.polyfit(losses, raw[:, 1], 1)
        np.testing.assert_allclose(raw[:, 1], scale * np.array(losses) + origin, atol=1e-3)
        expected = [sum(losses[max(0, i - 19) : i + 1]) / min(i + 1, 20) for i in range(len(losses))]
        np.testing.assert_allclose(mean[:, 1], scale * np.array(expected) + origin, atol=1e-3)
        np.testing.assert_allclose(np.diff(raw[:, 0]), np.ptp(raw[:, 0]) / (len(steps) - 1), rtol=1e-3)


def test_seven_models_all_have_bars():
    svg = miou_bars({f"model {i}": {"clear": 0.5} for i in range(7)})
    assert all(f"model {i}" in svg for i in range(7))


def test_names_with_dollars_or_underscores_are_text():
    assert "_frozen" in miou_bars({"_frozen": {"clear": 0.5}})
    miou_bars({"$\\nix$": {"clear": 0.5}})


def test_a_target_without_a_score_has_no_zero():
    assert ">0.0<" not in miou_bars({"a": {"clear": None, "fog": 0.5}})


def test_bars_of_classes_are_as_high_as_the_logarithm_of_their_share():
    svg = class_distribution(SHARES)
    drawn = bars(svg)
    assert [colour for colour, _ in drawn] == [PALETTE[1], PALETTE[2], PALETTE[1], PALETTE[2], PALETTE[2]]
    heights = [height for _, height in drawn]
    one_decade = heights[0] - heights[2]
    logarithms = np.log10([0.4, 0.04, 0.04, 0.0004, 0.004])
    np.testing.assert_allclose(np.subtract(heights, heights[0]) / one_decade, logarithms - logarithms[0], atol=1e-3)
    assert min(heights) > 0
    assert [text for text in texts(svg) if text in ("road", "sky")] == ["road", "sky"]
    assert "labelled pixels (%)" in texts(svg)


def test_one_split_needs_no_legend_and_an_empty_one_no_bars():
    assert "all" not in texts(class_distribution({"all": {"road": 0.5, "sky": 0.5}}))
    assert bars(class_distribution({"all": {"road": 0.0}})) == []


def strokes(svg, colour):
    """Points of every line of a colour, in the order drawn."""
    return [points for style, points in paths(svg) if style.get("stroke") == colour]


def test_intervals_lie_at_their_values_and_have_the_colour_of_their_side():
    differences = {
        "better": {"mean": 0.04, "low": 0.02, "high": 0.06, "seeds": 2},
        "worse": {"mean": -0.02, "low": -0.03, "high": -0.01, "seeds": 3},
        "open": {"mean": 0.01, "low": -0.01, "high": 0.03, "seeds": 3},
    }
    svg = difference_forest(differences, "unseen", "frozen")
    (better,), (worse,) = strokes(svg, PALETTE[1]), strokes(svg, PALETTE[2])
    zero, open_ = sorted(strokes(svg, PALETTE[0]), key=lambda points: np.ptp(points[:, 0]))
    per_point = np.ptp(better[:, 0]) / 4
    assert np.ptp(worse[:, 0]) / per_point == pytest.approx(2, rel=1e-3)
    assert (better[0, 0] - zero[0, 0]) / per_point == pytest.approx(2, rel=1e-3)
    assert (zero[0, 0] - worse[-1, 0]) / per_point == pytest.approx(1, rel=1e-3)
    assert better[0, 1] < worse[0, 1] < open_[0, 1]  # from the top
    assert "mIoU minus that of frozen, unseen (points)" in texts(svg)
    assert difference_forest({}, "unseen", "frozen") == ""
    one_seed = difference_forest({"better": {**differences["better"], "seeds": 1}}, "unseen", "frozen")
    assert not strokes(one_seed, PALETTE[1])


def test_a_bar_stands_at_the_mean_of_each_method():
    scores = {name: {"fog": {"values": [m - 0.01, m + 0.01], "mean": m}} for name, m in (("a", 0.2), ("b", 0.3))}
    svg = spread_dots(scores, ["fog"])
    first, second = sorted(strokes(svg, PALETTE[2]), key=lambda points: points[0, 0])
    assert first[:, 1].mean() < second[:, 1].mean()  # a, the first, is above b
    dots = [use for use in ET.fromstring(svg).iter(f"{SVG}use") if PALETTE[1] in (use.get("style") or "")]
    heights = sorted({float(use.get("y")) for use in dots})
    assert heights == pytest.approx([first[:, 1].mean(), second[:, 1].mean()], abs=1e-3)
    assert len(dots) == 4
    assert texts(svg).index("b") < texts(svg).index("a")  # ticks are written from below
    assert spread_dots({}, ["fog"]) == spread_dots(scores, []) == ""


def test_a_line_starts_at_block_0_and_rises_as_its_values():
    svg = lines({"x": [0.0, 1.0, 3.0]}, "block", "likeness")
    (points,) = [points for points in strokes(svg, PALETTE[1]) if len(points) == 3]
    rises = points[0, 1] - points[:, 1]
    assert rises[2] / rises[1] == pytest.approx(3, rel=1e-3)
    assert {"x", "block", "likeness"} <= set(texts(svg))


def test_maps_name_layers_and_leave_out_grids_without_values():
    svg = layer_maps({"main": {"attn.qkv": [0.1, 0.2]}, "none": {"attn.qkv": [None, None]}})
    assert {"main", "attn.qkv", "block"} <= set(texts(svg))
    assert "none" not in texts(svg)
    assert layer_maps({"none": {"attn.qkv": [None]}}) == ""


# The curves of a training


def test_curves_of_a_long_training_are_thinned_to_single_steps():
    steps = list(range(1, 40_001))
    losses = (2 + np.sin(np.array(steps) / 3000) + RNG.uniform(-0.5, 0.5, 40_000)).tolist()
    svg = training_curves((steps, losses), {}, 40_000)
    assert len(svg) < 100_000
    faint, strong = strokes(svg, PALETTE[1])
    assert max(len(faint), len(strong)) <= POINTS
    across, left = np.polyfit([steps[0], steps[-1]], [faint[0, 0], faint[-1, 0]], 1)
    shown = np.round((faint[:, 0] - left) / across).astype(int)
    assert np.corrcoef(faint[:, 1], np.array(losses)[shown - 1])[0, 1] < -0.9999  # heights count from the top


def test_the_mean_is_over_steps_that_are_not_drawn_too():
    steps = list(range(1, 20 * POINTS + 1))
    losses = [float(step % 2) for step in steps]  # a mean over points of one parity would be 0 or 1
    faint, strong = strokes(training_curves((steps, losses), {}, len(steps)), PALETTE[1])
    zero, one = faint[:, 1].max(), faint[:, 1].min()
    np.testing.assert_allclose((strong[1:, 1] - zero) / (one - zero), 0.5, atol=1e-3)


def test_few_points_are_all_drawn():
    steps, losses = list(range(5, 5 + POINTS)), [1.0, 2.0] * (POINTS // 2)
    faint, _ = strokes(training_curves((steps, losses), {}, 2000), PALETTE[1])
    assert len(set(faint[:, 0])) == POINTS


def test_scores_have_a_panel_below_with_a_line_for_each_source():
    scores = {"_town": ([2, 4], [0.25, 0.5]), "a<b>": ([4], [0.75])}
    svg = training_curves(([1, 2, 3, 4], [4.0, 3.0, 2.0, 1.0]), scores, 8)
    assert {"_town", "a<b>", "validation mIoU (%)", "training loss", "step"} <= set(texts(svg))
    drawn = [
        np.array(re.findall(r"[ML] (\S+) (\S+)", path.get("d")), float)
        for path in ET.fromstring(svg).iter(f"{SVG}path")
        if f"stroke: {PALETTE[2]}" in (path.get("style") or "") and not path.get("clip-path")
    ]
    (town,) = [points for points in drawn if len(points) == 2 and np.ptp(points[:, 1]) > 0]
    _, strong = strokes(svg, PALETTE[1])
    assert town[:, 0].tolist() == pytest.approx([strong[1, 0], strong[3, 0]], abs=1e-3)  # at their steps
    assert town[:, 1].min() > strong[:, 1].max()  # below the losses
    assert "validation mIoU (%)" not in texts(training_curves(([1], [1.0]), {}, 8))
    assert "training loss" in texts(training_curves(([], []), {}, 8))


@pytest.mark.parametrize("name", ["_town", "$a_b$"])
def test_every_line_is_named_whatever_its_name(name):
    assert name in texts(lines({name: [0.0, 1.0]}, "block", "likeness"))
    assert name in texts(training_curves(([1], [1.0]), {name: ([1], [0.5])}, 8))


@given(st.lists(st.floats(-1e3, 1e3, allow_subnormal=False), max_size=60), st.integers(1, 70))
def test_a_running_mean_is_over_a_value_and_those_before_it(values, width):
    expected = [sum(values[max(0, i + 1 - width) : i + 1]) / min(i + 1, width) for i in range(len(values))]
    np.testing.assert_allclose(running_mean(np.array(values, float), width), expected, atol=1e-9)
