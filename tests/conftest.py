"""Shapes are checked while the tests run: every annotated function of the listed modules goes through beartype."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two test processes on two cores: more threads only wait on each other
os.environ["HF_HUB_OFFLINE"] = "1"

from jaxtyping import install_import_hook

# Left out: the tuner and its factors, whose wrapped functions torch.compile does not trace, and the drawing of street
# scenes, whose hundred thousands of small calls would take ten times as long.
DATA = (
    "benchmarks", "check", "dataset", "decode", "domain", "faults", "folders", "label_maps", "labels", "layouts",
    "table", "transforms", "streets.scene",
)  # fmt: skip
CHECKED = ["rrqr", "backbone", "heads", "segmenter", "sliding", "evaluation", "report", "results", "published"]
CHECKED += [f"data.{name}" for name in DATA]
install_import_hook([f"recyclelora.{name}" for name in CHECKED], "beartype.beartype")

import recyclelora  # noqa: E402, F401  timm needs it to be imported first where torch is a CPU build
