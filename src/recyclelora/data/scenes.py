"""Rendered street scenes as labelled images, which can be kept on disk after rendering."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import UInt8

from recyclelora import streets
from recyclelora.files import replacing


@dataclass(frozen=True)
class StreetScenes:
    """Scenes of one domain, one scene per seed.

    In the folder `kept`, a scene is one PNG whose fourth channel holds its train ids. It lies in a folder named after
    the renderer's version, so scenes of another version are never read.
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
        file = self.kept / f"v{streets.VERSION}" / self.domain / f"{self.seeds[index]:07d}.png"
        stored = np.fromfile(file, np.uint8) if file.is_file() else np.empty(0, np.uint8)  # OpenCV reads no odd names
        picture = cv2.imdecode(stored, cv2.IMREAD_UNCHANGED) if stored.size else None
        if picture is None or picture.ndim != 3 or picture.shape[2] != 4:  # not there yet, or damaged
            picture = self._keep(index, file)
        return np.ascontiguousarray(picture[..., 2::-1]), np.ascontiguousarray(picture[..., 3])

    def labels(self, index: int) -> UInt8[np.ndarray, "h w"]:
        """The Cityscapes train ids of one scene."""
        return self.read(index)[1]

    def stamp(self, index: int) -> str:
        """The renderer's version, and the domain and seed of a scene."""
        return f"streets {streets.VERSION} {self.name(index)}"

    def place(self, index: int) -> str:
        """The domain and seed of a scene."""
        return f"streets {self.name(index)}"

    def only(self, indices: Sequence[int]) -> StreetScenes:
        """Only the scenes of these indices."""
        return replace(self, seeds=[self.seeds[index] for index in indices])

    def _render(self, index: int) -> tuple[UInt8[np.ndarray, "h w 3"], UInt8[np.ndarray, "h w"]]:
        scene = streets.render(self.seeds[index], self.domain)
        return scene.image, scene.labels

    def _keep(self, index: int, file: Path) -> UInt8[np.ndarray, "h w 4"]:
        """Render a scene and write it whole or not at all, as several processes may do so at once."""
        image, labels = self._render(index)
        picture = np.dstack([image[..., ::-1], labels])
        with replacing(file) as part:
            part.write_bytes(cv2.imencode(".png", picture)[1].tobytes())
        return picture

    def fingerprint(self) -> str:
        """SHA-256 of the renderer's version, the domain and the seeds."""
        return hashlib.sha256(f"streets {streets.VERSION} {self.domain} {self.seeds}".encode()).hexdigest()
