"""Configuration of the RecycleLoRA adapter."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from peft.config import PeftConfig

from recyclelora.adapter.factors import Decomposition

PEFT_TYPE = "RECYCLELORA"
Scaling = Literal["rank", "sqrt-rank"]


@dataclass
class RecycleLoraConfig(PeftConfig):
    """The settings of [`RecycleLoraModel`], which adds two adapters to every layer that it adapts.

    Args:
        r_main (`int`, *optional*, defaults to `32`):
            The rank of the main adapter. It starts from the minor directions of the weight, the last columns of Q of
            its rank-revealing QR, and learns at the full rate. 0 leaves the main adapter out.
        r_sub (`int`, *optional*, defaults to `4`):
            The rank of the sub adapter. It starts from the major directions, the first columns of Q, and learns at half
            the rate (see `recyclelora.param_groups`). 0 leaves the sub adapter out. The two ranks must not both be 0,
            and their sum must not exceed the smaller side of any adapted weight.
        alpha (`float`, *optional*, defaults to `1.0`):
            The update is multiplied by `alpha / (r_main + r_sub)`, the *total* rank. The published value is 1. For
            the scale 1 of a plain LoRA, set `alpha = r_main + r_sub`.
        scaling (`Literal["rank", "sqrt-rank"]`, *optional*, defaults to `"rank"`):
            What `alpha` is divided by: the total rank, as published, or its square root, as in rank-stabilised LoRA.
        decomposition (`Literal["rrqr", "svd", "weighted-svd"]`, *optional*, defaults to `"rrqr"`):
            Where the directions come from. `"rrqr"` is the published rank-revealing QR. `"svd"` takes singular vectors,
            `"weighted-svd"` singular vectors times the square roots of their singular values (as MiLoRA and SoMA do).
        target_modules (`Union[list[str], str]`, *optional*):
            The layers to adapt, as in PEFT: a list of name endings, a regular expression that matches whole names, or
            `"all-linear"`. By default all attention and MLP layers inside the numbered blocks are adapted, of the ViTs
            and language models of timm and transformers; other linear layers of the blocks are named in a warning.
        exclude_modules (`Union[list[str], str]`, *optional*):
            Layers to leave out, written as in `target_modules`.
        layers_to_transform (`Union[list[int], int]`, *optional*):
            The numbers of the transformer blocks to adapt. By default all blocks are adapted.
        modules_to_save (`list[str]`, *optional*):
            Modules that are trained and saved whole in addition to the adapters, such as a classifier.
        init_weights (`bool`, *optional*, defaults to `True`):
            Whether to factorise the base weights when the adapter is added. A saved configuration says `False`, because
            its directions are in the adapter's file and are never computed again. Until they are loaded, the adapter
            holds NaN, so that an adapter that was not loaded cannot be mistaken for a trained one.
        cache_factors (`bool`, *optional*, defaults to `False`):
            Whether to keep the factors of each weight in the user's cache folder (`RECYCLELORA_CACHE`), so that the
            same base is not factorised again. The environment variable `RECYCLELORA_CACHE_FACTORS=1` does the same.

    Raises:
        ValueError: `decomposition` or `scaling` is unknown, a rank is negative, both ranks are 0, or `alpha` is not
            positive.
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
        default=True, metadata={"help": "Factorise the base weights; False waits for an adapter's file to be loaded."}
    )
    cache_factors: bool = field(
        default=False, metadata={"help": "Keep the factors of each weight on disk for the next time."}
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
        """The factor by which the update is multiplied."""
        rank = self.r_main + self.r_sub
        return self.alpha / (rank if self.scaling == "rank" else math.sqrt(rank))

    def save_pretrained(self, save_directory: str, **kwargs: Any) -> None:
        """Write `adapter_config.json`. Loading does not factorise again, as the directions are saved next to it."""
        drawn, self.init_weights = self.init_weights, False
        try:
            super().save_pretrained(save_directory, **kwargs)
        finally:
            self.init_weights = drawn
