"""Which layers a configuration adapts."""

import pytest
import torch
from peft import get_peft_model, inject_adapter_in_model

from conformance.methods import Method
from conformance.models import KINDS, Kind, kinds
from conformance.steps import adapted, config, output, quiet, works_or_refuses

EXPERTS, LLAMA, TIMM = KINDS["experts"], KINDS["llama"], KINDS["timm"]


def chosen(method: Method, kind: Kind, **options: object) -> set[str]:
    return set(method.layers(adapted(method, kind, **options)))


def test_a_whole_name_in_a_list_adapts_that_layer(method: Method) -> None:
    assert chosen(method, EXPERTS, target_modules=["layers.1.experts.2.up"]) == {"layers.1.experts.2.up"}


def test_the_end_of_a_name_counts_from_a_dot_only(method: Method) -> None:
    assert chosen(method, TIMM, target_modules=["proj"]) == {
        "blocks.0.attn.proj", "blocks.1.attn.proj", "patch_embed.proj"
    }  # fmt: skip
    assert chosen(method, LLAMA, target_modules=["q_proj"]) == {f"model.layers.{i}.self_attn.q_proj" for i in (0, 1)}


def test_a_set_of_names_is_taken_as_a_list(method: Method) -> None:
    assert chosen(method, KINDS["mlp"], target_modules={"lin0"}) == {"lin0"}


def test_a_string_is_a_regular_expression_of_whole_names(method: Method) -> None:
    assert chosen(method, TIMM, target_modules=r".*\.1\.mlp\.fc\d") == {"blocks.1.mlp.fc1", "blocks.1.mlp.fc2"}


@pytest.mark.parametrize("kind", kinds("mlp", "experts", "timm", "llama", "t5"), ids=str)
def test_all_linear_takes_each_linear_layer_but_the_output(method: Method, kind: Kind) -> None:
    base = kind.build()
    linear = {name for name, m in base.named_modules() if isinstance(m, torch.nn.Linear)}
    embeddings = base.get_output_embeddings() if hasattr(base, "get_output_embeddings") else None
    expected = linear if embeddings is None else linear - {kind.head}
    model = adapted(method, kind, target_modules="all-linear")
    assert set(method.layers(model)) == expected
    assert torch.equal(output(kind, model), output(kind, base))


def test_all_linear_takes_the_conv1d_layers_of_gpt2(method: Method) -> None:
    assert len(chosen(method, KINDS["gpt2"], target_modules="all-linear")) == 8


@pytest.mark.parametrize("exclude", [["mlp.fc2"], r".*\.fc2", ["blocks.0.mlp.fc2", "blocks.1.mlp.fc2"]], ids=str)
def test_excluded_modules_are_left_out(method: Method, exclude: list[str] | str) -> None:
    names = chosen(method, TIMM, exclude_modules=exclude)
    assert len(names) == 6
    assert not any("fc2" in name for name in names)


def test_modules_to_save_are_not_adapted(method: Method) -> None:
    assert chosen(method, KINDS["mlp"], target_modules=["lin0", "head"], modules_to_save=["head"]) == {"lin0"}


@pytest.mark.parametrize(("blocks", "expected"), [(1, {1}), ([0], {0}), ([0, 1], {0, 1}), ([], {0, 1}), (None, {0, 1})])
def test_only_the_layers_to_transform_are_adapted(method: Method, blocks: object, expected: set[int]) -> None:
    names = chosen(method, LLAMA, layers_to_transform=blocks)
    assert {int(name.split(".")[2]) for name in names} == expected


def test_an_experts_number_is_not_a_blocks_number(method: Method) -> None:
    names = chosen(method, EXPERTS, layers_to_transform=[1], layers_pattern="layers")
    assert len(names) == 8
    assert all(name.startswith("layers.1.experts.") for name in names)


def test_a_layer_of_a_sequence_has_not_the_blocks_number(method: Method) -> None:
    names = chosen(method, KINDS["torchvision"], layers_to_transform=[1])
    assert names == {"encoder.layers.1.mlp.0", "encoder.layers.1.mlp.3"}


@pytest.mark.parametrize("pattern", ["experts", ["experts"], ["nothing", "experts"]], ids=str)
def test_the_layers_pattern_says_which_number_counts(method: Method, pattern: object) -> None:
    names = chosen(method, EXPERTS, layers_to_transform=[2], layers_pattern=pattern)
    assert len(names) == 4
    assert all(".experts.2." in name for name in names)


def test_layers_to_transform_hold_for_a_regex_or_are_refused(method: Method) -> None:
    with works_or_refuses():
        names = chosen(method, LLAMA, target_modules=r".*q_proj", layers_to_transform=[1])
        assert names == {"model.layers.1.self_attn.q_proj"}


def test_a_layers_pattern_needs_layers_to_transform(method: Method) -> None:
    with pytest.raises(ValueError, match="layers_to_transform"):
        method.config(target_modules=["q_proj"], layers_pattern="layers")


@pytest.mark.parametrize("options", [{"target_modules": ["nothing"]}, {"layers_to_transform": [7]}], ids=str)
def test_targets_that_match_nothing_are_an_error(method: Method, options: dict[str, object]) -> None:
    base = LLAMA.build()
    with pytest.raises(ValueError, match=r"not found|No modules|no layer"):
        get_peft_model(base, config(method, LLAMA, **options))
    assert not method.layers(base)


def test_excluding_everything_is_an_error(method: Method) -> None:
    with pytest.raises(ValueError, match="exclude"):
        adapted(method, KINDS["mlp"], exclude_modules=["lin0", "lin1"])


def test_an_exclusion_without_effect_is_reported(method: Method) -> None:
    with pytest.warns(UserWarning, match="exclude_modules"):
        adapted(method, KINDS["mlp"], exclude_modules=["nothing"])


@pytest.mark.parametrize("kind", kinds("gpt2", "llama", "opt", "t5", "bert"), ids=str)
def test_known_models_need_no_targets(method: Method, kind: Kind) -> None:
    with quiet():
        model = adapted(method, kind, target_modules=None)
    assert len(method.layers(model)) >= 2
    assert torch.equal(output(kind, model), output(kind, kind.build()))


def test_an_unknown_model_without_targets_is_an_error(method: Method) -> None:
    with pytest.raises(ValueError, match="target_modules"):
        get_peft_model(torch.nn.Sequential(torch.nn.Linear(12, 12)), method.config())


@pytest.mark.parametrize("kind", kinds("mlp", "timm", "gpt2", "t5"), ids=str)
def test_injection_without_a_wrapper_adapts_the_same(method: Method, kind: Kind) -> None:
    model = inject_adapter_in_model(config(method, kind), kind.build())
    assert set(method.layers(model)) == chosen(method, kind)
    assert torch.equal(output(kind, model), output(kind, kind.build()))


def test_all_linear_means_the_layers_of_the_model_at_hand(method: Method) -> None:
    first = method.layers(adapted(method, KINDS["mlp"], target_modules="all-linear"))
    again = method.layers(adapted(method, EXPERTS, target_modules="all-linear"))
    assert len(first) == 3
    assert len(again) == 19
