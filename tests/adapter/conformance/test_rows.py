"""Batches in which each row has its own adapter."""

import pytest
import torch

from conformance.methods import Method
from conformance.models import KINDS, Kind, kinds
from conformance.steps import (
    assert_close,
    output,
    quiet,
    two,
    works_or_refuses,
)

MLP = KINDS["mlp"]


@pytest.mark.parametrize("kind", kinds("mlp", "conv", "timm", "bert", "gpt2"), ids=str)
def test_each_row_of_a_batch_can_have_its_own_adapter(method: Method, kind: Kind) -> None:
    model = two(method, kind)
    names = ["default", "second", "__base__"][: len(next(iter(kind.inputs.values())))]
    expected = [output(kind, model)]
    model.set_adapter("second")
    expected.append(output(kind, model))
    expected.append(output(kind, kind.build()))
    found = output(kind, model, adapter_names=names)
    for row, name in enumerate(names):
        assert_close(found[row], expected[["default", "second", "__base__"].index(name)][row])


def test_rows_with_their_own_adapter_have_their_own_saved_modules(method: Method) -> None:
    model = two(method, MLP, first={"modules_to_save": ["head"]}, modules_to_save=["head"])
    expected = {"default": output(MLP, model)}
    model.set_adapter("second")
    expected["second"] = output(MLP, model)
    found = output(MLP, model, adapter_names=["second", "default", "second"])
    assert_close(found[1], expected["default"][1])
    assert_close(found[2], expected["second"][2])


def test_text_is_generated_by_each_rows_adapter(method: Method) -> None:
    kind = KINDS["llama"]
    model = two(method, kind)
    words, settings = kind.inputs["input_ids"], {"max_new_tokens": 4, "do_sample": False}
    with quiet():
        first = model.generate(input_ids=words[:1], **settings)
        found = model.generate(input_ids=words, adapter_names=["default", "second"], **settings)
    assert torch.equal(found[0], first[0])


def test_beam_search_by_each_rows_adapter_works_or_is_refused(method: Method) -> None:
    kind = KINDS["llama"]
    model = two(method, kind)
    words, settings = kind.inputs["input_ids"], {"max_new_tokens": 3, "do_sample": False, "num_beams": 2}
    with quiet(), works_or_refuses():
        found = model.generate(input_ids=words, adapter_names=["default", "second"], **settings)
        assert torch.equal(found[0], model.generate(input_ids=words[:1], **settings)[0])


@pytest.mark.parametrize("names", [["default"], ["default", "default", "unknown"]], ids=str)
def test_wrong_adapter_names_of_a_batch_are_refused(method: Method, names: list[str]) -> None:
    with pytest.raises(ValueError, match="adapter"):
        output(MLP, two(method, MLP), adapter_names=names)


def test_adapter_names_of_a_batch_are_refused_in_training(method: Method) -> None:
    with pytest.raises(ValueError, match="training"):
        output(MLP, two(method, MLP).train(), adapter_names=["default"] * 3)
