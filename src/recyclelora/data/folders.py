"""Labelled images in folders: finding the pairs, reading them strictly, and saying what is wrong with them.

Pillow reads both images and labels: it keeps the indices of palette PNGs, which are the label ids, where OpenCV expands
them to colours, and it refuses truncated files, of which OpenCV returns a partly grey image.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from recyclelora.data.labels import IGNORE
from recyclelora.errors import UserError

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"})
LABEL_SUFFIXES = frozenset({".png"})


@dataclass(frozen=True)
class Layout:
    """Where a data set keeps its images and labels below its root; `{split}` stands for the split's name.

    An image and its label have the same path below these two folders but for the suffix.
    """

    images: str
    labels: str

    def folders(self, root: Path, split: str) -> tuple[Path, Path]:
        """The folder of images and the folder of labels."""
        return root / self.images.format(split=split), root / self.labels.format(split=split)


@dataclass(frozen=True)
class Pair:
    """An image, its label, and their common name."""

    name: str
    image: Path
    label: Path


def find_pairs(root: Path, layouts: Iterable[Layout], split: str) -> list[Pair]:
    """The pairs of a split, sorted by name, in the first layout that is found below `root`.

    Raises:
        UserError: where no layout is found, there are no images, or an image or a label lacks its counterpart.
    """
    layouts = list(layouts)
    for layout in layouts:
        images, labels = layout.folders(root, split)
        if images.is_dir() and labels.is_dir():
            return _match(images, labels)
    known = " or ".join(
        " + ".join(f"{folder.relative_to(root)}/" for folder in lay.folders(root, split)) for lay in layouts
    )
    found = sorted(entry.name + "/" * entry.is_dir() for entry in root.iterdir())
    raise UserError(
        f"{root}: expected {known}, found {', '.join(found[:8]) or 'an empty folder'}{', ...' * (len(found) > 8)}; "
        "rename the folders or give the folder that holds them"
    )


def _match(images: Path, labels: Path) -> list[Pair]:
    image_files, label_files = _by_name(images, IMAGE_SUFFIXES), _by_name(labels, LABEL_SUFFIXES)
    if not image_files:
        raise UserError(f"{images}: no images, expected files ending in {', '.join(sorted(IMAGE_SUFFIXES))}")
    if bare := sorted(image_files.keys() - label_files.keys()):
        raise UserError(
            f"{image_files[bare[0]]}: image without label ({len(bare)} of {len(image_files)} images), "
            f"expected {labels / bare[0]}.png; add the label or remove the image"
        )
    if bare := sorted(label_files.keys() - image_files.keys()):
        raise UserError(
            f"{label_files[bare[0]]}: label without image ({len(bare)} of {len(label_files)} labels), "
            f"expected {images / bare[0]} with an image's suffix; add the image or remove the label"
        )
    return [Pair(name, image_files[name], label_files[name]) for name in sorted(image_files)]


def _by_name(folder: Path, suffixes: frozenset[str]) -> dict[str, Path]:
    """The files with these suffixes below a folder, links followed, hidden files left out, by path without suffix."""
    files: dict[str, Path] = {}
    for parent, _, names in os.walk(folder, followlinks=True):
        for file in (Path(parent, name) for name in sorted(names)):
            if file.suffix.lower() not in suffixes or file.name.startswith("."):
                continue
            name = file.relative_to(folder).with_suffix("").as_posix()
            if name in files:
                raise UserError(
                    f"{file}: has the same name as {files[name].name}, expected one file a name; remove one"
                )
            files[name] = file
    return files


def _open(path: Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            image.load()
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, EOFError, struct.error, ...
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: cannot be read as an image ({reason}); replace the damaged file") from error
    return image


def read_image(path: Path) -> UInt8[np.ndarray, "h w 3"]:
    """The RGB image in a file, turned upright where its EXIF data say so.

    Raises:
        UserError: on a file that is missing, damaged, truncated, or has 16 or more bits a channel.
    """
    image = _open(path)
    if image.mode.startswith(("I", "F")):
        raise UserError(
            f"{path}: image of mode {image.mode!r} (16 or more bits), expected 8 bits; convert it to 8 bits"
        )
    ImageOps.exif_transpose(image, in_place=True)
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def read_labels(path: Path) -> UInt8[np.ndarray, "h w"]:
    """The ids in a label PNG: grey values, palette indices, or 0 and 1 of a PNG with one bit a pixel.

    Raises:
        UserError: on a file that is missing, damaged, truncated, or has several channels or more than 8 bits.
    """
    image = _open(path)
    if image.mode not in ("L", "P", "1"):
        bits = " (16 bits)" if image.mode.startswith("I") else f" ({len(image.getbands())} channels)"
        raise UserError(
            f"{path}: label of mode {image.mode!r}{bits}, expected one channel of 8-bit ids; "
            "write the class ids as a grey or palette PNG"
        )
    return np.asarray(image).astype(np.uint8)


@dataclass(frozen=True)
class LabelledFiles:
    """Pairs below a root, whose labels hold the given ids and `IGNORE`."""

    root: Path
    pairs: list[Pair]
    ids: frozenset[int]

    def __len__(self) -> int:
        return len(self.pairs)

    def name(self, index: int) -> str:
        """The path of an image below the folder of images, without suffix."""
        return self.pairs[index].name

    def image(self, index: int) -> UInt8[np.ndarray, "h w 3"]:
        """One RGB image."""
        return read_image(self.pairs[index].image)

    def read(self, index: int) -> tuple[UInt8[np.ndarray, "h w 3"], UInt8[np.ndarray, "h w"]]:
        """One RGB image and its label with the ids of the file.

        Raises:
            UserError: where one of them is unreadable, their sizes differ, or the label holds an unknown id.
        """
        pair = self.pairs[index]
        image, labels = self.image(index), read_labels(pair.label)
        if image.shape[:2] != labels.shape:
            raise UserError(
                f"{pair.label}: label of {_size(labels)} pixels, but {pair.image.name} has {_size(image)}; "
                "give both the same width and height"
            )
        known = np.zeros(256, bool)
        known[[*self.ids, IGNORE]] = True
        unknown = ~known[labels]
        if unknown.any():
            row, column = np.argwhere(unknown)[0]
            raise UserError(
                f"{pair.label}: unknown label id {labels[row, column]} at row {row}, column {column} "
                f"({unknown.sum()} unknown pixels), expected {min(self.ids)} to {max(self.ids)} or {IGNORE} (ignored); "
                "convert the label or correct the list of classes"
            )
        return image, labels

    def fingerprint(self) -> str:
        """SHA-256 of the sorted paths below the root and sizes in bytes: the same wherever the folder lies."""
        files = [file for pair in self.pairs for file in (pair.image, pair.label)]
        lines = sorted(f"{file.relative_to(self.root).as_posix()} {file.stat().st_size}\n" for file in files)
        return hashlib.sha256("".join(lines).encode()).hexdigest()


def _size(array: np.ndarray) -> str:
    return f"{array.shape[1]} x {array.shape[0]}"
