"""IoU against sets of pixels, and what a confusion matrix over a whole data set must keep."""

import importlib

import jaxtyping
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from recyclelora.data.labels import IGNORE
from recyclelora.evaluation.metrics import PIXELS_AT_ONCE, ConfusionMatrix
from traced import traced_peak


@st.composite
def data_sets(draw):
    """A number of classes, and images as pairs of ground truth and prediction."""
    classes = draw(st.integers(1, 6))
    shape = draw(st.tuples(st.integers(1, 7), st.integers(1, 7)))
    ids = arrays(np.uint8, shape, elements=st.sampled_from([*range(classes), IGNORE]))
    return classes, draw(st.lists(st.tuples(ids, ids), min_size=1, max_size=3))


def counted(classes, pairs):
    matrix = ConfusionMatrix(classes)
    for truth, prediction in pairs:
        matrix.update(np.array(truth, np.uint8, ndmin=2), np.array(prediction, np.uint8, ndmin=2))
    return matrix


def pixels(maps, wanted):
    return {(i, *place) for i, ids in enumerate(maps) for place in np.argwhere(wanted(ids)).tolist()}


def iou_of_sets(pairs, class_id):
    truths, predictions = zip(*pairs, strict=True)
    true = pixels(truths, lambda ids: ids == class_id)
    claimed = pixels(predictions, lambda ids: ids == class_id) - pixels(truths, lambda ids: ids == IGNORE)
    return len(true & claimed) / len(true | claimed) if true | claimed else np.nan


@given(data_sets())
@settings(max_examples=100, deadline=None)
def test_iou_is_intersection_over_union_of_sets_of_pixels(case):
    classes, pairs = case
    matrix = counted(classes, pairs)
    expected = np.array([iou_of_sets(pairs, class_id) for class_id in range(classes)])
    np.testing.assert_array_equal(matrix.iou(), expected)
    known = expected[~np.isnan(expected)]
    np.testing.assert_allclose(matrix.miou(), known.mean() if known.size else np.nan)


@given(data_sets(), st.data())
@settings(max_examples=60, deadline=None)
def test_counts_add_up_over_images_and_over_their_parts(case, data):
    classes, pairs = case
    whole, parts = counted(classes, pairs), ConfusionMatrix(classes)
    assert whole.counts.dtype == np.int64
    for truth, prediction in data.draw(st.permutations(pairs)):
        cut = data.draw(st.integers(0, len(truth)))
        parts.update(truth[:cut], prediction[:cut])
        parts.update(truth[cut:], prediction[cut:])
    np.testing.assert_array_equal(parts.counts, whole.counts)
    assert whole.counts.sum() == sum((truth != IGNORE).sum() for truth, _ in pairs)


def test_rows_are_ground_truth_and_columns_are_predictions():
    assert counted(2, [([0, 0, 0, 1], [1, 1, 0, IGNORE])]).counts.tolist() == [[1, 2, 0], [0, 0, 1]]


def test_ignored_ground_truth_is_dropped_whatever_is_predicted_there():
    ignored = [IGNORE] * 4
    assert not counted(3, [(ignored, [0, 1, 2, IGNORE])]).counts.any()
    assert counted(3, [([0, *ignored], [0, 1, 1, 2, 0])]).iou()[0] == 1


def test_a_prediction_of_no_class_is_missed_by_its_true_class_and_claimed_by_no_other():
    iou = counted(2, [([0, 0, 0, 1], [0, IGNORE, IGNORE, 1])]).iou()
    assert iou.tolist() == [1 / 3, 1]


def test_an_absent_class_is_left_out_of_the_mean_and_one_only_predicted_counts_as_zero():
    absent = counted(3, [([0, 0, 1, 1], [0, 0, 1, 1])])
    assert np.isnan(absent.iou()[2])
    assert absent.miou() == 1
    claimed = counted(3, [([0, 0, 1, 1], [0, 0, 1, 2])])
    assert claimed.iou().tolist() == [1, 0.5, 0]
    assert claimed.miou() == 0.5


@pytest.fixture(scope="module")
def parity():
    pytest.importorskip("cityscapesscripts")
    return importlib.import_module("parity")


