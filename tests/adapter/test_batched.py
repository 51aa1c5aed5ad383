"""Pivoted QR of stacks with torch operations, on the CPU, against LAPACK's."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from matrices import KINDS, matrix
from recyclelora.adapter.rrqr import batched, ways


def stack(shape, kinds=KINDS):
    return torch.stack([matrix(shape, seed, kind).double() for seed, kind in enumerate(kinds)])


@pytest.mark.parametrize("shape", [(200, 150), (150, 200), (140, 140), (1, 5), (5, 1)])
def test_equals_the_reference(shape):
    k = min(shape)
    r_main, r_sub = max(1, k // 4), k // 8
    w = stack(shape)
    for weight, found in zip(w, batched.factorise(w, r_main, r_sub), strict=True):
        expected = ways.reference(weight.numpy(), r_main, r_sub)
        assert found is not None
        assert found.pivots[:k].tolist() == expected.pivots[:k].tolist()
        assert sorted(found.pivots) == list(range(shape[1]))
        np.testing.assert_allclose(found.diagonal, expected.diagonal, rtol=1e-6, atol=1e-9 * expected.diagonal[0])
        np.testing.assert_allclose(found.q, expected.q, atol=1e-9)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 10_000), st.sampled_from(KINDS), st.data())
@settings(max_examples=60, deadline=None)
def test_any_shape_and_ranks(m, n, seed, kind, data):
    w = matrix((m, n), seed, kind).double()
    k = min(m, n)
    r_main = data.draw(st.integers(0, k))
    r_sub = data.draw(st.integers(0, k - r_main))
    (found,) = batched.factorise(w[None], r_main, r_sub)
    if found is not None:
        expected = ways.reference(w.numpy(), r_main, r_sub)
        assert found.pivots[:k].tolist() == expected.pivots[:k].tolist()
        np.testing.assert_allclose(found.q, expected.q, atol=1e-9)


@pytest.mark.parametrize("w", [torch.eye(6), torch.zeros(5, 4), torch.ones(4, 6)], ids=["ties", "zero", "deficient"])
def test_a_weight_with_ties_is_left_open_and_its_neighbour_is_not(w):
    good = matrix(tuple(w.shape), 0).double()
    undecided, found = batched.factorise(torch.stack([w.double(), good]), 2, 1)
    assert undecided is None
    assert found is not None
    k = min(w.shape)
    assert found.pivots[:k].tolist() == ways.reference(good.numpy(), 2, 1).pivots[:k].tolist()
