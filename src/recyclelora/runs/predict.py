"""The verb `predict`: a PNG of train ids and a colour overlay for each image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import UInt8
from tqdm import tqdm

from recyclelora.data.decoding import read_image
from recyclelora.data.finding import find_images
from recyclelora.data.labels import LabelSpace
from recyclelora.errors import UserError
from recyclelora.files import replacing
from recyclelora.runs.predictor import load


def predict(
    run: str | Path,
    images: Sequence[str | Path],
    out: str | Path,
    opacity: float = 0.6,
    weights: str | None = None,
    overwrite: bool = False,
) -> list[Path]:
    """Segment images at their own size; returns the pictures that were written.

    Args:
        run: folder of a finished training.
        images: image files, or folders of images.
        out: folder for the pictures, `NAME_labels.png` and `NAME_overlay.png` for each image.
        opacity: strength of the colours over the image, 0 to 1.
        weights: where the base weights are now, if not where the recipe says.
        overwrite: replace files that are in `out`.

    Raises:
        UserError: an image does not exist or cannot be read, `out` is not empty, or as `recyclelora.load`.
    """
    out = Path(out)
    files = find_images([Path(place) for place in images])
    if out.exists() and not overwrite and (out.is_file() or any(out.iterdir())):
        raise UserError(f"{out} exists and is not empty; choose another --out or replace files there with --overwrite")
    model = load(run, weights)
    written = []
    for name, file in tqdm(files.items(), "predicting", disable=None):
        image = read_image(file)
        labels = model.predict(image)
        coloured = np.ascontiguousarray(overlay(image, labels, model.space, opacity)[..., ::-1])
        for suffix, picture in (("labels", labels), ("overlay", coloured)):
            path = out / f"{name}_{suffix}.png"
            try:
                with replacing(path) as part:
                    part.write_bytes(cv2.imencode(".png", picture)[1].tobytes())
            except OSError as error:
                fix = "free disk space, or remove what is in the way"
                raise UserError(f"{path}: could not be written ({error.strerror}); {fix}") from error
            written.append(path)
    return written


def overlay(
    image: UInt8[np.ndarray, "h w 3"], labels: UInt8[np.ndarray, "h w"], space: LabelSpace, opacity: float
) -> UInt8[np.ndarray, "h w 3"]:
    """The image with the colours of its classes over it."""
    return np.asarray(cv2.addWeighted(image, 1 - opacity, space.colourise(labels), opacity, 0), np.uint8)
