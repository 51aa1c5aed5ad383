"""Closed forms and identities of the analyses."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recyclelora.study import measures as an


def orthonormal(m, n, seed=0):
    return torch.linalg.qr(torch.randn(m, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))[0]


@pytest.mark.parametrize("rank", [1, 3, 6])
def test_equal_singular_values_have_the_full_effective_rank(rank):
    update = 5 * orthonormal(8, rank) @ orthonormal(6, rank, 1).T
    assert an.effective_rank(update) == pytest.approx(rank)


def test_effective_rank_of_two_values_is_the_exponential_of_their_entropy():
    shares = torch.tensor([0.75, 0.25])
    expected = math.exp(-sum(p * math.log(p) for p in shares.tolist()))
    assert an.effective_rank(torch.diag(4 * shares)) == pytest.approx(expected)
    assert an.effective_rank(torch.zeros(3, 2)) == 0


@given(st.integers(1, 8), st.integers(2, 12), st.integers(2, 12), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_the_effective_rank_of_a_product_is_that_of_the_matrix(r, m, n, seed):
    generator = torch.Generator().manual_seed(seed)
    B, A = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((m, r), (r, n)))
    expected = an.effective_rank(B @ A)
    assert an.effective_rank_of_product(B, A) == pytest.approx(expected, rel=1e-6)
    assert 0 < an.rank_efficiency(B, A) == pytest.approx(expected / r, rel=1e-6)


def test_mean_cosine():
    assert an.mean_cosine(torch.eye(4)) == 0
    assert an.mean_cosine(torch.tensor([[1.0, 0], [-2, 0], [0, 3]])) == pytest.approx(1 / 3)
    assert an.mean_cosine(torch.tensor([[1.0, 0], [0, 0]])) == 0
    assert an.mean_cosine(torch.ones(1, 3)) == 0


def test_principal_angles_of_planes_turned_by_known_angles():
    U = torch.eye(5, 2, dtype=torch.float64)
    V = torch.zeros(5, 2, dtype=torch.float64)
    V[:, 0] = torch.tensor([math.cos(0.3), 0, math.sin(0.3), 0, 0])
    V[:, 1] = torch.tensor([0, math.cos(1.2), 0, math.sin(1.2), 0])
    torch.testing.assert_close(an.principal_angles(U, 7 * V), torch.tensor([1.2, 0.3], dtype=torch.float64))
    assert an.grassmann_distance(U, V) == pytest.approx(math.sqrt((1.2**2 + 0.3**2) / 2) / (math.pi / 2))


def test_grassmann_distance_between_nothing_and_everything_in_common():
    Q = orthonormal(9, 6)
    assert an.grassmann_distance(Q[:, :3], Q[:, :3] @ torch.randn(3, 3, dtype=torch.float64)) == pytest.approx(
        0, abs=1e-6
    )
    assert an.grassmann_distance(Q[:, :3], Q[:, 3:]) == pytest.approx(1)
    assert an.grassmann_distance(Q[:, :1], Q[:, :3]) == pytest.approx(0, abs=1e-7)


def test_energy_lies_where_the_update_does():
    base = orthonormal(10, 10) @ torch.diag(torch.arange(10.0, 0, -1, dtype=torch.float64)) @ orthonormal(10, 10, 1).T
    U, _, Vh = torch.linalg.svd(base)
    update = 2 * torch.outer(U[:, 3], torch.ones(10, dtype=torch.float64)) + torch.outer(U[:, 9], torch.ones(10))
    profile = an.energy_profile(update, U)
    torch.testing.assert_close(profile, torch.tensor([0, 0, 0, 0.8, 0, 0, 0, 0, 0, 0.2], dtype=torch.float64))
    assert an.alignment_with_top(torch.outer(U[:, 0], Vh[1]), U[:, :2], Vh[:2]) == pytest.approx(1)
    assert an.alignment_with_top(torch.outer(U[:, 0], Vh[2]), U[:, :2], Vh[:2]) == pytest.approx(0, abs=1e-12)


def test_energy_outside_the_space_of_the_base_is_in_no_part():
    U, outside = torch.eye(4, 2), torch.zeros(4, 2)
    outside[3, 0] = 1
    assert an.energy_profile(outside, U, 2).sum() == 0
    assert an.energy_profile(torch.eye(4, 2), U, 2).tolist() == pytest.approx([0.5, 0.5])


def test_column_norm_ratio():
    A = torch.tensor([[3.0, 1, 1, 1], [4, 0, 0, 2]])
    assert an.column_norm_ratio(A, torch.tensor([0, 3])) == pytest.approx(((5 + math.sqrt(5)) / 2) / 1)
    assert an.column_norm_ratio(A, torch.arange(4)) is None  # there are no others
    assert an.column_norm_ratio(torch.eye(2, 4), torch.tensor([0, 1])) is None  # or they are as empty as at the start


@given(st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_cka_ignores_rotation_scale_and_shift_and_sees_the_rest(seed):
    X = torch.randn(40, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    assert an.linear_cka(X, 3 * X @ orthonormal(6, 6, seed) + 7) == pytest.approx(1)
    other = torch.randn(40, 6, generator=torch.Generator().manual_seed(seed + 1000), dtype=torch.float64)
    assert an.linear_cka(X, other) < 0.6
    assert an.linear_cka(X, other) == pytest.approx(an.linear_cka(other, X))
    K, L = ((Z - Z.mean(0)) @ (Z - Z.mean(0)).T for Z in (X, other))  # as Hilbert-Schmidt criterion of kernels
    assert an.linear_cka(X, other) == pytest.approx(float((K * L).sum() / (K.norm() * L.norm())))


def test_principal_components_find_the_axis_of_a_line():
    along = torch.linspace(-1, 1, 101)
    features = torch.outer(along, torch.tensor([0.6, 0.8])) + 5
    found = an.principal_components(features, 1)[:, 0]
    assert torch.corrcoef(torch.stack([found, along.double()]))[0, 1].abs() > 0.99
    assert (found.min(), found.max()) == (0, 1)
