import os

import cv2
import numpy as np
import pytest
from PIL import Image

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


def published_half(image, label, folder):
    """What SoMA's `mapillary_resize.py` writes, read as mmsegmentation does: images with OpenCV, labels with Pillow."""
    folder.mkdir()
    for file, resampling in ((image, Image.BICUBIC), (label, Image.NEAREST)):
        with Image.open(file) as whole:
            whole.resize((whole.width // 2, whole.height // 2), resample=resampling).save(folder / file.name)
    return cv2.imread(str(folder / image.name))[..., ::-1], np.array(Image.open(folder / label.name))


@pytest.mark.parametrize("size", [(64, 48), (35, 21), (2, 3), (131, 262)])
def test_a_half_is_what_the_published_script_writes(tmp_path, size):
    root = MAKERS["mapillary"](tmp_path / "mapillary", count=2, size=size)
    whole, half = (open_domain(f"{name}={root}", "val") for name in ("mapillary", "mapillary-half"))
    for index, pair in enumerate(half.source.pairs):
        image, ids = published_half(pair.image, pair.label, tmp_path / f"half-{index}")
        assert image.shape == (size[1] // 2, size[0] // 2, 3)
        found, labels = half.read(index)
        assert (found == image).all()
        assert (half.image(index) == image).all()
        assert (labels == TRAIN_IDS["mapillary"][ids]).all()
        assert (half.source.labels(index) == ids).all()
    assert half.fingerprint() != whole.fingerprint()


def test_a_side_of_one_pixel_stays_when_halved(tmp_path):
    root = MAKERS["mapillary"](tmp_path, count=1, size=(9, 1))
    image, labels = open_domain(f"mapillary-half={root}", "val").read(0)
    assert image.shape[:2] == labels.shape == (1, 4)


@pytest.mark.parametrize("name", MAKERS)
def test_labels_are_read_without_their_images(tmp_path, name):
    root = MAKERS[name](tmp_path)
    source = open_domain(f"{name}={root}", "train").source
    both = [source.read(index)[1] for index in range(2)]
    for pair in source.pairs:
        pair.image.unlink()
    assert all((source.labels(index) == both[index]).all() for index in range(2))
    assert source.labels(0).dtype == np.uint8


def test_a_stamp_changes_when_its_label_is_written_again(tmp_path):
    source = open_domain(f"gtav={MAKERS['gtav'](tmp_path)}", "train").source
    first = [source.stamp(0), source.stamp(1)]
    assert [source.stamp(0), source.stamp(1)] == first
    facts = source.pairs[0].label.stat()
    os.utime(source.pairs[0].label, ns=(facts.st_atime_ns, facts.st_mtime_ns + 1_000_000))
    assert source.stamp(0) != first[0]
    assert source.stamp(1) == first[1]
