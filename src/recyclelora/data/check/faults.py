"""Finds the faults of one image and its label."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from jaxtyping import Int64

from recyclelora.data.decoding import read_turned
from recyclelora.data.files import Reader, fits, turned_alone
from recyclelora.data.finding import Pair
from recyclelora.errors import UserError

Result = TypeVar("Result")
Place = TypeVar("Place", Path, Pair)


class Fault(NamedTuple):
    """A fault of one file: its kind, an example, and how many pixels it concerns (0 if they are not counted)."""

    kind: str
    example: str
    pixels: int = 0


@dataclass(frozen=True)
class Rules:
    """What the files below a root should hold: `known` ids, read with `reader`, and images of `size` (w, h) if given.

    The sides of a label may differ from those of its image by a share of `stretch`.
    """

    root: Path
    reader: Reader
    known: frozenset[int]
    size: tuple[int, int] | None
    stretch: float


def inspect(pair: Pair, rules: Rules) -> tuple[list[Fault], Int64[np.ndarray, "ids=256"]]:
    """The faults of one image and its label, and the number of pixels of each id in the label."""
    read, faults = _attempt(read_turned, pair.image)
    labels, more = _attempt(rules.reader, pair)
    faults += more
    if read is not None:
        image, orientation = read
        height, width = image.shape[:2]
        if rules.size and (width, height) != rules.size:
            expected = "{} x {}".format(*rules.size)
            found = f"{below(rules.root, pair.image)} has {width} x {height}"
            faults.append(Fault(f"image of another size than {expected}", found))
        if labels is not None and (reason := turned_alone(orientation, image, labels, rules.stretch)):
            faults.append(Fault("image turned without its label", f"{below(rules.root, pair.image)}: {reason}"))
        if labels is not None and not fits(labels, image, rules.stretch):
            found = f"{below(rules.root, pair.label)} has {labels.shape[1]} x {labels.shape[0]}"
            shown = f"the image {width} x {height}" + f" ({pair.image.name})" * (pair.name != pair.label.stem)
            faults.append(Fault("label of another size than its image", f"{found}, {shown}"))
    if labels is None:
        return faults, np.zeros(256, np.int64)
    pixels = np.bincount(labels.ravel(), minlength=256)
    for identity in np.flatnonzero(pixels).tolist():
        if identity not in rules.known:
            faults.append(Fault(f"unknown label id {identity}", below(rules.root, pair.label), int(pixels[identity])))
    return faults, pixels


def _attempt(read: Callable[[Place], Result], place: Place) -> tuple[Result | None, list[Fault]]:
    try:
        return read(place), []
    except UserError as error:
        return None, [Fault("unreadable file", str(error))]
    except Exception as error:  # the check continues, whatever is wrong with a file
        path = place.label if isinstance(place, Pair) else place
        return None, [Fault("unreadable file", f"{path}: {error!r}")]


def below(root: Path, path: Path) -> str:
    """The path relative to the root, with slashes."""
    return path.relative_to(root).as_posix()