@pytest.mark.parametrize("seed", range(5))
def test_scores_are_those_of_the_official_cityscapes_evaluator(parity, tmp_path, seed):
    pairs = parity.random_pairs(seed)
    assert any((prediction == IGNORE).any() for _, prediction in pairs)
    (ours, our_mean), (theirs, their_mean) = parity.our_scores(pairs), parity.official_scores(pairs, tmp_path)
    assert len(ours) == 19
    assert ours == pytest.approx(theirs, abs=1e-9, nan_ok=True)
    assert our_mean == pytest.approx(their_mean, abs=1e-9)


def test_what_is_compared_lacks_classes_and_holds_ignored_pixels(parity):
    cases = [parity.random_pairs(seed) for seed in range(5)]
    absent = [np.isnan(list(parity.our_scores(pairs)[0].values())).sum() for pairs in cases]
    assert 0 in absent
    assert max(absent) >= 3
    assert all(np.isin([0, 4, 9, 29], np.unique([truth for truth, _ in pairs])).any() for pairs in cases)


def test_without_a_labelled_pixel_there_is_no_score():
    assert np.isnan(ConfusionMatrix(2).miou())
    assert np.isnan(counted(2, [([IGNORE], [1])]).miou())


def test_counts_beyond_32_bits_stay_exact():
    matrix = ConfusionMatrix(2)
    matrix.counts[:] = [[2**40, 2**40, 0], [0, 3 * 2**40, 2**40]]
    matrix.update(np.zeros((1, 1), np.uint8), np.zeros((1, 1), np.uint8))
    assert matrix.counts[0, 0] == 2**40 + 1
    np.testing.assert_allclose(matrix.iou(), [1 / 2, 3 / 5], rtol=1e-9)


def test_as_many_classes_as_ids_are_kept_apart_from_no_class():
    ids = np.arange(256, dtype=np.uint8)[None]
    matrix = counted(IGNORE, [(ids, ids)])
    assert (matrix.iou() == 1).all()
    assert not matrix.counts[:, -1].any()


@pytest.mark.parametrize("shape", [(1100, 1000), (1, PIXELS_AT_ONCE + 3), (2, PIXELS_AT_ONCE + 3)])
def test_images_of_more_pixels_than_are_counted_at_once_are_counted_whole(shape):
    rng = np.random.default_rng(0)
    truth, prediction = (rng.choice(np.array([0, 1, IGNORE], np.uint8), shape) for _ in range(2))
    expected = [[np.sum((truth == i) & (prediction == j)) for j in (0, 1, IGNORE)] for i in (0, 1)]
    assert counted(2, [(truth, prediction)]).counts.tolist() == expected


def test_counting_takes_less_memory_than_three_images_of_ids():
    ids = np.random.default_rng(0).integers(0, 19, (6000, 4000), np.uint8)
    matrix = ConfusionMatrix(19)
    assert traced_peak(lambda: matrix.update(ids, ids)) < 3 * ids.size
    assert matrix.counts.sum() == ids.size


@pytest.mark.parametrize(
    ("truth", "prediction", "message"),
    [
        ([0, 1, 3], [0, 1, 2], r"ground truth holds id 3; expected 0\.\.2 or 255"),
        ([0, 1, 2], [0, 254, 2], r"prediction holds id 254; expected 0\.\.2 or 255"),
    ],
)
def test_strange_ids_are_named_and_nothing_is_counted(truth, prediction, message):
    matrix = counted(3, [([0, 1], [0, 1])])
    before = matrix.counts.copy()
    with pytest.raises(ValueError, match=message):
        matrix.update(np.array([truth], np.uint8), np.array([prediction], np.uint8))
    np.testing.assert_array_equal(matrix.counts, before)


def test_unequal_sizes_are_named():
    jaxtyping.config.update("jaxtyping_disable", True)  # the shape checks of the tests would speak first
    try:
        with pytest.raises(ValueError, match=r"ground truth has size \(2, 3\), prediction \(3, 2\)"):
            ConfusionMatrix(2).update(np.zeros((2, 3), np.uint8), np.zeros((3, 2), np.uint8))
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
