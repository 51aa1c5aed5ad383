"""What makes no sense for LoRA: the parts of the adapter, its start, and what it cannot adapt."""

import copy
from functools import partial
from pathlib import Path

import pytest
import torch
from accelerate import cpu_offload
from peft import PeftModel, convert_to_lora, get_peft_model, inject_adapter_in_model, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import nn

from conformance.methods import LORA, RANK, RECYCLELORA
from conformance.models import KINDS, Kind, kinds
from conformance.steps import (
    adapter_parameters,
    assert_changed,
    assert_close,
    config,
    loss_of,
    output,
    quiet,
    train,
    trained,
    works_or_refuses,
)
from recyclelora import RecycleLoraConfig, param_groups

MLP = KINDS["mlp"]
SOME = pytest.mark.parametrize("kind", kinds("mlp", "conv", "gpt2"), ids=str)
DECOMPOSITIONS = ("rrqr", "svd", "weighted-svd")
FILE = "adapter_model.safetensors"


def own(kind: Kind, **options: object) -> PeftModel:
    settings = {"target_modules": kind.targets, "r_main": 3, "r_sub": 1, "alpha": 4, **kind.options, **options}
    return get_peft_model(kind.build(), RecycleLoraConfig(**settings)).eval()


def ranks_of(layer: nn.Module) -> tuple[int, ...]:
    w = layer.get_base_layer().weight
    held = adapter_parameters(RECYCLELORA, layer)
    return tuple(sum(p.numel() for n, p in held.items() if f"_{r}." in n) // sum(w.shape) for r in ("main", "sub"))


@pytest.mark.parametrize("ranks", [(3, 0), (0, 3), (2, 2)], ids=str)
@pytest.mark.parametrize("decomposition", DECOMPOSITIONS)
@SOME
def test_any_parts_train_save_load_and_merge(kind: Kind, ranks: tuple, decomposition: str, tmp_path: Path) -> None:
    model = own(kind, r_main=ranks[0], r_sub=ranks[1], decomposition=decomposition)
    assert torch.equal(output(kind, model), output(kind, kind.build()))
    train(kind, model)
    after = output(kind, model)
    assert_changed(after, output(kind, kind.build()))
    model.save_pretrained(tmp_path)
    assert torch.equal(output(kind, PeftModel.from_pretrained(kind.build(), tmp_path)), after)
    assert_close(output(kind, model.merge_and_unload(safe_merge=True)), after)


@pytest.mark.parametrize("how", ["new model", "used name"])
@pytest.mark.parametrize("decomposition", DECOMPOSITIONS)
def test_a_file_without_a_part_is_refused(decomposition: str, how: str, tmp_path: Path) -> None:
    """Without its start an adapter gives numbers that were never trained."""
    used = own(MLP, decomposition=decomposition)
    used.save_pretrained(tmp_path)
    held = load_file(tmp_path / FILE)
    if how == "used name":
        load = partial(used.load_adapter, adapter_name="default")
    else:
        load = partial(PeftModel.from_pretrained, MLP.build())
    for part in {name.rpartition(".")[2] for name in held} - {"recycle_scale"}:  # which older files lack
        save_file({name: v for name, v in held.items() if not name.endswith(part)}, tmp_path / FILE)
        with quiet(), pytest.raises((ValueError, RuntimeError), match=part):
            load(tmp_path)


def test_a_file_without_one_layer_is_refused(tmp_path: Path) -> None:
    own(MLP).save_pretrained(tmp_path)
    held = load_file(tmp_path / FILE)
    save_file({name: v for name, v in held.items() if ".lin1." not in name}, tmp_path / FILE)
    with quiet(), pytest.raises((ValueError, RuntimeError), match="lin1"):
        PeftModel.from_pretrained(MLP.build(), tmp_path)


def test_a_folder_of_lora_on_a_used_name_is_refused(tmp_path: Path) -> None:
    trained(LORA, MLP).save_pretrained(tmp_path)
    with pytest.raises((ValueError, RuntimeError)):
        own(MLP).load_adapter(tmp_path, "default")


def test_a_rank_above_a_layers_size_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="lin0"):
        own(MLP, r_main=12, r_sub=1)


CANNOT = {
    "Embedding": nn.Embedding(5, 8),
    "Conv1d": nn.Conv1d(4, 4, 3),
    "Conv3d": nn.Conv3d(4, 4, 3),
    "ConvTranspose2d": nn.ConvTranspose2d(4, 4, 3),
    "Conv2d of 2 groups": nn.Conv2d(4, 4, 3, groups=2),
    "LayerNorm": nn.LayerNorm(4),
    "MultiheadAttention": nn.MultiheadAttention(8, 2),
    "Bilinear": nn.Bilinear(4, 4, 4),
    "LSTM": nn.LSTM(4, 4),
}


@pytest.mark.parametrize("kind", CANNOT)
def test_a_layer_that_cannot_be_adapted_is_refused_by_name(kind: str) -> None:
    base = nn.Sequential(nn.Linear(8, 8), nn.ModuleDict({"odd": copy.deepcopy(CANNOT[kind])}))
    names = [name for name, _ in base.named_modules()]
    with pytest.raises(TypeError, match=rf"'1\.odd' is an? {kind}"):
        get_peft_model(base, RecycleLoraConfig(r_main=1, r_sub=1, target_modules=["0", "odd"]))
    assert [name for name, _ in base.named_modules()] == names


