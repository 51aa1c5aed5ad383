"""Three ways to compute the same pivoted QR in float64: two fast ones, and LAPACK's `geqp3` where they fail.

    gram       pivoted Cholesky of W'W = (P R'R P')         tall and square: the fewest operations
    blocks     many pivots at a time, by matrix products     wide, and where the Gram matrix is too inexact
    reference  LAPACK `geqp3`                                ties, numerical rank below min(m, n)

Greedy pivoting takes, at every step, the column whose residual is longest. The fast ways guess the pivots of many steps
at once and then prove them: step by step, the chosen residual must be longer than every other by more than the rounding
error of both. They return None if this cannot be shown, and the next way is tried.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from scipy.linalg import lapack as scipy_lapack

from recyclelora.adapter.rrqr import lapack

if TYPE_CHECKING:
    from jaxtyping import Float64, Int64, Shaped

EPS = float(np.finfo(np.float64).eps)
MARGIN = 256.0
"""Assumed rounding error of a squared residual length, in units of eps sqrt(m) times the column's squared length. The
largest measured is 10 (`benchmarks/rrqr.py --errors`), except in the last steps of a Gram matrix,
which are checked again."""
TAIL = 32
"""Number of last steps of a Gram matrix that are proven from residuals of the weight itself."""
STEPS = 128
"""Largest number of steps that are proven together: enough for matrix products at full speed."""
CANDIDATES = 256
"""Number of longest columns among which the next pivots are searched."""


class Factorisation(NamedTuple):
    """Columns of Q, main before sub, |diag(R)| and the pivots of W P = Q R with diag(R) >= 0."""

    q: Float64[np.ndarray, "m r"]
    diagonal: Float64[np.ndarray, " k"]
    pivots: Int64[np.ndarray, " n"]


def factorise(w: Float64[np.ndarray, "m n"], r_main: int, r_sub: int) -> Factorisation:
    """The last r_main of the k = min(m, n) columns of Q and the first r_sub, by the fastest way that can prove it."""
    with lapack.one_blas_thread(), np.errstate(all="ignore"):
        found = None
        if lapack.callable_without_lock():
            found = gram(w, r_main, r_sub) if w.shape[0] >= w.shape[1] else None
            found = found or blocks(w, r_main, r_sub)
        return found or reference(w, r_main, r_sub)


def reference(w: Float64[np.ndarray, "m n"], r_main: int, r_sub: int) -> Factorisation:
    """LAPACK's `geqp3`; of Q it computes only the wanted columns, from reflectors applied to unit vectors."""
    qr, pivots, tau = lapack.geqp3(np.array(w, order="F"))
    diagonal = np.diagonal(qr)[: len(tau)].copy()
    wanted = _wanted(len(tau), r_main, r_sub)
    q = lapack.apply_reflectors(qr, tau, _unit_vectors(len(w), wanted)) * _signs(diagonal[wanted])
    return Factorisation(q, np.abs(diagonal), pivots)


def gram(w: Float64[np.ndarray, "m n"], r_main: int, r_sub: int) -> Factorisation | None:
    """Pivots and R from the Gram matrix, the columns of Q from W and inv(R); for m >= n."""
    m, n = w.shape
    r = lapack.gram(w)
    lengths = r.diagonal().copy()
    pivots, rank = lapack.pivoted_cholesky(r)
    if rank < n:
        return None
    squares = lengths[pivots]
    lengths, error = squares.copy(), MARGIN * EPS * np.sqrt(m) * squares
    tail = min(n, max(r_main, TAIL))
    for j in range(0, n - tail, STEPS):
        rows = np.triu(r[j : min(j + STEPS, n - tail), j:])
        if proven(rows, lengths[j:], error[j:]) < len(rows):
            return None
        lengths[j:] -= np.einsum("ij,ij->j", rows, rows)
    last = _last_columns_of_q(w, r, pivots, tail, squares)
    if last is None:
        return None
    rows = np.triu(last.T @ w[:, pivots[n - tail :]])
    lengths = np.einsum("ij,ij->j", rows, rows)
    if proven(rows, lengths, MARGIN * EPS * np.sqrt(m * lengths * squares[n - tail :])) < tail:
        return None
    diagonal = np.append(r.diagonal()[: n - tail], np.abs(rows.diagonal()))
    major = _positive_qr(w[:, pivots[:r_sub]])
    return Factorisation(np.hstack([last[:, tail - r_main :], major]), diagonal, pivots)


