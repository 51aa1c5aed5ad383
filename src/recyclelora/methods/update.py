"""The change of one layer's weight by training, and the factors of this change."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float, Int64
from torch import Tensor


@dataclass(frozen=True)
class Update:
    """The change of one layer's weight by one adapter, `delta` = s (B A - B0 A0); all on the CPU, in float32.

    `B` and `A` are the trained factors and `rank` is the rank of B A; they are None if the change has no factors. If
    B0 A0 is not zero, the change itself can have up to twice this rank. `index` has the columns of the ones in a
    one-hot A0, and is None for any other A0.
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
        """The rank of B A."""
        return None if self.A is None else self.A.shape[0]
