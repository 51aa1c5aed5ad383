"""Trainings of a tiny model, and results that no training made."""

from miniatures import TINY
from recyclelora.evaluation.scores import Scores
from recyclelora.recipe import make_recipe
from recyclelora.study.cell import Cell, CellResult


def cell(town, method="recyclelora", seed=0, **changes):
    """A training of three steps on the folder `town`, which is also what it is scored on."""
    adapter = {"r_main": 4, "r_sub": 2} if method == "recyclelora" else {}
    recipe = make_recipe(
        {
            "sources": [f"town:folder={town}"], "method": method, "backbone": TINY, "adapter": adapter, "crop": 32,
            "batch_size": 2, "steps": 3, "workers": 0, "optim": {"lr": 3e-3}, "seed": seed, **changes,
        }
    )  # fmt: skip
    return Cell(method, recipe, (f"town:folder={town}",), limit=3)


def result(variant, seed, scores, error=None, **values):
    """What a grid returns of a training with these mIoU, all resamples equal to them."""
    facts = {"settings": {"method": "lora", "optim.lr": 1e-3}, "scale": 1.0, "wall_seconds": 90.0, **values}
    if error:
        return CellResult(variant, seed, **facts, error=error)
    targets = tuple(Scores(label, 3, "", miou, {}, resampled=[miou] * 4) for label, miou in scores.items())
    costs = {"step_seconds": 0.5, "peak_gib": 1.0, "parameters": {"adapters": 10, "head": 2, "backbone": 100}}
    return CellResult(variant, seed, **facts, **costs, protocol="full", targets=targets)
