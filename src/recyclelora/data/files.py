"""Labelled images in files: reads each pair strictly, and reports what is wrong with it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from recyclelora.data.decoding import as_jpeg, read_image, read_labels, read_turned
from recyclelora.data.finding import Pair
from recyclelora.data.labels import IGNORE
from recyclelora.errors import UserError

Reader = Callable[[Pair], UInt8[np.ndarray, "h w"]]
"""Reads the ids of a pair's label."""


@dataclass(frozen=True)
class FromFile:
    """Reads labels that are files of their own."""

    read_ids: Callable[[Path], UInt8[np.ndarray, "h w"]]

    def __call__(self, pair: Pair) -> UInt8[np.ndarray, "h w"]:
        """The ids of the pair's label."""
        return self.read_ids(pair.label)


STORED_IDS = FromFile(read_labels)
"""Reads labels that hold their ids."""


@dataclass(frozen=True)
class LabelledFiles:
    """Pairs below a root. Their labels are read with `reader` and may hold `ids` and `IGNORE`.

    `reading` is a text that changes with how labels are read; empty if they hold their ids.

    A label whose sides differ from those of its image by a share of up to `stretch` is resized to the image (nearest
    neighbour). `halved` halves the sides of both after reading as SoMA's `mapillary_resize.py` does, by which published
    work scores Mapillary: with Pillow, images bicubically and then through a JPEG, labels by nearest neighbour.
    """

    root: Path
    pairs: list[Pair]
    ids: frozenset[int]
    reader: Reader = STORED_IDS
    stretch: float = 0.0
    halved: bool = False
    reading: str = ""

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
        pair = self.pairs[index]
        labels = self.reader(pair)
        self._check_ids(labels, pair.label)
        return _half(labels, Image.Resampling.NEAREST) if self.halved else labels

    def stamp(self, index: int) -> str:
        """Size in bytes and time of the last change of a label's file, whether it is halved, and how it is read."""
        facts = self.pairs[index].label.stat()
        return f"{facts.st_size} {facts.st_mtime_ns}{' halved' * self.halved}{self.reading}"

    def read(self, index: int) -> tuple[UInt8[np.ndarray, "h w 3"], UInt8[np.ndarray, "h w"]]:
        """One RGB image and its label with the ids of the file.

        Raises:
            UserError: one of them is unreadable, their sizes differ, only the image may be turned, or the label holds
                an unknown id.
        """
        pair = self.pairs[index]
        (image, orientation), labels = read_turned(pair.image), self.reader(pair)
        if reason := turned_alone(orientation, image, labels, self.stretch):
            raise UserError(f"{pair.image}: {reason}")
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
        if not fits(labels, image, self.stretch):
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

    def place(self, index: int) -> str:
        """The path of an image."""
        return os.path.abspath(self.pairs[index].image)

    def only(self, indices: Sequence[int]) -> LabelledFiles:
        """Only the images of these indices."""
        return replace(self, pairs=[self.pairs[index] for index in indices])

    def fingerprint(self) -> str:
        """SHA-256 of the sorted paths below the root, sizes in bytes, halving and how labels are read.

        It is the same wherever the folder lies.
        """
        files = [file for pair in self.pairs for file in (pair.image, pair.label)]
        lines = sorted(f"{file.relative_to(self.root).as_posix()} {file.stat().st_size}\n" for file in files)
        text = "".join([*lines, "halved, JPEG" * self.halved, self.reading])
        return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()


def fits(labels: UInt8[np.ndarray, "h w"], image: UInt8[np.ndarray, "H W 3"], stretch: float) -> bool:
    """Whether the sides of a label differ from those of its image by at most this share of them."""
    pairs = zip(labels.shape, image.shape[:2], strict=True)
    return all(abs(one - other) <= stretch * other for one, other in pairs)


def turned_alone(
    orientation: int, image: UInt8[np.ndarray, "H W 3"], labels: UInt8[np.ndarray, "h w"], stretch: float
) -> str:
    """Why a label may not lie as its upright image does; empty if it does.

    A label shows by its size that it was drawn on the upright image if that has other sides than the stored one.
    """
    quarter = orientation in range(5, 9)
    stored = image.transpose(1, 0, 2) if quarter else image
    if orientation == 1 or (quarter and not fits(labels, stored, stretch)):
        return ""
    return (
        f"image that its EXIF data turn (orientation {orientation}), while nothing turns its label, expected both as "
        "they are shown; save the image as it lies over its label, without this entry"
    )


def _half(
    array: UInt8[np.ndarray, "h w *channels"], resampling: Image.Resampling
) -> UInt8[np.ndarray, "half_h half_w *channels"]:
    size = max(1, array.shape[1] // 2), max(1, array.shape[0] // 2)
    return np.array(Image.fromarray(array).resize(size, resampling))


def _size(array: np.ndarray) -> str:
    return f"{array.shape[1]} x {array.shape[0]}"
