"""The classes that the renderer paints are those of the data, and the renderer needs nothing else."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from recyclelora import streets
from recyclelora.data.labels import CITYSCAPES, IGNORE
from recyclelora.streets.classes import IDS, NAMES, VOID


def test_the_classes_are_those_of_cityscapes() -> None:
    assert CITYSCAPES.names == NAMES
    assert all(CITYSCAPES.id(name) == IDS[name] for name in NAMES)
    assert IGNORE == VOID


def test_the_renderer_needs_no_other_part_of_the_library(tmp_path: Path) -> None:
    """It renders in a `recyclelora` that has nothing else."""
    (tmp_path / "recyclelora").mkdir()
    (tmp_path / "recyclelora" / "__init__.py").touch()
    shutil.copytree(Path(streets.__file__).parent, tmp_path / "recyclelora" / "streets")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\nfrom recyclelora.streets import render\nrender(0)"
    subprocess.run([sys.executable, "-c", code], check=True)
