"""QR-LoRA against its formulas, with SciPy's pivoted QR in float64."""

import numpy as np
import pytest
import scipy.linalg
import torch

from miniatures import TINY
from recyclelora.methods import get_method
from recyclelora.models.backbone import Backbone

RANK = 7
LAYERS = {"attn.qkv": (144, 48), "attn.proj": (48, 48), "mlp.fc1": (192, 48), "mlp.fc2": (48, 192)}
"""Tall, square and wide weights."""


def backbone():
    torch.manual_seed(0)
    return Backbone(TINY["model"], "random", model_args=TINY["model_args"])


def attached(**settings):
    method, model = get_method("qr-lora"), backbone()
    method.attach(model, method.settings(**{"rank": RANK, **settings}))
    return model


def reference(weight, rank=RANK):
    """Q_r, R_r P' of W P = Q R, with the diagonal of R positive."""
    Q, R, order = scipy.linalg.qr(weight.detach().flatten(1).double().numpy(), mode="economic", pivoting=True)
    signs = np.sign(np.diagonal(R))
    Q, R = Q * signs, R * signs[:, None]
    rows = np.empty_like(R)
    rows[:, order] = R
    return torch.from_numpy(Q[:, :rank].copy()), torch.from_numpy(rows[:rank].copy())


def inside(model, name):
    return model.get_submodule(f"{name}.parametrizations.weight.0")


@pytest.mark.parametrize("layer", LAYERS)
def test_the_basis_is_that_of_a_pivoted_qr_and_the_weight_is_rescaled_along_it(layer):
    base, model = backbone().model, attached().model
    for block in range(2):
        name = f"blocks.{block}.{layer}"
        W0, part = base.get_submodule(name).weight.detach(), inside(model, name)
        assert tuple(W0.shape) == LAYERS[layer]
        Q, rows = reference(W0)
        torch.testing.assert_close(part.basis.double(), Q, atol=1e-6, rtol=1e-5)
        assert torch.equal(part.coefficients, torch.zeros(RANK))
        assert torch.equal(model.get_submodule(name).weight, W0)
        c = torch.randn(RANK, generator=torch.Generator().manual_seed(block))
        part.coefficients.data.copy_(c)
        expected = W0.double() + Q @ torch.diag(c.double()) @ rows
        torch.testing.assert_close(model.get_submodule(name).weight.double(), expected, atol=1e-6, rtol=1e-5)


def test_a_kernel_is_seen_as_a_matrix():
    base = backbone().model.patch_embed.proj.weight.detach()
    model = attached(target_modules=["patch_embed.proj"]).model
    Q, rows = reference(base)
    c = torch.arange(1.0, RANK + 1)
    inside(model, "patch_embed.proj").coefficients.data.copy_(c)
    expected = base.double() + (Q @ torch.diag(c.double()) @ rows).view(base.shape)
    torch.testing.assert_close(model.patch_embed.proj.weight.double(), expected, atol=1e-5, rtol=1e-5)


def test_the_whole_basis_with_equal_coefficients_rescales_the_weight():
    """With all directions, Q diag(c) R P' at c = 1 is W0 once more."""
    base, model = backbone().model, attached(rank=48).model
    for name in ("blocks.0.attn.qkv", "blocks.1.mlp.fc2"):
        inside(model, name).coefficients.data.fill_(1)
        twice = 2 * base.get_submodule(name).weight
        torch.testing.assert_close(model.get_submodule(name).weight, twice, atol=1e-5, rtol=1e-4)


def test_the_gradient_of_a_coefficient_is_the_change_along_its_direction():
    """d loss / d c_i is the sum over the weight of its gradient times q_i r_i'."""
    model = attached().model
    x = torch.randn(2, 3, 32, 32)
    model.forward_features(x).square().mean().backward()
    plain = backbone().model
    plain.forward_features(x).square().mean().backward()
    for name in ("blocks.0.attn.qkv", "blocks.1.mlp.fc1"):
        layer = plain.get_submodule(name)
        Q, rows = reference(layer.weight)
        expected = ((Q.T @ layer.weight.grad.double()) * rows).sum(1)
        found = inside(model, name).coefficients.grad.double()
        torch.testing.assert_close(found, expected, atol=1e-7, rtol=1e-3)


def test_updates_are_made_of_the_directions_and_their_coefficients(tmp_path):
    method, model, base = get_method("qr-lora"), attached(), backbone()
    coefficients = {}
    for name in [f"blocks.{block}.{layer}" for block in range(2) for layer in LAYERS]:
        coefficients[name] = torch.randn(RANK)
        inside(model.model, name).coefficients.data.copy_(coefficients[name])
    method.save(model, tmp_path)
    updates = list(method.updates(backbone(), method.settings(rank=RANK), tmp_path))
    assert [update.layer for update in updates] == [*coefficients]
    for update in updates:
        Q, rows = reference(base.model.get_submodule(update.layer).weight)
        torch.testing.assert_close(update.B.double(), Q * coefficients[update.layer], atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(update.A.double(), rows, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(update.delta, update.B @ update.A, atol=1e-6, rtol=1e-5)


def test_a_rank_larger_than_a_layer_is_refused_and_the_largest_is_not():
    from recyclelora.errors import UserError

    attached(rank=48)
    with pytest.raises(UserError, match=r"qr-lora on vit_tiny_patch16_224: layer 'blocks.0.attn.qkv'.*49"):
        attached(rank=49)


def test_bases_are_read_from_the_cache_of_factors(tmp_path, monkeypatch):
    monkeypatch.setenv("RECYCLELORA_CACHE", str(tmp_path))
    method = get_method("qr-lora")
    states = []
    for cached in (False, True, True):
        model = backbone()
        method.attach(model, method.settings(rank=RANK), cache_factors=cached)
        states.append(model.model.state_dict())
    assert any(path.is_file() for path in tmp_path.rglob("*"))
    for name, value in states[0].items():
        assert all(torch.equal(state[name], value) for state in states[1:]), name
