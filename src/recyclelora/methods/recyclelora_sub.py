"""RecycleLoRA with only its sub adapter, an ablation of its paper."""

from __future__ import annotations

from pydantic import Field

from recyclelora.methods.recyclelora import PAPER, RecycleLora, RecycleLoraSettings


class SubSettings(RecycleLoraSettings):
    """RecycleLoRA's settings without a main adapter; the scale is 1 / r_sub."""

    r_main: int = Field(0, ge=0)


class SubAlone(RecycleLora):
    """Only the adapter that starts from major directions."""

    settings = SubSettings


METHOD = SubAlone("recyclelora-sub", PAPER)
