"""Measures of an update of a weight (ranks, angles, energies), and the similarity of features.

Pure functions of tensors; no model and no file. Everything is computed in float64.
"""

from __future__ import annotations

import numpy as np
import scipy.linalg
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from recyclelora.adapter.rrqr.lapack import one_blas_thread


def effective_rank(matrix: Float[Tensor, "m n"]) -> float:
    """The exponential of the entropy of the singular values, divided by their sum; 0 for a zero matrix.

    Source: Roy and Vetterli, EUSIPCO 2007.
    """
    values = torch.linalg.svdvals(matrix.double())
    shares = values[values > 0] / values.sum().clamp(min=torch.finfo(torch.float64).tiny)
    return float(torch.exp(-(shares * shares.log()).sum())) if len(shares) else 0.0


def effective_rank_of_product(B: Float[Tensor, "m r"], A: Float[Tensor, "r n"]) -> float:
    """`effective_rank` of B A, from the two small triangles of their QR: B A = Q_B (R_B R_A') Q_A'."""
    return effective_rank(_small_core(B, A))


def _small_core(B: Float[Tensor, "m r"], A: Float[Tensor, "r n"]) -> Float[Tensor, "a b"]:
    core: Tensor = torch.linalg.qr(B.double(), mode="r")[1] @ torch.linalg.qr(A.double().T, mode="r")[1].T
    return core


def rank_efficiency(B: Float[Tensor, "m r"], A: Float[Tensor, "r n"]) -> float:
    """The effective rank of B A divided by r, its largest value ("rank efficiency" of arXiv 2603.28142)."""
    return effective_rank_of_product(B, A) / A.shape[0]


def mean_cosine(rows: Float[Tensor, "r n"]) -> float:
    """The mean |cos| over all pairs of rows; 0 for fewer than two rows. Rows of zeros are left out."""
    x = rows.double()
    x = x[x.norm(dim=1) > 0]
    if len(x) < 2:
        return 0.0
    x = x / x.norm(dim=1, keepdim=True)
    cosines = (x @ x.T).abs()
    count = len(x)
    return float((cosines.sum() - cosines.diagonal().sum()) / (count * (count - 1)))


def principal_angles(U: Float[Tensor, "m a"], V: Float[Tensor, "m b"]) -> Float[Tensor, " c"]:
    """Angles between the spaces that the columns span, in radians, the largest first; c = min(a, b).

    Source: Björck and Golub, Mathematics of Computation 27, 1973; computed by `scipy.linalg.subspace_angles`.
    """
    with one_blas_thread():
        angles = scipy.linalg.subspace_angles(U.double().numpy(force=True), V.double().numpy(force=True))
    return torch.from_numpy(np.ascontiguousarray(angles))


def grassmann_distance(U: Float[Tensor, "m a"], V: Float[Tensor, "m b"]) -> float:
    """The root mean square of the principal angles, in right angles: 0 if one space lies in the other, 1 if orthogonal.

    The length of the geodesic (Edelman, Arias and Smith, SIAM J. Matrix Anal. Appl. 20, 1998), made independent of the
    dimensions so that spaces of several sizes can be compared.
    """
    angles = principal_angles(U, V)
    return float(angles.square().mean().sqrt() / (np.pi / 2))


def energy_profile(update: Float[Tensor, "m n"], U: Float[Tensor, "m k"], parts: int = 10) -> Float[Tensor, " parts"]:
    """How the update's squared norm is shared among the base's left singular vectors U, from major to minor.

    Part i takes the i-th of `parts` equal portions of the k = min(m, n) vectors; what lies outside all of them (where
    m > n) is left out, so that the shares of an update by tall factors can sum to less than 1.
    """
    along = (U.double().T @ update.double()).square().sum(1)
    total = update.double().square().sum().clamp(min=torch.finfo(torch.float64).tiny)
    return torch.stack([part.sum() for part in along.tensor_split(parts)]) / total


def alignment_with_top(update: Float[Tensor, "m n"], U: Float[Tensor, "m k"], Vh: Float[Tensor, "k n"]) -> float:
    """The share of the update's squared norm between the base's k top left and right singular vectors, U and V.

    ||U' dW V||² / ||dW||²: the projection of LoRA's section 7.3 (Hu et al., arXiv 2106.09685) with base and update in
    each other's place.
    """
    inside = (U.double().T @ update.double() @ Vh.double().T).square().sum()
    return float(inside / update.double().square().sum().clamp(min=torch.finfo(torch.float64).tiny))


def column_norm_ratio(A: Float[Tensor, "r n"], index: Int64[Tensor, " r"]) -> float | None:
    """The mean norm of A's columns at the initial positions, divided by that of the others (RecycleLoRA's figure).

    None where there are no others, or nothing in them.
    """
    norms = A.double().norm(dim=0)
    at = torch.zeros(A.shape[1], dtype=torch.bool, device=A.device).scatter(0, index, True)
    return float(norms[at].mean() / norms[~at].mean()) if norms[~at].any() else None


def linear_cka(X: Float[Tensor, "samples a"], Y: Float[Tensor, "samples b"]) -> float:
    """The similarity of two sets of features of the same samples, from 0 to 1; rotation, scale and shift do not count.

    ||Y'X||² / (||X'X|| ||Y'Y||) of centred features (Kornblith et al., ICML 2019, arXiv 1905.00414).
    """
    X, Y = (Z.double() - Z.double().mean(0) for Z in (X, Y))
    between = (Y.T @ X).norm().square()
    within = (X.T @ X).norm() * (Y.T @ Y).norm()
    return float(between / within.clamp(min=torch.finfo(torch.float64).tiny))


def principal_components(features: Float[Tensor, "samples c"], count: int = 3) -> Float[Tensor, "samples k"]:
    """The first principal components of features, each scaled to 0..1 between its 1st and 99th percentile."""
    centred = features.double() - features.double().mean(0)
    _, _, Vh = torch.linalg.svd(centred, full_matrices=False)
    Vh = Vh[:count]
    Vh = Vh * torch.where(Vh.gather(1, Vh.abs().argmax(1, keepdim=True)) < 0, -1.0, 1.0)  # signs are open otherwise
    scores = centred @ Vh.T
    low, high = torch.quantile(scores, 0.01, dim=0), torch.quantile(scores, 0.99, dim=0)
    scaled: Tensor = (scores - low) / (high - low).clamp(min=1e-12)
    return scaled.clamp(0, 1)
