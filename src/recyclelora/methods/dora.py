"""DoRA: a LoRA that also trains the magnitude of each row of the weight."""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from torch import Tensor

from recyclelora.adapter.base import weight_matrix
from recyclelora.methods.lora import Lora


class Dora(Lora):
    """A LoRA whose update rescales whole rows of the weight."""

    def _delta(self, layer: Any, base: Float[Tensor, "out in"]) -> Float[Tensor, "out in"]:
        layer.merge()
        delta = weight_matrix(layer.get_base_layer()).detach() - base
        layer.unmerge()
        return delta


METHOD = Dora("dora", "Liu et al., ICML 2024, arXiv 2402.09353", use_dora=True)
