"""Initial factors of the two adapters of one linear layer, B0 (out, r) and A0 (r, in), main before sub.

    rrqr           B0 = columns of Q, A0 = one-hot rows at the pivots      (RecycleLoRA, arXiv 2603.28142)
    svd            B0 = columns of U, A0 = rows of V', singular values unused
    weighted-svd   B0 = U sqrt(S), A0 = sqrt(S) V'                         (MiLoRA, arXiv 2406.09044; SoMA, 2412.04077)

Main takes the last r_main directions (minor), sub the first r_sub (major).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import scipy.linalg
import torch
from torch import Tensor

from recyclelora.adapter import rrqr
from recyclelora.adapter.rrqr.lapack import one_blas_thread

if TYPE_CHECKING:
    from jaxtyping import Float, Float32, Float64, Int64, Shaped

Decomposition = Literal["rrqr", "svd", "weighted-svd"]


@dataclass(frozen=True)
class Factors:
    """B0 and A0 of both adapters, r = r_main + r_sub; a one-hot A0 is kept as the columns of its ones."""

    basis: Float32[Tensor, "out r"]
    index: Int64[Tensor, " r"] | None
    rows: Float32[Tensor, "r in"] | None

    def initial_rows(self, in_features: int) -> Float32[Tensor, "r in"]:
        """A0 as a dense matrix."""
        if self.index is not None:
            return one_hot(self.index, in_features)
        assert self.rows is not None
        return self.rows

    def on_cpu(self) -> Factors:
        """The same in the memory of the CPU."""
        index, rows = (None if value is None else value.cpu() for value in (self.index, self.rows))
        return Factors(self.basis.cpu(), index, rows)


def one_hot(index: Int64[Tensor, " r"], n: int, dtype: torch.dtype = torch.float32) -> Float[Tensor, "r n"]:
    """One row per index with a single 1 in column index[i]."""
    rows = torch.zeros(index.shape[0], n, dtype=dtype, device=index.device)
    return rows.scatter(1, index[:, None], 1.0)


def initial_factors(
    weight: Shaped[Tensor, "out in"], r_main: int, r_sub: int, decomposition: Decomposition = "rrqr"
) -> Factors:
    """Factorise a weight once, in float64, and take both adapters' initial factors from it.

    Raises:
        ValueError: the decomposition is unknown, or see `recyclelora.adapter.rrqr.directions`.
    """
    if decomposition not in get_args(Decomposition):
        raise ValueError(f"unknown decomposition {decomposition!r}; known: {', '.join(get_args(Decomposition))}")
    if decomposition != "rrqr":
        return _svd_factors(weight, r_main, r_sub, weighted=decomposition == "weighted-svd")
    return _rrqr_factors(rrqr.directions(weight, r_main, r_sub))


def initial_factors_of_stack(weights: Sequence[Shaped[Tensor, "out in"]], r_main: int, r_sub: int) -> list[Factors]:
    """Like `initial_factors` by RRQR, for weights of one shape on one device, factorised there together."""
    return [_rrqr_factors(drawn) for drawn in rrqr.directions_of_stack(weights, r_main, r_sub)]


def _rrqr_factors(drawn: rrqr.Directions) -> Factors:
    return Factors(
        basis=torch.cat([drawn.main_basis, drawn.sub_basis], 1),
        index=torch.cat([drawn.main_index, drawn.sub_index]),
        rows=None,
    )


def _svd_factors(weight: Shaped[Tensor, "out in"], r_main: int, r_sub: int, weighted: bool) -> Factors:
    rrqr.check_ranks(tuple(weight.shape), r_main, r_sub)
    w = rrqr.to_float64(weight)
    with one_blas_thread():
        u, values, vt = scipy.linalg.svd(w, full_matrices=False, overwrite_a=True, check_finite=False)
    k = min(w.shape)
    wanted = np.r_[k - r_main : k, :r_sub]
    u, vt = _fix_signs(u[:, wanted], vt[wanted])
    if weighted:
        roots = np.sqrt(values[wanted])
        u, vt = u * roots, vt * roots[:, None]
    return Factors(basis=_float32(u), index=None, rows=_float32(vt))


def _fix_signs(
    u: Float64[np.ndarray, "m r"], vt: Float64[np.ndarray, "r n"]
) -> tuple[Float64[np.ndarray, "m r"], Float64[np.ndarray, "r n"]]:
    """Make the largest entry of each column of U positive: an SVD does not fix the signs of its pairs."""
    signs = np.where(u[np.abs(u).argmax(0), np.arange(u.shape[1])] < 0, -1.0, 1.0)
    return u * signs, vt * signs[:, None]


def _float32(array: Float64[np.ndarray, "a b"]) -> Float32[Tensor, "a b"]:
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
