"""A tiny recipe and a folder of labelled images, small enough to be trained on in a test."""

import numpy as np
from PIL import Image

TINY = {"model": "vit_tiny_patch16_224", "weights": "random"}
TINY["model_args"] = {"img_size": 32, "depth": 2, "embed_dim": 48, "num_heads": 3}

SMALL_HEAD = {
    "width": 32, "queries": 4, "encoder_layers": 1, "decoder_layers": 1, "encoder_feedforward": 64,
    "decoder_feedforward": 96, "points": 64,
}  # fmt: skip

SMALL_EOMT = {"queries": 4, "blocks": 1, "points": 64}


def write_folder(root, count=4, size=(40, 56), seed=0, classes=None):
    """Images of coloured stripes on a ground, with labels that follow the colours."""
    rng = np.random.default_rng(seed)
    for kind in ("images", "labels"):
        (root / kind).mkdir(parents=True, exist_ok=True)
    for i in range(count):
        labels = np.zeros(size, np.uint8)
        labels[: rng.integers(8, 20)] = 1
        labels[-2:, :4] = 255
        colours = np.array([[90, 90, 90], [60, 120, 220]])
        image = colours[labels.clip(0, 1)] + rng.integers(-20, 20, (*size, 3))
        Image.fromarray(image.astype(np.uint8)).save(root / "images" / f"{i:02d}.jpg", quality=95)
        Image.fromarray(labels).save(root / "labels" / f"{i:02d}.png")
    if classes is not None:
        (root / "classes.txt").write_text("\n".join(classes))
    return root
