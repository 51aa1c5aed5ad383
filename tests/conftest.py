"""Shapes are checked while the tests run: every annotated function of the listed modules goes through beartype."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two test processes on two cores: more threads only wait on each other
os.environ["HF_HUB_OFFLINE"] = "1"

import typing

import threadpoolctl  # noqa: F401
from jaxtyping import install_import_hook

import recyclelora

# Left out: the adapter except its RRQR, as torch.compile does not trace wrapped functions, and the drawing of street
# scenes, whose hundred thousands of small calls would take ten times as long.
DATA = (
    "check", "class_counts", "colours", "dataset", "decoding", "domain", "files", "jpeg", "label_maps", "labels",
    "layouts", "opening", "table", "transforms",
)  # fmt: skip
MODELS = ("backbone", "heads", "segmenter", "sliding", "plan", "logits", "windows")
CHECKED = ["adapter.rrqr", "evaluation", "published", "pages", "runs.overlay", "streets.scene"]
CHECKED += ["exporting.check", "exporting.trained"]
CHECKED += [f"data.{name}" for name in DATA] + [f"models.{name}" for name in MODELS]
install_import_hook([f"recyclelora.{name}" for name in CHECKED], "beartype.beartype")

# Without the other rooms the adapter needs no jaxtyping: its shapes are imported only for type checkers.
import peft  # noqa: E402, F401
import scipy.linalg  # noqa: E402, F401

typing.TYPE_CHECKING = True
import recyclelora.adapter  # noqa: E402, F401

typing.TYPE_CHECKING = False
