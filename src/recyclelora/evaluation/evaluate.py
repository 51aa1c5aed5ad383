"""The verb `evaluate`: scores a trained model on labelled data sets, and writes a results file and a page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recyclelora.errors import UserError
from recyclelora.evaluation.report import write_evaluation
from recyclelora.evaluation.result import Evaluation, predict_as
from recyclelora.evaluation.scores import check_classes, score_domain
from recyclelora.evaluation.targets import open_targets, seen_labels
from recyclelora.files import write_json
from recyclelora.runs.predictor import load
from recyclelora.runs.run import open_run


def evaluate(
    run: str | Path,
    targets: str | Sequence[str] = (),
    out: str | Path | None = None,
    *,
    split: str | None = None,
    limit: int | None = None,
    pictures: int = 3,
    weights: str | None = None,
    overwrite: bool = False,
    **evaluation: Any,
) -> Evaluation:
    """Score a trained model on each target: IoU per class, mIoU per target, and their mean.

    Args:
        run: folder of a finished training.
        targets: data sets as `[LABEL:]NAME[:DOMAIN][=ROOT]`; the recipe's if none are given.
        out: results file (.json), rewritten after each target; a page with pictures (.html) is written beside it.
            Nothing is written where it is not given.
        split: train, val or test; the one that each data set is usually scored on if it is not given.
        limit: take this many images of each target, evenly spaced.
        pictures: example pictures of each target on the page.
        weights: where the base weights lie now, if not where the recipe says.
        overwrite: replace the files of an earlier call.
        evaluation: settings in place of the recipe's, as in `protocol="soma-2048"`, `window`, `stride`, `batch_size`,
            `flip`, `scales`; those that are None stay as they are.

    Raises:
        UserError: before anything is scored, for files that exist, data that are not there, classes other than the
            model's, or a window that does not fit; then for images that cannot be read: the scores of the targets
            before stay in the file.
    """
    file = None if out is None else _results_file(Path(out), overwrite)
    texts = ([targets] if isinstance(targets, str) else list(targets)) or open_run(run).recipe.targets
    if not texts:
        raise UserError(f"{run}: its recipe names no targets; give one with --target, as in --target streets:fog")
    opened = open_targets(texts, split, limit)
    result = Evaluation(load(run, weights).with_evaluation(**evaluation), opened, limit)
    score_targets(result, file)
    if file is not None:
        seen = seen_labels(result.model.run.recipe, texts)
        write_evaluation(file.with_suffix(".html"), result, seen, pictures)
    return result


def _results_file(file: Path, overwrite: bool) -> Path:
    if file.suffix != ".json":
        raise UserError(f"--out {file}: expected a file name ending in .json")
    for path in (file, file.with_suffix(".html")):
        if path.exists() and not overwrite:
            raise UserError(f"{path} exists; choose another --out or replace it with --overwrite")
    return file


def score_targets(result: Evaluation, file: Path | None = None) -> None:
    """Score the model on each target, and write the results file after each."""
    model = result.model
    for target in result.targets:
        check_classes(model.space, target.domain)
        model.plan(target.domain.dataset)
    for target in result.targets:
        predict = predict_as(model, target.domain)
        result.scores.append(score_domain(predict, model.space, target.domain, split=target.split))
        if file is not None:
            file.with_suffix(".html").unlink(missing_ok=True)  # the page of an earlier result
            write_json(file, result.to_json())
