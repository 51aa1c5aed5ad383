"""Shapes are checked while the tests run: every annotated function of the listed modules goes through beartype."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two test processes on two cores: more threads only wait on each other
os.environ["HF_HUB_OFFLINE"] = "1"

from jaxtyping import install_import_hook

# The tuner and its factors stay outside: torch.compile does not trace through the wrappers.
CHECKED = [f"recyclelora.{name}" for name in ("rrqr", "backbone", "heads", "segmenter", "data", "evaluation")]
install_import_hook(CHECKED, "beartype.beartype")

import recyclelora  # noqa: E402, F401  timm needs it to be imported first where torch is a CPU build
