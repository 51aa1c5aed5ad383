"""torchvision beside a CPU-only torch.

PyPI's torchvision is built for CUDA. Beside a CPU torch its compiled library does not load, and `import torchvision`
(hence `import timm`) fails with "operator torchvision::nms does not exist": it registers shape functions for `nms` and
`qnms` whether or not the operators are there. Declaring the two without a kernel makes imports and transforms work;
calling them still fails, and nothing in this package calls them.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch

_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_declared: list[torch.library.Library] = []  # operators live only as long as the library that declares them


def ensure_torchvision() -> bool:
    """Make torchvision importable beside a CPU torch; True if that took the two declarations.

    Does nothing beside a CUDA torch, beside a torchvision that loads, or without torchvision. Takes effect only before
    the first import of torchvision or timm; calling it again is harmless.
    """
    if not _declared and torch.version.cuda is None and not _compiled_library_loads():
        library = torch.library.Library("torchvision", "DEF")
        for operator in ("nms", "qnms"):
            library.define(operator + _SCHEMA)
        _declared.append(library)
    return bool(_declared)


def _compiled_library_loads() -> bool:
    """Whether torchvision's own operators are there, or torchvision is not installed at all."""
    spec = importlib.util.find_spec("torchvision")
    if spec is None:
        return True
    for folder in spec.submodule_search_locations or ():
        for library in Path(folder).glob("_C.*"):  # _C.so, or _C.pyd on Windows
            try:
                torch.ops.load_library(str(library))
            except OSError:
                return False
            return True
    return False
