"""RecycleLoRA with only its main adapter, an ablation of its paper."""

from __future__ import annotations

from pydantic import Field

from recyclelora.methods.recyclelora import PAPER, RecycleLora, RecycleLoraSettings


class MainSettings(RecycleLoraSettings):
    """RecycleLoRA's settings without a sub adapter; the scale is 1 / r_main."""

    r_sub: int = Field(0, ge=0)


class MainAlone(RecycleLora):
    """Only the adapter that starts from minor directions."""

    settings = MainSettings


METHOD = MainAlone("recyclelora-main", PAPER)
