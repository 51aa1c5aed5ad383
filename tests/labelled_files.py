"""Small labelled images in the true formats and folders, for the tests of what reads them."""

import numpy as np
import pytest
from PIL import Image

from recyclelora.data.benchmarks import SPLITS
from recyclelora.errors import UserError


def write(path, array, **options):
    """Write an array as the kind of image its suffix says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)
    return path


def picture(height=24, width=32, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def ids(height=24, width=32, classes=11, seed=0):
    return np.random.default_rng(seed).integers(0, classes, (height, width), dtype=np.uint8)


def make_camvid(root, images, labels, suffix, count=2):
    for split in SPLITS:
        for number in range(count):
            stem = f"0001TP_{split}{number}"
            write(root / images.format(split=split) / f"{stem}{suffix}", picture(seed=number))
            label = ids(seed=number, classes=12)
            write(root / labels.format(split=split) / f"{stem}.png", label)
    return root


def make_town(root):
    """A folder of two images, one of them in a sub-folder, with Cityscapes train ids."""
    for number, stem in enumerate(("north/a", "b")):
        write(root / "images" / f"{stem}.png", picture(seed=number))
        write(root / "labels" / f"{stem}.png", ids(classes=19, seed=number))
    return root


def refused(action, *parts):
    """The action raises one line that holds each of these parts."""
    with pytest.raises(UserError) as error:
        action()
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert str(part) in message
    return message
