"""Trainings by the Trainer of transformers."""

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import nn
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments

from conformance.methods import Method
from conformance.models import KINDS, Kind, kinds
from conformance.steps import adapted, adapter_parameters, assert_close, output, quiet

SOME = pytest.mark.parametrize("kind", kinds("llama", "vit"), ids=str)


class Examples(Dataset):
    """Noise with labels, which are those of the next word for language models."""

    def __init__(self, kind: Kind) -> None:
        generator = torch.Generator().manual_seed(4)
        words = torch.randint(3, 20, (16, 6), generator=generator)
        images = torch.randn(16, 3, 16, 16, generator=generator)
        self.rows = (
            [{"pixel_values": x, "labels": torch.tensor(i % 5)} for i, x in enumerate(images)]
            if kind.name == "vit"
            else [{"input_ids": x, "labels": x} for x in words]
        )

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return self.rows[index]


def trainer(kind: Kind, model: nn.Module, folder: Path, **settings: object) -> Trainer:
    arguments = TrainingArguments(
        output_dir=str(folder), max_steps=4, save_steps=2, per_device_train_batch_size=4, learning_rate=1e-2,
        use_cpu=True, report_to=[], disable_tqdm=True, logging_strategy="no", dataloader_pin_memory=False, **settings,
    )  # fmt: skip
    return Trainer(model=model, args=arguments, train_dataset=Examples(kind), eval_dataset=Examples(kind))


def values(method: Method, model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in adapter_parameters(method, model).items()}


@SOME
def test_a_resumed_training_equals_an_uninterrupted_one(method: Method, kind: Kind, tmp_path: Path) -> None:
    model, resumed = adapted(method, kind), adapted(method, kind, seed=1)
    start = values(method, model)
    with quiet():
        trainer(kind, model, tmp_path).train()
        trainer(kind, resumed, tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    expected, found = values(method, model), values(method, resumed)
    assert all(not torch.equal(p, start[name]) for name, p in expected.items())
    for name, p in expected.items():
        assert torch.equal(found[name], p), name


def test_a_checkpoint_is_an_adapters_folder(method: Method, tmp_path: Path) -> None:
    kind = KINDS["llama"]
    model = adapted(method, kind)
    with quiet():
        trainer(kind, model, tmp_path).train()
    loaded = PeftModel.from_pretrained(kind.build(), tmp_path / "checkpoint-4")
    assert torch.equal(output(kind, loaded), output(kind, model.eval()))


@pytest.mark.parametrize(
    "settings", [{"gradient_checkpointing": True}, {"bf16": True}, {"gradient_accumulation_steps": 2}], ids=str
)
def test_the_trainers_settings_are_honoured(method: Method, settings: dict[str, object], tmp_path: Path) -> None:
    kind = KINDS["llama"]
    model = adapted(method, kind)
    start = values(method, model)
    with quiet():
        trainer(kind, model, tmp_path, **settings).train()
    for name, p in values(method, model).items():
        assert p.isfinite().all()
        assert not torch.equal(p, start[name]), name


def test_checkpointing_in_the_trainer_gives_the_same_weights(method: Method, tmp_path: Path) -> None:
    kind = KINDS["llama"]
    found = []
    for checkpointing in (False, True):
        model = adapted(method, kind)
        with quiet():
            trainer(kind, model, tmp_path / str(checkpointing), gradient_checkpointing=checkpointing).train()
        found.append(values(method, model))
    for name, p in found[0].items():
        assert_close(found[1][name], p)


def test_the_best_checkpoint_is_loaded_at_the_end(method: Method, tmp_path: Path) -> None:
    kind = KINDS["llama"]
    model = adapted(method, kind)
    with quiet():
        run = trainer(
            kind, model, tmp_path, eval_strategy="steps", eval_steps=2, load_best_model_at_end=True,
            metric_for_best_model="eval_loss", greater_is_better=True,
        )  # fmt: skip
        run.train()
    best = PeftModel.from_pretrained(kind.build(), run.state.best_model_checkpoint)
    assert torch.equal(output(kind, best), output(kind, model.eval()))
