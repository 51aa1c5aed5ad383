"""Scores of a domain whose every pixel is known."""

import json

import numpy as np
import pytest

from in_memory import in_memory, read_red
from labelled_files import refused
from recyclelora.data.labels import CAMVID, CAMVID_LABELLING, CITYSCAPES, IGNORE, LabelSpace, unchanged
from recyclelora.evaluation.scores import Scores, mean_miou, score_domain, scored_prediction
from traced import traced_peak

ABC = LabelSpace(("a", "b", "c"), ((255, 0, 0), (0, 255, 0), (0, 0, 255)))


def score(miou):
    return Scores("town", 1, "", miou, {}, [])


def test_a_model_that_predicts_the_truth_scores_one():
    labels = [np.array([[0, 0, 1]]), np.array([[1, IGNORE], [0, 0]])]
    result = score_domain(read_red, ABC, in_memory("town", unchanged(ABC), labels))
    assert result.miou == 1
    assert result.iou == {"a": 1, "b": 1, "c": None}
    assert result.confusion == [[4, 0, 0, 0], [0, 2, 0, 0], [0, 0, 0, 0]]
    assert (result.label, result.images, result.fingerprint) == ("town", 2, "fingerprint of 2")


def test_pixels_are_counted_over_the_whole_domain_and_not_averaged_over_images():
    labels = [np.zeros((1, 1)), np.zeros((3, 3))]
    predictions = [np.ones((1, 1)), np.zeros((3, 3))]
    result = score_domain(read_red, ABC, in_memory("town", unchanged(ABC), labels, predictions))
    assert result.iou == {"a": 0.9, "b": 0, "c": None}
    assert result.miou == 0.45


@pytest.mark.parametrize(
    ("predicted", "counts_as"),
    [
        *zip(("truck", "bus", "train", "car"), ("car",) * 4, strict=True),
        *zip(("rider", "bicycle", "motorcycle"), ("bicyclist",) * 3, strict=True),
        *zip(("traffic light", "traffic sign"), ("sign",) * 2, strict=True),
        *zip(("terrain", "vegetation"), ("tree",) * 2, strict=True),
        *zip(("wall", "fence"), ("fence",) * 2, strict=True),
        ("road", "road"),
        ("sidewalk", "pavement"),
        ("building", "building"),
        ("pole", "pole"),
        ("sky", "sky"),
        ("person", "pedestrian"),
    ],
)
def test_predictions_of_19_classes_are_scored_on_the_11_of_camvid(predicted, counts_as):
    unlabelled = 11
    truth = np.array([[CAMVID.id(counts_as), unlabelled]])
    prediction = np.full((1, 2), CITYSCAPES.id(predicted))
    result = score_domain(read_red, CITYSCAPES, in_memory("camvid", CAMVID_LABELLING, [truth], [prediction]))
    assert result.iou == {name: 1.0 if name == counts_as else None for name in CAMVID.names}
    assert np.array(result.confusion).shape == (11, 12)
    assert np.sum(result.confusion) == 1


def test_the_mean_of_camvid_is_over_the_classes_that_are_scored():
    truth = np.array([[CAMVID.id("car")] * 3 + [CAMVID.id("tree")]])
    prediction = np.array([[CITYSCAPES.id(name) for name in ("truck", "car", "road", "terrain")]])
    result = score_domain(read_red, CITYSCAPES, in_memory("camvid", CAMVID_LABELLING, [truth], [prediction]))
    assert {name: iou for name, iou in result.iou.items() if iou is not None} == {"car": 2 / 3, "tree": 1, "road": 0}
    assert result.miou == pytest.approx(5 / 9)


def test_a_prediction_of_no_class_stays_one_in_the_scored_classes():
    domain = in_memory("camvid", CAMVID_LABELLING, [np.zeros((1, 2))], [[[IGNORE, CITYSCAPES.id("bus")]]])
    assert scored_prediction(read_red, domain, domain.image(0)).tolist() == [[IGNORE, CAMVID.id("car")]]


def test_scored_classes_are_looked_up_in_little_more_memory_than_the_prediction():
    image, ids = np.zeros((1000, 1500, 3), np.uint8), np.zeros((1000, 1500), np.uint8)
    domain = in_memory("camvid", CAMVID_LABELLING, [ids])
    assert ids.size <= traced_peak(lambda: scored_prediction(lambda image: ids, domain, image)) < 1.1 * ids.size


def test_without_labelled_pixels_a_domain_has_no_score():
    domain = in_memory("void", unchanged(ABC), [np.full((2, 2), IGNORE)], [np.zeros((2, 2))])
    result = score_domain(read_red, ABC, domain)
    assert result.miou is None
    assert set(result.iou.values()) == {None}


def test_a_resample_of_images_without_labels_has_no_score():
    labels = [np.array([[0, 1]]), np.full((2, 2), IGNORE)]
    result = score_domain(read_red, ABC, in_memory("town", unchanged(ABC), labels, [labels[0], np.zeros((2, 2))]), 30)
    assert set(result.resampled) == {1, None}
    json.dumps(result.to_json(), allow_nan=False)


def test_a_score_survives_json():
    labels, predictions = [np.array([[0, 0, 0, 1]])], [np.array([[0, 1, IGNORE, 1]])]
    result = score_domain(read_red, ABC, in_memory("town", unchanged(ABC), labels, predictions), 5, split="val")
    assert Scores.from_json(json.loads(json.dumps(result.to_json(), allow_nan=False))) == result
    assert (result.iou["c"], result.split, len(result.resampled)) == (None, "val", 5)


@pytest.mark.parametrize("wrong", [{"miou": 0.5}, {**vars(score(0.5)), "mean": 1}])
def test_scores_with_missing_or_strange_keys_are_refused(wrong):
    with pytest.raises(TypeError):
        Scores.from_json(wrong)


def test_the_mean_over_targets_weighs_them_equally_and_leaves_out_what_has_no_score():
    assert mean_miou([score(0.2), score(0.6), score(None)]) == pytest.approx(0.4)
    assert mean_miou([score(0.0), score(1.0)]) == 0.5
    assert mean_miou([score(None)]) is None
    assert mean_miou([]) is None


@pytest.mark.parametrize("trained", [CITYSCAPES, LabelSpace(ABC.names[::-1], ABC.colours)])
def test_a_domain_of_other_classes_is_refused_before_anything_is_predicted(trained):
    def predict(image):
        raise AssertionError("predicts")

    domain = in_memory("town", unchanged(ABC), [np.zeros((2, 2))])
    message = refused(lambda: score_domain(predict, trained, domain), "town", "3 classes (a, b, c)", "classes.txt")
    names = "c, b, a" if len(trained) == 3 else "road, sidewalk, building, wall, …"
    assert f"trained on {len(trained)} classes ({names})" in message


def test_other_colours_are_no_other_classes():
    painted = LabelSpace(ABC.names, ABC.colours[::-1])
    assert score_domain(read_red, painted, in_memory("town", unchanged(ABC), [np.zeros((2, 2))])).miou == 1
