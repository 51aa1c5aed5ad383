"""The scores of a model on labelled domains, most of which it never saw: the one scorer, and its result.

Per target: a sliding window with averaged logits, one confusion matrix over the whole set, IoU per class, and their
mean over the classes that occur. Over targets: the plain mean of their mIoU. Predictions are mapped onto the target's
own classes before they are counted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
from jaxtyping import UInt8

from recyclelora.data.domain import Domain
from recyclelora.data.labels import LabelSpace
from recyclelora.errors import UserError
from recyclelora.evaluation.bootstrap import resampled_miou
from recyclelora.evaluation.metrics import ConfusionMatrix
from recyclelora.runs.sharing import ALONE, Processes

Predict = Callable[[UInt8[np.ndarray, "h w 3"]], UInt8[np.ndarray, "h w"]]


@dataclass(frozen=True)
class Scores:
    """Scores on one target, in its own classes; `iou` is None for a class in neither ground truth nor prediction.

    `confusion` counts pixels by [true class][predicted class]; the last column is for predictions of no class.
    `resampled` holds the mIoU of resamples of the images, if these were asked for. `split` is that of the data set.
    """

    label: str
    images: int
    fingerprint: str
    miou: float | None
    iou: dict[str, float | None]
    confusion: list[list[int]] = field(default_factory=list)
    resampled: list[float | None] = field(default_factory=list)
    split: str = ""

    def to_json(self) -> dict[str, Any]:
        """The scores as plain values, for a file."""
        return dict(vars(self))

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Scores:
        """The scores in a file.

        Raises:
            TypeError: keys are missing, or there are others.
        """
        return cls(**values)


def score_domain(
    predict: Predict,
    trained: LabelSpace,
    domain: Domain,
    draws: int = 0,
    split: str = "",
    processes: Processes = ALONE,
) -> Scores:
    """Run a model over all images of a domain, and show how far it is.

    Several processes share the images; the counts of pixels are added, so that all get the scores of one process.

    Args:
        predict: RGB image -> train ids at its size.
        trained: the classes that `predict` gives ids of.
        draws: resamples of the images to score as well; see `recyclelora.evaluation.bootstrap`.
        split: of the data set, for the record.
        processes: those that share the images; all of them have to call this.

    Raises:
        UserError: the domain cannot be read, or is labelled in classes other than the trained ones; another process is
            gone.
    """
    check_classes(trained, domain)
    matrix = ConfusionMatrix(len(domain.score_space))
    counts = []
    with processes.sharing(len(domain), f"evaluating {domain.label}") as rounds:
        for index in rounds:
            with processes.agreeing():
                if index is not None:
                    image, truth = domain.read_scored(index)
                    before = matrix.counts.copy()
                    matrix.update(truth, scored_prediction(predict, domain, image))
                    if draws:
                        counts.append(matrix.counts - before)
    matrix.counts = processes.sum(matrix.counts)
    resampled: list[float | None] = []
    if draws:
        every = np.stack(processes.in_order(counts, len(domain)))
        resampled = [_number(round(miou, 5)) for miou in resampled_miou(every, draws)]
    return scores_of(matrix, domain, split, resampled)


def scores_of(
    matrix: ConfusionMatrix, domain: Domain, split: str = "", resampled: Sequence[float | None] = ()
) -> Scores:
    """The scores of all images of a domain, from their counts."""
    return Scores(
        label=domain.label,
        images=len(domain),
        fingerprint=domain.fingerprint(),
        miou=_number(matrix.miou()),
        iou={name: _number(value) for name, value in zip(domain.score_space.names, matrix.iou(), strict=True)},
        confusion=matrix.counts.tolist(),
        resampled=list(resampled),
        split=split,
    )


def scored_prediction(predict: Predict, domain: Domain, image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w"]:
    """A prediction in the classes that the domain is scored in."""
    return np.asarray(cv2.LUT(predict(image), domain.to_score_predictions.astype(np.uint8)), np.uint8)


def mean_miou(scores: Sequence[Scores]) -> float | None:
    """The plain mean over targets; None if no target has a score."""
    known = [score.miou for score in scores if score.miou is not None]
    return sum(known) / len(known) if known else None


def check_classes(trained: LabelSpace, domain: Domain) -> None:
    """Refuse a domain whose labels have other classes than the model."""
    if domain.train_space.names != trained.names:
        raise UserError(
            f"{domain.label}: labelled in {_list(domain.train_space)}, but the model was trained on {_list(trained)}; "
            "evaluate on data with the trained classes (for a `folder`, the same classes.txt)"
        )


def _list(space: LabelSpace) -> str:
    return f"{len(space)} classes ({', '.join(space.names[:4])}{', …' * (len(space) > 4)})"


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
