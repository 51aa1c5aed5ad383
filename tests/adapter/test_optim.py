"""Parameter groups."""

import pytest
from peft import get_peft_model
from torch import nn

from recyclelora import RecycleLoraConfig, param_groups
from vits import tiny_vit


class WithHead(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = get_peft_model(tiny_vit(), RecycleLoraConfig(r_main=4, r_sub=2))
        self.head = nn.Linear(48, 5)
        self.norm = nn.GroupNorm(1, 5)
        self.query_embed = nn.Embedding(3, 5)


def test_every_trained_parameter_is_in_one_group_at_its_rate():
    model = WithHead()
    groups = {g["name"]: g for g in param_groups(model, 1e-3, 0.05, sub_lr_ratio=0.25)}
    assert {name: (g["lr"], g["weight_decay"]) for name, g in groups.items()} == {
        "main": (1e-3, 0.0), "sub": (0.25e-3, 0.0), "other": (1e-3, 0.05), "undecayed": (1e-3, 0.0),
    }  # fmt: skip
    grouped = [id(p) for g in groups.values() for p in g["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    names = {id(p): n for n, p in model.named_parameters()}
    assert all("_main." in names[id(p)] for p in groups["main"]["params"])
    assert all("_sub." in names[id(p)] for p in groups["sub"]["params"])
    assert {names[id(p)] for p in groups["other"]["params"]} == {"head.weight", "head.bias"}
    assert {names[id(p)] for p in groups["undecayed"]["params"]} == {
        "norm.weight", "norm.bias", "query_embed.weight",
    }  # fmt: skip


def test_a_head_can_have_its_own_rate_and_a_backbone_has_that_of_adapters():
    model = WithHead()
    for parameter in model.backbone.parameters():
        parameter.requires_grad_(not parameter.requires_grad)  # the backbone in place of its adapters
    groups = {g["name"]: g for g in param_groups(model, 1e-3, 0.05, head_lr=0.1)}
    assert {name: (g["lr"], g["weight_decay"]) for name, g in groups.items()} == {
        "backbone": (1e-3, 0.05), "backbone undecayed": (1e-3, 0.0), "adapter": (1e-3, 0.0), "other": (0.1, 0.05),
        "undecayed": (0.1, 0.0),
    }  # fmt: skip
    names = {id(p): n for n, p in model.named_parameters()}
    assert all(names[id(p)].endswith(".base_layer.bias") for p in groups["adapter"]["params"])
    assert all(".norm" in names[id(p)] for p in groups["backbone undecayed"]["params"])


def test_the_published_ratio_is_the_default_and_empty_groups_are_left_out():
    groups = param_groups(get_peft_model(tiny_vit(), RecycleLoraConfig(r_main=4, r_sub=2)), 1e-4, 0.05)
    assert [(g["name"], g["lr"]) for g in groups] == [("main", 1e-4), ("sub", 0.5e-4)]


def test_nothing_to_train_is_an_error():
    with pytest.raises(ValueError, match="no parameter of the model requires a gradient"):
        param_groups(nn.Linear(2, 2).requires_grad_(False), 1e-3, 0.0)
