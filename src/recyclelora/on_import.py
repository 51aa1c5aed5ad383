"""What happens when PEFT or torchvision is imported in a process that has imported recyclelora.

Neither is imported here, so that `import recyclelora` stays fast.

    peft           RecycleLoRA is registered after the import, so that `PeftModel.from_pretrained` loads its adapters
    torchvision    two operators are declared before the import if its compiled library does not load

PyPI's torchvision is built for CUDA. With a CPU build of torch its compiled library does not load, and `import
torchvision` (hence `import timm`) fails with "operator torchvision::nms does not exist": it registers shape functions
for `nms` and `qnms` whether or not the operators exist. Declaring the two without a kernel makes imports and transforms
work; calling them still fails, and nothing in this package calls them.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_declared: list[torch.library.Library] = []  # operators live only as long as the library that declares them


def install() -> None:
    """Act on later imports, and register the method now if PEFT is imported already. Calling it again is harmless."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
    if hasattr(sys.modules.get("peft"), "PeftModel"):  # its import has finished
        _register()


def _register() -> None:
    importlib.import_module("recyclelora.adapter")  # the import registers it


class _Finder(MetaPathFinder):
    """Acts before PEFT and torchvision are imported, and leaves it to Python to find them."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name == "torchvision":
            ensure_torchvision()
        if name != "peft":
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        spec = next((found for finder in others if (found := finder.find_spec(name, path, target))), None)
        if spec is not None and spec.loader is not None:
            spec.loader = _ThenRegister(spec.loader)
        return spec


class _ThenRegister(Loader):
    """Loads PEFT with PEFT's own loader, then registers RecycleLoRA."""

    def __init__(self, own: Loader) -> None:
        self.own = own

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.own.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self.own
        if module.__spec__ is not None:
            module.__spec__.loader = self.own
        self.own.exec_module(module)
        _register()


def ensure_torchvision() -> bool:
    """Make torchvision importable with a CPU build of torch; True if the two operators had to be declared.

    This does nothing if torch is a CUDA build, if torchvision's library loads, or if torchvision is not installed. It
    takes effect only before the first import of torchvision; calling it again is harmless.
    """
    import torch

    if not _declared and torch.version.cuda is None and not _compiled_library_loads():
        library = torch.library.Library("torchvision", "DEF")
        for operator in ("nms", "qnms"):
            library.define(operator + _SCHEMA)
        _declared.append(library)
    return bool(_declared)


def _compiled_library_loads() -> bool:
    """Whether torchvision's compiled operators load; True also if torchvision is not installed."""
    import torch

    spec = PathFinder.find_spec("torchvision")
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
