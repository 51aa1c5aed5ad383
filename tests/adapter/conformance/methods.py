"""What the checks need to know of a method: how to write its configuration, and how its parameters are named."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from peft import LoraConfig, PeftConfig
from torch import nn

from recyclelora import RecycleLoraConfig

RANK = 4


@dataclass(frozen=True)
class Method:
    """A method of PEFT. The options of its configuration are written as LoRA writes them; `write` translates them."""

    name: str
    prefix: str
    """Every parameter of an adapter has this in its name, right after the name of its layer."""
    config_class: type[PeftConfig]
    write: Callable[[dict[str, Any]], dict[str, Any]]

    def config(self, **options: Any) -> PeftConfig:
        """A configuration of rank 4 whose update has the scale 1, with `options`, in the words of LoRA.

        `bias="only"` stands for the biases of the adapted layers. `r`, `alpha` and `dropout` are the common words.
        """
        rank = options.get("r", RANK)
        return self.config_class(**self.write({"r": rank, "alpha": rank, **options}))

    def __str__(self) -> str:
        return self.name

    def is_adapter(self, parameter: str) -> bool:
        """Whether a parameter of this name belongs to an adapter of this method."""
        return f".{self.prefix}" in f".{parameter}"

    def layers(self, model: nn.Module) -> dict[str, nn.Module]:
        """The adapted layers by their names in the base model."""
        return {
            name.removeprefix("base_model.model."): module
            for name, module in model.named_modules()
            if hasattr(module, "base_layer") and any(self.is_adapter(n) for n, _ in module.named_children())
        }


def _rename(options: dict[str, Any], **names: str) -> dict[str, Any]:
    return {names.get(name, name): value for name, value in options.items()}


def write_lora(options: dict[str, Any]) -> dict[str, Any]:
    if options.get("bias") == "only":
        options = {**options, "bias": "lora_only"}
    return _rename(options, alpha="lora_alpha", dropout="lora_dropout")


def split(rank: int) -> tuple[int, int]:
    """`rank` directions, one of them for the sub adapter."""
    return (rank - 1, 1) if rank > 1 else (1, 0)


def write_recyclelora(options: dict[str, Any]) -> dict[str, Any]:
    options = dict(options)
    options["r_main"], options["r_sub"] = split(options.pop("r"))
    if "rank_pattern" in options:
        options["rank_pattern"] = {name: list(split(rank)) for name, rank in options["rank_pattern"].items()}
    if options.get("bias") == "only":
        options["bias"] = "recycle_only"
    return options


LORA = Method("lora", "lora_", LoraConfig, write_lora)
RECYCLELORA = Method("recyclelora", "recycle_", RecycleLoraConfig, write_recyclelora)
METHODS: Sequence[Method] = (LORA, RECYCLELORA)


def other(method: Method) -> Method:
    return RECYCLELORA if method is LORA else LORA
