"""Seams where windows begin and end, and mIoU, for both ways to blend windows.

    python benchmarks/seams.py RUN --name recyclelora --camvid data/camvid

Between two lines of pixels that lie side by side, the probabilities differ by some amount (mean over pixels and classes
of the absolute difference). The seam of a blend is this amount across the lines where a window begins or ends, divided
by that across lines 2 to 5 pixels beside them, at which none does: 1 without a seam. Edges of the image do not count,
and both axes do. Sums run over all images of a domain, so that an image without contrast does not decide.

The windows are computed once per image, and averaged in both ways. The interval of the difference in mIoU is that of
resampled images, the same for both ways. Results: benchmarks/results/seams.json.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from torch import Tensor

from recyclelora.data.domain import Domain
from recyclelora.data.opening import open_domain
from recyclelora.evaluation.bootstrap import resampled_miou
from recyclelora.evaluation.metrics import ConfusionMatrix
from recyclelora.evaluation.scores import scored_prediction
from recyclelora.files import read_json, write_json
from recyclelora.models.plan import Plan
from recyclelora.models.sliding import class_probabilities
from recyclelora.models.windows import window_starts
from recyclelora.pages.progress import shown
from recyclelora.runs.predictor import Predictor, load
from recyclelora.runs.run import versions

BLENDS = ("uniform", "hann")
BESIDE = (2, 3, 4, 5)
"""How far, in pixels, the lines lie from a border that it is compared with."""
DRAWS = 1000
WEATHER = ("clear", "fog", "night", "rain", "snow")
RESULTS = Path(__file__).parent / "results" / "seams.json"


def borders(length: int, window: int, stride: int) -> list[int]:
    """Where windows begin or end along an axis, each as the first pixel behind the line; not the image's edges."""
    starts = window_starts(length, min(window, length), stride)
    return sorted({line for start in starts for line in (start, start + window) if 0 < line < length})


def jumps(probabilities: Float[np.ndarray, "classes h w"], plan: Plan) -> tuple[float, float]:
    """The mean difference across the borders of windows, and across lines beside them, each summed over borders."""
    across = beside = 0.0
    for along in (probabilities, probabilities.swapaxes(1, 2)):
        lines = borders(along.shape[1], plan.window, plan.stride)
        for line in lines:
            near = {line + side * far for far in BESIDE for side in (-1, 1)} - set(lines)
            kept = [other for other in near if 0 < other < along.shape[1]]
            across += difference(along, line)
            beside += float(np.mean([difference(along, other) for other in kept]))
    return across, beside


def difference(probabilities: Float[np.ndarray, "classes h w"], line: int) -> float:
    return float(np.abs(probabilities[:, line] - probabilities[:, line - 1]).mean())


class Remembered:
    """A model that computes the batches of windows of an image once; `again` goes back to the first."""

    def __init__(self, model: Predictor) -> None:
        self.model, self.made, self.place = model, list[Tensor](), 0

    def again(self) -> None:
        self.place = 0

    def __call__(self, images: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b classes h w"]:
        if self.place == len(self.made):
            self.made.append(self.model.segmenter(images))
        self.place += 1
        return self.made[self.place - 1]


def measured(model: Predictor, domain: Domain, window: int) -> dict[str, Any]:
    """Seam and mIoU of both ways on a domain."""
    segmenter = model.segmenter
    plans = {blend: model.with_evaluation(window=window, blend=blend).plan() for blend in BLENDS}
    sums = {blend: np.zeros(2) for blend in BLENDS}
    counts: dict[str, list[np.ndarray]] = {blend: [] for blend in BLENDS}
    for index in shown(range(len(domain)), f"measuring {domain.label}", "images"):
        image, truth = domain.read_scored(index)
        forward = Remembered(model)
        for blend, plan in plans.items():
            forward.again()
            found = class_probabilities(
                forward, image, plan, segmenter.backbone.patch_size, segmenter.mean.device, segmenter.head.SOFTMAX
            )
            sums[blend] += jumps(found, plan)
            matrix = ConfusionMatrix(len(domain.score_space))
            labels = found.argmax(0).astype(np.uint8)
            matrix.update(truth, scored_prediction(lambda _, labels=labels: labels, domain, image))
            counts[blend].append(matrix.counts)
    result: dict[str, Any] = {"images": len(domain), "size": list(image.shape[:2])}
    for blend in BLENDS:
        matrix = ConfusionMatrix(len(domain.score_space))
        matrix.counts = np.sum(counts[blend], axis=0)
        result[blend] = {"seam": round(float(np.divide(*sums[blend])), 4), "miou": round(matrix.miou(), 5)}
    draws = [resampled_miou(np.stack(counts[blend]), DRAWS) for blend in BLENDS]
    low, high = np.quantile(draws[1] - draws[0], [0.025, 0.975])
    return result | {"gain": {"miou": round(result["hann"]["miou"] - result["uniform"]["miou"], 5),
                              "interval": [round(float(low), 5), round(float(high), 5)]}}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a finished run of the 19 classes")
    parser.add_argument("--name", required=True, help="what the run is, for the record")
    parser.add_argument("--window", type=int, default=224)
    parser.add_argument("--images", type=int, default=20, help="scenes of each kind of weather")
    parser.add_argument("--camvid", type=Path, default=None)
    parser.add_argument("--frames", type=int, default=None, help="frames of CamVid's test split; all if not given")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    model = load(options.run)
    domains = [open_domain(f"streets:{weather}", "test", options.images) for weather in WEATHER]
    if options.camvid:
        domains.append(open_domain(f"camvid={options.camvid}", "test", options.frames))
    plan = model.with_evaluation(window=options.window).plan()
    results: dict[str, Any] = read_json(options.results) if options.results.is_file() else {}
    results[options.name] = {"window": plan.window, "stride": plan.stride, "versions": versions(), "domains": {}}
    for domain in domains:
        found = measured(model, domain, options.window)
        results[options.name]["domains"][domain.label] = found
        print(f"{options.name}, {domain.label}: {found}", flush=True)
        write_json(options.results, results)


if __name__ == "__main__":
    main()
