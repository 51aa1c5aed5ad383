"""Small labelled images in the true formats and folders, for tests that read them."""

import json
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from recyclelora.data.label_maps import MAPILLARY_NAMES
from recyclelora.data.opening import SPLITS
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


# Miniatures of the published data sets: `count` images per split (and domain) of `size` = (width, height) pixels.

IDS = {
    "gtav": range(35),
    "synthia": range(23),
    "urbansyn": range(20),
    "cityscapes": [*range(34), 255],
    "bdd100k": [*range(19), 255],
    "mapillary": range(66),
    "acdc": [*range(34), 255],
}
"""The ids that the label files of each may hold; 255 is where Cityscapes keeps its licence plate, -1."""

WEATHER = ("fog", "night", "rain", "snow")


def stored_ids(name, number, size=(64, 48)):
    """The ids that the makers below store in label number `number` of a data set: patches of 8 x 8 pixels."""
    rng = np.random.default_rng((number, len(IDS[name])))
    patches = rng.choice(np.array(IDS[name], np.uint8), (-(-size[1] // 8), -(-size[0] // 8)))
    return patches.repeat(8, axis=0).repeat(8, axis=1)[: size[1], : size[0]]


def palette_image(indices):
    """A palette image whose indices are the ids, in colours that are not."""
    image = Image.new("P", indices.shape[::-1])
    image.putdata(indices.ravel().tolist())
    image.putpalette([(37 * value + 11 * channel) % 256 for value in range(256) for channel in range(3)])
    return image


def write_png16(path, rgb):
    """Write an RGB PNG with 16 bits per channel, byte by byte from the PNG specification."""
    height, width, _ = rgb.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in rgb)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n"
    for kind, data in ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")):
        content += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def shot(number, size):
    return picture(size[1], size[0], seed=number)


def make_gtav(root, count=2, size=(64, 48)):
    """Labels with a palette, numbered from 00001."""
    (root / "labels").mkdir(parents=True, exist_ok=True)
    for number in range(count):
        write(root / f"images/{number + 1:05d}.png", shot(number, size))
        palette_image(stored_ids("gtav", number, size)).save(root / f"labels/{number + 1:05d}.png")
    return root


def make_synthia(root, count=2, size=(64, 48)):
    """Labels of 16 bits: the class in red, the instance in green."""
    for number in range(count):
        write(root / f"RGB/{number:07d}.png", shot(number, size))
        classes = stored_ids("synthia", number, size).astype(np.uint16)
        instances = np.random.default_rng(number).integers(0, 2**16, classes.shape, dtype=np.uint16)
        write_png16(root / f"GT/LABELS/{number:07d}.png", np.stack([classes, instances, 0 * classes], axis=-1))
    return root


def make_urbansyn(root, count=2, size=(64, 48)):
    """Images with an opacity; labels grey, every second one stored with four channels."""
    for number in range(count):
        opaque = np.full((size[1], size[0]), 255, np.uint8)
        write(root / f"rgb/rgb_{number + 1:04d}.png", np.dstack([shot(number, size), opaque]))
        grey = stored_ids("urbansyn", number, size)
        write(root / f"ss/ss_{number + 1:04d}.png", np.dstack([grey, grey, grey, opaque]) if number % 2 else grey)
    return root


def make_cityscapes(root, count=2, size=(64, 48)):
    """Each label has files beside it that are not read; the test split has no label ids, as published."""
    for split, city in (("train", "aachen"), ("val", "frankfurt"), ("test", "berlin")):
        for number in range(count):
            stem = f"{split}/{city}/{city}_{number:06d}_000019"
            write(root / f"leftImg8bit/{stem}_leftImg8bit.png", shot(number, size))
            label = stored_ids("cityscapes", number, size) if split != "test" else np.full(size[::-1], 3, np.uint8)
            write(root / f"gtFine/{stem}_gtFine_labelIds.png", label)
            write(root / f"gtFine/{stem}_gtFine_color.png", shot(number + 9, size))
            write(root / f"gtFine/{stem}_gtFine_instanceIds.png", label.astype(np.uint16) * 1000)
            (root / f"gtFine/{stem}_gtFine_polygons.json").write_text("{}")
    return root


def make_bdd100k(root, count=2, size=(64, 48)):
    """The official layout; images of the test split have no labels."""
    for split in SPLITS:
        for number in range(count):
            write(root / f"images/10k/{split}/{number:08x}-0000.jpg", shot(number, size))
            if split != "test":
                label = stored_ids("bdd100k", number, size)
                write(root / f"labels/sem_seg/masks/{split}/{number:08x}-0000.png", label)
    return root


def make_mapillary(root, count=2, size=(64, 48)):
    """Version 1.2 beside version 2.0, labels with a palette."""
    names = [{"name": name, "readable": name, "color": [0, 0, 0]} for name in MAPILLARY_NAMES]
    root.mkdir(parents=True, exist_ok=True)
    (root / "config_v1.2.json").write_text(json.dumps({"version": "1.2", "labels": names}))
    for split in ("training", "validation"):
        for version in ("v1.2", "v2.0"):
            (root / split / version / "labels").mkdir(parents=True, exist_ok=True)
        for number in range(count):
            write(root / f"{split}/images/im_{number}.jpg", shot(number, size))
            label = palette_image(stored_ids("mapillary", number, size))
            label.save(root / f"{split}/v1.2/labels/im_{number}.png")
            palette_image(np.full(size[::-1], 123, np.uint8)).save(root / f"{split}/v2.0/labels/im_{number}.png")
    return root


def make_acdc(root, count=2, size=(64, 48)):
    """Four kinds of weather, each with reference images in fair weather, which are not read."""
    for weather in WEATHER:
        for split in SPLITS:
            for number in range(count):
                folder, stem = f"{weather}/{split}/GOPR0{number}", f"GOPR0{number}_frame_000001"
                write(root / f"rgb_anon/{folder}/{stem}_rgb_anon.png", shot(number, size))
                write(root / f"rgb_anon/{weather}/{split}_ref/GOPR0{number}/{stem}_rgb_ref_anon.png", shot(9, size))
                if split != "test":
                    label = stored_ids("acdc", number, size)
                    write(root / f"gt/{folder}/{stem}_gt_labelIds.png", label)
                    write(root / f"gt/{folder}/{stem}_gt_labelTrainIds.png", np.full_like(label, 255))
    return root


MAKERS = {
    "gtav": make_gtav,
    "synthia": make_synthia,
    "urbansyn": make_urbansyn,
    "cityscapes": make_cityscapes,
    "bdd100k": make_bdd100k,
    "mapillary": make_mapillary,
    "mapillary-half": make_mapillary,
    "acdc": make_acdc,
}


def refused(action, *parts):
    """The action raises one line that holds each of these parts."""
    with pytest.raises(UserError) as error:
        action()
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert str(part) in message
    return message
