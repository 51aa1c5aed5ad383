"""RRQR against SciPy's own and against the properties that define a greedy pivoted factorisation."""

import warnings

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_limits

from matrices import KINDS, matrix
from recyclelora.adapter.rrqr import RankWarning, certificate, directions, directions_of_stack, ways

SHAPES = [(40, 24), (24, 40), (32, 32), (1, 9), (9, 1), (96, 16)]


def ranks(shape):
    k = min(shape)
    return max(1, k // 2), k - max(1, k // 2)


def reference(w):
    q, r, p = scipy.linalg.qr(w.double().numpy(), mode="economic", pivoting=True)
    return q * np.where(np.diag(r) < 0, -1, 1), r, p


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_scipy_in_float64(shape, kind):
    w = matrix(shape, kind=kind)
    r_main, r_sub = ranks(shape)
    q, _, p = reference(w)
    k = min(shape)
    d = directions(w, r_main, r_sub)
    assert d.main_index.tolist() == p[k - r_main : k].tolist()
    assert d.sub_index.tolist() == p[:r_sub].tolist()
    np.testing.assert_allclose(d.main_basis, q[:, k - r_main : k], atol=1e-6)
    np.testing.assert_allclose(d.sub_basis, q[:, :r_sub], atol=1e-6)
    assert d.main_basis.dtype == d.sub_basis.dtype == torch.float32


matrices = st.builds(
    matrix,
    st.tuples(st.integers(2, 40), st.integers(2, 40)),
    st.integers(0, 10_000),
    st.sampled_from(KINDS),
)


@given(matrices)
@settings(max_examples=60, deadline=None)
def test_properties_of_the_factorisation(w):
    k = min(w.shape)
    q, diagonal, p = ways.factorise(w.double().numpy(), k, 0)
    assert sorted(p.tolist()) == list(range(w.shape[1]))
    np.testing.assert_allclose(q.T @ q, np.eye(k), atol=1e-12)
    assert certificate(w, torch.from_numpy(p)) <= 1 + 1e-9
    r = np.linalg.qr(w.double().numpy()[:, p], mode="r")
    np.testing.assert_allclose(diagonal, np.abs(np.diag(r)), rtol=1e-6, atol=1e-12)
    assert (np.diag(q.T @ w.double().numpy()[:, p[:k]]) > 0).all()


@given(matrices, st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_the_certificate_is_the_largest_ratio_of_residuals_to_those_chosen(w, seed):
    p = torch.from_numpy(np.random.default_rng(seed).permutation(w.shape[1]))
    columns, ratio = w.double().numpy()[:, p.numpy()], 1.0
    for _ in range(min(w.shape)):  # Gram-Schmidt, column by column
        lengths = np.linalg.norm(columns, axis=0)
        ratio = max(ratio, lengths.max() / lengths[0])
        chosen = columns[:, 0] / lengths[0]
        columns = (columns - np.outer(chosen, chosen @ columns))[:, 1:]
        columns = columns - np.outer(chosen, chosen @ columns)  # again, against cancellation
        if not columns.shape[1]:
            break
    assert certificate(w, p) == pytest.approx(ratio, rel=1e-6)


@pytest.mark.parametrize("shape", [(30, 20), (20, 20), (20, 30)])
def test_the_certificate_detects_one_exchange_of_pivots(shape):
    w = torch.from_numpy(np.random.default_rng(0).normal(size=shape)) * torch.linspace(3, 1, shape[1])
    p = torch.from_numpy(reference(w)[2].astype(np.int64))
    assert certificate(w, p) == pytest.approx(1, abs=1e-9)
    assert certificate(w) == pytest.approx(1, abs=1e-9)
    for j in range(min(shape) - 1):
        exchanged = p.clone()
        exchanged[[j, j + 1]] = p[[j + 1, j]]
        assert certificate(w, exchanged) > 1 + 1e-6


def test_the_certificate_leaves_out_residuals_that_are_only_rounding():
    w = torch.outer(torch.arange(1.0, 7), torch.tensor([1.0, 3, 2, 0]))
    assert certificate(w) == pytest.approx(1)
    assert certificate(w, torch.tensor([0, 1, 2, 3])) == pytest.approx(3)
    assert certificate(w, torch.tensor([3, 1, 2, 0])) == np.inf
    assert certificate(torch.zeros(3, 4)) == 1


@pytest.mark.parametrize(
    ("weight", "pivots", "message"),
    [
        (torch.full((2, 2), torch.nan), None, "NaN"),
        (torch.ones(2, 3), torch.tensor([0, 1]), "permutation of the 3 columns, got 2"),
        (torch.ones(2, 3), torch.tensor([0, 1, 1]), "permutation"),
    ],
)
def test_bad_weights_and_pivots_have_no_certificate(weight, pivots, message):
    with pytest.raises(ValueError, match=message):
        certificate(weight, pivots)


@given(matrices)
@settings(max_examples=40, deadline=None)
def test_main_and_sub_are_disjoint_and_minor_is_orthogonal_to_what_came_before(w):
    r_main, r_sub = ranks(w.shape)
    d = directions(w, r_main, r_sub)
    assert not set(d.main_index.tolist()) & set(d.sub_index.tolist())
    basis = torch.cat([d.main_basis, d.sub_basis], 1)
    torch.testing.assert_close(basis.T @ basis, torch.eye(r_main + r_sub), atol=2e-6, rtol=0)
    _, _, p = reference(w)
    before = w[:, p[: min(w.shape) - r_main].copy()]
    assert (d.main_basis.T @ before).abs().max() <= 1e-5 * w.abs().max() if before.numel() else True


def test_a_minor_direction_of_a_wide_weight_comes_from_the_last_of_k_not_of_n():
    w = torch.tensor([[3.0, 0.0, 0.0, 0.1], [0.0, 2.0, 0.0, 0.1]])
    d = directions(w, 1, 1)
    assert (d.sub_index.item(), d.main_index.item()) == (0, 1)


@given(matrices, st.integers(-20, 20), st.integers(0, 100))
@settings(max_examples=40, deadline=None)
def test_invariances(w, exponent, seed):
    r_main, r_sub = ranks(w.shape)
    d = directions(w, r_main, r_sub)
    scaled = directions(w * 2.0**exponent, r_main, r_sub)
    assert torch.equal(d.main_index, scaled.main_index)
    assert torch.equal(d.main_basis, scaled.main_basis)
    rotation = np.linalg.qr(np.random.default_rng(seed).standard_normal((w.shape[0],) * 2))[0]
    rotated = directions(torch.from_numpy(rotation @ w.double().numpy()), r_main, r_sub)
    assert torch.equal(d.main_index, rotated.main_index)
    assert torch.equal(d.sub_index, rotated.sub_index)


def test_threads_and_memory_order_do_not_matter_and_the_input_stays():
    w = matrix((160, 120), kind="outliers")
    kept = w.clone()
    with threadpool_limits(2):
        a = directions(w, 20, 4)
    with threadpool_limits(1):
        b = directions(w.T.contiguous().T, 20, 4)
    for name in ("main_basis", "main_index", "sub_basis", "sub_index"):
        assert torch.equal(getattr(a, name), getattr(b, name))
    assert torch.equal(w, kept)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_factorised_as_its_exact_values(dtype):
    w = matrix((24, 16)).to(dtype)
    a, b = directions(w, 4, 2), directions(w.double(), 4, 2)
    assert torch.equal(a.main_basis, b.main_basis)
    assert torch.equal(a.main_index, b.main_index)


@pytest.mark.parametrize(("r_main", "r_sub"), [(0, 3), (3, 0), (8, 8)])
def test_only_one_adapter_and_all_directions(r_main, r_sub):
    d = directions(matrix((16, 20)), r_main, r_sub)
    assert d.main_basis.shape == (16, r_main)
    assert d.sub_index.shape == (r_sub,)


@pytest.mark.parametrize(
    ("r_main", "r_sub", "message"),
    [
        (0, 0, "not both 0"),
        (-1, 2, "negative"),
        (10, 7, r"rank 17 .*10 \+ r_sub 7\) exceeds min\(out, in\) = 16"),
    ],
)
def test_bad_ranks(r_main, r_sub, message):
    with pytest.raises(ValueError, match=message):
        directions(matrix((16, 20)), r_main, r_sub)


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (torch.full((4, 4), torch.nan), "16 NaN or Inf"),
        (torch.eye(4).index_fill(0, torch.tensor(0), torch.inf), "4 NaN or Inf"),
        (torch.zeros(4, 4, dtype=torch.long), "floating-point"),
        (torch.zeros(4, 4, device="meta"), "meta device"),
    ],
)
def test_bad_values(weight, message):
    with pytest.raises(ValueError, match=message):
        directions(weight, 1, 1)


