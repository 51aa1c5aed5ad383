"""A domain: labelled images under one name, with labels in the trained or in the scored label space."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import cv2
import numpy as np
from jaxtyping import Int64, UInt8

from recyclelora.data.labels import Labelling, LabelSpace


@runtime_checkable
class Source(Protocol):
    """Reads images and labels from files or from a renderer. Labels hold the ids as stored or rendered.

    `labels` reads no image if it can do without. `stamp` is a text that changes when a label changes, `place` one that
    is the same for an image in two sources. `only` has just the images of these indices.
    """

    def __len__(self) -> int: ...

    def name(self, index: int) -> str: ...

    def image(self, index: int) -> UInt8[np.ndarray, "h w 3"]: ...

    def read(self, index: int) -> tuple[UInt8[np.ndarray, "h w 3"], UInt8[np.ndarray, "h w"]]: ...

    def labels(self, index: int) -> UInt8[np.ndarray, "h w"]: ...

    def stamp(self, index: int) -> str: ...

    def place(self, index: int) -> str: ...

    def only(self, indices: Sequence[int]) -> Source: ...

    def fingerprint(self) -> str: ...


@dataclass(frozen=True)
class Domain:
    """Labelled images of one data set. Labels are converted when they are read; files are never rewritten.

    `dataset` is its row in `BENCHMARKS`, from which an evaluation protocol knows the size of the images. `notes` are
    lines that say how its files are read, if that is not plain from their names.
    """

    label: str
    source: Source
    labelling: Labelling
    dataset: str = ""
    notes: tuple[str, ...] = ()

    @property
    def train_space(self) -> LabelSpace:
        """The classes a model is trained on."""
        return self.labelling.train_space

    @property
    def score_space(self) -> LabelSpace:
        """The classes that are scored."""
        return self.labelling.score_space

    @property
    def to_score_predictions(self) -> Int64[np.ndarray, "ids=256"]:
        """Table from predicted train ids to scored ids."""
        return self.labelling.predictions

    def __len__(self) -> int:
        return len(self.source)

    def name(self, index: int) -> str:
        """The name of an image, unique in the domain."""
        return self.source.name(index)

    def image(self, index: int) -> UInt8[np.ndarray, "h w 3"]:
        """One RGB image."""
        return self.source.image(index)

    def read(self, index: int) -> tuple[UInt8[np.ndarray, "h w 3"], UInt8[np.ndarray, "h w"]]:
        """One RGB image and its train ids."""
        image, labels = self.source.read(index)
        return image, _converted(labels, self.labelling.to_train)

    def read_scored(self, index: int) -> tuple[UInt8[np.ndarray, "h w 3"], UInt8[np.ndarray, "h w"]]:
        """One RGB image and its labels in the scored label space."""
        image, labels = self.source.read(index)
        return image, _converted(labels, self.labelling.to_score)

    def place(self, index: int) -> str:
        """Where an image is from, by which it is known in other domains that hold it too."""
        return self.source.place(index)

    def only(self, indices: Sequence[int]) -> Domain:
        """The domain with only the images of these indices, in their order."""
        return replace(self, source=self.source.only(indices))

    def fingerprint(self) -> str:
        """SHA-256 that changes with the data: of file names and sizes, or of the renderer's version and the seeds."""
        return self.source.fingerprint()


def _converted(labels: UInt8[np.ndarray, "h w"], table: Int64[np.ndarray, "ids=256"]) -> UInt8[np.ndarray, "h w"]:
    return np.asarray(cv2.LUT(labels, table.astype(np.uint8)), np.uint8)
