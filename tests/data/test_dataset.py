import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from recyclelora.data.dataset import Key, TrainingDataset, parts
from recyclelora.data.opening import open_domain
from recyclelora.data.transforms import Augment, Wanted
from recyclelora.errors import UserError

CROP = 20


def make_folder(root, shades, classes=None):
    """A folder of 24 x 32 images, each of one shade, labelled in quarters."""
    for kind in ("images", "labels"):
        (root / kind).mkdir(parents=True)
    for shade in shades:
        Image.fromarray(np.full((24, 32, 3), shade, np.uint8)).save(root / f"images/{shade:03d}.png")
        labels = np.kron([[0, 1], [1, 255]], np.ones((12, 16))).astype(np.uint8)
        Image.fromarray(labels).save(root / f"labels/{shade:03d}.png")
    if classes:
        (root / "classes.txt").write_text(classes)
    return open_domain(f"folder={root}", "train")


@pytest.fixture
def domains(tmp_path):
    return make_folder(tmp_path / "first", [10, 20]), make_folder(tmp_path / "second", [30, 40, 50])


def equal(one, other):
    return all(torch.equal(one[key], other[key]) for key in ("image", "labels", "size"))


def test_samples_are_crops_of_the_concatenated_domains(domains):
    data = TrainingDataset(domains, Augment(CROP, photometric=False, scale=(1.2, 1.2)))
    assert len(data) == 5
    for index, shade in enumerate((10, 20, 30, 40, 50)):
        sample = data[7, index]
        assert sample["image"].shape == (3, CROP, CROP)
        assert sample["labels"].shape == (CROP, CROP)
        assert sample["image"].dtype == torch.uint8
        assert sample["labels"].dtype == torch.int64
        assert sample["image"].unique().tolist() == [shade]
        assert set(sample["labels"].unique().tolist()) <= {0, 1, 255}
    for index in (-1, 5):
        with pytest.raises(IndexError, match=f"{index} of 5"):
            data[0, index]


def test_sample_holds_its_number_and_its_size_without_padding(domains):
    for pad, size in (("image", [CROP, CROP]), ("normalised", [12, 16])):
        data = TrainingDataset(domains, Augment(CROP, scale=(0.6, 0.6), pad=pad))
        sample = data[1234, 3]
        assert sample["size"].tolist() == size
        assert sample["size"].dtype == sample["number"].dtype == torch.int64
        assert sample["number"].shape == ()
        assert sample["number"] == 1234


def test_sample_depends_only_on_key_and_seed(domains):
    data, again = TrainingDataset(domains, Augment(CROP)), TrainingDataset(domains, Augment(CROP))
    keys = [(number, number % 5) for number in range(20)]
    assert all(equal(data[key], again[key]) for key in reversed(keys))
    assert not all(equal(data[number, 0], data[number + 1, 0]) for number in range(5))
    other = TrainingDataset(domains, Augment(CROP), seed=1)
    assert not all(equal(data[key], other[key]) for key in keys)


def test_another_process_gives_the_same_bytes(domains):
    data = TrainingDataset(domains, Augment(CROP))
    keys = [(number, number % 5) for number in range(8)]
    loader = DataLoader(data, batch_size=2, sampler=keys, num_workers=1, multiprocessing_context="spawn")
    for batch_number, batch in enumerate(loader):
        for position in range(2):
            expected = data[keys[2 * batch_number + position]]
            assert equal({key: batch[key][position] for key in batch}, expected)


def test_domains_with_different_classes_are_not_trained_together(domains, tmp_path):
    rails = make_folder(tmp_path / "rails", [60], classes="background\nrail\n")
    with pytest.raises(UserError, match=r"rails: trained with 2 classes \(background, rail\), but first with 19"):
        TrainingDataset([*domains, rails], Augment(CROP))
    with pytest.raises(UserError, match="no domain"):
        TrainingDataset([], Augment(CROP))


def test_domains_with_different_colours_are_trained_together(tmp_path):
    one = make_folder(tmp_path / "one", [1], classes="background 0 0 0\nrail\n")
    two = make_folder(tmp_path / "two", [2], classes="background 9 9 9\nrail\n")
    assert len(TrainingDataset([one, two], Augment(CROP))) == 2


def test_a_sample_that_is_drawn_for_a_class_holds_it(tmp_path):
    for kind in ("images", "labels"):
        (tmp_path / kind).mkdir()
    labels = np.zeros((24, 100), np.uint8)
    labels[:, 92:] = 1
    Image.fromarray(np.zeros((24, 100, 3), np.uint8)).save(tmp_path / "images/a.png")
    Image.fromarray(labels).save(tmp_path / "labels/a.png")
    data = TrainingDataset([open_domain(f"folder={tmp_path}", "train")], Augment(CROP, cat_max_ratio=1.0), seed=2)
    keys = [Key(number, 0, Wanted(1, 10)) for number in range(40)]
    holding = [(data[key]["labels"] == 1).sum() > 10 for key in keys]
    assert np.mean(holding) > 0.6 > 2 * np.mean([(data[key[:2]]["labels"] == 1).sum() > 10 for key in keys])
    assert all(equal(data[key], data[key]) for key in keys[:5])
    for key in keys[:5]:
        expected = data.augment(*data.domains[0].read(0), np.random.default_rng((2, key.number)), key.wanted)
        assert (data[key]["labels"].numpy() == expected[1]).all()


def test_the_parts_of_a_batch_are_its_samples_in_order(domains):
    data = TrainingDataset(domains, Augment(CROP))
    batch = next(iter(DataLoader(data, batch_sampler=[[(number, number % 5) for number in range(6)]])))
    halves = parts(batch, 2)
    assert [part["number"].tolist() for part in halves] == [[0, 1, 2], [3, 4, 5]]
    for key, value in batch.items():
        assert torch.equal(torch.cat([part[key] for part in halves]), value)
    with pytest.raises(RuntimeError, match="4"):
        parts(batch, 4)
