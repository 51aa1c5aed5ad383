"""Rendered street scenes as a source of labelled images; kept on disk, if asked, once they are rendered."""

from __future__ import annotations

import hashlib
import os
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import UInt8

from recyclelora.data import streets


@dataclass(frozen=True)
class StreetScenes:
    """Scenes of one domain, a scene a seed.

    In the folder `kept` a scene is one PNG whose fourth channel is its train ids, under the hash of the renderer that
    made it: another renderer's scenes are never read.
    """

    domain: str
    seeds: list[int]
    kept: Path | None = None

    def __len__(self) -> int:
        return len(self.seeds)

    def name(self, index: int) -> str:
        """The domain and seed of a scene."""
        return f"{self.domain}_{self.seeds[index]:07d}"

    def image(self, index: int) -> UInt8[np.ndarray, "h w 3"]:
        """One RGB image."""
        return self.read(index)[0]

    def read(self, index: int) -> tuple[UInt8[np.ndarray, "h w 3"], UInt8[np.ndarray, "h w"]]:
        """One RGB image and its Cityscapes train ids."""
        if self.kept is None:
            return self._render(index)
        file = self.kept / renderer()[:12] / self.domain / f"{self.seeds[index]:07d}.png"
        picture = cv2.imread(str(file), cv2.IMREAD_UNCHANGED) if file.is_file() else None
        if picture is None or picture.ndim != 3 or picture.shape[2] != 4:  # not there yet, or damaged
            picture = self._keep(index, file)
        return np.ascontiguousarray(picture[..., 2::-1]), np.ascontiguousarray(picture[..., 3])

    def _render(self, index: int) -> tuple[UInt8[np.ndarray, "h w 3"], UInt8[np.ndarray, "h w"]]:
        scene = streets.render(self.seeds[index], self.domain)
        return scene.image, scene.labels

    def _keep(self, index: int, file: Path) -> UInt8[np.ndarray, "h w 4"]:
        """Render a scene and write it whole, as several processes may."""
        image, labels = self._render(index)
        picture = np.dstack([image[..., ::-1], labels])
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=file.parent, suffix=".part", delete=False) as unfinished:
            unfinished.write(cv2.imencode(".png", picture)[1].tobytes())
        os.replace(unfinished.name, file)
        return picture

    def fingerprint(self) -> str:
        """SHA-256 of the renderer, the domain and the seeds."""
        return hashlib.sha256(f"{renderer()} {self.domain} {self.seeds}".encode()).hexdigest()


@cache
def renderer() -> str:
    """SHA-256 that stands for the renderer: of its source, and of the libraries that draw for it."""
    digest = hashlib.sha256(f"{np.__version__} {cv2.__version__}".encode())
    for file in sorted(Path(streets.__file__).parent.glob("*.py")):
        digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()
