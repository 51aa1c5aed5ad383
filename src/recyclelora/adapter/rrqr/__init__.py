r"""Rank-revealing QR of a pre-trained weight: its major and its minor directions.

    W P = Q R        W (m, n) = (out, in),  k = min(m, n),  Q (m, k) orthonormal,  |R_00| >= |R_11| >= ...

         p[0] ...      p[k-r_main] ... p[k-1]                p: pivots, column indices of W
       +---------+---------------+-----------+
    Q  |  major  |               |   minor   |               sub adapter: major, main adapter: minor
       +---------+---------------+-----------+
         r_sub                      r_main

Greedy column pivoting (Businger and Golub, Numerische Mathematik 7, 1965) as in LAPACK's `geqp3`; its use as adapter
initialisation is RecycleLoRA's (arXiv 2603.28142). Everything is factorised in float64, because the pivots of a
float32 factorisation differ between BLAS libraries, processors and thread counts. `ways.py` has the fast ways for a
CPU, `batched.py` the one for a GPU.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from recyclelora.adapter.rrqr import batched, ways
from recyclelora.adapter.rrqr.lapack import one_blas_thread

if TYPE_CHECKING:
    from jaxtyping import Float32, Float64, Int64, Shaped


class RankWarning(UserWarning):
    """The weight has fewer independent columns than the wanted directions need."""


@dataclass(frozen=True)
class Directions:
    """Directions of a weight (m, n) and the columns of the weight that they come from, in pivot order.

    `main_basis[:, i]` is column k - r_main + i of Q and `main_index[i]` its pivot; `sub_basis[:, i]` is column i of Q.
    """

    main_basis: Float32[Tensor, "m r_main"]
    main_index: Int64[Tensor, " r_main"]
    sub_basis: Float32[Tensor, "m r_sub"]
    sub_index: Int64[Tensor, " r_sub"]


def directions(weight: Shaped[Tensor, "m n"], r_main: int, r_sub: int) -> Directions:
    """Minor directions for the main adapter and major directions for the sub adapter, from one factorisation.

    The diagonal of R is made positive (sign(0) = +1), which fixes the signs of Q. The weight is not modified; the
    result is on the CPU and does not depend on thread counts or memory order.

    Raises:
        ValueError: `weight` is not a floating-point matrix, is on the meta device, or holds NaN or Inf; a rank is
            negative, both are 0, or r_main + r_sub > min(m, n), where the two sets would overlap.

    Warns:
        RankWarning: the numerical rank (|R_jj| > max(m, n) eps |R_00|) is too small for the wanted directions to be
            determined only by the weight.
    """
    check_ranks(tuple(weight.shape), r_main, r_sub)
    return _as_directions(ways.factorise(to_float64(weight), r_main, r_sub), r_main, r_sub)


def directions_of_stack(weights: Sequence[Shaped[Tensor, "m n"]], r_main: int, r_sub: int) -> list[Directions]:
    """Like `directions`, for weights of one shape on one device such as a GPU, factorised there together.

    A weight whose pivots cannot be proven there is factorised on the CPU.
    """
    for weight in weights:
        check_ranks(tuple(weight.shape), r_main, r_sub)
        _check_kind(weight)
        _check_finite(tuple(weight.shape), int((~torch.isfinite(weight.detach())).sum()))
    found = batched.factorise(torch.stack([weight.detach().double() for weight in weights]), r_main, r_sub)
    return [
        directions(weight, r_main, r_sub) if one is None else _as_directions(one, r_main, r_sub)
        for weight, one in zip(weights, found, strict=True)
    ]


def _as_directions(found: ways.Factorisation, r_main: int, r_sub: int) -> Directions:
    k = len(found.diagonal)
    _warn_if_deficient(found.diagonal, max(len(found.q), len(found.pivots)), r_main, r_sub)
    basis = torch.from_numpy(np.ascontiguousarray(found.q, dtype=np.float32))
    index = torch.from_numpy(found.pivots[np.r_[k - r_main : k, :r_sub]])
    return Directions(
        main_basis=basis[:, :r_main].contiguous(),
        main_index=index[:r_main].clone(),
        sub_basis=basis[:, r_main:].contiguous(),
        sub_index=index[r_main:].clone(),
    )


def certificate(weight: Shaped[Tensor, "m n"], pivots: Int64[Tensor, " p"] | None = None) -> float:
    """How greedy an order of pivots is: max over j < k and l >= j of ||R[j:, l]|| / |R_jj|, for W P = Q R.

    At every step j the chosen column must have the longest residual of all that are left, which is 1 up to rounding for
    the greedy order, and more for any other. R is that of an unpivoted QR of W[:, pivots], a calculation that
    is independent of the pivots'. Residuals within rounding of zero (max(m, n) eps |R_00|) are left out.

    Args:
        pivots: a permutation of the columns; the one that `directions` uses if not given.

    Raises:
        ValueError: the weight cannot be factorised, as in `directions`; `pivots` is not a permutation of its columns.
    """
    w = to_float64(weight)
    if pivots is None:
        pivots = torch.from_numpy(ways.factorise(w, 0, 1).pivots)
    if sorted(pivots.tolist()) != list(range(w.shape[1])):
        raise ValueError(f"expected a permutation of the {w.shape[1]} columns, got {len(pivots)} pivots")
    with one_blas_thread():
        r = np.asarray(np.linalg.qr(w[:, pivots.cpu().numpy()], mode="r"))
    residuals = np.sqrt(np.cumsum((r**2)[::-1], axis=0)[::-1])  # [j, l]: ||R[j:, l]||
    longest = np.array([row[j:].max() for j, row in enumerate(residuals)])
    told = longest > max(w.shape) * np.finfo(np.float64).eps * longest[0]
    with np.errstate(divide="ignore"):
        return float((longest[told] / np.abs(np.diagonal(r))[told]).max(initial=1.0))


def check_ranks(shape: tuple[int, ...], r_main: int, r_sub: int) -> None:
    """Raise ValueError if adapters of these ranks do not fit a weight of this shape (out, in)."""
    if len(shape) != 2:
        raise ValueError(f"expected a weight with 2 dimensions (out, in), got shape {shape}; flatten a kernel first")
    if r_main < 0 or r_sub < 0 or r_main + r_sub == 0:
        raise ValueError(f"ranks must not be negative and not both 0, got r_main={r_main}, r_sub={r_sub}")
    if r_main + r_sub > min(shape):
        raise ValueError(
            f"rank {r_main + r_sub} (r_main {r_main} + r_sub {r_sub}) exceeds min(out, in) = {min(shape)} of a weight "
            f"of shape {shape}; choose a smaller rank"
        )


def to_float64(weight: Shaped[Tensor, "m n"]) -> Float64[np.ndarray, "m n"]:
    """A private float64 copy on the CPU, rows contiguous; ValueError if the values cannot be factorised."""
    _check_kind(weight)
    w = np.array(weight.detach().to("cpu", torch.float64).numpy(), order="C")
    _check_finite(w.shape, int(np.count_nonzero(~np.isfinite(w))))
    return w


def _check_kind(weight: Tensor) -> None:
    if not weight.is_floating_point():
        raise ValueError(f"expected a floating-point weight, got {weight.dtype}")
    if weight.device.type == "meta":
        raise ValueError(
            "the weight is on the meta device and has no values: load the base model first, and offload it afterwards"
        )


def _check_finite(shape: tuple[int, ...], bad: int) -> None:
    if bad:
        raise ValueError(f"the weight of shape {shape} holds {bad} NaN or Inf values")


def _warn_if_deficient(diagonal: Float64[np.ndarray, " k"], longest: int, r_main: int, r_sub: int) -> None:
    rank = int(np.count_nonzero(diagonal > longest * np.finfo(np.float64).eps * diagonal[0]))
    needed = len(diagonal) if r_main > 0 else r_sub
    if rank < needed:
        warnings.warn(
            f"the weight has numerical rank {rank} of {len(diagonal)}: directions beyond it are not determined by the "
            "weight and can differ between machines (they are stored with the adapter, so loading is not affected)",
            RankWarning,
            stacklevel=3,
        )
