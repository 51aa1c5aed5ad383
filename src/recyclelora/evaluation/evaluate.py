"""The verb `evaluate`: scores a trained model on labelled data sets, and writes a results file and a page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from recyclelora.data.opening import parse_spec, splits_of
from recyclelora.errors import UserError
from recyclelora.evaluation.report import write_evaluation
from recyclelora.evaluation.result import Evaluation, predict_as
from recyclelora.evaluation.scores import Scores, check_classes, score_domain
from recyclelora.evaluation.targets import open_targets, same_domain, seen_labels
from recyclelora.files import locked_file, read_json, user_path, write_json
from recyclelora.runs.predictor import CheckpointName, load
from recyclelora.runs.run import open_run
from recyclelora.runs.sharing import ALONE, Processes, joined
from recyclelora.stopping import begun

SCORED = ("complete", "mean_miou", "targets", "beside")
"""The keys of the results file that scores change; all others are what they depend on."""


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
    checkpoint: CheckpointName = "last",
    devices: int = 1,
    **evaluation: Any,
) -> Evaluation:
    """Score a trained model on each target: IoU per class, mIoU per target, and their mean.

    Args:
        run: folder of a training; if it is not finished, its last checkpoint is scored, and named so.
        targets: data sets as `[LABEL:]NAME[:DOMAIN][=ROOT]`; the recipe's if none are given.
        out: results file (.json), rewritten after each target; a page with pictures (.html) is written beside it.
            Nothing is written where it is not given. If the same evaluation was stopped, its scores are kept.
        split: train, val or test; the one that each data set is usually scored on if it is not given.
        limit: take this many images of each target, evenly spaced.
        pictures: example pictures of each target on the page.
        weights: where the base weights lie now, if not where the recipe says.
        overwrite: replace the files of an earlier call.
        checkpoint: `best-source` also scores the weights that were best in the training's validation, beside those
            of the last step.
        devices: this many GPUs, or processes on a CPU, share the images; the scores are the same. The processes run the
            program from its start, as those of a training do. If torchrun or srun has started them, it stays 1.
        evaluation: settings in place of the recipe's, as in `protocol="soma-2048"`, `window`, `stride`, `batch_size`,
            `flip`, `scales`, `blend`; those that are None stay as they are.

    Raises:
        UserError: before anything is scored, for files that exist or are being written by another process, data that
            are not there, classes other than the model's, a window that does not fit, or images on which the best
            checkpoint was chosen; then for images that cannot be read, or a process that was ended: the scores before
            stay in the file.
    """
    with ExitStack() as lock, joined(devices) as processes:
        with processes.agreeing():
            file = None if out is None else _results_file(user_path(out))
            texts = ([targets] if isinstance(targets, str) else list(targets)) or open_run(run).recipe.targets
            if not texts:
                raise UserError(
                    f"{run}: its recipe names no targets; give one with --target, as in --target streets:fog"
                )

        def begin() -> dict[str, Any] | None:
            if file is None:
                return None
            lock.enter_context(locked_file(file))
            return None if overwrite else _earlier(file)

        earlier = processes.of_first(begin)
        with processes.agreeing():
            opened = open_targets(texts, split, limit)
            model = load(run, weights, processes.device, "last").with_evaluation(**evaluation)
            result = Evaluation(model, opened, limit)
            if checkpoint == "best-source":
                _check_not_chosen_on(result)
                best = load(run, weights, processes.device, checkpoint).with_evaluation(**evaluation)
                result.beside = Evaluation(best, opened, limit)
        _check_alike(result, processes)
        with processes.agreeing():
            if file is not None and earlier is not None:
                _take_earlier_scores(file, earlier, result)
        score_targets(result, file, processes)
        if file is not None and processes.leads:
            seen = seen_labels(result.model.run.recipe, texts)
            with begun():
                write_evaluation(file.with_suffix(".html"), result, seen, pictures)
    return result


def _check_alike(result: Evaluation, processes: Processes) -> None:
    """Refuse an evaluation that is not the same to all processes, such as that of a training that has just gone on."""
    if processes.world == 1:
        return
    with processes.agreeing():
        own = result.to_json() | {f"target {each.spec.label}": each.domain.fingerprint() for each in result.targets}
    processes.check_alike(own, str(result.model.run.path))


def _check_not_chosen_on(result: Evaluation) -> None:
    """Refuse targets with images by whose scores the best checkpoint was chosen."""
    run = result.model.run
    sources = [parse_spec(source.data) for source in run.recipe.sources]
    for source, held in zip(sources, run.info.get("validation", ()), strict=False):
        for target in result.targets:
            shared = held["split"] == target.split or not splits_of(target.spec)
            if shared and same_domain(source, target.spec):
                raise UserError(
                    f"{target.spec.label}: the best checkpoint of {run.path} was chosen on images of its split "
                    f"{target.split}; score another split with --split, or leave out --checkpoint"
                )


def _results_file(file: Path) -> Path:
    if file.suffix != ".json":
        raise UserError(f"--out {file}: expected a file name ending in .json")
    return file


def _earlier(file: Path) -> dict[str, Any] | None:
    """The content of a results file whose evaluation was stopped; None if there is no file.

    Raises:
        UserError: there is something else.
    """
    page = file.with_suffix(".html")
    content = None
    with suppress(UserError, OSError):
        content = read_json(file)
    if isinstance(content, dict) and (content.get("complete") is False or not page.exists()):
        return content
    for path in (file, page):
        if path.exists():
            raise UserError(f"{path} exists; choose another --out or replace it with --overwrite")
    return None


def _take_earlier_scores(file: Path, earlier: dict[str, Any], result: Evaluation) -> None:
    """Take over the scores in the results file of the same evaluation, which was stopped.

    Raises:
        UserError: the file is of another evaluation.
    """
    for each in result.all:
        differing: list[str] = []
        try:
            found = [Scores.from_json(score) for score in earlier["targets"]]
            now = json.loads(json.dumps(each.to_json()))
            differing += [key for key in now if key not in SCORED and earlier.get(key) != now[key]]
            differing += ["checkpoint"] * (("beside" in earlier) != (each.beside is not None))
            for score, target in zip(found, each.targets, strict=False):
                if (score.label, score.fingerprint) != (target.spec.label, target.domain.fingerprint()):
                    differing.append(f"target {target.spec.label}")
            earlier = earlier.get("beside", {})
        except (KeyError, TypeError, AttributeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"{file}: damaged ({reason}); replace it with --overwrite") from error
        if differing or len(found) > len(each.targets):
            raise UserError(
                f"{file} exists and holds another evaluation (it differs in {', '.join(differing) or 'targets'}); "
                "choose another --out or replace it with --overwrite"
            )
        each.scores += found


def score_targets(result: Evaluation, file: Path | None = None, processes: Processes = ALONE) -> None:
    """Score the model on each target that has no score yet, and write the results file before them and after each.

    All processes score; the first writes.
    """
    with processes.agreeing():
        for target in result.targets:
            check_classes(result.model.space, target.domain)
            result.model.plan(target.domain.dataset)
        if file is not None and processes.leads:
            write_json(file, result.to_json())
            file.with_suffix(".html").unlink(missing_ok=True)  # the page of an earlier result
    with begun():
        for each in result.all:
            for target in each.targets[len(each.scores) :]:
                predict = predict_as(each.model, target.domain)
                each.scores.append(
                    score_domain(predict, each.model.space, target.domain, split=target.split, processes=processes)
                )
                with processes.agreeing():
                    if file is not None and processes.leads:
                        write_json(file, result.to_json())
