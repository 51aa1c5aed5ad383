"""mIoU beside that of the official Cityscapes evaluator, on random predictions in label-id images on the disk.

    python benchmarks/parity.py --cases 20

Ground truth holds ignored ids, and both sides lack classes. Results: benchmarks/results/parity.json. The evaluator is
`cityscapesscripts`; its instance-level scores, which need other files and a NumPy before 2.4, are turned off.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling
from cityscapesscripts.helpers.labels import id2label

from recyclelora.data.label_maps import CITYSCAPES_LABELLING
from recyclelora.data.labels import CITYSCAPES, IGNORE
from recyclelora.evaluation.metrics import ConfusionMatrix
from recyclelora.files import write_json

RESULTS = Path(__file__).parent / "results" / "parity.json"
SCORED = np.array([label.id for label in sorted(id2label.values(), key=lambda x: x.trainId) if not label.ignoreInEval])
"""The label ids of the 19 classes in the order of their train ids."""

Pair = tuple[np.ndarray, np.ndarray]


def random_pairs(seed: int, images: int = 3) -> list[Pair]:
    """Ground truth in label ids, 0 to 33, and predictions in train ids or IGNORE, of some of the classes only."""
    rng = np.random.default_rng(seed)
    truths = rng.permutation(34)[: rng.integers(3, 34)]
    guesses = np.append(rng.permutation(19)[: rng.integers(2, 19)], IGNORE)
    pairs = []
    for _ in range(images):
        truth = rng.choice(truths, (64, 96)).astype(np.uint8)
        guess = rng.choice(guesses, truth.shape).astype(np.uint8)
        known = CITYSCAPES_LABELLING.to_score.astype(np.uint8)[truth]
        pairs.append((truth, np.where((rng.random(truth.shape) < rng.random()) & (known < 19), known, guess)))
    return pairs


def our_scores(pairs: Sequence[Pair]) -> tuple[dict[str, float], float]:
    """IoU of each class, and mIoU."""
    matrix = ConfusionMatrix(len(CITYSCAPES))
    for truth, prediction in pairs:
        matrix.update(CITYSCAPES_LABELLING.to_score.astype(np.uint8)[truth], prediction)
    return dict(zip(CITYSCAPES.names, matrix.iou().tolist(), strict=True)), matrix.miou()


def official_scores(pairs: Sequence[Pair], folder: Path) -> tuple[dict[str, float], float]:
    """The same of the official evaluator, from images that are written into `folder`."""
    files: dict[str, list[str]] = {"prediction": [], "truth": []}
    to_id = np.zeros(256, np.uint8)  # IGNORE becomes 0, unlabelled
    to_id[: len(SCORED)] = SCORED
    for number, (truth, prediction) in enumerate(pairs):
        for kind, ids in (("prediction", to_id[prediction]), ("truth", truth)):
            files[kind].append(str(folder / f"{kind}_{number}.png"))
            cv2.imwrite(files[kind][-1], ids)
    args: Any = copy.copy(evalPixelLevelSemanticLabeling.args)
    args.evalInstLevelScore, args.JSONOutput, args.quiet = False, False, True
    result = evalPixelLevelSemanticLabeling.evaluateImgLists(files["prediction"], files["truth"], args)
    return {name: result["classScores"][name] for name in CITYSCAPES.names}, result["averageScoreClasses"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=20)
    rows = []
    for seed in range(parser.parse_args().cases):
        pairs = random_pairs(seed)
        with tempfile.TemporaryDirectory() as folder:
            (our_iou, ours), (their_iou, theirs) = our_scores(pairs), official_scores(pairs, Path(folder))
        iou = np.array([list(our_iou.values()), list(their_iou.values())])
        present = ~np.isnan(iou[1])
        if (np.isnan(iou[0]) == present).any():
            raise AssertionError(f"case {seed}: not the same classes occur")
        largest = float(np.abs(np.diff(iou[:, present], axis=0)).max())
        row = {"case": seed, "classes": int(present.sum()), "ours": ours, "official": theirs}
        rows.append({**row, "difference": abs(ours - theirs), "largest_class_difference": largest})
        print(
            f"{seed:3}  {present.sum():2} classes  {ours:.12f}  {theirs:.12f}  {abs(ours - theirs):.1e}  {largest:.1e}"
        )
    write_json(
        RESULTS,
        {
            "largest_difference": max(row["difference"] for row in rows),
            "largest_class_difference": max(row["largest_class_difference"] for row in rows),
            "cityscapesscripts": version("cityscapesscripts"),
            "numpy": np.__version__,
            "cases": rows,
        },
    )


if __name__ == "__main__":
    main()