def test_zero_matrix_keeps_the_order_of_columns_and_warns():
    with pytest.warns(RankWarning, match="rank 0 of 4"):
        d = directions(torch.zeros(4, 6), 2, 1)
    assert torch.equal(d.main_basis, torch.eye(4)[:, 2:])
    assert (d.main_index.tolist(), d.sub_index.tolist()) == ([2, 3], [0])


def test_a_deficient_weight_warns_only_where_the_directions_need_the_rank():
    w = torch.outer(torch.arange(1.0, 7), torch.arange(1.0, 5))
    with pytest.warns(RankWarning, match="rank 1 of 4"):
        directions(w, 2, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        directions(w, 0, 1)


def test_ties_keep_the_identity():
    d = directions(torch.eye(6), 3, 2)
    basis = torch.cat([d.main_basis, d.sub_basis], 1)
    assert torch.equal(basis.T @ basis, torch.eye(5))


@pytest.mark.parametrize("shape", [(40, 24), (24, 40), (16, 16)])
def test_a_stack_equals_one_by_one(shape):
    weights = [matrix(shape, seed, KINDS[seed]) for seed in range(3)] + [torch.ones(shape)]
    with pytest.warns(RankWarning):  # the last weight, which is factorised on the CPU
        found = directions_of_stack(weights, 5, 3)
    with pytest.warns(RankWarning):
        expected = [directions(weight, 5, 3) for weight in weights]
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a.main_index, b.main_index)
        assert torch.equal(a.sub_index, b.sub_index)
        torch.testing.assert_close(a.main_basis, b.main_basis, atol=1e-6, rtol=0)
        torch.testing.assert_close(a.sub_basis, b.sub_basis, atol=1e-6, rtol=0)


def test_a_stack_with_bad_values_or_ranks_is_refused():
    with pytest.raises(ValueError, match="16 NaN or Inf"):
        directions_of_stack([torch.eye(4), torch.full((4, 4), torch.nan)], 1, 1)
    with pytest.raises(ValueError, match="exceeds"):
        directions_of_stack([torch.eye(4)], 3, 2)
