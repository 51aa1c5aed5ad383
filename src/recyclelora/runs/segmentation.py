"""What a model says of an image: the class of each pixel, how sure it is, and ways to show and store this."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

import cv2
import numpy as np
from jaxtyping import Float32, UInt8
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from PIL import Image

from recyclelora.data.label_maps import cityscapes_ids
from recyclelora.data.labels import LabelSpace
from recyclelora.errors import UserError
from recyclelora.runs.overlay import overlay, with_legend

SHOWN = 1024
"""A notebook shows at most so many pixels along the longer side of a picture."""


@dataclass(frozen=True, eq=False)
class Segmentation:
    """The answer of a model for one image, at the image's own size. In a notebook it shows the overlay with its legend.

    It holds 12 bytes for each pixel, and no logits: `probabilities` asks the model again.

    Attributes:
        name: the image's file, its path relative to a folder that was given, or its place, as in `images[3]`.
        image: the image as uint8 RGB, as the model saw it.
        labels: the train id of each pixel, an index into `names`.
        confidence: the probability of that class, 0 to 1.
        entropy: of the probabilities of all classes, in nats: 0 (sure) to ln(classes) (no idea).
        space: names and colours of the classes.
    """

    name: str
    image: UInt8[np.ndarray, "h w 3"]
    labels: UInt8[np.ndarray, "h w"]
    confidence: Float32[np.ndarray, "h w"]
    entropy: Float32[np.ndarray, "h w"]
    space: LabelSpace
    predict_again: Callable[[], Float32[np.ndarray, "classes h w"]] = field(repr=False)

    def __repr__(self) -> str:
        height, width = self.labels.shape
        occurring = ", ".join(self.names[number] for number in np.unique(self.labels))
        return f"Segmentation({self.name!r}, {height} x {width}, {occurring})"

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the classes, by train id."""
        return self.space.names

    def probabilities(self) -> Float32[np.ndarray, "classes h w"]:
        """The probability of each class at each pixel: 4 bytes for each, which the result does not keep.

        The model predicts the image again, as it is now: on another device or with another `dtype` if it was moved.
        """
        return self.predict_again()

    def overlay(self, opacity: float = 0.6, legend: bool = False) -> UInt8[np.ndarray, "_ _ 3"]:
        """The image with the colours of its classes over it, of strength `opacity` in 0..1.

        With a legend it is taller, and may be wider: the classes that occur are named below it.

        Raises:
            UserError: the opacity is not in 0..1.
        """
        return self._drawn(self.image, self.labels, opacity, legend)

    def to_pil(self) -> Image.Image:
        """The labels as a palette image: its values are train ids, shown and stored in the colours of the classes.

        As a PNG it is a label file that this library reads.
        """
        picture = Image.fromarray(self.labels)
        picture.putpalette([value for colour in self.space.colours for value in colour])
        return picture

    def to_cityscapes_ids(self) -> UInt8[np.ndarray, "h w"]:
        """The labels as label ids of Cityscapes, which its evaluation server and its scripts expect.

        Raises:
            UserError: a class of the model is none of the 19 classes of Cityscapes, by its name.
        """
        return np.asarray(cityscapes_ids(self.space, self.name)[self.labels])

    def plot(self, opacity: float = 0.6) -> Figure:
        """A matplotlib figure: the overlay with a legend of the classes that occur, and beside it the entropy.

        Raises:
            UserError: as `overlay`.
        """
        height, width = self.labels.shape
        figure = Shown(figsize=(12, min(12.0, max(2.5, 6 * height / width + 1))), layout="constrained")
        left, right = figure.subplots(1, 2)
        left.imshow(self.overlay(opacity))
        found = right.imshow(self.entropy, cmap="magma", vmin=0, vmax=max(math.log(len(self.names)), 1e-6))
        figure.colorbar(found, ax=right, label="entropy (nats)", shrink=0.8)
        for axes, title in ((left, PurePath(self.name).name), (right, "doubt")):
            axes.set_axis_off()
            axes.set_title(title, fontsize=9, parse_math=False)
        occurring = [(self.names[number], self.space.colours[number]) for number in np.unique(self.labels)]
        handles = [
            Patch(facecolor=(red / 255, green / 255, blue / 255), edgecolor="black", label=name)
            for name, (red, green, blue) in occurring
        ]
        outside: Any = figure.legend  # its stubs know no places outside
        for text in outside(handles=handles, loc="outside lower center", ncols=6, frameon=False).get_texts():
            text.set_parse_math(False)
        return figure

    def _repr_png_(self) -> bytes:
        """What a notebook shows."""
        scale = min(1.0, SHOWN / max(self.labels.shape))
        size = [max(1, round(side * scale)) for side in self.labels.shape[::-1]]
        image, labels = self.image, self.labels
        if scale < 1:
            image = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)
            labels = np.asarray(cv2.resize(labels, size, interpolation=cv2.INTER_NEAREST), np.uint8)
        picture = self._drawn(image, labels, 0.6, legend=True)
        return cv2.imencode(".png", np.ascontiguousarray(picture[..., ::-1]))[1].tobytes()

    def _drawn(
        self, image: UInt8[np.ndarray, "h w 3"], labels: UInt8[np.ndarray, "h w"], opacity: float, legend: bool
    ) -> UInt8[np.ndarray, "_ _ 3"]:
        if not 0 <= opacity <= 1:
            raise UserError(f"opacity {opacity}: expected 0 (only the image) to 1 (only the colours)")
        picture = overlay(image, labels, self.space, opacity)
        return with_legend(picture, self.labels, self.space) if legend else picture


class Shown(Figure):
    """A figure that a notebook shows without pyplot, whose figures stay in memory until they are closed."""

    def _repr_png_(self) -> bytes:
        content = io.BytesIO()
        self.savefig(content, format="png")
        return content.getvalue()
