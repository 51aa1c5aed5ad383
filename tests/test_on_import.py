"""Imports that need torchvision work with a CPU build of torch; nothing happens if nothing is wrong."""

from __future__ import annotations

import subprocess
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest
import torch

from recyclelora import on_import
from recyclelora.on_import import ensure_torchvision

IMPORTS = """
import recyclelora, timm, torchvision.io, torchvision.ops, torchvision.transforms.v2
from transformers.models.mask2former.modeling_mask2former import Mask2FormerPixelDecoder
"""


def _pretend_installed(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    spec = ModuleSpec("torchvision", None, is_package=True)
    spec.submodule_search_locations = [str(folder)]
    monkeypatch.setattr(on_import.PathFinder, "find_spec", lambda name: spec)


def test_imports_without_a_warning() -> None:
    done = subprocess.run([sys.executable, "-W", "error", "-c", IMPORTS], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    assert not [line for line in lines if "gemm_4bit" not in line]  # said by bitsandbytes, which PEFT imports


def test_calling_it_again_is_harmless() -> None:
    assert ensure_torchvision() == ensure_torchvision()


def test_a_library_that_does_not_load_is_noticed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "_C.so").write_bytes(b"not a library")
    _pretend_installed(monkeypatch, tmp_path)
    assert not on_import._compiled_library_loads()


def test_a_torchvision_without_a_library_is_noticed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _pretend_installed(monkeypatch, tmp_path)
    assert not on_import._compiled_library_loads()


@pytest.mark.parametrize("case", ["cuda torch", "no torchvision"])
def test_nothing_is_declared_where_nothing_is_wrong(monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    declared: list[torch.library.Library] = []
    monkeypatch.setattr(on_import, "_declared", declared)
    monkeypatch.setattr(torch.version, "cuda", "13.0" if case == "cuda torch" else None)
    if case == "no torchvision":
        monkeypatch.setattr(on_import.PathFinder, "find_spec", lambda name: None)
    assert not ensure_torchvision()
    assert declared == []
