"""`onnx`: a model for onnxruntime and other programs that read ONNX, with a script that runs it.

DIR/model.onnx    images, uint8 (batch, 3, window, window), RGB -> logits, float32 (batch, classes, window, window)
    model.onnx.data   its weights, if they take 2 GiB or more
    model-int8.onnx   if asked for: the same with 8-bit products, see `int8.py`
    sliding.py    an image of any size -> windows -> labels; needs NumPy, Pillow and onnxruntime alone

The window is fixed, because sizes of windows that change are exported without a complaint and then fail.
"""

from __future__ import annotations

import logging
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import torch
from timm.models.vision_transformer_sam import Attention as SamAttention

from recyclelora.errors import MissingExtraError
from recyclelora.exporting import sliding
from recyclelora.exporting.lean import lean
from recyclelora.exporting.program import example, exporter
from recyclelora.exporting.trained import Scores, Trained

MODELS = (sliding.MODEL, sliding.INT8_MODEL)
FILES = (*MODELS, *(f"{name}.data" for name in MODELS), "sliding.py")
OPSET = 20
"""The version of ONNX's operators; GridSample, which deformable attention needs, is among them since 16."""


def check_packages() -> None:
    """Refuse to begin without the packages of the extra `export`.

    Raises:
        MissingExtraError: one of them is not installed.
    """
    for name in ("onnx", "onnxscript", "onnxruntime"):
        if find_spec(name) is None:
            raise MissingExtraError("the format onnx", name, "export")


def write(trained: Trained, folder: Path) -> Scores:
    """Write the model and the script; what is returned computes with both."""
    # In a module of modules the names of all tensors have a dot; "mean" alone is an operator's name, too.
    inner = torch.nn.Sequential(lean(trained.model.segmenter))
    for module in inner.modules():
        if isinstance(module, SamAttention):  # fused, it has three dimensions, of which torch's exporter has no form
            module.fused_attn = False
    with quiet(), exporter(trained, "torch.onnx"):
        program = torch.onnx.export(
            inner, (example(trained),), dynamo=True, opset_version=OPSET, verbose=False,
            input_names=["images"], output_names=["logits"], dynamic_shapes=({0: torch.export.Dim("batch")},),
        )  # fmt: skip
        assert program is not None
        for node in program.model.graph.all_nodes():
            node.metadata_props.pop("pkg.torch.onnx.stack_trace", None)  # it names the folders of this computer
        program.save(folder / sliding.MODEL)
    shutil.copyfile(sliding.__file__, folder / "sliding.py")
    forward = sliding.open_model(folder / sliding.MODEL)
    plan = trained.plan
    return lambda image: sliding.scores(forward, image, plan.window, plan.stride, plan.batch_size)


@contextmanager
def quiet() -> Iterator[None]:
    """Leave out what torch's exporter and ONNX's optimiser report of their own parts."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
