"""How a training changed each layer's weight: the updates of a run, by adapter, with the factors they are made of."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxtyping import Float, Int64
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from torch import Tensor, nn

from recyclelora.errors import UserError
from recyclelora.factors import one_hot
from recyclelora.methods import MUTATING, TRAINED
from recyclelora.run import Run, base_of
from recyclelora.tuner import RecycleLoraLayer
from recyclelora.tuner.base import weight_matrix
from recyclelora.tuner.model import target_names


@dataclass(frozen=True)
class Update:
    """The change of one layer's weight by one adapter, `delta` = s (B A - B0 A0); all on the CPU, in float32.

    `B` and `A` are the trained factors and `rank` that of B A, None where the change is not of factors. With B0 A0 not
    zero the change itself can have up to twice that rank. `index` are the columns of the ones that A started with,
    where it did.
    """

    layer: str
    role: str
    base: Float[Tensor, "out in"]
    delta: Float[Tensor, "out in"]
    B: Float[Tensor, "out r"] | None = None
    A: Float[Tensor, "r in"] | None = None
    index: Int64[Tensor, " r"] | None = None

    @property
    def rank(self) -> int | None:
        """Of B A."""
        return None if self.A is None else self.A.shape[0]


def layer_updates(run: Run, weights: str | None = None) -> list[Update]:
    """The updates of a finished run, block by block; of both adapters where there are two.

    Raises:
        UserError: the run is not finished, or its method changes no weights.
    """
    if not run.finished:
        raise UserError(f"{run.path}: the training is not finished; go on with `recyclelora train --resume`")
    method = run.recipe.method
    if method in ("frozen", "rein", "imported"):
        raise UserError(f"{run.path}: method {method} leaves no change of the base's weights to look at")
    backbone = base_of(run, weights).backbone
    folder = run.path / "adapter"
    if method == "full":
        return list(_of_whole(backbone.model, folder))
    model = PeftModel.from_pretrained(backbone.model, str(folder))
    return [update for name, module in model.get_base_model().named_modules() for update in _of(name, module, method)]


def _of_whole(model: nn.Module, folder: Path) -> Iterator[Update]:
    trained = load_file(folder / TRAINED)
    for name in target_names(model):
        base = weight_matrix(model.get_submodule(name)).detach()
        yield Update(name, "full", base, trained[f"{name}.weight"].flatten(1) - base)


def _of(name: str, module: nn.Module, method: str) -> Iterator[Update]:
    if isinstance(module, RecycleLoraLayer):
        yield from _of_recyclelora(name, module, method)
    elif isinstance(module, LoraLayer):
        yield _of_lora(name, module, method)


def _of_recyclelora(name: str, layer: RecycleLoraLayer, method: str) -> Iterator[Update]:
    base = weight_matrix(layer.get_base_layer()).detach()
    for role, factors in layer.factors_of("default").items():
        A, B, A0, B0 = (factor.detach() for factor in factors)
        index = None
        if not A0.is_floating_point():
            index, A0 = A0, one_hot(A0, A.shape[1], A.dtype)
        delta = layer.scaling["default"] * (B @ A - B0 @ A0)
        yield Update(name, role if method.startswith("recyclelora") else method, base, delta, B, A, index)


def _of_lora(name: str, layer: Any, method: str) -> Update:
    base = weight_matrix(layer.get_base_layer()).detach().clone()
    A, B = (factors["default"].weight.detach().flatten(1) for factors in (layer.lora_A, layer.lora_B))
    if method in MUTATING:  # saved as [A; A0] and [B, -B0]
        half = A.shape[0] // 2
        A, B = A[:half], B[:, :half]
    if method == "dora":  # rescales whole rows of the weight
        layer.merge()
        delta = weight_matrix(layer.get_base_layer()).detach() - base
        layer.unmerge()
    else:
        delta = layer.get_delta_weight("default").detach().flatten(1)
    return Update(name, method, base, delta, B, A)
