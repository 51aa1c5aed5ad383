"""Configuration of the RecycleLoRA adapter."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from peft.config import PeftConfig

from recyclelora.factors import Decomposition

PEFT_TYPE = "RECYCLELORA"
Scaling = Literal["rank", "sqrt-rank"]


@dataclass
class RecycleLoraConfig(PeftConfig):
    """Two adapters a linear layer: a main one from minor directions, a sub one from major directions.

    Raises:
        ValueError: unknown `decomposition` or `scaling`, a negative rank, both ranks 0, or `alpha` not positive.
    """

    r_main: int = field(default=32, metadata={"help": "Rank of the main adapter (minor directions); 0 leaves it out."})
    r_sub: int = field(default=4, metadata={"help": "Rank of the sub adapter (major directions); 0 leaves it out."})
    alpha: float = field(default=1.0, metadata={"help": "The update is scaled by alpha / (r_main + r_sub)."})
    scaling: Scaling = field(
        default="rank",
        metadata={"help": "'rank': alpha / r (published); 'sqrt-rank': alpha / sqrt(r), r = r_main + r_sub."},
    )
    decomposition: Decomposition = field(
        default="rrqr", metadata={"help": "Where directions come from: 'rrqr' (published), 'svd' or 'weighted-svd'."}
    )
    target_modules: list[str] | str | None = field(
        default=None,
        metadata={"help": "Names or a regex of the linear layers; None takes all of a ViT's attention and MLP layers."},
    )
    exclude_modules: list[str] | str | None = field(default=None, metadata={"help": "Names or a regex to leave out."})
    layers_to_transform: list[int] | int | None = field(
        default=None, metadata={"help": "Numbers of the transformer blocks to adapt; None takes all."}
    )
    modules_to_save: list[str] | None = field(
        default=None, metadata={"help": "Other modules to train and save whole, a classifier for example."}
    )
    init_weights: bool = field(
        default=True,
        metadata={
            "help": "Factorise the base weights. A saved configuration says False: its directions lie in the adapter "
            "file, and until they are loaded the adapter holds NaN."
        },
    )

    cache_factors: bool = field(
        default=False,
        metadata={
            "help": "Keep the factors in the cache folder, so that a base seen before is not factorised again; the "
            "environment variable RECYCLELORA_CACHE_FACTORS=1 does so as well."
        },
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PEFT_TYPE
        if self.decomposition not in get_args(Decomposition):
            known = ", ".join(get_args(Decomposition))
            raise ValueError(f"unknown decomposition {self.decomposition!r}; known: {known}")
        if self.r_main < 0 or self.r_sub < 0 or self.r_main + self.r_sub == 0:
            raise ValueError(f"ranks must not be negative and not both 0, got r_main={self.r_main}, r_sub={self.r_sub}")
        if not self.alpha > 0:
            raise ValueError(f"alpha must be positive, got {self.alpha}")
        if self.scaling not in get_args(Scaling):
            raise ValueError(f"unknown scaling {self.scaling!r}; known: {', '.join(get_args(Scaling))}")

    @property
    def scale(self) -> float:
        """What the update is multiplied by."""
        rank = self.r_main + self.r_sub
        return self.alpha / (rank if self.scaling == "rank" else math.sqrt(rank))

    def save_pretrained(self, save_directory: str, **kwargs: Any) -> None:
        """Write `adapter_config.json`; as the directions are saved beside it, loading does not draw them again."""
        drawn, self.init_weights = self.init_weights, False
        try:
            super().save_pretrained(save_directory, **kwargs)
        finally:
            self.init_weights = drawn
