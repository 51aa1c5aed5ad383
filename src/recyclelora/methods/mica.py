"""PEFT's MiCA: B holds minor singular vectors and is frozen, A is trained from zero."""

from __future__ import annotations

from recyclelora.methods.lora import Lora

METHOD = Lora("mica", "arXiv 2604.01694", init_lora_weights="mica")
