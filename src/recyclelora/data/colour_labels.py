"""Labels of a user's own folder whose pixels have the colours of `classes.txt` instead of ids.

    file                     read as
    grey                     ids
    RGB, or RGBA and opaque  colours: every pixel must have the colour of a class, or one that is ignored
    palette                  ids, as its indices; colours, if its indices are no ids and its palette has such colours

A palette whose indices are ids while it shows the colour of another class could be either, and is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image

from recyclelora.data import png
from recyclelora.data.colours import BLACK, Colour, ciede2000, to_lab
from recyclelora.data.decoding import checked_label, decoded_label, read_labels, stored_ids
from recyclelora.data.labels import IGNORE
from recyclelora.errors import UserError

RGB, PALETTE, RGBA = 2, 3, 6
"""Colour types of PNGs."""


def colour_type(path: Path) -> int | None:
    """The colour type of a PNG; None if the file is not one. No other fault of it is looked for."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        try:
            return png.header(file.read(33)).colour
        except ValueError:
            return None


@dataclass(frozen=True)
class ColourLabels:
    """Reads labels by the colours of classes, as the table above says.

    `colours` are pairs of a colour and its id, `IGNORE` among them; there are none if labels cannot be read by them,
    and `why` says why. `expected` says whether the labels of the folder are in colours; grey ones are refused then.
    """

    names: tuple[str, ...]
    colours: tuple[tuple[Colour, int], ...]
    why: str
    expected: bool

    def __call__(self, path: Path) -> UInt8[np.ndarray, "h w"]:
        """The ids of a label.

        Raises:
            UserError: as `read_labels`; a colour is not that of a class, or the file can be read in two ways.
        """
        content, image = checked_label(path)
        if image.mode in ("RGB", "RGBA") and png.header(content).bits == 8:
            return self._by_colours(path, decoded_label(path, content, image))
        if self.expected and image.mode != "P":
            raise UserError(
                f"{path}: label of mode {image.mode!r} among labels in colours, expected RGB; save all labels of the "
                "folder in one way"
            )
        ids = stored_ids(path, content, image)
        return self._by_palette(path, ids, image) if image.mode == "P" and self.colours else ids

    def shows_colours(self, path: Path) -> bool:
        """Whether a label with a palette is read by its colours; not if it cannot be read."""
        try:
            return not np.array_equal(self(path), read_labels(path))
        except UserError:
            return False

    def _by_colours(self, path: Path, pixels: UInt8[np.ndarray, "h w channels"]) -> UInt8[np.ndarray, "h w"]:
        if not self.expected:
            mode = "RGBA" if pixels.shape[2] == 4 else "RGB"
            raise UserError(
                f"{path}: label of mode {mode!r} ({pixels.shape[2]} channels), expected one channel of 8-bit ids; "
                "write the class ids as a grey or palette PNG; it is not read by the colours of its classes, as "
                + (self.why or "other labels of the folder are not in colours")
            )
        if pixels.shape[2] == 4 and (pixels[..., 3] < 255).any():
            row, column = np.argwhere(pixels[..., 3] < 255)[0]
            raise UserError(
                f"{path}: label that is transparent at row {row}, column {column}, expected opaque colours of classes; "
                "fill it with a colour of ignored pixels"
            )
        red, green, blue = np.moveaxis(pixels[..., :3].astype(np.uint32), -1, 0)
        codes = red << 16 | green << 8 | blue
        ids = np.asarray(np.take(_table(self.colours), codes), np.uint8)
        if (ids == IGNORE).any():
            ignored = [_code(colour) for colour, identity in self.colours if identity == IGNORE]
            unknown = (ids == IGNORE) & ~np.isin(codes, ignored)
            if unknown.any():
                code = int(codes[unknown][0])
                raise self._unknown(path, (code >> 16, code >> 8 & 255, code & 255), unknown)
        return ids

    def _by_palette(
        self, path: Path, indices: UInt8[np.ndarray, "h w"], image: Image.Image
    ) -> UInt8[np.ndarray, "h w"]:
        values, table = image.getpalette("RGB") or [], dict(self.colours)
        entries: list[Colour] = [(red, green, blue) for red, green, blue in zip(*[iter(values)] * 3, strict=True)]
        entries += [BLACK] * (256 - len(entries))  # as decoders show indices that a palette does not have
        used = np.flatnonzero(cv2.calcHist([indices], [0], None, [256], [0, 256])).tolist()
        shown = {index: table[entries[index]] for index in used if entries[index] in table}
        other = next((index for index, identity in shown.items() if identity != index), None)
        if not self.expected and all(index < len(self.names) or index == IGNORE for index in used):
            if other is None:
                return indices
            raise UserError(
                f"{path}: its palette shows index {other} in the colour of {self._name(shown[other])}, expected that "
                f"of {self._name(other)}: the indices may be meant, or the colours; save it as a grey PNG to have it "
                "read by its ids, or all labels as RGB PNGs to have them read by their colours"
            )
        if len(shown) == len(used):
            lookup = np.zeros(256, np.uint8)
            lookup[used] = [shown[index] for index in used]
            return np.asarray(np.take(lookup, indices), np.uint8)
        if not self.expected:
            return indices  # what reads the ids refuses those that are unknown
        bad = next(index for index in used if index not in shown)
        raise self._unknown(path, entries[bad], indices == bad)

    def _name(self, identity: int) -> str:
        return "ignored pixels" if identity == IGNORE else repr(self.names[identity])

    def _unknown(self, path: Path, colour: Colour, where: Bool[np.ndarray, "h w"]) -> UserError:
        """The error for pixels without a class, of which the first has this colour."""
        distances = ciede2000(to_lab(np.array([each for each, _ in self.colours])), to_lab(np.array(colour)))
        near, identity = self.colours[int(distances.argmin())]
        row, column = np.argwhere(where)[0]
        return UserError(
            f"{path}: the colour {colour} at row {row}, column {column} is that of no class ({where.sum()} such "
            f"pixels), expected a colour of classes.txt; the nearest is {near}, {self._name(identity)}; export the "
            "label again as a PNG without smooth edges (JPEG, rescaling and smoothing mix colours), or add the colour "
            "to classes.txt"
        )


def _code(colour: Colour) -> int:
    return colour[0] << 16 | colour[1] << 8 | colour[2]


@lru_cache(4)
def _table(colours: tuple[tuple[Colour, int], ...]) -> UInt8[np.ndarray, "codes=16777216"]:
    """The id of every colour; `IGNORE` for those that are unknown."""
    table = np.full(2**24, IGNORE, np.uint8)
    for colour, identity in colours:
        table[_code(colour)] = identity
    return table
