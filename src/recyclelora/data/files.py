"""Labelled images in folders: finds the pairs, reads them strictly, and reports what is wrong with them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from recyclelora.data.decoding import as_jpeg, read_image, read_labels
from recyclelora.data.labels import IGNORE
from recyclelora.data.layouts import Layout, explain, shared_name
from recyclelora.errors import UserError

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"})
LABEL_SUFFIXES = frozenset({".png"})


@dataclass(frozen=True)
class Pair:
    """An image, its label, and their common name."""

    name: str
    image: Path
    label: Path


def find_pairs(
    root: Path, layouts: Iterable[Layout], split: str, domain: str = "", mistakes: Mapping[str, str] | None = None
) -> list[Pair]:
    """The pairs of a split and domain, sorted by name, in the first layout that is found below `root`.

    Raises:
        UserError: no layout is found, there are no images, or an image or a label lacks its counterpart.
    """
    layouts = list(layouts)
    for layout in layouts:
        if layout.is_at(root, split, domain):
            return _match(layout, *layout.folders(root, split, domain))
    raise UserError(explain(root, layouts, split, domain, mistakes or {}))


def _match(layout: Layout, images: Path, labels: Path) -> list[Pair]:
    image_files = _files(images, "images", IMAGE_SUFFIXES, layout.image)
    label_files = _files(labels, "labels", LABEL_SUFFIXES, layout.label)
    if bare := sorted(image_files.keys() - label_files.keys()):
        raise UserError(
            f"{image_files[bare[0]]}: image without label ({len(bare)} of {len(image_files)} images), "
            f"expected {_counterpart(labels, bare[0], layout.label)}.png; "
            + (_nested(images, labels) or "add the label or remove the image")
        )
    if bare := sorted(label_files.keys() - image_files.keys()):
        raise UserError(
            f"{label_files[bare[0]]}: label without image ({len(bare)} of {len(label_files)} labels), "
            f"expected {_counterpart(images, bare[0], layout.image)} with an image's suffix; "
            + (_nested(images, labels) or "add the image or remove the label")
        )
    return [Pair(name, image_files[name], label_files[name]) for name in sorted(image_files)]


def _files(folder: Path, kind: str, suffixes: frozenset[str], pattern: str) -> dict[str, Path]:
    if files := files_by_name(folder, suffixes, pattern):
        return files
    names = "files" if pattern == "*" else f"files named {pattern}"
    there = next((name for _, _, files in os.walk(folder, followlinks=True) for name in sorted(files)), "no file")
    raise UserError(
        f"{folder}: no {kind}, expected {names} ending in {', '.join(sorted(suffixes))}, found {there}; "
        "put them there, or unpack them again"
    )


def _counterpart(folder: Path, name: str, pattern: str) -> Path:
    path = folder / name
    return path.with_name(pattern.replace("*", path.name))


def _nested(images: Path, labels: Path) -> str:
    """How to fix an archive that was unpacked inside a folder of the same name; empty if there is none."""
    doubled = [folder / folder.name for folder in (images, labels) if (folder / folder.name).is_dir()]
    return " and ".join(f"move the files of {folder} up into {folder.parent}" for folder in doubled)


def files_by_name(folder: Path, suffixes: frozenset[str], pattern: str = "*") -> dict[str, Path]:
    """The files below a folder that have one of these suffixes and a name that matches the pattern.

    The keys are their paths relative to the folder, in which only what `*` stands for is left of the name. Links are
    followed; hidden files are left out.
    """
    files: dict[str, Path] = {}
    for parent, _, names in os.walk(folder, followlinks=True):
        for file in (Path(parent, name) for name in sorted(names)):
            shared = shared_name(file.stem, pattern)
            if shared is None or file.suffix.lower() not in suffixes or file.name.startswith("."):
                continue
            name = file.relative_to(folder).with_name(shared).as_posix()
            if name in files:
                raise UserError(
                    f"{file}: has the same name as {files[name].name}, expected one file per name; remove one"
                )
            files[name] = file
    return files


def find_images(places: Iterable[Path]) -> dict[str, Path]:
    """The given image files, and those below the given folders, by their names.

    The name of an image is its path relative to the given folder, without suffix.

    Raises:
        UserError: a place does not exist, a folder has no images, or two images have the same name.
    """
    found: dict[str, Path] = {}
    for place in places:
        if not place.exists():
            raise UserError(f"{place}: no such image or folder")
        inside = files_by_name(place, IMAGE_SUFFIXES) if place.is_dir() else {place.stem: place}
        if not inside:
            raise UserError(f"{place}: no images in this folder; expected {', '.join(sorted(IMAGE_SUFFIXES))}")
        for name, file in sorted(inside.items()):
            if name in found:
                raise UserError(f"{file} and {found[name]} have the same name, {name}; predict them in separate calls")
            found[name] = file
    return found


@dataclass(frozen=True)
class LabelledFiles:
    """Pairs below a root. Their labels are read with `read_ids` and may hold `ids` and `IGNORE`.

    A label whose sides differ from those of its image by a share of up to `stretch` is resized to the image (nearest
    neighbour). `halved` halves the sides of both after reading as SoMA's `mapillary_resize.py` does, by which published
    work scores Mapillary: with Pillow, images bicubically and then through a JPEG, labels by nearest neighbour.
    """

    root: Path
    pairs: list[Pair]
    ids: frozenset[int]
    read_ids: Callable[[Path], UInt8[np.ndarray, "h w"]] = read_labels
    stretch: float = 0.0
    halved: bool = False

    def __len__(self) -> int:
        return len(self.pairs)

    def name(self, index: int) -> str:
        """The path of an image relative to the folder of images, without suffix."""
        return self.pairs[index].name

    def image(self, index: int) -> UInt8[np.ndarray, "h w 3"]:
        """One RGB image."""
        image = read_image(self.pairs[index].image)
        return as_jpeg(_half(image, Image.Resampling.BICUBIC)) if self.halved else image

    def labels(self, index: int) -> UInt8[np.ndarray, "h w"]:
        """One label with the ids of the file, in the file's own size or half of it, without reading its image.

        Raises:
            UserError: the label is unreadable or holds an unknown id.
        """
        path = self.pairs[index].label
        labels = self.read_ids(path)
        self._check_ids(labels, path)
        return _half(labels, Image.Resampling.NEAREST) if self.halved else labels

    def stamp(self, index: int) -> str:
        """Size in bytes and time of the last change of the file of a label, and whether it is halved."""
        facts = self.pairs[index].label.stat()
        return f"{facts.st_size} {facts.st_mtime_ns}" + " halved" * self.halved

    def read(self, index: int) -> tuple[UInt8[np.ndarray, "h w 3"], UInt8[np.ndarray, "h w"]]:
        """One RGB image and its label with the ids of the file.

        Raises:
            UserError: one of them is unreadable, their sizes differ, or the label holds an unknown id.
        """
        pair = self.pairs[index]
        image, labels = read_image(pair.image), self.read_ids(pair.label)
        fitted = self._fit(labels, image, pair)
        self._check_ids(labels, pair.label)
        if self.halved:
            return as_jpeg(_half(image, Image.Resampling.BICUBIC)), _half(fitted, Image.Resampling.NEAREST)
        return image, fitted

    def _fit(
        self, labels: UInt8[np.ndarray, "h w"], image: UInt8[np.ndarray, "H W 3"], pair: Pair
    ) -> UInt8[np.ndarray, "H W"]:
        height, width = image.shape[:2]
        if labels.shape == (height, width):
            return labels
        rows, columns = labels.shape
        if abs(rows - height) > self.stretch * height or abs(columns - width) > self.stretch * width:
            raise UserError(
                f"{pair.label}: label of {_size(labels)} pixels, but {pair.image.name} has {_size(image)}; "
                "give both the same width and height"
            )
        return cv2.resize(labels, (width, height), interpolation=cv2.INTER_NEAREST).astype(np.uint8, copy=False)

    def _check_ids(self, labels: UInt8[np.ndarray, "h w"], path: Path) -> None:
        known = np.zeros(256, bool)
        known[[*self.ids, IGNORE]] = True
        counts = cv2.calcHist([labels], [0], None, [256], [0, 256])
        if counts[~known].any():  # counting is fast; the slow search for the pixels is seldom needed
            unknown = ~known[labels]
            row, column = np.argwhere(unknown)[0]
            raise UserError(
                f"{path}: unknown label id {labels[row, column]} at row {row}, column {column} "
                f"({unknown.sum()} unknown pixels), expected {min(self.ids)} to {max(self.ids)} or {IGNORE} (ignored); "
                "convert the label or correct the list of classes"
            )

    def fingerprint(self) -> str:
        """SHA-256 of the sorted paths below the root, sizes in bytes and halving: the same wherever the folder lies."""
        files = [file for pair in self.pairs for file in (pair.image, pair.label)]
        lines = sorted(f"{file.relative_to(self.root).as_posix()} {file.stat().st_size}\n" for file in files)
        return hashlib.sha256("".join([*lines, "halved, JPEG" * self.halved]).encode()).hexdigest()


def _half(
    array: UInt8[np.ndarray, "h w *channels"], resampling: Image.Resampling
) -> UInt8[np.ndarray, "half_h half_w *channels"]:
    size = max(1, array.shape[1] // 2), max(1, array.shape[0] // 2)
    return np.array(Image.fromarray(array).resize(size, resampling))


def _size(array: np.ndarray) -> str:
    return f"{array.shape[1]} x {array.shape[0]}"
