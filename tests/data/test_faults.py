"""An image and its label, with one fault at a time."""

import numpy as np
import pytest

from labelled_files import ids, picture, write
from recyclelora.data.check.faults import Rules, below, inspect
from recyclelora.data.decoding import read_labels
from recyclelora.data.files import FromFile
from recyclelora.data.finding import Pair


@pytest.fixture
def pair(tmp_path):
    return Pair("a", write(tmp_path / "images/a.png", picture()), write(tmp_path / "labels/a.png", ids(classes=5)))


def faults(pair, tmp_path, size=(32, 24), stretch=0.0, read_ids=read_labels):
    return inspect(pair, Rules(tmp_path, FromFile(read_ids), frozenset({0, 1, 2, 3, 4, 255}), size, stretch))


def test_sound_pair_has_no_fault_and_all_its_pixels(pair, tmp_path):
    found, pixels = faults(pair, tmp_path)
    assert found == []
    np.testing.assert_array_equal(pixels[:5], [(ids(classes=5) == i).sum() for i in range(5)])
    assert pixels.sum() == 24 * 32
    assert faults(pair, tmp_path, size=None)[0] == []


def test_image_of_another_size_than_the_data_set_is_a_fault(pair, tmp_path):
    [fault] = faults(pair, tmp_path, size=(64, 48))[0]
    assert fault.kind == "image of another size than 64 x 48"
    assert fault.example == "images/a.png has 32 x 24"


def test_label_of_another_size_than_its_image_is_a_fault(pair, tmp_path):
    write(pair.label, ids(24, 34, classes=5))
    [fault] = faults(pair, tmp_path)[0]
    assert fault.kind == "label of another size than its image"
    assert fault.example == "labels/a.png has 34 x 24, the image 32 x 24"
    assert faults(pair, tmp_path, stretch=2 / 32)[0] == []
    assert faults(pair, tmp_path, stretch=1.9 / 32)[0] == [fault]


def test_each_unknown_id_is_a_fault_with_its_pixels(pair, tmp_path):
    labels = np.zeros((24, 32), np.uint8)
    labels[0, :5], labels[1, :7], labels[2] = 37, 9, 255
    write(pair.label, labels)
    found, pixels = faults(pair, tmp_path)
    assert found == [("unknown label id 9", "labels/a.png", 7), ("unknown label id 37", "labels/a.png", 5)]
    assert pixels[255] == 32


def test_damaged_and_missing_files_leave_the_rest_to_be_checked(pair, tmp_path):
    pair.image.write_bytes(pair.image.read_bytes()[:500])
    write(pair.label, np.full((24, 32), 8, np.uint8))
    broken, unknown = faults(pair, tmp_path)[0]
    assert broken.kind == "unreadable file"
    assert str(pair.image) in broken.example
    assert unknown.kind == "unknown label id 8"
    write(pair.image, picture())
    pair.label.unlink()
    found, pixels = faults(pair, tmp_path, size=(1, 1))
    assert [fault.kind for fault in found] == ["unreadable file", "image of another size than 1 x 1"]
    assert not pixels.any()


def test_any_failure_of_a_reader_is_a_fault(pair, tmp_path):
    def fails(path):
        raise ZeroDivisionError

    [fault] = faults(pair, tmp_path, read_ids=fails)[0]
    assert fault.kind == "unreadable file"
    assert "labels/a.png: ZeroDivisionError()" in fault.example


def test_paths_are_relative_to_the_root(tmp_path):
    assert below(tmp_path, tmp_path / "a" / "b.png") == "a/b.png"
