import numpy as np
import pytest

from recyclelora.data.labels import (
    CAMVID,
    CAMVID_LABELLING,
    CAMVID_TO_CITYSCAPES,
    CITYSCAPES,
    CITYSCAPES_TO_CAMVID,
    IGNORE,
    LabelSpace,
    lookup,
    unchanged,
)
from traced import traced_peak


def test_spaces_have_the_published_sizes_and_orders():
    assert len(CITYSCAPES) == 19
    assert [CITYSCAPES.id(name) for name in ("road", "sky", "bicycle")] == [0, 10, 18]
    assert len(CAMVID) == 11
    assert [CAMVID.id(name) for name in ("sky", "road", "bicyclist")] == [0, 3, 10]


@pytest.mark.parametrize("space", [CITYSCAPES, CAMVID])
def test_colours_differ_so_that_a_picture_can_be_read_back(space):
    assert len(set(space.colours)) == len(space)
    labels = np.append(np.arange(len(space), dtype=np.uint8), np.uint8(IGNORE))[None]
    picture = space.colourise(labels)
    assert [tuple(colour) for colour in picture[0, :-1]] == list(space.colours)
    assert not picture[0, -1].any()


def test_colours_are_those_of_the_classes_and_others_are_black():
    ids = np.arange(256, dtype=np.uint8).reshape(16, 16).T
    picture = CITYSCAPES.colourise(ids)
    assert picture.shape == (16, 16, 3)
    assert picture.dtype == np.uint8
    assert picture.transpose(1, 0, 2).reshape(256, 3).tolist() == [*map(list, CITYSCAPES.colours), *[[0, 0, 0]] * 237]


def test_colouring_takes_little_more_memory_than_the_picture():
    ids = np.zeros((1000, 1500), np.uint8)
    assert 3 * ids.size <= traced_peak(lambda: CITYSCAPES.colourise(ids)) < 3.1 * ids.size


@pytest.mark.parametrize(
    ("names", "colours"),
    [((), ()), (("a", "a"), ((0, 0, 0),) * 2), (("a", "b"), ((0, 0, 0),))],
)
def test_inconsistent_space_is_refused(names, colours):
    with pytest.raises(ValueError, match=r"label space|colours"):
        LabelSpace(names, colours)


def test_camvid_through_cityscapes_and_back_is_the_identity():
    there = lookup(CAMVID_TO_CITYSCAPES, CAMVID, CITYSCAPES)
    back = lookup(CITYSCAPES_TO_CAMVID, CITYSCAPES, CAMVID)
    assert back[there[: len(CAMVID)]].tolist() == list(range(len(CAMVID)))


def test_lookups_are_total_over_their_source_and_ignore_the_rest():
    for names, source, target in (
        (CAMVID_TO_CITYSCAPES, CAMVID, CITYSCAPES),
        (CITYSCAPES_TO_CAMVID, CITYSCAPES, CAMVID),
    ):
        assert set(names) == set(source.names)
        table = lookup(names, source, target)
        assert (table[: len(source)] < len(target)).all()
        assert (table[len(source) :] == IGNORE).all()


def test_camvid_labelling_follows_the_published_conversion():
    # sky, building, pole, road, pavement, tree, sign, fence, car, pedestrian, bicyclist, unlabelled
    assert CAMVID_LABELLING.to_train[:12].tolist() == [10, 2, 5, 0, 1, 8, 7, 4, 13, 11, 12, IGNORE]
    assert CAMVID_LABELLING.to_score[:12].tolist() == [*range(11), IGNORE]
    counts_as = CAMVID_LABELLING.predictions
    for name, camvid in {"truck": "car", "bus": "car", "train": "car", "bicycle": "bicyclist", "wall": "fence"}.items():
        assert counts_as[CITYSCAPES.id(name)] == CAMVID.id(camvid)
    assert CAMVID_LABELLING.ids == set(range(12))


def test_unchanged_labelling_keeps_every_id():
    labelling = unchanged(CITYSCAPES)
    for table in (labelling.to_train, labelling.to_score, labelling.predictions):
        assert table.tolist() == [*range(19), *[IGNORE] * 237]
    assert labelling.train_space is labelling.score_space is CITYSCAPES
