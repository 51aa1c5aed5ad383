"""Types of tasks, and text that is generated."""

from pathlib import Path

import pytest
import torch
from peft import PeftConfig, PeftModel, TaskType

from conformance.methods import Method
from conformance.models import Kind, kinds
from conformance.steps import (
    output,
    quiet,
    trained,
)

TASKS = {"bert": TaskType.SEQ_CLS, "gpt2": TaskType.CAUSAL_LM, "llama": TaskType.CAUSAL_LM, "t5": TaskType.SEQ_2_SEQ_LM}


@pytest.mark.parametrize("kind", kinds(*TASKS), ids=str)
def test_a_task_type_gives_its_model_and_is_saved(method: Method, kind: Kind, tmp_path: Path) -> None:
    model = trained(method, kind, task_type=TASKS[kind.name])
    assert type(model) is not PeftModel
    model.save_pretrained(tmp_path)
    assert PeftConfig.from_pretrained(tmp_path).task_type == TASKS[kind.name]
    loaded = PeftModel.from_pretrained(kind.build(), tmp_path)
    assert type(loaded) is type(model)
    assert torch.equal(output(kind, loaded), output(kind, model))
    assert any("classifier" in n for n, p in model.named_parameters() if p.requires_grad) == (kind.name == "bert")


@pytest.mark.parametrize("kind", kinds("gpt2", "llama", "t5"), ids=str)
def test_text_is_generated_as_by_the_merged_model(method: Method, kind: Kind) -> None:
    model = trained(method, kind, task_type=TASKS[kind.name])
    settings = {"input_ids": kind.inputs["input_ids"], "max_new_tokens": 4, "do_sample": False}
    with quiet():
        found = model.generate(**settings)
        assert torch.equal(found, model.merge_and_unload().generate(**settings))
