"""BLAS and LAPACK without the interpreter's lock, against NumPy."""

import threading
import time

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from recyclelora.adapter.rrqr import lapack
from recyclelora.adapter.rrqr.lapack import one_blas_thread

RNG = np.random.default_rng(0)


def view(m, n):
    """A part of a larger matrix, whose rows are contiguous and further apart than they are long."""
    return RNG.standard_normal((m + 3, n + 5))[2 : m + 2, 4 : n + 4]


@pytest.mark.parametrize(("m", "n"), [(7, 5), (5, 7), (1, 3), (3, 1)])
def test_gram(m, n):
    w = view(m, n)
    np.testing.assert_allclose(np.triu(lapack.gram(w)), np.triu(w.T @ w), atol=1e-13)


@pytest.mark.parametrize("n", [1, 6, 150])
def test_pivoted_cholesky(n):
    w = view(n + 4, n)
    g = view(n, n)
    g[:] = w.T @ w
    before = g.copy()
    pivots, rank = lapack.pivoted_cholesky(g)
    r = np.triu(g)
    assert rank == n
    assert sorted(pivots) == list(range(n))
    np.testing.assert_allclose(r.T @ r, before[np.ix_(pivots, pivots)], atol=1e-11)
    assert (np.diff(r.diagonal()) <= 0).all()


def test_pivoted_cholesky_gives_the_rank():
    w = RNG.standard_normal((9, 3)) @ RNG.standard_normal((3, 6))
    assert lapack.pivoted_cholesky(w.T @ w)[1] == 3


@pytest.mark.parametrize("transposed", [False, True])
def test_solve_upper(transposed):
    r, b = view(6, 6) + 5 * np.eye(6), view(6, 4)
    triangle = np.triu(r).T if transposed else np.triu(r)
    expected = np.linalg.solve(triangle, b)
    lapack.solve_upper(r, b, transposed)
    np.testing.assert_allclose(b, expected, atol=1e-12)


def test_subtract_product():
    a, b, c = view(6, 3), view(3, 5), view(6, 5)
    expected = c - a @ b
    lapack.subtract_product(c, a, b)
    np.testing.assert_allclose(c, expected, atol=1e-13)


def test_columns_that_are_not_contiguous_are_refused():
    with pytest.raises(AssertionError, match="rows must be contiguous"):
        lapack.gram(np.asfortranarray(view(4, 3)))


def test_other_threads_run_at_the_same_time():
    w = RNG.standard_normal((1500, 1500))

    def longest_pause():
        """The longest pause of this thread, as a share of the time that another spends in LAPACK."""
        g = w.T @ w
        with one_blas_thread():
            thread = threading.Thread(target=lapack.pivoted_cholesky, args=(g,))
            started = last = time.perf_counter()
            pause = 0.0
            thread.start()
            while thread.is_alive():
                now = time.perf_counter()
                pause, last = max(pause, now - last), now
        return pause / (last - started)

    assert min(longest_pause() for _ in range(5)) < 0.8  # a call that kept the lock would make it 1


def test_integers_of_another_width_are_detected(monkeypatch):
    assert lapack.callable_without_lock()
    lapack.callable_without_lock.cache_clear()
    monkeypatch.setattr(lapack, "_signature", lambda *_: "void (char *, int64_t *, double *)")
    assert not lapack.callable_without_lock()
    lapack.callable_without_lock.cache_clear()


def test_the_thread_limit_is_put_back_after_nested_use():
    def threads():
        return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]

    with threadpool_limits(2):
        with one_blas_thread():
            with one_blas_thread():
                pass
            assert set(threads()) == {1}
        assert set(threads()) == {2}
