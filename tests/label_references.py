"""Train ids of published data sets, computed from names with Cityscapes' own scripts, not with our tables."""

import numpy as np
from cityscapesscripts.helpers.labels import labels as cityscapes_labels

from recyclelora.data.label_maps import MAPILLARY_NAMES

TRAIN_ID = {label.name: label.trainId for label in cityscapes_labels if 0 <= label.trainId < 255}

# SYNTHIA-RAND-CITYSCAPES, by id.
SYNTHIA = (
    "void", "sky", "building", "road", "sidewalk", "fence", "vegetation", "pole", "car", "traffic sign", "person",
    "bicycle", "motorcycle", "parking slot", "road work", "traffic light", "(terrain)", "rider", "(truck)", "bus",
    "(train)", "wall", "lane marking",
)  # fmt: skip


def mapillary_class(name):
    """The Cityscapes name that a Mapillary label counts as by the published rules, read off its words."""
    last = name.split("--")[-1].replace("-", " ")
    if "sign" in name:
        return "traffic sign"
    if "--rider--" in name:
        return "rider"
    if last in ("curb", "curb cut", "pedestrian area"):
        return "sidewalk"
    if name.startswith("marking--") or last in ("crosswalk plain", "parking", "bike lane", "service lane"):
        return "road"
    if last in ("utility pole", "street light"):
        return "pole"
    return {"on rails": "train"}.get(last, last)


def _table(names):
    table = np.full(256, 255, np.uint8)
    for identity, name in names:
        table[identity] = TRAIN_ID.get(name, 255)
    return table


_CITYSCAPES = _table((label.id, label.name) for label in cityscapes_labels if label.id >= 0)

TRAIN_IDS = {
    "gtav": _CITYSCAPES,
    "cityscapes": _CITYSCAPES,
    "acdc": _CITYSCAPES,
    "synthia": _table(enumerate(SYNTHIA)),
    "urbansyn": _table((train_id, name) for name, train_id in TRAIN_ID.items()),
    "bdd100k": _table((train_id, name) for name, train_id in TRAIN_ID.items()),
    "mapillary": _table((identity, mapillary_class(name)) for identity, name in enumerate(MAPILLARY_NAMES)),
}
"""A table of 256 train ids for each, indexed by the ids of its files."""
