"""How sure a score is: mIoU of resampled images, and intervals of differences between methods.

Images are drawn anew with replacement (Efron, Annals of Statistics 7, 1979). All models are given the same draws, so
that differences between two of them are paired image by image. Chance of the seed comes on top of that, as in a t-test:
two or three seeds are too few to be resampled.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64, Int64
from scipy.special import stdtrit

DRAWS = 200
"""The number of resamples of a target's images that are kept with a score."""
Resampled = Sequence[Sequence[float | None]]
"""mIoU by [target][draw]."""
QUANTILES = 1001
"""The number of equally likely points at which the effect of the seed is evaluated."""


def resampled_miou(
    counts: Int64[np.ndarray, "images classes classes_and_none"], draws: int = DRAWS
) -> Float64[np.ndarray, " draws"]:
    """mIoU of `draws` resamples of the images; the same resamples for every model on the same number of images.

    Args:
        counts: a confusion matrix an image, as `recyclelora.evaluation.metrics.ConfusionMatrix` counts.

    Returns:
        NaN for a draw of images that no scored pixel is in.
    """
    images, classes, _ = counts.shape
    times = np.random.default_rng(images).multinomial(images, np.full(images, 1 / images), size=draws)
    total = (times.astype(np.float64) @ counts.reshape(images, -1).astype(np.float64)).reshape(draws, classes, -1)
    hits = np.diagonal(total, axis1=1, axis2=2)
    union = total.sum(2) + total[:, :, :classes].sum(1) - hits
    present = union > 0
    iou = np.divide(hits, union, out=np.zeros_like(hits), where=present)
    with np.errstate(invalid="ignore"):
        return np.asarray(iou.sum(1) / present.sum(1))


def difference_interval(
    mean: float, ours: Sequence[Resampled], theirs: Sequence[Resampled], level: float = 0.95
) -> tuple[float, float]:
    """An interval around the mean difference of two methods over seeds and targets.

    It is that of the sum of two chances: the resample of the images, the same of all targets (several may show the same
    scenes), and s / sqrt(n) times Student's t with n - 1 degrees, s being the deviation of the difference over n seeds.
    Of one seed the interval tells of images alone. A resample, which lacks classes that the images have, is of another
    mIoU in the mean than they are; the interval is moved to the difference of the images themselves.

    Args:
        mean: of the images as they are.
        ours, theirs: resampled mIoU by [seed][target][draw]; the same seeds, targets and number of draws. A draw
            without a scored pixel is None or NaN, and left out.

    Raises:
        ValueError: unequal shapes, or nothing to compare.
    """
    one, other = np.asarray(ours, dtype=np.float64), np.asarray(theirs, dtype=np.float64)
    if one.shape != other.shape or one.ndim != 3 or one.size == 0:
        raise ValueError(f"expected [seed][target][draw] of both methods alike, got shapes {one.shape}, {other.shape}")
    difference = (one - other).mean(1)
    difference = difference[:, np.isfinite(difference).all(0)]
    seeds = len(difference)
    means = mean + difference.mean(0) - difference.mean()
    if seeds > 1:
        error = difference.mean(1).std(ddof=1) / np.sqrt(seeds)
        means = np.add.outer(means, error * stdtrit(seeds - 1, (np.arange(QUANTILES) + 0.5) / QUANTILES))
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2], method="hazen")
    return float(low), float(high)
