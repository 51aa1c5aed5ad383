"""Reads COCO JSON strictly: images, categories, and annotations with polygons or run lengths (RLE).

The format is that of cocodataset.org/#format-data (object detection), as Roboflow, CVAT, Label Studio and labelme2coco
export it. A fault names the file and the annotation.
"""

from __future__ import annotations

import json
import unicodedata
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from recyclelora.data.masks import Mask, polygon_mask, run_length_mask, run_lengths
from recyclelora.data.stored import read_file
from recyclelora.errors import UserError

Id = int | str


@dataclass(frozen=True)
class Annotation:
    """The outline of one object: its category, and polygons of x, y, x, y, ... in pixels, or run lengths."""

    where: str
    category: Id
    polygons: tuple[np.ndarray, ...] = ()
    runs: np.ndarray | None = None

    def mask(self, height: int, width: int) -> Mask:
        """The pixels that it covers."""
        if self.runs is not None:
            return run_length_mask(self.runs, height, width)
        return polygon_mask(self.polygons, height, width)


@dataclass(frozen=True)
class AnnotatedImage:
    """An image in the file: its path below the folder of images, its size, and its annotations."""

    file: str
    height: int
    width: int
    annotations: list[Annotation] = field(default_factory=list)


@dataclass(frozen=True)
class Coco:
    """The content of a file; the names of images are their paths without suffix.

    `categories` are the names by id, `parents` those of them that group others and may be no classes.
    """

    path: Path
    images: dict[str, AnnotatedImage]
    categories: dict[Id, str]
    parents: frozenset[Id]

    @property
    def used(self) -> set[Id]:
        """The categories of the annotations."""
        return {each.category for image in self.images.values() for each in image.annotations}


def read_coco(path: Path) -> Coco:
    """The content of a file; it is kept, and read again if the file has changed.

    Raises:
        UserError: the file is not COCO JSON, or a part of it is missing or wrong.
    """
    content = path.stat()
    return _read(path, content.st_mtime_ns, content.st_size)


@lru_cache(8)
def _read(path: Path, changed: int, size: int) -> Coco:
    try:
        content = json.loads(read_file(path))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error}); export it again") from error
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise UserError(f"{path}: has no list {key!r}, expected COCO JSON; export it again as COCO segmentation")
    categories, parents = _categories(path, content["categories"])
    names: dict[str, AnnotatedImage] = {}
    images: dict[Id, AnnotatedImage] = {}
    for number, entry in enumerate(content["images"]):
        where = f"{path}: image {_label(entry, number)}"
        image = _image(where, entry)
        name = unicodedata.normalize("NFC", PurePosixPath(image.file).with_suffix("").as_posix())
        if name in names or entry["id"] in images:
            raise UserError(f"{where}, {image.file}: has the name or the id of another image; give each its own")
        names[name] = images[entry["id"]] = image
    for number, entry in enumerate(content["annotations"]):
        where = f"{path}: annotation {_label(entry, number)}"
        image_id, category = _id(where, entry, "image_id"), _id(where, entry, "category_id")
        if image_id not in images:
            raise UserError(f"{where}: belongs to the image {image_id!r}, which is not listed; export the file again")
        if category not in categories:
            raise UserError(f"{where}: has the category {category!r}, which is not listed; export the file again")
        image = images[image_id]
        image.annotations.append(_annotation(where, entry.get("segmentation"), category, image))
    _refuse_shares(path, names)
    return Coco(path, names, categories, parents)


def _label(entry: Any, number: int) -> str:
    return repr(entry["id"]) if isinstance(entry, dict) and "id" in entry else f"number {number} in the list"


def _id(where: str, entry: Any, key: str) -> Id:
    value = entry.get(key) if isinstance(entry, dict) else None
    if not isinstance(value, (int, str)) or isinstance(value, bool):
        raise UserError(f"{where}: {key} is {value!r}, expected a number or a text; export the file again")
    return value


def _text(where: str, entry: dict[str, Any], key: str) -> str:
    value = entry.get(key)
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{where}: {key} is {value!r}, expected a text; export the file again")
    return value


def _categories(path: Path, entries: list[Any]) -> tuple[dict[Id, str], frozenset[Id]]:
    names: dict[Id, str] = {}
    for number, entry in enumerate(entries):
        where = f"{path}: category {_label(entry, number)}"
        identity = _id(where, entry, "id")
        if identity in names:
            raise UserError(f"{where}: has the id of {names[identity]!r} as well; give each category its own")
        names[identity] = " ".join(_text(where, entry, "name").split())
    above = [(" ".join(str(entry.get("supercategory")).split()), entry["id"]) for entry in entries]
    parents = (i for i, name in names.items() if any(group == name and other != i for group, other in above))
    return names, frozenset(parents)


def _image(where: str, entry: Any) -> AnnotatedImage:
    _id(where, entry, "id")
    file = _text(where, entry, "file_name").replace("\\", "/")
    for key in ("height", "width"):
        value = entry.get(key)
        if not isinstance(value, int) or value < 1:
            raise UserError(f"{where}: {key} is {value!r}, expected a number of pixels; export the file again")
    return AnnotatedImage(file, entry["height"], entry["width"])


def _annotation(where: str, outline: Any, category: Id, image: AnnotatedImage) -> Annotation:
    if not outline:
        raise UserError(
            f"{where}: has no segmentation, as in files for detection, expected polygons or run lengths; export it as "
            "COCO segmentation, or remove the annotation"
        )
    if isinstance(outline, dict):
        try:
            runs = run_lengths(outline, image.height, image.width)
        except ValueError as error:
            raise UserError(f"{where}: {error}; export it again") from error
        return Annotation(where, category, runs=runs)
    polygons = []
    for points in outline if isinstance(outline, list) else [outline]:
        try:
            polygon = np.asarray(points, np.float64)
        except (TypeError, ValueError):
            polygon = np.empty(0)
        if polygon.ndim != 1 or len(polygon) < 6 or len(polygon) % 2 or not np.isfinite(polygon).all():
            found = f"{str(points)[:40]}{'...' * (len(str(points)) > 40)}"
            raise UserError(
                f"{where}: has the polygon {found}, expected a list of x, y, x, y, ... of at least three points; "
                "correct or remove it"
            )
        polygons.append(polygon)
    return Annotation(where, category, tuple(polygons))


def _refuse_shares(path: Path, images: dict[str, AnnotatedImage]) -> None:
    """Refuse coordinates that are shares of the width and height, as other formats have them."""
    polygons = [polygon for image in images.values() for each in image.annotations for polygon in each.polygons]
    if polygons and max(polygon.max() for polygon in polygons) <= 1:
        raise UserError(f"{path}: all coordinates are 0 to 1, expected pixels; multiply them by the width and height")
