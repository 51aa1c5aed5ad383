"""Scores of a model in training on images of its sources that are not trained on, and pictures of some of them.

RUN/validation.jsonl             one line per validation: step, seconds, mIoU, and the scores of each source
    validation/000500_0.png      the classes predicted for the first picture at step 500, in the pages' size
    checkpoints/best-500.safetensors    the trained weights with the best mIoU so far; the last step stays the result
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import cv2
import numpy as np
import torch
from jaxtyping import UInt8
from lightning.fabric import Fabric
from torch import Tensor

from recyclelora.evaluation.metrics import ConfusionMatrix
from recyclelora.evaluation.scores import Scores, mean_miou, scored_prediction, scores_of
from recyclelora.files import append_line, write_bytes
from recyclelora.models.plan import Plan, Size
from recyclelora.models.sliding import passes
from recyclelora.pages.pictures import small_labels
from recyclelora.pages.progress import Progress
from recyclelora.runs.facts import best_validation, read_validations
from recyclelora.runs.processes import agreed, highest
from recyclelora.runs.run import Run
from recyclelora.runs.sharing import rounds
from recyclelora.stopping import Request
from recyclelora.training.checkpoint import save_best
from recyclelora.training.held_out import HeldOut
from recyclelora.training.module import SegmentationModule
from recyclelora.training.page import picture_file, pictured_images


class Validation:
    """Validates a training every so many steps, and at its last.

    Several processes share the images; their counts of pixels are added, so the scores are those of one process.
    """

    def __init__(
        self, run: Run, held: Sequence[HeldOut], start: int, fabric: Fabric, module: SegmentationModule
    ) -> None:
        self.run, self.held, self.fabric, self.module = run, held, fabric, module
        self.done = {line["step"] for line in read_validations(run.validations) if line["step"] <= start}

    def due(self, step: int) -> bool:
        """Whether the model is to be scored after a step, counted from 1."""
        settings = self.run.recipe.validation
        if settings is None or not step or step in self.done:
            return False
        return step % settings.every == 0 or step == self.run.recipe.steps

    def score(self, step: int, request: Request) -> dict[str, Any] | None:
        """Score the model as it would be the result; None if a signal asks to stop meanwhile.

        Returns the line of `validation.jsonl`. The weights, if they are the best so far, are written before it.
        """
        begun = time.perf_counter()
        module, leads = self.module, self.fabric.is_global_zero
        total = sum(len(each.domain) for each in self.held)
        scores: list[Scores] = []
        module.eval()
        with module.averaged(), Progress(f"validating at step {step}", total, "images", shown=leads) as progress:
            for each in self.held:
                counts = self._counts(each, step, request, progress, pictured=not scores)
                if counts is None:
                    break
                matrix = ConfusionMatrix(len(each.domain.score_space))
                matrix.counts = counts.cpu().numpy()
                scores.append(scores_of(matrix, each.domain, each.split))
            else:
                self.done.add(step)
                line = _line(step, time.perf_counter() - begun, scores)
                if leads:
                    self._keep(line)
        module.train()
        return line if step in self.done else None

    def _counts(self, held: HeldOut, step: int, request: Request, progress: Progress, pictured: bool) -> Tensor | None:
        """The confusion matrix over all images, of all processes; None if a signal asks to stop."""
        domain, fabric = held.domain, self.fabric
        plan = self.run.recipe.evaluation.plan(
            domain.dataset, self.run.recipe.crop, self.module.segmenter.backbone.patch_size
        )
        matrix = ConfusionMatrix(len(domain.score_space))
        pictures, seen = pictured_images(len(domain)) if pictured else [], progress.done
        for index in rounds(len(domain), fabric.global_rank, fabric.world_size):
            if agreed(fabric, request):
                return None
            image, truth = (None, None) if index is None else domain.read_scored(index)
            with self._in_step(None if image is None else (image.shape[0], image.shape[1]), plan):
                if image is not None and truth is not None:
                    prediction = scored_prediction(lambda x: self.module.segmenter.predict(x, plan), domain, image)
                    matrix.update(truth, prediction)
                    if index in pictures:
                        write_picture(self.run, step, pictures.index(index), prediction)
            progress.advance(min(fabric.world_size, seen + len(domain) - progress.done))
        counts = fabric.all_reduce(torch.from_numpy(matrix.counts).to(fabric.device), reduce_op="sum")
        assert isinstance(counts, Tensor)
        return counts

    @contextmanager
    def _in_step(self, size: Size | None, plan: Plan) -> Iterator[None]:
        """Predict an image of a size (h, w), or none, with a base of which the others need this process's share.

        Each pass of one process is then one of all, so those with fewer passes add some on nothing.
        """
        segmenter = self.module.segmenter
        if self.run.recipe.strategy == "ddp":
            yield
            return
        own = 0 if size is None else passes(size, plan, segmenter.backbone.patch_size)
        most = highest(own, self.fabric.world_size, self.fabric.device)
        yield
        nothing = torch.zeros(1, 3, plan.window, plan.window, dtype=torch.uint8, device=self.fabric.device)
        with torch.inference_mode():
            for _ in range(most - own):
                segmenter(nothing)

    def _keep(self, line: dict[str, Any]) -> None:
        """Write down a validation, and the weights if they are the best so far."""
        earlier = best_validation(read_validations(self.run.validations))
        if line["miou"] is not None and (earlier is None or line["miou"] > earlier["miou"]):
            save_best(self.run.best_checkpoint(line["step"]), line["step"], line["miou"], self.module)
        append_line(self.run.validations, json.dumps(line))


def write_picture(run: Run, step: int, number: int, prediction: UInt8[np.ndarray, "h w"]) -> None:
    """Keep the predicted classes for a picture, as a PNG of ids."""
    write_bytes(picture_file(run, step, number), cv2.imencode(".png", small_labels(prediction))[1].tobytes())


def _line(step: int, seconds: float, scores: Sequence[Scores]) -> dict[str, Any]:
    """The line of a validation."""
    return {
        "step": step,
        "seconds": round(seconds, 3),
        "miou": mean_miou(scores),
        "sources": {score.label: {"images": score.images, "miou": score.miou, "iou": score.iou} for score in scores},
    }
