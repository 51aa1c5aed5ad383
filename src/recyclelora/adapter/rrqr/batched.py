"""Pivoted QR of many weights of one shape at once, with torch operations only, for weights on a GPU.

Pivoted Cholesky of each float64 Gram matrix with implicit pivoting: columns stay where they are, and a chosen one is
marked by a residual of -inf. A step takes a few kernel launches, whatever the number of weights; every STEPS steps the
Gram matrices are updated by one product. Products of float64 never use TF32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from recyclelora.adapter.rrqr.ways import EPS, MARGIN, TAIL, Factorisation

if TYPE_CHECKING:
    from jaxtyping import Bool, Float64, Int64

STEPS = 64
OVERLAP = 1e-13
"""Largest cosine between a minor direction and an earlier column that counts as orthogonal."""


def factorise(w: Float64[Tensor, "b m n"], r_main: int, r_sub: int) -> list[Factorisation | None]:
    """Like `ways.factorise` for each weight; None if the pivots are not proven (ties, numerical rank below k)."""
    b, m, n = w.shape
    k = min(m, n)
    tail = min(k, max(r_main, TAIL))
    rows, pivots, sure = pivoted_cholesky(w, k - tail)
    r = rows.gather(2, pivots[:, None].expand(b, k, k)).triu()  # R of the k columns taken, in their order
    columns = w.gather(2, pivots[:, None].expand(b, m, k))
    last, orthogonal = _last_columns_of_q(columns, r, tail)
    rows = last.mT @ w
    sure &= orthogonal & _tail_is_proven(w, rows, pivots)
    diagonal = torch.cat([r.diagonal(dim1=1, dim2=2)[:, : k - tail], _tail_diagonal(rows, pivots)], 1)
    q = torch.cat([last[..., tail - r_main :], _positive_qr(columns[..., :r_sub])], 2)
    found = zip(*(x.cpu().numpy() for x in (q, diagonal, _all_pivots(pivots, n))), strict=True)
    return [Factorisation(*one) if known else None for one, known in zip(found, sure.tolist(), strict=True)]


def pivoted_cholesky(
    w: Float64[Tensor, "b m n"], proven: int
) -> tuple[Float64[Tensor, "b k n"], Int64[Tensor, "b k"], Bool[Tensor, " b"]]:
    """Rows of R for all columns in their own order, the pivots, and whether the first `proven` are certain."""
    b, m, n = w.shape
    k = min(m, n)
    gram = w.mT @ w
    lengths = gram.diagonal(dim1=1, dim2=2).clone()
    error = MARGIN * EPS * m**0.5 * lengths
    rows, pivots = w.new_zeros(b, k, n), torch.empty(b, k, dtype=torch.long, device=w.device)
    sure = torch.ones(b, dtype=torch.bool, device=w.device)
    batch = torch.arange(b, device=w.device)
    for j in range(k):
        start = j - j % STEPS
        if j == start > 0:
            block = rows[:, j - STEPS : j]
            gram.baddbmm_(block.mT, block, alpha=-1)
        length, p = lengths.max(1)
        lengths[batch, p] = -torch.inf
        if j < proven:
            sure &= length - error[batch, p] > (lengths + error).max(1).values.clamp(min=0)
        row = gram[batch, p]
        if j > start:
            block = rows[:, start:j]
            row = torch.baddbmm(row[:, None], block[batch, :, p][:, None], block, alpha=-1)[:, 0]
        row = row * length.rsqrt()[:, None]
        rows[:, j], pivots[:, j] = row, p
        lengths.addcmul_(row, row, value=-1)
    return rows, pivots, sure


def _tail_is_proven(
    w: Float64[Tensor, "b m n"], rows: Float64[Tensor, "b t n"], pivots: Int64[Tensor, "b k"]
) -> Bool[Tensor, " b"]:
    """Whether the last t pivots are certainly the longest, by rows of R that are computed from the weight itself."""
    before = pivots.shape[1] - rows.shape[1]
    lengths = rows.square().sum(1)
    error = MARGIN * EPS * (w.shape[1] * lengths * w.square().sum(1)).sqrt()
    lengths = lengths.scatter(1, pivots[:, :before], -torch.inf)
    sure, batch = torch.ones_like(lengths[:, 0], dtype=torch.bool), torch.arange(len(w), device=w.device)
    for j, p in enumerate(pivots[:, before:].unbind(1)):
        lengths[batch, p] = -torch.inf
        surely = rows[batch, j, p].square() - error[batch, p]
        sure &= surely > (lengths + error).max(1).values.clamp(min=0)
        lengths = lengths - rows[:, j].square()
    return sure


def _tail_diagonal(rows: Float64[Tensor, "b t n"], pivots: Int64[Tensor, "b k"]) -> Float64[Tensor, "b t"]:
    last = pivots[:, pivots.shape[1] - rows.shape[1] :]
    return rows.gather(2, last[:, None].expand(len(rows), last.shape[1], last.shape[1])).diagonal(dim1=1, dim2=2).abs()


def _last_columns_of_q(
    columns: Float64[Tensor, "b m k"], r: Float64[Tensor, "b k k"], count: int
) -> tuple[Float64[Tensor, "b m c"], Bool[Tensor, " b"]]:
    """The last columns of columns @ inv(R), made orthogonal to all earlier columns, and whether that succeeded."""
    b, m, k = columns.shape
    if count == 0:
        return columns.new_empty(b, m, 0), torch.ones(b, dtype=torch.bool, device=columns.device)
    first = k - count
    earlier, upper = columns[..., :first], r[:, :first, :first]
    unit = torch.eye(k, dtype=r.dtype, device=r.device)[:, first:].expand(b, k, count)
    q = columns @ torch.linalg.solve_triangular(r, unit, upper=True)
    for _ in range(4):
        q = _positive_qr(q)
        overlap = earlier.mT @ q
        orthogonal = (overlap.abs() <= OVERLAP * torch.linalg.vector_norm(earlier, dim=1)[..., None]).all(2).all(1)
        if orthogonal.all():
            break
        half = torch.linalg.solve_triangular(upper.mT, overlap, upper=False)
        q = q - earlier @ torch.linalg.solve_triangular(upper, half, upper=True)
    return q, orthogonal


def _positive_qr(a: Float64[Tensor, "b m c"]) -> Float64[Tensor, "b m c"]:
    q, r = torch.linalg.qr(a)
    signed: Tensor = q * torch.where(r.diagonal(dim1=1, dim2=2) < 0, -1.0, 1.0)[:, None]
    return signed


def _all_pivots(pivots: Int64[Tensor, "b k"], n: int) -> Int64[Tensor, "b n"]:
    """A whole permutation: columns that are never taken come last, in their own order."""
    taken = torch.zeros(len(pivots), n, dtype=torch.long, device=pivots.device).scatter(1, pivots, 1)
    rest = taken.argsort(dim=1, stable=True)[:, : n - pivots.shape[1]]
    return torch.cat([pivots, rest], 1)
