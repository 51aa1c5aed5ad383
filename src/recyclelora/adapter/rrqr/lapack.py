"""SciPy's BLAS and LAPACK in float64, called so that other Python threads can run at the same time.

SciPy's own wrappers of `dpstrf`, `dsyrk`, `dtrsm` and `dgemm` hold the interpreter's lock, so that layers factorised in
a thread pool would wait for one another. The routines' addresses are public (`scipy.linalg.cython_lapack`,
`scipy.linalg.cython_blas`), and a call through ctypes releases the lock.

Matrices are in C order (rows contiguous) unless said otherwise; LAPACK sees their transposes.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.linalg import cython_blas, cython_lapack, lapack
from threadpoolctl import ThreadpoolController

if TYPE_CHECKING:
    from jaxtyping import Float64, Int64

    Matrix = Float64[np.ndarray, "_ _"]

INTEGERS = {"dpstrf": 5, "dsyrk": 4, "dtrsm": 4, "dgemm": 6}
"""Number of 32-bit integer arguments of each routine, to detect a SciPy with other integers."""


@cache
def callable_without_lock() -> bool:
    """Whether this SciPy's routines take 32-bit integers, as they do in its published wheels."""
    return all(
        _signature(_module(name), name).count("int *") == integers and "int64" not in _signature(_module(name), name)
        for name, integers in INTEGERS.items()
    )


def gram(w: Float64[np.ndarray, "m n"]) -> Float64[np.ndarray, "n n"]:
    """The upper triangle of W'W, in an (n, n) matrix whose other entries are undefined."""
    m, n = w.shape
    g = np.empty((n, n))
    _call("dsyrk", b"L", b"N", n, m, 1.0, w, _stride(w), 0.0, g, n)
    return g


def pivoted_cholesky(g: Float64[np.ndarray, "n n"]) -> tuple[Int64[np.ndarray, " n"], int]:
    """G[p, p] = R'R with greedy pivots; overwrites the upper triangle of G with R. Returns p and the numerical rank."""
    n = len(g)
    pivots, work = np.empty(n, np.int32), np.empty(2 * n)
    rank, info = ctypes.c_int(), ctypes.c_int()
    _call("dpstrf", b"L", n, g, _stride(g), pivots, rank, -1.0, work, info)
    if info.value < 0:
        raise RuntimeError(f"LAPACK dpstrf failed with info={info.value}")
    return pivots.astype(np.int64) - 1, rank.value


def solve_upper(r: Float64[np.ndarray, "n n"], b: Float64[np.ndarray, "n c"], transposed: bool = False) -> None:
    """Overwrite B with inv(R) B, or inv(R') B; R is the upper triangle of a matrix."""
    n, columns = b.shape
    _call("dtrsm", b"R", b"L", b"T" if transposed else b"N", b"N", columns, n, 1.0, r, _stride(r), b, _stride(b))


def subtract_product(
    c: Float64[np.ndarray, "m n"], a: Float64[np.ndarray, "m k"], b: Float64[np.ndarray, "k n"]
) -> None:
    """C -= A B in place."""
    (m, n), k = c.shape, a.shape[1]
    _call("dgemm", b"N", b"N", n, m, k, -1.0, b, _stride(b), a, _stride(a), 1.0, c, _stride(c))


def geqp3(
    w: Float64[np.ndarray, "m n"],
) -> tuple[Float64[np.ndarray, "m n"], Int64[np.ndarray, " n"], Float64[np.ndarray, " k"]]:
    """Reflectors below R, pivots, and the reflectors' factors; overwrites w if it is in Fortran order."""
    workspace = lapack.dgeqp3(w, lwork=-1, overwrite_a=True)[3]
    qr, pivots, tau, _, info = lapack.dgeqp3(w, lwork=int(workspace[0]), overwrite_a=True)
    if info != 0:
        raise RuntimeError(f"LAPACK dgeqp3 failed with info={info}")
    return qr, pivots.astype(np.int64) - 1, tau


def apply_reflectors(
    qr: Float64[np.ndarray, "m n"], tau: Float64[np.ndarray, " k"], c: Float64[np.ndarray, "m c"]
) -> Float64[np.ndarray, "m c"]:
    """Q C for the Q of `geqp3` or `geqrf`; overwrites C if it is in Fortran order."""
    reflectors = qr[:, : len(tau)]
    workspace = lapack.dormqr("L", "N", reflectors, tau, c, lwork=-1)[1]
    product, _, info = lapack.dormqr("L", "N", reflectors, tau, c, lwork=int(workspace[0]), overwrite_c=True)
    if info != 0:
        raise RuntimeError(f"LAPACK dormqr failed with info={info}")
    return product  # type: ignore[no-any-return]


_lock = threading.Lock()
_users = 0
_limit: object = None


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Limit BLAS to one thread while at least one caller is inside; safe to enter from several threads.

    BLAS's own threads make a pivoted factorisation at most a fifth faster, and up to ten times slower on a busy
    machine.
    """
    global _users, _limit
    with _lock:
        if _users == 0:
            _limit = _controller().limit(limits=1, user_api="blas")
        _users += 1
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if _users == 0:
                _limit.restore_original_limits()  # type: ignore[attr-defined]


@cache
def _controller() -> ThreadpoolController:
    return ThreadpoolController()


def _module(name: str) -> Any:
    return cython_lapack if name == "dpstrf" else cython_blas


def _signature(module: Any, name: str) -> str:
    get = ctypes.pythonapi.PyCapsule_GetName
    get.restype, get.argtypes = ctypes.c_char_p, [ctypes.py_object]
    return bytes(get(module.__pyx_capi__[name])).decode()


@cache
def _routine(name: str) -> Callable[..., None]:
    module = _module(name)
    signature = _signature(module, name)
    get = ctypes.pythonapi.PyCapsule_GetPointer
    get.restype, get.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    address = get(module.__pyx_capi__[name], signature.encode())
    return ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * (signature.count(",") + 1))(address)


def _call(name: str, *arguments: Any) -> None:
    """Call by reference, as Fortran does: numbers, arrays and characters become addresses."""
    held = [_in_c(value) for value in arguments]
    _routine(name)(*held)


def _in_c(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.ctypes.data
    if isinstance(value, bytes):
        return ctypes.c_char_p(value)
    if isinstance(value, ctypes.c_int):  # an output
        return ctypes.byref(value)
    return ctypes.byref(ctypes.c_int(value) if isinstance(value, int) else ctypes.c_double(value))


def _stride(a: Matrix) -> int:
    assert a.shape[1] < 2 or a.strides[1] == a.itemsize, "rows must be contiguous"
    return max(1, a.strides[0] // a.itemsize)
