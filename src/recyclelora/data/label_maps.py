"""Label ids of published data sets, and the formats of their label files.

Every table maps to the 19 Cityscapes classes as in published work on domain generalisation; all other ids are ignored.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import UInt8

from recyclelora.data.decoding import checked_label, read_image, read_labels
from recyclelora.data.labels import CITYSCAPES, IGNORE, Labelling, LabelSpace, unchanged
from recyclelora.errors import UserError
from recyclelora.files import parse_json

CITYSCAPES_IDS: Mapping[str, int] = {
    "road": 7, "sidewalk": 8, "building": 11, "wall": 12, "fence": 13, "pole": 17, "traffic light": 19,
    "traffic sign": 20, "vegetation": 21, "terrain": 22, "sky": 23, "person": 24, "rider": 25, "car": 26, "truck": 27,
    "bus": 28, "train": 31, "motorcycle": 32, "bicycle": 33,
}  # fmt: skip
"""Label ids of Cityscapes (`cityscapesscripts.helpers.labels`), which ACDC and GTAV also use."""

SYNTHIA_IDS: Mapping[str, int] = {
    "road": 3, "sidewalk": 4, "building": 2, "wall": 21, "fence": 5, "pole": 7, "traffic light": 15, "traffic sign": 9,
    "vegetation": 6, "sky": 1, "person": 10, "rider": 17, "car": 8, "bus": 19, "motorcycle": 12, "bicycle": 11,
}  # fmt: skip
"""The 16 classes that SYNTHIA-RAND-CITYSCAPES (its README; Ros et al., CVPR 2016) shares with the 19.

