"""Resampled scores and their intervals."""

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from recyclelora.evaluation.bootstrap import difference_interval, resampled_miou
from recyclelora.evaluation.metrics import ConfusionMatrix


def counts(images, seed=0, classes=3):
    return np.random.default_rng(seed).integers(0, 50, (images, classes, classes + 1))


def miou(total):
    matrix = ConfusionMatrix(len(total))
    matrix.counts += total
    return matrix.miou()


@given(st.integers(1, 6), st.integers(0, 100))
@settings(max_examples=30, deadline=None)
def test_each_draw_is_the_miou_of_images_taken_with_replacement(images, seed):
    found = resampled_miou(counts(images, seed), 20)
    times = np.random.default_rng(images).multinomial(images, np.full(images, 1 / images), size=20)
    assert (times.sum(1) == images).all()
    expected = [miou(np.tensordot(row, counts(images, seed), 1)) for row in times]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_models_on_the_same_images_are_given_the_same_draws():
    assert (resampled_miou(counts(5), 50) == resampled_miou(counts(5), 50)).all()
    better = counts(5)
    better[:, range(3), range(3)] += 1
    assert (resampled_miou(better, 50) > resampled_miou(counts(5), 50)).all()


def test_a_class_that_a_draw_does_not_hold_is_left_out_of_its_mean():
    absent = counts(4)
    absent[:, 2] = absent[:, :, 2] = 0
    np.testing.assert_allclose(resampled_miou(absent, 10), resampled_miou(absent[:, :2][:, :, [0, 1, 3]], 10))


def test_a_draw_of_images_without_a_scored_pixel_has_no_score_and_is_left_out_of_the_interval():
    empty = counts(3)
    empty[1:] = 0
    found = resampled_miou(empty, 50)
    assert (np.isnan(found) == (np.random.default_rng(3).multinomial(3, np.full(3, 1 / 3), size=50)[:, 0] == 0)).all()
    assert 5 < np.isnan(found).sum() < 25
    draws = np.random.default_rng(0).random(20)
    holes = [None, *draws, None]
    for nothing in ([0.0] * 22, [*[0.0] * 21, None]):
        assert difference_interval(1.0, [[holes]], [[nothing]]) == difference_interval(
            1.0, [draws[None].tolist()], [[[0.0] * 20]]
        )


def test_the_interval_of_a_constant_difference_is_that_difference():
    theirs = np.random.default_rng(0).random((3, 2, 40))
    low, high = difference_interval(0.01, (theirs + 0.01).tolist(), theirs.tolist())
    assert low == pytest.approx(0.01)
    assert high == pytest.approx(0.01)


@pytest.mark.parametrize("seeds", [2, 3, 30])
def test_the_interval_holds_the_truth_as_often_as_it_says_however_few_the_seeds(seeds):
    rng = np.random.default_rng(seeds)
    held = 0
    for _ in range(400):
        by_seed = rng.normal(0, 1, (seeds, 1, 1)) + np.zeros((seeds, 1, 4))
        low, high = difference_interval(by_seed.mean(), by_seed.tolist(), np.zeros((seeds, 1, 4)).tolist())
        held += low < 0 < high
    assert held / 400 == pytest.approx(0.95, abs=0.03)


def test_without_chance_of_images_the_interval_is_that_of_a_t_test():
    values = np.random.default_rng(0).normal(1, 2, 4)
    expected = scipy.stats.ttest_1samp(values, 0).confidence_interval(0.95)
    found = difference_interval(
        values.mean(), np.repeat(values[:, None, None], 3, 2).tolist(), np.zeros((4, 1, 3)).tolist()
    )
    assert found == pytest.approx(tuple(expected), abs=0.005)


def test_the_interval_is_that_of_the_sum_of_both_chances_and_turns_with_the_sign():
    rng = np.random.default_rng(1)
    ours, theirs = rng.normal(0, 1, (2, 3, 2, 200))
    ours += rng.normal(0, 0.5, (3, 1, 1))
    difference = (ours - theirs).mean(1)
    drawn = rng.choice(difference.mean(0), 400_000)
    drawn += difference.mean(1).std(ddof=1) / math.sqrt(3) * rng.standard_t(2, 400_000)
    mean = difference.mean()
    low, high = difference_interval(mean, ours.tolist(), theirs.tolist())
    assert [low, high] == pytest.approx(np.quantile(drawn, [0.025, 0.975]), rel=0.03)
    assert difference_interval(mean + 7, ours.tolist(), theirs.tolist()) == pytest.approx((low + 7, high + 7))
    assert difference_interval(-mean, theirs.tolist(), ours.tolist()) == pytest.approx((-high, -low))


def test_the_interval_covers_the_spread_of_images_and_targets_of_the_same_scenes_do_not_narrow_it():
    rng = np.random.default_rng(0)
    by_draw = np.zeros((1, 1, 2000)) + rng.normal(0, 1, 2000)
    low, high = difference_interval(by_draw.mean(), by_draw.tolist(), np.zeros_like(by_draw).tolist())
    assert (high - low) / (2 * 1.96) == pytest.approx(1, abs=0.1)
    same_scenes = np.repeat(by_draw, 4, 1)
    assert difference_interval(
        by_draw.mean(), same_scenes.tolist(), np.zeros_like(same_scenes).tolist()
    ) == pytest.approx((low, high))
    assert (
        np.subtract(*difference_interval(by_draw.mean(), by_draw.tolist(), np.zeros_like(by_draw).tolist(), 0.5)[::-1])
        < high - low
    )


@pytest.mark.parametrize(("ours", "theirs"), [([[[1.0]]], [[[1.0], [2.0]]]), ([], [])])
def test_unlike_sides_are_refused(ours, theirs):
    with pytest.raises(ValueError, match="shapes"):
        difference_interval(0.0, ours, theirs)