def _last_columns_of_q(
    w: Float64[np.ndarray, "m n"],
    r: Float64[np.ndarray, "n n"],
    pivots: Int64[np.ndarray, " n"],
    count: int,
    squares: Float64[np.ndarray, " n"],
) -> Float64[np.ndarray, "m count"] | None:
    """W P inv(R) of the last columns, made orthogonal to all earlier columns of W P (seminormal equations).

    `squares` are the squared lengths of the columns of W P. Returns None if this does not succeed.
    """
    n = len(r)
    first = n - count
    x = np.zeros((n, count))
    x[np.arange(first, n), np.arange(count)] = 1.0
    lapack.solve_upper(r, x)
    norms = np.sqrt(squares[:first, None])
    q = w @ _scatter(x, pivots, n)
    for _ in range(4):
        q = _positive_qr(q)
        overlap = (w.T @ q)[pivots[:first]]
        if (np.abs(overlap) <= 1e-13 * norms).all():
            return q
        lapack.solve_upper(r[:first, :first], overlap, transposed=True)
        lapack.solve_upper(r[:first, :first], overlap)
        q = q - w @ _scatter(overlap, pivots[:first], n)
    return None


def blocks(w: Float64[np.ndarray, "m n"], r_main: int, r_sub: int) -> Factorisation | None:
    """Householder QR of many pivots at a time: chosen among the longest columns, proven against all columns.

    The candidates' Gram matrix gives the greedy order among them. Their reflectors give the rows of R for all columns,
    which prove the steps. Proven steps are applied; the other pivots are chosen again.
    """
    a = np.array(w, order="C")
    m, n = a.shape
    k = min(m, n)
    pivots = np.arange(n)
    lengths = np.einsum("ij,ij->j", a, a)  # of the residuals, squared
    scale = lengths.copy()  # what their rounding errors are relative to
    done: list[tuple[Float64[np.ndarray, "a b"], Float64[np.ndarray, "b b"]]] = []
    diagonal = np.empty(0)
    count, fresh = STEPS, True
    while (j := len(diagonal)) < k:
        rest = a[j:, j:]
        error = MARGIN * EPS * np.sqrt(m) * scale[j:]
        order = _greedy_among_longest(rest, lengths[j:], min(count, k - j))
        v, t, top = _reflectors(rest[:, order])
        product = (v @ t).T @ rest
        rows = rest[: len(order)] - v[: len(order)] @ product
        steps = proven(rows, lengths[j:], error, order)
        if steps == 0:
            if fresh:
                return None
            lengths[j:] = np.einsum("ij,ij->j", rest, rest)
            scale[j:] = np.sqrt(lengths[j:] * scale[j:])
            fresh = True
            continue
        fresh = False
        count = min(STEPS, steps + STEPS // 8)  # where lengths are alike, few steps can be proven at a time
        order, v, product, rows = order[:steps], v[:, :steps], product[:steps], rows[:steps]
        done.append((np.ascontiguousarray(v), t[:steps, :steps]))
        diagonal = np.append(diagonal, top[:steps])
        lengths[j:] -= np.einsum("ij,ij->j", rows, rows)
        _to_front(order, rest[steps:], product, pivots[j:], lengths[j:], scale[j:])
        if j + steps < k:
            lapack.subtract_product(a[j + steps :, j + steps :], done[-1][0][steps:], product[:, steps:])
    wanted = _wanted(k, r_main, r_sub)
    q = np.ascontiguousarray(_unit_vectors(m, wanted))
    for v, t in reversed(done):
        q[m - len(v) :] -= v @ (t @ (v.T @ q[m - len(v) :]))
    return Factorisation(q * _signs(diagonal[wanted]), np.abs(diagonal), pivots)


def proven(
    rows: Float64[np.ndarray, "s c"],
    lengths: Float64[np.ndarray, " c"],
    error: Float64[np.ndarray, " c"],
    order: Int64[np.ndarray, " s"] | None = None,
) -> int:
    """How many of the next steps certainly take the longest residual, in spite of rounding errors.

    Args:
        rows: the next s rows of R, for all columns that are left.
        lengths: squared lengths of the columns' residuals before these steps.
        error: rounding error of a squared length of each column's residual.
        order: the columns that the steps take; the first s if not given.
    """
    order = np.arange(len(rows)) if order is None else order
    taken = np.full(len(lengths), len(rows))
    taken[order] = np.arange(len(rows))
    surely = np.square(rows[np.arange(len(rows)), order]) - error[order]
    rivals = np.flatnonzero(lengths + error >= surely.min())
    left = np.empty((len(rows), len(rivals)))  # upper bounds of the squared lengths before each step
    left[0] = lengths[rivals] + error[rivals]
    np.square(rows[:-1, rivals], out=left[1:])
    np.subtract(left[0], np.cumsum(left[1:], axis=0), out=left[1:])
    left[np.arange(len(rows))[:, None] >= taken[rivals]] = -np.inf
    sure = surely > left.max(axis=1, initial=0.0)
    return len(rows) if sure.all() else int(np.argmin(sure))


def _greedy_among_longest(
    rest: Float64[np.ndarray, "a c"], lengths: Float64[np.ndarray, " c"], count: int
) -> Int64[np.ndarray, " s"]:
    """The first pivots among the longest columns: `count`, or fewer if these are dependent; at least one."""
    longest = np.arange(len(lengths))
    if len(lengths) > CANDIDATES:
        longest = np.argpartition(lengths, len(lengths) - CANDIDATES)[-CANDIDATES:]
    pivots, rank = lapack.pivoted_cholesky(lapack.gram(np.take(rest, longest, axis=1)))
    chosen: Int64[np.ndarray, " s"] = longest[pivots[: min(max(rank, 1), count)]]
    return chosen


def _reflectors(
    panel: Float64[np.ndarray, "a s"],
) -> tuple[Float64[np.ndarray, "a s"], Float64[np.ndarray, "s s"], Float64[np.ndarray, " s"]]:
    """V, T and diag(R) of a Householder QR; the product of its reflections is I - V T V'."""
    qr, tau, _, info = scipy_lapack.dgeqrf(np.asfortranarray(panel), overwrite_a=True)
    if info != 0:
        raise RuntimeError(f"LAPACK dgeqrf failed with info={info}")
    s = len(tau)
    v = np.tril(qr, -1)
    v[np.arange(s), np.arange(s)] = 1.0
    v[:, tau == 0] = 0.0  # nothing to reflect
    inverse = np.triu(v.T @ v, 1)
    inverse[np.arange(s), np.arange(s)] = 1.0 / np.where(tau == 0, 1.0, tau)
    t = np.eye(s)
    lapack.solve_upper(np.ascontiguousarray(inverse), t)
    return v, t, np.diagonal(qr).copy()


def _to_front(order: Int64[np.ndarray, " s"], *arrays: Shaped[np.ndarray, "..."]) -> None:
    """Exchange columns (entries of vectors) in place, so that those of `order` come first."""
    s = len(order)
    displaced = np.setdiff1d(np.arange(s), order, assume_unique=True)
    vacated = order[order >= s]
    for array in arrays:
        taken, moved = array[..., order], array[..., displaced]
        array[..., vacated] = moved
        array[..., :s] = taken


def _positive_qr(a: Float64[np.ndarray, "m c"]) -> Float64[np.ndarray, "m c"]:
    """Q of a QR without pivoting whose R has a diagonal >= 0."""
    q, r = np.linalg.qr(a)
    return np.asarray(q * _signs(np.diagonal(r)))


def _wanted(k: int, r_main: int, r_sub: int) -> Int64[np.ndarray, " r"]:
    return np.concatenate([np.arange(k - r_main, k), np.arange(r_sub)])


def _unit_vectors(m: int, wanted: Int64[np.ndarray, " r"]) -> Float64[np.ndarray, "m r"]:
    unit = np.zeros((m, len(wanted)), order="F")
    unit[wanted, np.arange(len(wanted))] = 1.0
    return unit


def _signs(values: Float64[np.ndarray, " r"]) -> Float64[np.ndarray, " r"]:
    return np.where(values < 0, -1.0, 1.0)


def _scatter(x: Float64[np.ndarray, "a r"], rows: Int64[np.ndarray, " a"], n: int) -> Float64[np.ndarray, "n r"]:
    """Rows of x at their places among n rows, 0 elsewhere."""
    full = np.zeros((n, x.shape[1]))
    full[rows] = x
    return full
