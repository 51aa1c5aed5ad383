import cv2
import numpy as np
import pytest

from label_references import TRAIN_IDS
from labelled_files import MAKERS, WEATHER, palette_image, shot, stored_ids
from recyclelora.data.labels import CITYSCAPES, IGNORE
from recyclelora.data.opening import manifest, open_domain
from recyclelora.data.table import BENCHMARKS, SPLITS

FIRST = {
    "gtav": "00001", "synthia": "0000000", "urbansyn": "0001", "cityscapes": "frankfurt/frankfurt_000000_000019",
    "bdd100k": "00000000-0000", "mapillary": "im_0", "mapillary-half": "im_0",
    "acdc": "fog/GOPR00/GOPR00_frame_000001",
}  # fmt: skip


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_row_is_complete(name):
    row = BENCHMARKS[name]
    assert row.layouts or row.domains
    assert row.evaluated in (row.splits or SPLITS)
    assert set(row.splits) <= set(SPLITS)
    assert set(row.domain_splits) in ({*row.known_domains}, set())
    labelling = row.labelling
    known = sorted(labelling.ids)
    trained = labelling.to_train[known]
    scored = labelling.to_score[known]
    assert ((trained < len(labelling.train_space)) | (trained == IGNORE)).all()
    assert ((scored < len(labelling.score_space)) | (scored == IGNORE)).all()
    # Every prediction of a trained class counts as a scored one, and a perfect prediction scores perfectly.
    assert (labelling.predictions[: len(labelling.train_space)] < len(labelling.score_space)).all()
    assert (labelling.predictions[trained[trained != IGNORE]] == scored[trained != IGNORE]).all()
    # What no file may hold is trained on as nothing.
    assert (np.delete(labelling.to_train, known) == IGNORE).all()


def test_counts_are_those_of_all_domains_together():
    acdc = BENCHMARKS["acdc"]
    for split in ("train", "val"):
        assert acdc.count(split) == sum(acdc.count(split, weather) for weather in WEATHER)
    assert acdc.count("val", "night") == 106
    assert BENCHMARKS["streets"].count("val", "fog") == 100
    assert BENCHMARKS["folder"].count("val") is None


@pytest.mark.parametrize("name", MAKERS)
def test_files_as_published_are_read_as_train_ids(tmp_path, name):
    root = MAKERS[name](tmp_path / name, count=3)
    half = 2 if name == "mapillary-half" else 1
    row = BENCHMARKS[name]
    for split in row.splits:
        domain = open_domain(f"{name}={root}", split)
        assert len(domain) == 3 * len(row.domains or [name])
        for index in range(3):
            image, trained = domain.read(index)
            table = TRAIN_IDS["mapillary" if half == 2 else name]
            expected = table[stored_ids("mapillary" if half == 2 else name, index)]
            assert trained.shape == image.shape[:2] == (48 // half, 64 // half)
            assert trained.dtype == image.dtype == np.uint8
            assert (trained == expected[::half, ::half]).all()
            assert (domain.read_scored(index)[1] == trained).all()
            assert (domain.image(index) == image).all()
            if half == 1 and name not in ("bdd100k", "mapillary"):  # those are JPEGs
                assert (image == shot(index, (64, 48))).all()
            assert len(set(np.unique(trained)) - {IGNORE}) >= 2
        assert domain.train_space is domain.score_space is CITYSCAPES
    assert manifest(open_domain(f"{name}={root}", row.evaluated))[0] == FIRST[name]


def test_a_few_labels_of_gtav_are_brought_to_the_size_of_their_image(tmp_path):
    root = MAKERS["gtav"](tmp_path, size=(64, 48))
    wide = stored_ids("gtav", 0, (66, 48))
    palette_image(wide).save(root / "labels/00001.png")
    trained = open_domain(f"gtav={root}", "train").read(0)[1]
    assert trained.shape == (48, 64)
    columns = np.arange(64) * 66 // 64
    assert (trained == TRAIN_IDS["gtav"][wide[:, columns]]).all()


def test_halving_is_bicubic_for_images_and_rounds_odd_sides_down(tmp_path):
    root = MAKERS["mapillary"](tmp_path, count=1, size=(35, 21))
    whole, half = (open_domain(f"{name}={root}", "val") for name in ("mapillary", "mapillary-half"))
    image = whole.image(0)
    assert (half.image(0) == cv2.resize(image, (17, 10), interpolation=cv2.INTER_CUBIC)).all()
    assert half.read(0)[1].shape == (10, 17)
    assert set(np.unique(half.read(0)[1])) <= set(np.unique(whole.read(0)[1]))
    assert half.fingerprint() != whole.fingerprint()
