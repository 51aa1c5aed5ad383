"""Rare-class sampling of DAFormer (Hoyer et al., CVPR 2022, section 3.2): rare classes are in more of the batches.

First a class is drawn, then an image that holds it, then crops of this image until one holds it as well:

    P(c) = exp((1 - f(c)) / T) / sum over k of exp((1 - f(k)) / T)     f(c): the share of c in all labelled pixels

With the published T = 0.01, a class that covers one percent more of the pixels is drawn e = 2.7 times less often.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

from recyclelora.data.class_counts import class_counts
from recyclelora.data.domain import Domain
from recyclelora.data.transforms import Wanted
from recyclelora.errors import UserError
from recyclelora.recipe import RareClassSettings


@dataclass(frozen=True, eq=False)
class RareClasses:
    """The classes that are drawn from one source, their probabilities, and the images of each.

    A crop should hold more than `crop_pixels` pixels of the class; with 0, the first crop is taken.
    """

    classes: Int64[np.ndarray, "drawn"]
    probabilities: Float64[np.ndarray, "drawn"]
    images: Sequence[Int64[np.ndarray, "holding"]]
    crop_pixels: float

    def draw(self, rng: np.random.Generator) -> tuple[int, Wanted | None]:
        """The index of an image in its source, and of which class its crop should hold how much."""
        which = int(rng.choice(len(self.classes), p=self.probabilities))
        image = int(rng.choice(self.images[which]))
        return image, Wanted(int(self.classes[which]), self.crop_pixels) if self.crop_pixels else None


def rare_classes(domain: Domain, settings: RareClassSettings) -> RareClasses:
    """Count the classes of a source, and find the images of each.

    Raises:
        UserError: no image holds enough of any class, or a label cannot be read.

    Warns:
        UserWarning: a class occurs, but no image holds enough of it. Such a class is not drawn.
    """
    counts = class_counts(domain)
    most, enough = counts.max(axis=0), counts > settings.min_pixels
    rule = f"{domain.label}: rare_classes: min_pixels is {settings.min_pixels}, but no image holds more than"
    if not enough.any():
        raise UserError(f"{rule} {most.max()} pixels of a class; lower min_pixels")
    classes = np.flatnonzero(enough.any(axis=0))
    if few := [c for c in np.flatnonzero(most) if c not in classes]:
        found = ", ".join(f"{most[c]} pixels of {domain.train_space.names[c]}" for c in few)
        warnings.warn(f"{rule} {found}; lower min_pixels if images are to be drawn for such classes", stacklevel=2)
    images = [np.flatnonzero(enough[:, c]) for c in classes]
    probabilities = class_probabilities(counts.sum(axis=0), settings.temperature)[classes]
    return RareClasses(
        classes, probabilities / probabilities.sum(), images, settings.min_crop_ratio * settings.min_pixels
    )


def class_probabilities(pixels: Int64[np.ndarray, "classes"], temperature: float) -> Float64[np.ndarray, "classes"]:
    """P(c) of the classes that have these numbers of pixels; 0 for a class without pixels."""
    present = pixels > 0
    powers = np.where(present, -pixels / pixels.sum() / temperature, -np.inf)
    weights = np.exp(powers - powers.max())
    return np.asarray(weights / weights.sum())