Its other ids: 0 void, 13 parking slot, 14 road work, 22 lane marking; 16 terrain, 18 truck and 20 train never occur.
"""

MAPILLARY_NAMES = (
    "animal--bird", "animal--ground-animal", "construction--barrier--curb", "construction--barrier--fence",
    "construction--barrier--guard-rail", "construction--barrier--other-barrier", "construction--barrier--wall",
    "construction--flat--bike-lane", "construction--flat--crosswalk-plain", "construction--flat--curb-cut",
    "construction--flat--parking", "construction--flat--pedestrian-area", "construction--flat--rail-track",
    "construction--flat--road", "construction--flat--service-lane", "construction--flat--sidewalk",
    "construction--structure--bridge", "construction--structure--building", "construction--structure--tunnel",
    "human--person", "human--rider--bicyclist", "human--rider--motorcyclist", "human--rider--other-rider",
    "marking--crosswalk-zebra", "marking--general", "nature--mountain", "nature--sand", "nature--sky", "nature--snow",
    "nature--terrain", "nature--vegetation", "nature--water", "object--banner", "object--bench", "object--bike-rack",
    "object--billboard", "object--catch-basin", "object--cctv-camera", "object--fire-hydrant", "object--junction-box",
    "object--mailbox", "object--manhole", "object--phone-booth", "object--pothole", "object--street-light",
    "object--support--pole", "object--support--traffic-sign-frame", "object--support--utility-pole",
    "object--traffic-light", "object--traffic-sign--back", "object--traffic-sign--front", "object--trash-can",
    "object--vehicle--bicycle", "object--vehicle--boat", "object--vehicle--bus", "object--vehicle--car",
    "object--vehicle--caravan", "object--vehicle--motorcycle", "object--vehicle--on-rails",
    "object--vehicle--other-vehicle", "object--vehicle--trailer", "object--vehicle--truck",
    "object--vehicle--wheeled-slow", "void--car-mount", "void--ego-vehicle", "void--unlabeled",
)  # fmt: skip
"""The classes of Mapillary Vistas v1.2 in the order of their ids, from its `config_v1.2.json`."""

MAPILLARY_CLASSES: Mapping[str, tuple[str, ...]] = {
    "road": (
        "construction--flat--road", "construction--flat--crosswalk-plain", "construction--flat--parking",
        "construction--flat--bike-lane", "construction--flat--service-lane", "marking--crosswalk-zebra",
        "marking--general",
    ),
    "sidewalk": (
        "construction--flat--sidewalk", "construction--flat--pedestrian-area", "construction--flat--curb-cut",
        "construction--barrier--curb",
    ),
    "building": ("construction--structure--building",),
    "wall": ("construction--barrier--wall",),
    "fence": ("construction--barrier--fence",),
    "pole": ("object--support--pole", "object--support--utility-pole", "object--street-light"),
    "traffic light": ("object--traffic-light",),
    "traffic sign": (
        "object--traffic-sign--front", "object--traffic-sign--back", "object--support--traffic-sign-frame",
    ),
    "vegetation": ("nature--vegetation",),
    "terrain": ("nature--terrain",),
    "sky": ("nature--sky",),
    "person": ("human--person",),
    "rider": ("human--rider--bicyclist", "human--rider--motorcyclist", "human--rider--other-rider"),
    "car": ("object--vehicle--car",),
    "truck": ("object--vehicle--truck",),
    "bus": ("object--vehicle--bus",),
    "train": ("object--vehicle--on-rails",),
    "motorcycle": ("object--vehicle--motorcycle",),
    "bicycle": ("object--vehicle--bicycle",),
}  # fmt: skip
"""Which Mapillary classes count as one of the 19; the others are ignored."""


def as_cityscapes(classes: Mapping[int, str], ids: Iterable[int]) -> Labelling:
    """The labelling of files that hold `ids`: `classes` names the class of an id; ids without one are ignored."""
    table = np.full(256, IGNORE, np.int64)
    for identity, name in classes.items():
        table[identity] = CITYSCAPES.id(name)
    return dataclasses.replace(unchanged(CITYSCAPES), ids=frozenset(ids), to_train=table, to_score=table)


def cityscapes_ids(space: LabelSpace, what: str) -> UInt8[np.ndarray, " classes"]:
    """The label id of Cityscapes of each class of a space.

    Raises:
        UserError: a class is none of the 19 classes of Cityscapes, by its name; the message begins with `what`.
    """
    if missing := [name for name in space.names if name not in CITYSCAPES_IDS]:
        raise UserError(
            f"{what}: {len(missing)} of the model's classes have no id in Cityscapes ({', '.join(missing[:5])}); take "
            "`labels`, whose ids are indices into the names of the classes"
        )
    return np.array([CITYSCAPES_IDS[name] for name in space.names], np.uint8)


def _of_names(ids: Mapping[str, int], count: int) -> Labelling:
    return as_cityscapes({identity: name for name, identity in ids.items()}, range(count))


CITYSCAPES_LABELLING = _of_names(CITYSCAPES_IDS, 34)
GTAV_LABELLING = _of_names(CITYSCAPES_IDS, 35)
"""As Cityscapes, but the licence plate is 34, not -1 (`label/initLabels.m` of Playing for Data, ECCV 2016)."""
SYNTHIA_LABELLING = _of_names(SYNTHIA_IDS, 23)
URBANSYN_LABELLING = dataclasses.replace(unchanged(CITYSCAPES), ids=frozenset(range(20)))
"""Train ids; 19 is unlabelled (README of UrbanSyn, Gomez et al., 2023)."""


def mapillary(names: Iterable[str]) -> Labelling:
    """The labelling of Mapillary Vistas v1.2 whose ids are the positions in `names`."""
    ids = {name: identity for identity, name in enumerate(names)}
    classes = {ids[name]: target for target, sources in MAPILLARY_CLASSES.items() for name in sources}
    return as_cityscapes(classes, ids.values())


MAPILLARY_LABELLING = mapillary(MAPILLARY_NAMES)


def mapillary_labelling(root: Path) -> Labelling:
    """The labelling of a folder of Mapillary Vistas, with the ids from its `config_v1.2.json` or `config.json`.

    Raises:
        UserError: that file lists other classes than those of v1.2, or cannot be read.
    """
    files = [file for file in (root / "config_v1.2.json", root / "config.json") if file.is_file()]
    if not files:
        return MAPILLARY_LABELLING
    try:
        names = [str(label["name"]) for label in parse_json(files[0].read_text(encoding="utf-8"))["labels"]]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{files[0]}: expected a list `labels` with a `name` in each entry, as in Mapillary Vistas ({error!r}); "
            "unpack the file again"
        ) from error
    if sorted(names) != sorted(MAPILLARY_NAMES):
        strange = next((name for name in names if name not in MAPILLARY_NAMES), "missing or repeated ones")
        raise UserError(
            f"{files[0]}: lists {len(names)} classes, among them {strange}, expected the {len(MAPILLARY_NAMES)} of "
            f"Mapillary Vistas v1.2{' (this is v2.0)' * (len(names) > 100)}; give a folder with v1.2"
        )
    return mapillary(names)


def read_grey(path: Path) -> UInt8[np.ndarray, "h w"]:
    """The ids in a label PNG with one channel, or with colour channels that are all the same.

    Raises:
        UserError: as `read_labels`.
    """
    if checked_label(path)[1].mode not in ("RGB", "RGBA", "LA"):
        return read_labels(path)
    image = read_image(path)
    return np.ascontiguousarray(image[..., 0]) if (image == image[..., :1]).all() else read_labels(path)


def read_first_channel(path: Path) -> UInt8[np.ndarray, "h w"]:
    """The ids in the red channel of an RGB PNG with 16 bits per channel, where SYNTHIA stores the classes.

    Raises:
        UserError: the file is missing, damaged, truncated or of another kind, or has ids above 255.
    """
    # Pillow reduces 16-bit colours to 8 bits, which loses the ids. OpenCV returns the channels as blue, green, red.
    array = cv2.imdecode(np.frombuffer(checked_label(path)[0], np.uint8), cv2.IMREAD_UNCHANGED)
    if array is None or array.dtype != np.uint16 or array.ndim != 3:
        found = "unreadable" if array is None else f"{array.dtype} of shape {array.shape}"
        raise UserError(f"{path}: label is {found}, expected an RGB PNG, 16 bits per channel; unpack the file again")
    ids = array[..., 2]
    if ids.max() > IGNORE:
        raise UserError(f"{path}: label id {ids.max()}, expected at most {IGNORE}; unpack the file again")
    return ids.astype(np.uint8)
