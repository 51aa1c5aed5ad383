import json

import cv2
import numpy as np
import pytest
from PIL import Image

from label_references import TRAIN_ID, TRAIN_IDS
from labelled_files import IDS, ids, make_mapillary, make_synthia, picture, refused, stored_ids, write, write_png16
from recyclelora.data.label_maps import (
    CITYSCAPES_IDS,
    MAPILLARY_CLASSES,
    MAPILLARY_NAMES,
    mapillary_labelling,
    read_first_channel,
    read_grey,
)
from recyclelora.data.labels import CITYSCAPES, IGNORE
from recyclelora.data.opening import open_domain
from recyclelora.data.table import BENCHMARKS

# Tables


def test_train_ids_are_those_of_the_cityscapes_scripts():
    assert {name: CITYSCAPES.id(name) for name in CITYSCAPES.names} == TRAIN_ID
    assert set(CITYSCAPES_IDS) == set(TRAIN_ID)


@pytest.mark.parametrize("name", IDS)
def test_labelling_follows_the_names_of_the_classes(name):
    labelling = BENCHMARKS[name].labelling
    assert labelling.to_train.tolist() == TRAIN_IDS[name].tolist()
    assert labelling.ids == set(IDS[name]) - {IGNORE}


def test_classes_that_a_data_set_lacks():
    trained = {name: set(BENCHMARKS[name].labelling.to_train) - {IGNORE} for name in IDS}
    lacking = {CITYSCAPES.id(name) for name in ("terrain", "truck", "train")}
    assert set(range(19)) - trained["synthia"] == lacking
    assert all(trained[name] == set(range(19)) for name in trained if name != "synthia")


def test_mapillary_names_stand_in_the_order_of_their_ids():
    assert len(MAPILLARY_NAMES) == len(set(MAPILLARY_NAMES)) == 66
    assert list(MAPILLARY_NAMES) == sorted(MAPILLARY_NAMES)  # as config_v1.2.json lists them
    known = {
        0: "animal--bird",
        13: "construction--flat--road",
        19: "human--person",
        27: "nature--sky",
        65: "void--unlabeled",
    }
    assert {identity: MAPILLARY_NAMES[identity] for identity in known} == known
    merged = [name for names in MAPILLARY_CLASSES.values() for name in names]
    assert len(merged) == len(set(merged))
    assert set(merged) <= set(MAPILLARY_NAMES)


# The list of classes of Mapillary


def rewrite_config(root, names, file="config_v1.2.json"):
    (root / "config_v1.2.json").unlink(missing_ok=True)
    (root / file).write_text(json.dumps({"labels": [{"name": name} for name in names]}))
    return root / file


@pytest.mark.parametrize("file", ["config.json", "config_v1.2.json"])
def test_ids_follow_the_order_of_the_config(tmp_path, file):
    root = make_mapillary(tmp_path)
    rewrite_config(root, MAPILLARY_NAMES[::-1], file)
    labels = open_domain(f"mapillary={root}", "val").read(1)[1]
    assert (labels == TRAIN_IDS["mapillary"][65 - stored_ids("mapillary", 1)]).all()


def test_other_lists_of_classes_are_refused(tmp_path):
    root = make_mapillary(tmp_path)
    path = rewrite_config(root, [*MAPILLARY_NAMES[:2], "construction--barrier--ambiguous", *map(str, range(121))])
    refused(lambda: mapillary_labelling(root), path, "124 classes", "--ambiguous", "the 66", "this is v2.0")
    rewrite_config(root, MAPILLARY_NAMES[1:])
    refused(lambda: open_domain(f"mapillary={root}", "val"), path, "65 classes", "missing or repeated")
    path.write_text("{}")
    refused(lambda: mapillary_labelling(root), path, "`labels`", "unpack")
    path.write_text("{")
    refused(lambda: mapillary_labelling(root), path, "`labels`", "unpack")


# Formats


def test_synthia_classes_stand_in_the_first_of_16_bit_channels(tmp_path):
    root = make_synthia(tmp_path)
    path = root / "GT/LABELS/0000001.png"
    assert path.read_bytes()[24:26] == bytes([16, 2])  # PNG's bit depth and colour type: RGB
    assert (read_first_channel(path) == stored_ids("synthia", 1)).all()
    classes = ids(classes=23).astype(np.uint16)
    cv2.imwrite(str(path), np.stack([0 * classes, 0 * classes + 9, classes], axis=-1))  # blue, green, red
    assert (read_first_channel(path) == classes).all()


def test_synthia_labels_of_another_kind_are_refused(tmp_path):
    path = write(tmp_path / "a.png", picture())
    refused(lambda: read_first_channel(path), path, "uint8", "16 bits per channel")
    path = write(tmp_path / "b.png", ids().astype(np.uint16))
    refused(lambda: read_first_channel(path), path, "uint16 of shape (24, 32)", "RGB PNG")
    path = write_png16(tmp_path / "c.png", np.full((4, 4, 3), 256, np.uint16))
    refused(lambda: read_first_channel(path), path, "label id 256")
    path = write_png16(tmp_path / "d.png", np.full((4, 4, 3), 23, np.uint16))
    root = make_synthia(tmp_path / "synthia", size=(4, 4))
    path.replace(root / "GT/LABELS/0000000.png")
    refused(lambda: open_domain(f"synthia={root}", "train").read(0), "unknown label id 23", "0 to 22")


@pytest.mark.parametrize("kept", [0, 4, 40, 300, -12, -1])
def test_truncated_synthia_labels_are_refused(tmp_path, kept, capfd):
    path = make_synthia(tmp_path) / "GT/LABELS/0000000.png"
    path.write_bytes(path.read_bytes()[:kept])
    refused(lambda: read_first_channel(path), path, "cannot be read as an image", "replace the damaged file")
    assert not capfd.readouterr().err


def test_damaged_and_missing_synthia_labels_are_refused(tmp_path):
    path = make_synthia(tmp_path) / "GT/LABELS/0000000.png"
    content = bytearray(path.read_bytes())
    content[-200] ^= 1
    path.write_bytes(content)
    refused(lambda: read_first_channel(path), path, "cannot be read as an image")
    path.unlink()
    refused(lambda: read_first_channel(path), path, "No such file")


def test_grey_labels_may_have_equal_channels(tmp_path):
    label = ids(classes=20)
    opaque = np.full_like(label, 255)
    for array in (label, np.dstack([label] * 3), np.dstack([label] * 3 + [opaque])):
        assert (read_grey(write(tmp_path / "a.png", array)) == label).all()
    palette = Image.fromarray(label).convert("P")
    palette.save(tmp_path / "p.png")
    assert (read_grey(tmp_path / "p.png") == np.asarray(palette)).all()
    path = write(tmp_path / "b.png", picture())
    refused(lambda: read_grey(path), path, "3 channels", "one channel of 8-bit ids")
