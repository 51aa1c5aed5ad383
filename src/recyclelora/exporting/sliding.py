"""Find the class of each pixel of an image with the model that lies beside this script.

    python sliding.py street.jpg labels.png
    python sliding.py street.jpg labels.png --int8    # if model-int8.onnx was exported too

It needs NumPy, Pillow and onnxruntime alone. labels.png has the size of the image and one number per pixel: the place
of its class in `names` of export.json, from 0.

image (h, w, 3) -> windows, the last of a row or column at its end -> logits, averaged where windows overlap -> the
class of the highest logit. An image that is smaller than the window is extended by its last row and column.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

MODEL, INT8_MODEL, SETTINGS = "model.onnx", "model-int8.onnx", "export.json"
Array = np.ndarray[Any, np.dtype[Any]]


def read_image(file: str | Path) -> Array:
    """The image in a file: RGB, uint8, (h, w, 3), upright.

    Raises:
        OSError: the file is missing, or not a whole image.
        ValueError: its grey values have more than 8 bits, of which Pillow would make white.
    """
    with Image.open(file) as image:
        if image.mode.startswith(("I", "F")):
            raise ValueError(f"{file}: an image of mode {image.mode}, expected 8 bits per channel; convert it")
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))


def open_model(file: str | Path, threads: int = 0) -> Callable[[Array], Array]:
    """The model in a file: windows, uint8 (batch, 3, window, window) -> logits, float32 (batch, classes, ...).

    It computes with so many threads; onnxruntime chooses if `threads` is 0.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # onnxruntime's fused sum and norm is slower on a CPU than a sum and a norm.
    session = onnxruntime.InferenceSession(
        str(file), options, providers=["CPUExecutionProvider"], disabled_optimizers=["SkipLayerNormFusion"]
    )
    return lambda windows: session.run(None, {"images": windows})[0]


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """Where windows start along an axis: every `stride` pixels, the last one at the end of the axis."""
    last = length - window
    return [*range(0, last, stride), last]


def scores(forward: Callable[[Array], Array], image: Array, window: int, stride: int, batch_size: int = 1) -> Array:
    """Logits of an image, float32 (classes, h, w), averaged where windows overlap.

    Args:
        forward: as `open_model` gives it; it gets at most `batch_size` windows at once.
        image: RGB, uint8, (h, w, 3).
        window, stride: in pixels.
    """
    own = image.shape[:2]
    beyond = [(0, max(0, window - side)) for side in own]
    image = np.pad(image, (*beyond, (0, 0)), mode="edge")
    starts = [window_starts(side, window, stride) for side in image.shape[:2]]
    places = list(product(*starts))
    total: Array | None = None
    for first in range(0, len(places), batch_size):
        batch = places[first : first + batch_size]
        windows = [image[top : top + window, left : left + window].transpose(2, 0, 1) for top, left in batch]
        for (top, left), logits in zip(batch, forward(np.stack(windows)), strict=True):
            if total is None:
                total = np.zeros((len(logits), *image.shape[:2]), np.float32)
            total[:, top : top + window, left : left + window] += logits
    assert total is not None
    rows, columns = (
        sum(((np.arange(side) >= start) & (np.arange(side) < start + window)).astype(np.float32) for start in along)
        for side, along in zip(image.shape[:2], starts, strict=True)
    )
    return (total / (np.reshape(rows, (-1, 1)) * columns))[:, : own[0], : own[1]]


def main() -> None:
    """Read an image, and write its labels."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("image", help="the image")
    parser.add_argument("labels", help="where the labels are written (.png)")
    parser.add_argument("--int8", action="store_true", help=f"take {INT8_MODEL}: faster, less exact")
    given = parser.parse_args()
    here = Path(__file__).parent
    settings = json.loads((here / SETTINGS).read_text(encoding="utf-8"))
    plan = [settings[key] for key in ("window", "stride", "batch_size")]
    model = here / (INT8_MODEL if given.int8 else MODEL)
    try:
        if not model.is_file():
            raise FileNotFoundError(f"{model} is missing; export it{' with --int8' * given.int8}")
        logits = scores(open_model(model), read_image(given.image), *plan)
        Image.fromarray(logits.argmax(0).astype(np.uint8)).save(given.labels, format="PNG")
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
