"""The check of an export: it has to compute on images what the model computes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from recyclelora.data.decoding import read_image
from recyclelora.data.domain import Domain
from recyclelora.data.finding import find_images
from recyclelora.data.opening import open_domain
from recyclelora.errors import UserError
from recyclelora.evaluation.targets import open_targets
from recyclelora.exporting.trained import Probabilities, Scores
from recyclelora.models.plan import Plan
from recyclelora.recipe import Recipe

MOST_DIFFERENCE, LEAST_AGREEMENT = 1e-3, 0.999
COUNT = 4
"""How many images an export is checked on."""
Image = UInt8[np.ndarray, "_ _ 3"]


@dataclass(frozen=True)
class Parity:
    """How far an export is from the model.

    Logits grow in training, and their rounding errors with them; so probabilities say whether an export is sound.

    images: what it was checked on, in words. pixels: how many that were. difference: the largest of a probability.
    logits: the largest of a logit. largest: the largest logit, to compare with. agreement: the share of pixels with the
    same class.
    """

    images: str
    pixels: int
    difference: float
    logits: float
    largest: float
    agreement: float

    @property
    def sound(self) -> bool:
        """Whether the export may be used in place of the model."""
        return self.difference <= MOST_DIFFERENCE and self.agreement >= LEAST_AGREEMENT

    def __str__(self) -> str:
        return (
            f"on {self.images}: largest difference {self.difference:.1e} of probabilities, {self.logits:.1e} of logits "
            f"up to {self.largest:.3g}; {100 * self.agreement:.2f} % of {self.pixels:,} pixels have the same class"
        )

    def to_json(self) -> dict[str, Any]:
        """The part of `export.json`."""
        return asdict(self)


def compared(
    model: Scores, exported: Scores, probabilities: Probabilities, images: Sequence[Image], described: str
) -> Parity:
    """Compare a model and its export; `described` says what the images are.

    Raises:
        UserError: the export gives logits of another shape.
    """
    differences, largest, same, pixels = np.zeros(2), 0.0, 0, 0
    for image in images:
        expected, found = model(image), exported(image)
        if found.shape != expected.shape:
            raise UserError(f"the export gives logits of shape {found.shape}, expected {expected.shape}")
        pairs = (probabilities(found), probabilities(expected)), (found, expected)
        differences = np.maximum(differences, [np.abs(one - other).max() for one, other in pairs])  # NaN stays NaN
        largest = max(largest, float(np.abs(expected).max()))
        same += int((found.argmax(0) == expected.argmax(0)).sum())
        pixels += expected[0].size
    return Parity(described, pixels, float(differences[0]), float(differences[1]), largest, same / pixels)


def images_for(recipe: Recipe, plan: Plan, given: str | Path | Sequence[str | Path]) -> tuple[list[Image], str]:
    """Images to check an export on, and what they are: those given, else of a source or a target, else noise.

    Of each image the middle is taken, at most two windows high and wide; a smaller one is extended to a window.

    Raises:
        UserError: a given image cannot be read.
    """
    if given:
        files = list(islice(find_images(given).values(), COUNT))
        images = [read_image(file) for file in files]
        named = ", ".join(file.name for file in files)
        return [_part(image, plan) for image in images], named
    for name, images in _of_domains(recipe):
        return [_part(image, plan) for image in images], f"{counted(len(images))} of {name}"
    side = plan.window + plan.stride
    noise = np.random.default_rng(0).integers(0, 256, (2, side, side, 3), dtype=np.uint8)
    return list(noise), "2 images of random noise, because neither sources nor targets could be opened"


def _of_domains(recipe: Recipe) -> Iterator[tuple[str, list[Image]]]:
    """Images of each source and each target that can be opened."""
    sources = [partial(open_domain, source.data, "train", COUNT) for source in recipe.sources]
    targets = [partial(_opened, text) for text in recipe.targets]
    for opened in (*sources, *targets):
        try:
            domain = opened()
            images = [domain.image(index) for index in range(len(domain))]
        except (UserError, OSError):
            continue
        yield domain.label, images


def _opened(target: str) -> Domain:
    return open_targets([target], limit=COUNT)[0].domain


def counted(number: int) -> str:
    """So many images, in words."""
    return "1 image" if number == 1 else f"{number} images"


def _part(image: Image, plan: Plan) -> Image:
    most = plan.window + plan.stride
    top, left = (max(0, side - most) // 2 for side in image.shape[:2])
    image = image[top : top + most, left : left + most]
    beyond = [(0, max(0, plan.window - side)) for side in image.shape[:2]]
    return np.pad(image, (*beyond, (0, 0)), mode="edge")
