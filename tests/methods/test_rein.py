"""Rein's tokens, against the formulas of the paper written out."""

import copy
import math

import pytest
import timm
import torch

from miniatures import SMALL_HEAD, TINY
from recyclelora.errors import UserError
from recyclelora.methods import get_method
from recyclelora.methods.rein import LinkedQueries, ReinBlock, SharedProjections, attach_rein
from recyclelora.models.backbone import Backbone
from recyclelora.models.heads.linear import LinearHead
from recyclelora.models.heads.mask2former import Mask2FormerHead
from vits import images, tiny_vit


def with_tokens(tokens=4, rank=2):
    """The tiny backbone with Rein's tokens on it."""
    torch.manual_seed(0)
    rein, backbone = get_method("rein"), Backbone(TINY["model"], "random", model_args=TINY["model_args"])
    rein.attach(backbone, rein.settings(tokens=tokens, rank=rank))
    return backbone


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


def test_queries_are_those_of_the_paper():
    """The formula is written out token by token."""
    torch.manual_seed(0)
    model = tiny_vit()
    attach_rein(model, tokens=4, rank=2)
    link = LinkedQueries(list(model.blocks), width=8)
    (W, b), (W_all, b_all) = ((part.weight.T, part.bias) for part in (link.each, link.all))
    for token in range(4):
        Q = [(block.rein_A @ block.rein_B)[token] @ W + b for block in model.blocks]
        largest = torch.stack([max(q[j] for q in Q) for j in range(8)])
        torch.testing.assert_close(link.weight[token], torch.cat([largest, sum(Q) / 2, Q[1]]) @ W_all + b_all)


def test_a_mask_heads_queries_follow_the_tokens_and_train_them():
    backbone = with_tokens()
    model, head = backbone.model, Mask2FormerHead([48] * 4, classes=3, **SMALL_HEAD)
    get_method("rein").link_head(backbone, head)
    assert not [name for name in head.state_dict() if "rein" in name]  # the tokens are the backbone's
    maps = [torch.randn(1, 48, 8, 8) for _ in range(4)]
    (first, _), *_ = head.predictions(maps)
    first.square().sum().backward()
    assert all(block.rein_A.grad.abs().sum() > 0 for block in model.blocks)
    with torch.no_grad():
        model.blocks[0].rein_A += 1
    (moved, _), *_ = head.predictions(maps)
    assert not torch.allclose(moved, first)


def test_every_query_needs_a_token():
    backbone, rein = with_tokens(tokens=4), get_method("rein")
    with pytest.raises(UserError, match=r"4 tokens .* 100 queries, .* adapter.tokens=100 or head_args.queries=4"):
        rein.link_head(backbone, Mask2FormerHead([48] * 4, classes=3))


def test_a_head_without_queries_is_left_as_it_is():
    head = LinearHead([48], classes=3)
    names, state = [*head.state_dict()], {name: value.clone() for name, value in head.state_dict().items()}
    get_method("rein").link_head(with_tokens(), head)
    assert [*head.state_dict()] == names
    assert all(torch.equal(value, state[name]) for name, value in head.state_dict().items())


def test_the_published_number_of_parameters_at_dinov2_l():
    """2.99 M with 100 tokens of rank 16, of which 0.46 M make the queries of a mask head."""
    with torch.device("meta"):
        model = timm.create_model("vit_large_patch14_dinov2", num_classes=0).requires_grad_(False)
        attach_rein(model, 100, 16)
        link = LinkedQueries(list(model.blocks), 256)
    trained = [p.numel() for p in (*model.parameters(), *link.parameters()) if p.requires_grad]
    assert sum(trained) == 2_990_080
    assert sum(p.numel() for p in link.parameters()) == 459_264


def test_projections_are_shared_and_copies_are_not():
    model = tiny_vit()
    attach_rein(model, 5, 2)
    assert model.blocks[0].rein_shared is model.blocks[1].rein_shared
    other = copy.deepcopy(model)
    assert other.blocks[0].rein_shared is other.blocks[1].rein_shared is not model.blocks[0].rein_shared
