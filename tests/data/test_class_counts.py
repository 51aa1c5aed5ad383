"""The pixels of each class in each image: counted right, and only once."""

import os

import numpy as np
import pytest
from PIL import Image

from in_memory import in_memory
from labelled_files import MAKERS, ids, make_town, refused, write
from recyclelora.data import class_counts as module
from recyclelora.data.class_counts import class_counts
from recyclelora.data.domain import Domain
from recyclelora.data.labels import CITYSCAPES, unchanged
from recyclelora.data.opening import open_domain
from recyclelora.data.scenes import StreetScenes


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RECYCLELORA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "class-counts"


@pytest.fixture
def counted(monkeypatch):
    """The indices of the images that were counted."""
    seen, count = [], module._count

    def record(domain, index):
        seen.append(index)
        return count(domain, index)

    monkeypatch.setattr(module, "_count", record)
    return seen


def expected(domain):
    """Count one class after the other."""
    labels = [domain.read(index)[1] for index in range(len(domain))]
    return [[(each == c).sum() for c in range(len(domain.train_space))] for each in labels]


@pytest.mark.parametrize("name", MAKERS)
def test_counts_are_those_of_the_train_ids_that_are_read(tmp_path, name):
    root = MAKERS[name](tmp_path / name, count=3)
    domain = open_domain(f"{name}={root}", "train")
    counts = class_counts(domain)
    assert counts.dtype == np.int64
    assert (counts == expected(domain)).all()
    assert counts.sum() > 0


def test_rendered_streets_and_domains_of_other_kinds_are_counted():
    streets = open_domain("streets", "train", limit=1)
    assert (class_counts(streets) == expected(streets)).all()
    memory = in_memory("memory", unchanged(CITYSCAPES), [[[0, 1, 255]], [[2, 2, 2]]])
    assert (class_counts(memory) == expected(memory)).all()


def test_a_domain_is_counted_once(tmp_path, cache, counted):
    town = make_town(tmp_path / "town")
    first = class_counts(open_domain(f"folder={town}", "train"))
    assert sorted(counted) == [0, 1]
    assert (class_counts(open_domain(f"folder={town}", "train")) == first).all()
    assert len(counted) == 2
    assert len(list(cache.iterdir())) == 1


def test_what_has_changed_is_counted_again(tmp_path, counted):
    town = make_town(tmp_path / "town")

    def counts(**options):
        counted.clear()
        return class_counts(open_domain(f"folder={town}", "train", **options))

    first = counts()
    assert (counts(limit=1) == first[:1]).all()
    assert counted == [0]
    label = town / "labels/b.png"
    Image.fromarray(np.zeros((24, 32), np.uint8)).save(label)
    os.utime(label, ns=(1, 1))
    assert counts()[0].tolist() == [24 * 32] + [0] * 18
    Image.fromarray(np.ones((24, 32), np.uint8)).save(label)  # as many bytes, at another time
    os.utime(label, ns=(2, 2))
    assert counts()[0].tolist() == [0, 24 * 32] + [0] * 17
    (town / "classes.txt").write_text("\n".join(f"class {number}" for number in range(20)))
    assert counts().shape == (2, 20)
    assert sorted(counted) == [0, 1]


def test_the_map_of_the_labels_is_part_of_what_is_counted(tmp_path):
    root = MAKERS["gtav"](tmp_path)
    domain = open_domain(f"gtav={root}", "train")
    other = Domain("unmapped", domain.source, unchanged(CITYSCAPES))
    assert class_counts(domain).tolist() != class_counts(other).tolist()


@pytest.mark.parametrize("damage", [b"", b"no counts", None])
def test_a_damaged_file_is_replaced(tmp_path, cache, counted, damage):
    domain = open_domain(f"folder={make_town(tmp_path / 'town')}", "train")
    first = class_counts(domain)
    (file,) = cache.iterdir()
    file.write_bytes(file.read_bytes()[:-8] if damage is None else damage)
    assert (class_counts(domain) == first).all()
    assert len(counted) == 4
    assert (class_counts(domain) == first).all()
    assert len(counted) == 4


def test_counts_that_cannot_be_kept_are_returned_with_a_warning(tmp_path, monkeypatch):
    domain = open_domain(f"folder={make_town(tmp_path / 'town')}", "train")
    (tmp_path / "file").touch()
    monkeypatch.setenv("RECYCLELORA_CACHE", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match=r"file/class-counts: the counts .* cannot be kept .* RECYCLELORA_CACHE"):
        assert (class_counts(domain) == expected(domain)).all()


def test_a_label_that_cannot_be_counted_is_named(tmp_path, cache):
    town = make_town(tmp_path / "town")
    path = write(town / "labels/b.png", ids(classes=19) + 100)
    refused(lambda: class_counts(open_domain(f"folder={town}", "train")), path, "unknown label id")
    assert not cache.exists()


def test_kept_scenes_are_read_and_not_rendered_for_their_counts(tmp_path, monkeypatch):
    domain = open_domain(f"streets={tmp_path / 'scenes'}", "train", limit=1)
    domain.read(0)
    monkeypatch.setattr(StreetScenes, "_render", None)
    assert class_counts(domain).sum() > 0
