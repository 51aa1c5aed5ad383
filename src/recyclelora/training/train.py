"""Trains a recipe into a finished run, and resumes a training that stopped."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from torch import nn

from recyclelora.adapter.draw import shared_among_processes
from recyclelora.data.dataset import TrainingDataset
from recyclelora.data.domain import Domain
from recyclelora.data.labelled import check_labelled
from recyclelora.data.opening import manifest, open_domain, parse_spec
from recyclelora.data.transforms import Augment
from recyclelora.errors import DivergedError, UserError
from recyclelora.files import holds_nothing, locked, user_path
from recyclelora.models.segmenter import Segmenter
from recyclelora.recipe import Recipe
from recyclelora.runs.build import build, check_base
from recyclelora.runs.checkpoint import newest_whole
from recyclelora.runs.processes import launched, shared_by_processes, together
from recyclelora.runs.run import Run, is_run, is_torn, open_finished, open_run, versions
from recyclelora.runs.state import divergence_marked
from recyclelora.stopping import begun, is_first_process
from recyclelora.training.divergence import check_result
from recyclelora.training.held_out import HeldOut, hold_out
from recyclelora.training.loggers import check_logger
from recyclelora.training.loop import fit
from recyclelora.training.module import SegmentationModule
from recyclelora.training.page import write_run_page
from recyclelora.training.rare_classes import RareClasses, rare_classes
from recyclelora.training.recorder import RunRecorder


def train(
    recipe: Recipe, out: str | Path, resume: bool = False, overwrite: bool = False, cache_factors: bool = False
) -> Run:
    """Train a model into the folder `out`; see `recyclelora.runs.run` for what is written.

    Args:
        resume: continue from the last checkpoint of `out`, or start if there is none; a finished run is returned.
        overwrite: replace the run in `out`, once the new one is ready to start.
        cache_factors: keep the factors of the base weights in the cache folder, and use those that are there.

    Raises:
        UserError: `out` holds something and neither flag is set; another process is at work there; a resumed run has
            another recipe or other base weights; no checkpoint can be read; the data or the model are wrong; the disk
            is full.
        DivergedError: the loss or a weight is NaN or infinite.
        Stopped: a signal such as Ctrl-C came (`recyclelora.stopping`); `resume` goes on after the last step.
    """
    out = user_path(out)
    recipe.check_sources()
    check_logger(recipe)
    recipe = shared_by_processes(recipe)
    leads = is_first_process()
    with ExitStack() as ends:
        if leads and not holds_nothing(out):
            ends.enter_context(locked(out))
        previous = _previous(recipe, out, resume, overwrite) if leads else None
        fabric = launched(recipe)
        ends.enter_context(together(fabric))
        if fabric.broadcast(previous is not None) and not leads:
            previous = open_run(out)
        if previous is not None and previous.finished:
            open_finished(out)  # refuses files that have changed
            return previous
        dataset, held = open_sources(recipe)
        rare = _rare(recipe, dataset)
        space = dataset.domains[0].train_space
        checkpoint = None if previous is None else newest_whole(previous.checkpoint, previous.older_checkpoint)
        with shared_among_processes():
            segmenter = build(recipe, len(space), draw=checkpoint is None, cache_factors=cache_factors)
        facts = facts_of(segmenter, dataset, held)
        if previous is not None:
            check_base(segmenter.backbone, previous, recipe.backbone.weights)
            _check_data(previous, facts)
        run = previous or Run(out, recipe, facts)
        fabric.barrier()  # until all have read what is there
        if leads:
            ends.enter_context(locked(out))
            if previous is None:
                _start(run, dataset, held, anew=resume or overwrite)
            else:
                run.write()
        with begun(), divergence_marked(run, leads), _page_at_the_end(run, held, leads):
            module = SegmentationModule(segmenter, recipe)
            recorder = RunRecorder(run, held, 0 if checkpoint is None else checkpoint.step, leads)
            fit(fabric, run, module, dataset, rare, held, recorder, checkpoint)
            module.take_averages()
            check_result(out, recipe.steps, module, segmenter.head)
            if leads:
                run.save_result(segmenter)
        return run


@contextmanager
def _page_at_the_end(run: Run, held: Sequence[HeldOut], leads: bool) -> Iterator[None]:
    """Let the page of the run say how its training ended."""
    try:
        yield
    except BaseException as error:
        with suppress(Exception):  # the disk may be full, say, and the first error is the one to tell
            if leads:
                write_run_page(run, held, "diverged" if isinstance(error, DivergedError) else "stopped")
        raise
    if leads:
        write_run_page(run, held, "finished")


def _start(run: Run, dataset: TrainingDataset, held: Sequence[HeldOut], anew: bool) -> None:
    """Write what a training begins with; `anew` removes what a run left in the folder."""
    if not anew and not holds_nothing(run.path):
        raise UserError(f"{run.path}: another process has begun a training there; choose another folder")
    manifests = {}
    for part, domains in (("", dataset.domains), ("_validation", [each.domain for each in held])):
        for number, domain in enumerate(domains, 1):
            name = re.sub(r"[^\w.-]", "_", domain.label)
            manifests[f"{number}_{name}{part}.txt"] = "".join(f"{image}\n" for image in manifest(domain))
    run.start(manifests)


def open_sources(recipe: Recipe) -> tuple[TrainingDataset, list[HeldOut]]:
    """The images to train on, and those to validate on.

    Raises:
        UserError: data are not there, or their labels cannot teach a model anything.
    """
    domains = [open_domain(source.data, "train", recipe.limit, source.images, recipe.seed) for source in recipe.sources]
    for domain in domains:
        check_labelled(domain)
    trained, held = hold_out(recipe, domains)
    return TrainingDataset(trained, Augment(recipe.crop, **recipe.augment.model_dump()), recipe.seed), held


def _rare(recipe: Recipe, dataset: TrainingDataset) -> list[RareClasses | None]:
    """How each source draws images for its rare classes; None for a source that does not."""
    return [
        rare_classes(domain, source.rare_classes) if source.rare_classes else None
        for domain, source in zip(dataset.domains, recipe.sources, strict=True)
    ]


def _previous(recipe: Recipe, out: Path, resume: bool, overwrite: bool) -> Run | None:
    """The run to resume, if any; refuses if something would be lost."""
    if out.is_file():
        raise UserError(f"{out} is a file, expected a folder for the run")
    if holds_nothing(out):
        return None
    if resume and overwrite:
        raise UserError(f"{out}: --resume continues the run there, --overwrite replaces it; give one of them")
    if not resume and not overwrite:
        raise UserError(
            f"{out} exists and is not empty; continue it with --resume, replace it with --overwrite, or choose another"
        )
    if is_torn(out) or (overwrite and is_run(out)):
        return None
    previous = open_run(out)
    old, new = decisive(previous.recipe), decisive(recipe)
    changed = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    if changed:
        raise UserError(
            f"{out}/recipe.yaml differs from the given recipe in {', '.join(changed)} "
            f"({changed[0]}: {old.get(changed[0])} there, {new.get(changed[0])} here); resume with the run's own "
            "recipe, or start again with --overwrite"
        )
    return Run(out, recipe, previous.info)


def decisive(recipe: Recipe) -> dict[str, Any]:
    """The settings that the result of a training depends on. Base weights and files are compared by their hashes.

    Rare classes and validation are listed only where there are some, so that records which do not know these settings
    stay valid.
    """
    free = {"validation", "workers", "checkpoint_every", "devices", "strategy", "accumulate", "targets", "evaluation"}
    free |= {"logger"}
    settings = recipe.model_dump(exclude={**dict.fromkeys(free, True), "backbone": {"weights"}})
    if recipe.validation is not None:
        settings["validation"] = recipe.validation.model_dump()
    specs = [parse_spec(source.data) for source in recipe.sources]
    settings["sources"] = [
        (spec.label, spec.name, spec.domain, source.images, source.weight)
        + ((source.rare_classes.model_dump(),) if source.rare_classes else ())
        for spec, source in zip(specs, recipe.sources, strict=True)
    ]
    return settings


def facts_of(segmenter: Segmenter, dataset: TrainingDataset, held: Sequence[HeldOut]) -> dict[str, Any]:
    """What `run.json` says of a training."""
    space = dataset.domains[0].train_space
    notes = {domain.label: domain.notes for domain in dataset.domains if domain.notes}
    return {
        "classes": {"names": space.names, "colours": space.colours},
        "weights_sha256": segmenter.backbone.weights_sha256,
        "sources": [_images(domain) for domain in dataset.domains],
        **({"validation": [_images(each.domain) | {"split": each.split} for each in held]} if held else {}),
        "parameters": {
            "backbone": _count(segmenter.backbone) - _count(segmenter.backbone, trained=True),
            "adapters": _count(segmenter.backbone, trained=True),
            "head": _count(segmenter.head, trained=True),
        },
        "versions": versions(),
        **({"reading": notes} if notes else {}),
    }


def _images(domain: Domain) -> dict[str, Any]:
    return {"label": domain.label, "images": len(domain), "fingerprint": domain.fingerprint()}


def _check_data(run: Run, facts: dict[str, Any]) -> None:
    """Refuse to resume with other images or classes than before."""
    for old, new in zip(run.info.get("validation", ()), facts.get("validation", ()), strict=True):
        if old["split"] != new["split"]:
            raise UserError(
                f"{new['label']}: {run.path} is validated on images of its split {old['split']}, but with the targets "
                f"of this recipe on the split {new['split']}; give the targets of the run's own recipe"
            )
    before, now = ([*info["sources"], *info.get("validation", ())] for info in (run.info, facts))
    for old, new in zip(before, now, strict=True):
        if old != new:
            raise UserError(
                f"{new['label']}: its files have changed since {run.path} was started ({old['images']} images then, "
                f"{new['images']} now); put them back, or start again with --overwrite"
            )
    if run.info["classes"]["names"] != list(facts["classes"]["names"]):
        raise UserError(f"{run.path}: the list of classes has changed; put it back, or start again with --overwrite")


def _count(module: nn.Module, trained: bool = False) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not trained)
