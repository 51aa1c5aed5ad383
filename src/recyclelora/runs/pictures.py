"""What `predict` saves of an image or of a video, and in which form.

kind               of an image                                       of a video
labels             PNG of train ids                                  ZIP of such PNGs, one for each frame
overlay            PNG of the colours over the image, with a legend  MP4, see `film`
confidence         PNG of 16 bits: 65535 times the probability       -
probabilities      NPY, float16 (classes, h, w)                      -
cityscapes-ids     PNG of label ids of Cityscapes                    ZIP of such PNGs, one for each frame
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Shaped, UInt8
from PIL import Image

from recyclelora.data.label_maps import cityscapes_ids
from recyclelora.data.labels import LabelSpace
from recyclelora.data.video import is_video
from recyclelora.errors import UserError, did_you_mean
from recyclelora.runs.overlay import overlay, with_legend
from recyclelora.runs.predictor import Predictor

OF_IMAGES: Mapping[str, str] = {
    "labels": ".png", "overlay": ".png", "confidence": ".png", "probabilities": ".npy", "cityscapes-ids": ".png",
}  # fmt: skip
OF_VIDEOS: Mapping[str, str] = {"labels": ".zip", "overlay": ".mp4", "cityscapes-ids": ".zip"}
"""The suffix of each kind."""


@dataclass(frozen=True)
class Style:
    """How overlays are drawn: classes and their colours, the strength of these, and whether there is a legend."""

    space: LabelSpace
    opacity: float
    legend: bool


def checked_kinds(kinds: Iterable[str]) -> tuple[str, ...]:
    """The kinds that are to be saved, each once, in the order of the table.

    Raises:
        UserError: one is unknown, or there are none.
    """
    wanted = [kinds] if isinstance(kinds, str) else list(kinds)
    if strange := [kind for kind in wanted if kind not in OF_IMAGES]:
        raise UserError(f"save: {strange[0]!r} is nothing that is saved; {did_you_mean(strange[0], OF_IMAGES)}")
    if not wanted:
        raise UserError(f"save: nothing to save, expected one or more of {', '.join(OF_IMAGES)}")
    return tuple(kind for kind in OF_IMAGES if kind in wanted)


def files_of(out: Path, name: str, kinds: Iterable[str], suffixes: Mapping[str, str]) -> dict[str, Path]:
    """The file of each kind; the names of videos end in their suffix, as an image may be called alike."""
    stem = name.rpartition(".")[0] if suffixes is OF_VIDEOS else name
    return {kind: out / f"{stem}_{kind}{suffixes[kind]}" for kind in kinds}


def possible_files(out: Path, name: str, kinds: Iterable[str]) -> list[Path]:
    """The files of these kinds of an image or, if the name may be that of a video, of this."""
    tables = (OF_IMAGES, OF_VIDEOS) if is_video(Path(name)) else (OF_IMAGES,)
    return [
        file
        for table in tables
        for file in files_of(out, name, [kind for kind in kinds if kind in table], table).values()
    ]


def contents(
    model: Predictor, image: UInt8[np.ndarray, "h w 3"], kinds: Sequence[str], style: Style
) -> dict[str, bytes]:
    """Predict an image; the bytes of the file of each kind.

    Probabilities take a second pass of the model.
    """
    made: dict[str, bytes] = {}
    if {"confidence", "probabilities"} & set(kinds):
        result = model(Image.fromarray(image))
        labels = result.labels
        made["confidence"] = png(np.rint(result.confidence * 65535.0).astype(np.uint16))
        if "probabilities" in kinds:
            made["probabilities"] = _npy(result.probabilities().astype(np.float16))
    else:
        labels = model.predict(image)
    if "overlay" in kinds:
        made["overlay"] = png(drawn(image, labels, style))
    if "cityscapes-ids" in kinds:
        made["cityscapes-ids"] = png(cityscapes_ids(style.space, "classes")[labels])
    return {kind: made[kind] if kind in made else png(labels) for kind in kinds}


def drawn(
    image: UInt8[np.ndarray, "h w 3"], labels: UInt8[np.ndarray, "h w"], style: Style
) -> UInt8[np.ndarray, "_ _ 3"]:
    """The overlay of an image, with its legend if the style has one."""
    picture = overlay(image, labels, style.space, style.opacity)
    return with_legend(picture, labels, style.space) if style.legend else picture


def png(pixels: Shaped[np.ndarray, "h w *channels"]) -> bytes:
    """The bytes of a PNG file; of a picture with three channels, they are in the order RGB."""
    stored = np.ascontiguousarray(pixels[..., ::-1]) if pixels.ndim == 3 else pixels
    return cv2.imencode(".png", stored)[1].tobytes()


def _npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()
