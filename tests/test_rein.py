"""Rein's tokens, against the formulas of the paper written out."""

import copy
import math

import timm
import torch

from recyclelora.rein import ReinBlock, SharedProjections, attach_rein
from vits import images, tiny_vit


def test_it_starts_as_the_model_was_and_only_tokens_are_trained():
    base, model = tiny_vit(), tiny_vit().requires_grad_(False)
    attach_rein(model, tokens=5, rank=2)
    with torch.no_grad():
        assert torch.equal(model(images()), base(images()))
    assert {name.split(".")[2] for name, p in model.named_parameters() if p.requires_grad} == {
        "rein_A", "rein_B", "rein_shared",
    }  # fmt: skip


def test_the_refinement_is_that_of_the_paper():
    torch.manual_seed(0)
    n, c, m, r = 7, 6, 4, 2
    shared = SharedProjections(c)
    for parameter in shared.parameters():
        torch.nn.init.normal_(parameter)
    block = ReinBlock(torch.nn.Identity(), shared, m, r, prefix=1)
    x = torch.randn(2, 1 + n, c)
    y = block(x)
    assert torch.equal(y[:, :1], x[:, :1])  # the class token is not refined
    T = block.rein_A @ block.rein_B
    W_T, b_T = shared.tokens.weight.T, shared.tokens.bias
    W_f, b_f = shared.features.weight.T, shared.features.bias
    for image in range(2):
        f = x[image, 1:]
        S = torch.stack([torch.softmax(row @ T.T / math.sqrt(c), 0) for row in f])
        inner = sum(S[:, i : i + 1] * (T[i] @ W_T + b_T) for i in range(1, m))
        torch.testing.assert_close(y[image, 1:], f + (f + inner) @ W_f + b_f)


def test_the_published_number_of_parameters_at_dinov2_l():
    """2.99 M with 100 tokens of rank 16, of which 0.46 M belong to the link to a mask head's queries."""
    with torch.device("meta"):
        model = timm.create_model("vit_large_patch14_dinov2", num_classes=0).requires_grad_(False)
        attach_rein(model, 100, 16)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    queries = (1024 * 256 + 256) + (3 * 256 * 256 + 256)
    assert trained == 24 * (100 * 16 + 16 * 1024) + 2 * (1024 * 1024 + 1024) == 2_990_080 - queries


def test_projections_are_shared_and_copies_are_not():
    model = tiny_vit()
    attach_rein(model, 5, 2)
    assert model.blocks[0].rein_shared is model.blocks[1].rein_shared
    other = copy.deepcopy(model)
    assert other.blocks[0].rein_shared is other.blocks[1].rein_shared is not model.blocks[0].rein_shared
