"""OLoRA: a LoRA that starts from an unpivoted QR of the weight; the start is subtracted from the frozen weight."""

from __future__ import annotations

from recyclelora.methods.pissa import ResidualLora

METHOD = ResidualLora("olora", "Büyükakyüz, arXiv 2406.01775", init_lora_weights="olora")
