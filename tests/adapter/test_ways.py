"""The fast ways of pivoted QR against LAPACK's, and what they refuse to decide."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from matrices import KINDS, matrix
from recyclelora.adapter.rrqr import lapack, ways

EXACT = {"gauss", "outliers", "trained"}


def numbers(shape, seed, kind):
    return matrix(shape, seed, kind).double().numpy()


def assert_same(found, expected):
    k = len(expected.diagonal)
    assert found.pivots[:k].tolist() == expected.pivots[:k].tolist()
    assert sorted(found.pivots) == list(range(len(found.pivots)))
    np.testing.assert_allclose(found.diagonal, expected.diagonal, rtol=1e-6, atol=1e-9 * expected.diagonal[0])
    np.testing.assert_allclose(found.q, expected.q, atol=1e-9)
    np.testing.assert_allclose(found.q.T @ found.q, np.eye(found.q.shape[1]), atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(300, 256), (400, 150), (150, 400), (160, 160), (100, 900)])
@pytest.mark.parametrize("way", [ways.gram, ways.blocks])
def test_equals_the_reference(way, shape, kind):
    if way is ways.gram and shape[0] < shape[1]:
        pytest.skip("the Gram matrix of a wide weight is singular")
    for seed in range(2):
        w = numbers(shape, seed, kind)
        found = way(w, 32, 4)
        assert found is not None
        assert_same(found, ways.reference(w, 32, 4))


@given(st.integers(1, 60), st.integers(1, 60), st.integers(0, 10_000), st.sampled_from(KINDS), st.data())
@settings(max_examples=150, deadline=None)
def test_any_shape_and_ranks(m, n, seed, kind, data):
    w = numbers((m, n), seed, kind)
    before = w.copy()
    r_main = data.draw(st.integers(0, min(m, n)))
    r_sub = data.draw(st.integers(0, min(m, n) - r_main))
    expected = ways.reference(w, r_main, r_sub)
    assert_same(ways.factorise(w, r_main, r_sub), expected)
    for way in (ways.gram, ways.blocks):
        found = way(w, r_main, r_sub) if way is ways.blocks or m >= n else None
        if found is not None:
            assert_same(found, expected)
    np.testing.assert_array_equal(w, before)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("steps", "candidates"), [(1, 1), (4, 6), (16, 16), (8, 200)])
def test_blocks_of_any_size_find_the_same(monkeypatch, steps, candidates, kind):
    monkeypatch.setattr(ways, "STEPS", steps)
    monkeypatch.setattr(ways, "CANDIDATES", candidates)
    w = numbers((50, 90), 1, kind)
    found = ways.blocks(w, 8, 4)
    assert found is not None
    assert_same(found, ways.reference(w, 8, 4))


TIES = {
    "identity": np.eye(8),
    "the same column twice": np.hstack([matrix((12, 5)).numpy()] * 2).astype(float)[:, :6],
    "zero": np.zeros((6, 4)),
    "a zero column": np.hstack([matrix((12, 5)).numpy().astype(float), np.zeros((12, 1))]),
    "lengths apart by less than rounding": np.diag([3.0, 2.0 + 1e-15, 2.0, 1.0]),
}


@pytest.mark.parametrize("name", TIES)
def test_what_rounding_decides_is_left_to_the_reference(name):
    w = TIES[name]
    assert ways.gram(w, 2, 1) is None
    assert ways.blocks(w, 2, 1) is None
    found, expected = ways.factorise(w, 2, 1), ways.reference(w, 2, 1)
    assert found.pivots.tolist() == expected.pivots.tolist()
    np.testing.assert_array_equal(found.q, expected.q)


def test_blocks_succeed_where_the_gram_matrix_is_too_inexact():
    u, _, vt = np.linalg.svd(np.random.default_rng(0).standard_normal((80, 40)), full_matrices=False)
    w = (u * 10.0 ** -np.linspace(0, 11, 40)) @ vt
    assert ways.gram(w, 8, 4) is None
    found = ways.blocks(w, 8, 4)
    assert found is not None
    assert found.pivots.tolist() == ways.reference(w, 8, 4).pivots.tolist()


def test_without_callable_routines_the_reference_is_taken(monkeypatch):
    w = numbers((40, 30), 0, "trained")
    monkeypatch.setattr(lapack, "callable_without_lock", lambda: False)
    for way in ("gram", "blocks"):
        monkeypatch.setattr(ways, way, None)
    np.testing.assert_array_equal(ways.factorise(w, 3, 2).q, ways.reference(w, 3, 2).q)


@given(st.integers(1, 12), st.integers(1, 30), st.integers(0, 10_000))
@settings(max_examples=100, deadline=None)
def test_steps_are_proven_up_to_the_first_that_a_rival_could_have_won(steps, more, seed):
    rng = np.random.default_rng(seed)
    n = steps + more
    rows = 0.2 * rng.standard_normal((steps, n))
    order = rng.permutation(n)[:steps]
    rows[np.arange(steps), order] = np.sort(rng.uniform(0.5, 2, steps))[::-1]
    lengths, error = rng.uniform(0.2, 1.0, n), rng.uniform(0, 0.2, n)
    expected = 0
    for j in range(steps):
        left = [
            lengths[c] - sum(rows[t, c] ** 2 for t in range(j)) + error[c] for c in range(n) if c not in order[: j + 1]
        ]
        if rows[j, order[j]] ** 2 - error[order[j]] <= max([0.0, *left]):
            break
        expected += 1
    assert ways.proven(rows, lengths, error, order) == expected


@pytest.mark.parametrize("kind", KINDS)
def test_the_margin_covers_the_error_of_squared_lengths(kind):
    for shape in [(128, 128), (200, 120)]:
        w = numbers(shape, 3, kind)
        r = lapack.gram(w)
        start = r.diagonal().copy()
        pivots, _ = lapack.pivoted_cholesky(r)
        exact = np.square(np.linalg.qr(w[:, pivots], mode="r")[::-1]).cumsum(0)[::-1]
        found = start[pivots] - np.vstack([np.zeros(len(start)), np.square(np.triu(r))[:-1].cumsum(0)])
        error = np.triu(np.abs(found - exact)) / start[pivots]
        assert error[: -ways.TAIL].max() < ways.MARGIN / 8 * ways.EPS * np.sqrt(shape[0])


def test_the_last_steps_of_a_gram_matrix_are_proven_from_the_weight_itself(monkeypatch):
    """They detect a wrong order that the Gram matrix cannot distinguish from the right one."""
    w = numbers((60, 60), 0, "gauss")
    right = ways.reference(w, 4, 2).pivots
    cholesky = lapack.pivoted_cholesky

    def exchanged(g):
        before = g.copy()
        pivots, rank = cholesky(g)
        pivots[[50, 51]] = pivots[[51, 50]]
        whole = np.triu(before) + np.triu(before, 1).T
        g[:] = np.linalg.cholesky(whole[np.ix_(pivots, pivots)]).T
        return pivots, rank

    assert ways.gram(w, 4, 2).pivots.tolist() == right.tolist()
    monkeypatch.setattr(lapack, "pivoted_cholesky", exchanged)
    assert ways.gram(w, 4, 2) is None