def test_the_projection_of_torchs_attention_is_not_silently_adapted() -> None:
    """`nn.MultiheadAttention` never calls it: an adapter there would be trained by nothing."""
    kind = KINDS["attention"]
    with pytest.raises((TypeError, ValueError), match=r"attn\.out_proj"):
        own(kind, target_modules=["out_proj"])
    with quiet():  # the layer is left out, which is reported
        model = own(kind, target_modules="all-linear")
    assert set(RECYCLELORA.layers(model)) == {"up", "down", "head"}
    loss_of(kind, model).backward()
    assert all(p.grad is not None for p in adapter_parameters(RECYCLELORA, model).values())


def test_the_fast_path_of_torchs_encoder_does_not_pass_the_adapter_by() -> None:
    """For inference, `nn.TransformerEncoderLayer` reads the weights of its linear layers itself."""
    torch.manual_seed(0)
    base = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 24, dropout=0.0, batch_first=True), 2)
    x, config = torch.randn(2, 5, 16), RecycleLoraConfig(r_main=3, r_sub=1, target_modules=["linear1", "linear2"])
    model = get_peft_model(base, config)
    for p in adapter_parameters(RECYCLELORA, model).values():
        p.data.add_(torch.randn_like(p), alpha=0.2)
    expected = model.train()(x).detach()
    with torch.no_grad():
        assert_close(model.eval()(x), expected)
    with torch.no_grad(), model.disable_adapter():
        assert_changed(model(x), expected)


def test_an_offloaded_base_is_adapted_or_refused() -> None:
    base = MLP.build()
    with quiet():
        cpu_offload(base, "cpu")
    with works_or_refuses():
        model = get_peft_model(base, config(RECYCLELORA, MLP)).eval()
        assert torch.equal(output(MLP, model), output(MLP, MLP.build()))


@pytest.mark.parametrize("second", [{"r_sub": 0}, {"r_main": 0}, {"decomposition": "svd"}], ids=str)
def test_injecting_again_leaves_no_old_state(second: dict[str, object]) -> None:
    ranks = {"r_main": 3, "r_sub": 1, "target_modules": MLP.targets}
    model = inject_adapter_in_model(RecycleLoraConfig(**ranks), MLP.build())
    train(MLP, model)
    with quiet():
        model = inject_adapter_in_model(RecycleLoraConfig(**{**ranks, **second}), model)
    fresh = inject_adapter_in_model(RecycleLoraConfig(**{**ranks, **second}), MLP.build())
    assert model.state_dict().keys() == fresh.state_dict().keys()
    assert all(torch.equal(v, fresh.state_dict()[name]) for name, v in model.state_dict().items())


def test_a_rank_pattern_gives_each_part_its_rank() -> None:
    model = own(MLP, rank_pattern={"lin1": [1, 2], "lin0": [0, 3]})
    assert ranks_of(model.base_model.model.lin0) == (0, 3)
    assert ranks_of(model.base_model.model.lin1) == (1, 2)


@pytest.mark.parametrize(
    "options",
    [
        {"rank_pattern": {"lin0": [-1, 2]}}, {"rank_pattern": {"lin0": [0, 0]}}, {"rank_pattern": {"lin0": [1, 2, 3]}},
        {"alpha_pattern": {"lin0": 0.0}}, {"alpha": -1.0}, {"dropout": 1.0}, {"dropout": -0.1}, {"bias": "lora_only"},
    ],
    ids=str,
)  # fmt: skip
def test_values_that_make_no_sense_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(options)).partition("_")[0]):
        RecycleLoraConfig(**options)


def test_the_groups_of_a_rank_pattern_hold_every_parameter_once() -> None:
    model = own(MLP, rank_pattern={"lin1": [0, 2]})
    groups = param_groups(model, 1e-2, 0.0)
    held = [p for group in groups for p in group["params"]]
    assert len(held) == len(set(held)) == len(list(adapter_parameters(RECYCLELORA, model)))


def test_dropout_of_a_second_adapter_leaves_the_first_alone() -> None:
    model = own(MLP)
    train(MLP, model)
    before = output(MLP, model)
    model.add_adapter("second", RecycleLoraConfig(r_main=3, r_sub=1, target_modules=MLP.targets, dropout=0.5))
    assert torch.equal(output(MLP, model.train()), before)


@pytest.mark.parametrize("kind", kinds("mlp", "gpt2"), ids=str)
def test_pefts_conversion_to_lora_approximates_the_change(kind: Kind) -> None:
    model = own(kind)
    train(kind, model)
    converted, values = convert_to_lora(model, rank=2 * RANK, progressbar=False)
    with quiet():  # LoRA reports that it sets the option for GPT-2's layers itself
        lora = get_peft_model(kind.build(), converted).eval()
    set_peft_model_state_dict(lora, values)
    assert_close(output(kind, lora), output(kind, model), rtol=1e-2, atol=1e-3)
