"""Matrices that pivoted factorisations are tested on."""

import numpy as np
import torch

KINDS = ["gauss", "outliers", "decaying", "trained"]


def matrix(shape, seed=0, kind="gauss"):
    """float32 (m, n) with equal columns, columns of very different length, four decades of singular values, or
    with the spectrum, the outlier columns and the nearly dead columns of a trained layer."""
    rng = np.random.default_rng(seed)
    m, n = shape
    w = rng.standard_normal(shape)
    if kind == "outliers":
        w = w * np.exp(1.5 * rng.standard_normal(n))
    if kind == "decaying":
        u, _, vt = np.linalg.svd(w, full_matrices=False)
        w = (u * 10.0 ** -np.linspace(0, 4, min(shape))) @ vt
    if kind == "trained":
        rank = max(1, min(shape) // 4)
        strengths = 6 * np.arange(1, rank + 1) ** -0.6 / np.sqrt(rank)
        w = 0.5 * w + (rng.standard_normal((m, rank)) * strengths) @ rng.standard_normal((rank, n))
        lengths = np.exp(0.5 * rng.standard_normal(n))
        lengths[rng.random(n) < 0.02] *= 10
        lengths[rng.random(n) < 0.02] *= 0.01
        w = w * lengths * np.exp(0.3 * rng.standard_normal(m))[:, None]
    return torch.from_numpy(w.astype(np.float32))
