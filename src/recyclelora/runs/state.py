"""The state of a run's training."""

from __future__ import annotations

from typing import Literal

State = Literal["training", "stopped", "finished", "diverged"]
