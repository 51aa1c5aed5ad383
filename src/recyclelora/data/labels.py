"""Label spaces, their colours, and the maps between them: the one place where class ids are written down.

Train ids and colours of the 19 classes: Cityscapes (Cordts et al., CVPR 2016), `cityscapesscripts.helpers.labels`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Int64, UInt8

IGNORE = 255
"""The id of pixels that are neither trained on nor scored."""


@dataclass(frozen=True)
class LabelSpace:
    """An ordered list of classes; a class's id is its position.

    Raises:
        ValueError: a name is repeated, there are no or more than 255 names, or another number of colours.
    """

    names: tuple[str, ...]
    colours: tuple[tuple[int, int, int], ...]

    def __post_init__(self) -> None:
        if not 1 <= len(self.names) <= IGNORE or len(set(self.names)) != len(self.names):
            raise ValueError(f"a label space needs 1 to {IGNORE} different names, got {list(self.names)}")
        if len(self.colours) != len(self.names):
            raise ValueError(f"{len(self.names)} classes but {len(self.colours)} colours")

    def __len__(self) -> int:
        return len(self.names)

    def id(self, name: str) -> int:
        """The train id of a class name."""
        return self.names.index(name)

    def colourise(self, labels: UInt8[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w 3"]:
        """RGB picture of a map of ids; ids that are not in the space are black."""
        table = np.zeros((256, 1, 3), np.uint8)
        table[: len(self), 0] = self.colours
        return np.asarray(cv2.applyColorMap(labels, table), np.uint8)


CITYSCAPES = LabelSpace(
    names=(
        "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation",
        "terrain", "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle",
    ),
    colours=(
        (128, 64, 128), (244, 35, 232), (70, 70, 70), (102, 102, 156), (190, 153, 153), (153, 153, 153), (250, 170, 30),
        (220, 220, 0), (107, 142, 35), (152, 251, 152), (70, 130, 180), (220, 20, 60), (255, 0, 0), (0, 0, 142),
        (0, 0, 70), (0, 60, 100), (0, 80, 100), (0, 0, 230), (119, 11, 32),
    ),
)  # fmt: skip

CAMVID = LabelSpace(
    names=("sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist"),
    colours=(
        (128, 128, 128), (128, 0, 0), (192, 192, 128), (128, 64, 128), (60, 40, 222), (128, 128, 0), (192, 128, 128),
        (64, 64, 128), (64, 0, 128), (64, 64, 0), (0, 128, 192),
    ),
)  # fmt: skip

CAMVID_TO_CITYSCAPES: Mapping[str, str] = {
    "sky": "sky", "building": "building", "pole": "pole", "road": "road", "pavement": "sidewalk", "tree": "vegetation",
    "sign": "traffic sign", "fence": "fence", "car": "car", "pedestrian": "person", "bicyclist": "rider",
}  # fmt: skip
"""Which of the 19 classes a CamVid class is trained as."""

CITYSCAPES_TO_CAMVID: Mapping[str, str] = {
    "road": "road", "sidewalk": "pavement", "building": "building", "wall": "fence", "fence": "fence", "pole": "pole",
    "traffic light": "sign", "traffic sign": "sign", "vegetation": "tree", "terrain": "tree", "sky": "sky",
    "person": "pedestrian", "rider": "bicyclist", "car": "car", "truck": "car", "bus": "car", "train": "car",
    "motorcycle": "bicyclist", "bicycle": "bicyclist",
}  # fmt: skip
"""Which CamVid class a prediction of one of the 19 classes counts as."""


def lookup(names: Mapping[str, str], source: LabelSpace, target: LabelSpace) -> Int64[np.ndarray, "ids=256"]:
    """Table from ids of `source` to ids of `target`, given a map of names; every other id maps to `IGNORE`."""
    table = np.full(256, IGNORE, np.int64)
    for old, new in names.items():
        table[source.id(old)] = target.id(new)
    return table


@dataclass(frozen=True, eq=False)
class Labelling:
    """How the ids in a data set's label files are trained on, and how they are scored.

    `ids` are the ids that its files may hold; `IGNORE` is always allowed. `to_train` and `to_score` map these ids to
    train ids and to scored ids; `predictions` maps predicted train ids to scored ids.
    """

    ids: frozenset[int]
    train_space: LabelSpace
    to_train: Int64[np.ndarray, "ids=256"]
    score_space: LabelSpace
    to_score: Int64[np.ndarray, "ids=256"]
    predictions: Int64[np.ndarray, "ids=256"]


def unchanged(space: LabelSpace) -> Labelling:
    """The labelling of files that hold the ids of `space`, which are trained on and scored unchanged."""
    table = lookup({name: name for name in space.names}, space, space)
    return Labelling(frozenset(range(len(space))), space, table, space, table, table)


CAMVID_LABELLING = Labelling(
    ids=frozenset(range(12)),  # 11 is CamVid's own id for unlabelled pixels
    train_space=CITYSCAPES,
    to_train=lookup(CAMVID_TO_CITYSCAPES, CAMVID, CITYSCAPES),
    score_space=CAMVID,
    to_score=lookup({name: name for name in CAMVID.names}, CAMVID, CAMVID),
    predictions=lookup(CITYSCAPES_TO_CAMVID, CITYSCAPES, CAMVID),
)
