"""Configuration of the RecycleLoRA adapter."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Literal, NamedTuple, get_args

from peft.config import PeftConfig
from peft.utils.other import get_pattern_key

from recyclelora.adapter.factors import Decomposition

Scaling = Literal["rank", "sqrt-rank"]
Bias = Literal["none", "all", "recycle_only"]


class PeftType(str, Enum):  # noqa: UP042  a StrEnum has another str(), from which PEFT reads the name
    """The method's entry beside PEFT's own enum of the same name, whose members cannot be extended.

    PEFT and transformers compare it with strings, and read its `value`.
    """

    RECYCLELORA = "RECYCLELORA"


class LayerSettings(NamedTuple):
    """What a configuration says about one layer."""

    r_main: int
    r_sub: int
    scale: float

    @property
    def ranks(self) -> tuple[int, int]:
        """r_main and r_sub."""
        return self.r_main, self.r_sub


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
        use_rslora (`bool`, *optional*, defaults to `False`):
            PEFT's name for `scaling="sqrt-rank"`.
        rank_pattern (`dict[str, list[int]]`, *optional*):
            Other ranks for some layers: a name ending or regular expression, and the pair `[r_main, r_sub]` of the
            layers that it matches, for example `{"attn.proj": [16, 2]}`. The first pattern that matches counts.
        alpha_pattern (`dict[str, float]`, *optional*):
            Another `alpha` for some layers, written as in `rank_pattern`.
        dropout (`float`, *optional*, defaults to `0.0`):
            The probability of dropout on the input of the adapters, in training mode; the base's input stays whole.
        bias (`Literal["none", "all", "recycle_only"]`, *optional*, defaults to `"none"`):
            Which biases of the model are trained and saved with the adapter: none, all, or those of adapted layers.
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
            The numbers of the transformer blocks to adapt. By default, or if the list is empty, all blocks are adapted.
            As in PEFT, a layer that `target_modules` lists by its full name is adapted in any case.
        layers_pattern (`Union[list[str], str]`, *optional*):
            The name of the list that holds the blocks, such as `"layers"`, if a name has several numbers. By default
            the number of a block is the first number after a name.
        fan_in_fan_out (`bool`, *optional*, defaults to `False`):
            Accepted because PEFT has it. Layers that keep their weight as (in, out), like those of GPT-2, are detected;
            `True` says that you expect only such layers, and any other layer is named in a warning.
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
        ValueError: a setting is unknown or out of its range: `decomposition`, `scaling`, `bias`, a rank (also in
            `rank_pattern`), `alpha` (also in `alpha_pattern`), `dropout`, or `layers_pattern` without
            `layers_to_transform`.
    """

    r_main: int = field(default=32, metadata={"help": "Rank of the main adapter (minor directions); 0 leaves it out."})
    r_sub: int = field(default=4, metadata={"help": "Rank of the sub adapter (major directions); 0 leaves it out."})
    alpha: float = field(default=1.0, metadata={"help": "The update is scaled by alpha / (r_main + r_sub)."})
    scaling: Scaling = field(
        default="rank",
        metadata={"help": "'rank': alpha / r (published); 'sqrt-rank': alpha / sqrt(r), r = r_main + r_sub."},
    )
    use_rslora: bool = field(default=False, metadata={"help": "PEFT's name for scaling='sqrt-rank'."})
    rank_pattern: dict[str, list[int]] = field(
        default_factory=dict, metadata={"help": "Other ranks for some layers: {name or regex: [r_main, r_sub]}."}
    )
    alpha_pattern: dict[str, float] = field(
        default_factory=dict, metadata={"help": "Another alpha for some layers: {name or regex: alpha}."}
    )
    dropout: float = field(default=0.0, metadata={"help": "Dropout on the input of the adapters, in training mode."})
    bias: Bias = field(
        default="none", metadata={"help": "Trained biases: 'none', 'all', or 'recycle_only' (of adapted layers)."}
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
    layers_pattern: list[str] | str | None = field(
        default=None, metadata={"help": "Name of the list of blocks, if names have several numbers."}
    )
    fan_in_fan_out: bool = field(
        default=False, metadata={"help": "Expect layers that keep their weight as (in, out); they are detected."}
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
        self.peft_type = PeftType.RECYCLELORA
        if self.use_rslora:
            self.scaling = "sqrt-rank"
        self.use_rslora = self.scaling == "sqrt-rank"
        for name, kinds in (("decomposition", Decomposition), ("scaling", Scaling), ("bias", Bias)):
            value, known = getattr(self, name), get_args(kinds)
            if value not in known:
                raise ValueError(f"unknown {name} {value!r}; known: {', '.join(known)}")
        _check_ranks("", self.r_main, self.r_sub)
        for name, ranks in _named("rank_pattern", self.rank_pattern).items():
            if not isinstance(ranks, list | tuple) or len(ranks) != 2:
                raise ValueError(f"{name} is {ranks!r}, expected the pair [r_main, r_sub]")
            _check_ranks(f"{name}: ", *ranks)
        for name, alpha in {"alpha": self.alpha, **_named("alpha_pattern", self.alpha_pattern)}.items():
            if not alpha > 0:
                raise ValueError(f"{name} must be positive, got {alpha}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be at least 0 and less than 1, got {self.dropout}")
        if isinstance(self.target_modules, list) and not self.target_modules:
            raise ValueError("target_modules is an empty list; leave it out to adapt all attention and MLP layers")
        if self.layers_pattern and self.layers_to_transform in (None, []):
            raise ValueError("layers_pattern has an effect only with layers_to_transform, which is not given")

    @property
    def scale(self) -> float:
        """The factor by which the update is multiplied, where no pattern applies."""
        return self._scale(self.r_main, self.r_sub, self.alpha)

    def _scale(self, r_main: int, r_sub: int, alpha: float) -> float:
        rank = r_main + r_sub
        return alpha / (rank if self.scaling == "rank" else math.sqrt(rank))

    def of_layer(self, name: str) -> LayerSettings:
        """Ranks and scale of the layer of this name."""
        r_main, r_sub = self.rank_pattern.get(get_pattern_key(list(self.rank_pattern), name), [self.r_main, self.r_sub])
        alpha = self.alpha_pattern.get(get_pattern_key(list(self.alpha_pattern), name), self.alpha)
        return LayerSettings(r_main, r_sub, self._scale(r_main, r_sub, alpha))

    def save_pretrained(self, save_directory: str, **kwargs: Any) -> None:
        """Write `adapter_config.json`. Loading does not factorise again, as the directions are saved next to it."""
        drawn, self.init_weights = self.init_weights, False
        try:
            super().save_pretrained(save_directory, **kwargs)
        finally:
            self.init_weights = drawn


def _check_ranks(where: str, r_main: int, r_sub: int) -> None:
    if r_main < 0 or r_sub < 0 or r_main + r_sub == 0:
        raise ValueError(f"{where}ranks must not be negative and not both 0, got r_main={r_main}, r_sub={r_sub}")


def _named(setting: str, patterns: dict[str, Any]) -> dict[str, Any]:
    """The values of a dictionary of patterns, by the names that messages have for them."""
    return {f"{setting}[{pattern!r}]": value for pattern, value in patterns.items()}
