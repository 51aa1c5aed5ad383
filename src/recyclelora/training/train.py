"""Trains a recipe into a finished run, and resumes a training that stopped."""

from __future__ import annotations

import logging
import os
import re
import warnings
from pathlib import Path
from typing import Any

import cv2
import lightning as L
from lightning.pytorch.strategies import DDPStrategy
from torch import nn
from torch.utils.data import DataLoader

from recyclelora.data.dataset import TrainingDataset
from recyclelora.data.labelled import check_labelled
from recyclelora.data.opening import manifest, open_domain, parse_spec
from recyclelora.data.transforms import Augment
from recyclelora.errors import DivergedError, UserError
from recyclelora.files import write_text
from recyclelora.models.segmenter import Segmenter
from recyclelora.recipe import Recipe
from recyclelora.runs.build import build, check_base
from recyclelora.runs.run import Run, open_finished, open_run, remove_run, versions
from recyclelora.training.checkpoint import SafetensorsCheckpointIO, newest_whole
from recyclelora.training.divergence import check_result
from recyclelora.training.module import SegmentationModule
from recyclelora.training.rare_classes import RareClasses, rare_classes
from recyclelora.training.recorder import ProgressBar, Recorder
from recyclelora.training.sampler import StepBatchSampler


def train(
    recipe: Recipe, out: str | Path, resume: bool = False, overwrite: bool = False, cache_factors: bool = False
) -> Run:
    """Train a model into the folder `out`; see `recyclelora.runs.run` for what is written.

    Args:
        resume: continue from the last checkpoint of `out`, or start if there is none; a finished run is returned.
        overwrite: replace the run in `out`, once the new one is ready to start.
        cache_factors: keep the factors of the base weights in the cache folder, and use those that are there.

    Raises:
        UserError: `out` holds something and neither flag is set; a resumed run has another recipe or other base
            weights; no checkpoint can be read; the data or the model are wrong.
        DivergedError: the loss or a weight is NaN or infinite.
    """
    out = Path(out)
    recipe.check_sources()
    if "TORCHELASTIC_RUN_ID" in os.environ:
        raise UserError("started by torchrun: start the training once, with `devices` set to the number of processes")
    leads = os.environ.get("LOCAL_RANK", "0") == "0"  # Lightning starts the other processes once the run is written
    previous = _previous(recipe, out, resume, overwrite) if leads else open_run(out)
    if previous is not None and previous.finished:
        open_finished(out)  # refuses files that have changed
        return previous
    dataset = _dataset(recipe)
    rare = _rare(recipe, dataset)
    space = dataset.domains[0].train_space
    checkpoint = None if previous is None else newest_whole(previous.checkpoint, previous.older_checkpoint)
    segmenter = build(recipe, len(space), draw=checkpoint is None, cache_factors=cache_factors)
    facts = _facts(segmenter, dataset)
    if previous is not None:
        check_base(segmenter.backbone, previous, recipe.backbone.weights)
        _check_data(previous, facts)
    run = previous or Run(out, recipe, facts)
    if leads:
        if overwrite:
            remove_run(out)
        run.write()
        _write_manifests(run, dataset)
    module = SegmentationModule(segmenter, recipe)
    _fit(run, module, dataset, rare, checkpoint)
    module.take_averages()
    check_result(out, recipe.steps, module, segmenter.head)
    if leads:
        run.save_result(segmenter)
    return run


def _dataset(recipe: Recipe) -> TrainingDataset:
    domains = [open_domain(source.data, "train", recipe.limit, source.images, recipe.seed) for source in recipe.sources]
    for domain in domains:
        check_labelled(domain)
    return TrainingDataset(domains, Augment(recipe.crop, **recipe.augment.model_dump()), recipe.seed)


def _rare(recipe: Recipe, dataset: TrainingDataset) -> list[RareClasses | None]:
    """How each source draws images for its rare classes; None for a source that does not."""
    return [
        rare_classes(domain, source.rare_classes) if source.rare_classes else None
        for domain, source in zip(dataset.domains, recipe.sources, strict=True)
    ]


def _write_manifests(run: Run, dataset: TrainingDataset) -> None:
    """Write the names of the images of each source, one line per image."""
    for number, domain in enumerate(dataset.domains, 1):
        name = re.sub(r"[^\w.-]", "_", domain.label)
        write_text(run.manifests / f"{number}_{name}.txt", "\n".join(manifest(domain)) + "\n")


def _previous(recipe: Recipe, out: Path, resume: bool, overwrite: bool) -> Run | None:
    """The run to resume, if any; refuses if something would be lost."""
    if out.is_file():
        raise UserError(f"{out} is a file, expected a folder for the run")
    if not out.is_dir() or not any(out.iterdir()):
        return None
    if resume and overwrite:
        raise UserError(f"{out}: --resume continues the run there, --overwrite replaces it; give one of them")
    if not resume and not overwrite:
        raise UserError(
            f"{out} exists and is not empty; continue it with --resume, replace it with --overwrite, or choose another"
        )
    previous = open_run(out)
    if overwrite:
        return None
    old, new = decisive(previous.recipe), decisive(recipe)
    changed = [key for key in new if old[key] != new[key]]
    if changed:
        raise UserError(
            f"{out}/recipe.yaml differs from the given recipe in {', '.join(changed)} "
            f"({changed[0]}: {old[changed[0]]} there, {new[changed[0]]} here); resume with the run's own recipe, or "
            "start again with --overwrite"
        )
    return Run(out, recipe, previous.info)


def decisive(recipe: Recipe) -> dict[str, Any]:
    """The settings that the result of a training depends on. Base weights and files are compared by their hashes.

    Rare classes are listed only for a source that has them, so that records which do not know this setting stay valid.
    """
    free = ("workers", "checkpoint_every", "devices", "targets", "evaluation")
    settings = recipe.model_dump(exclude={**dict.fromkeys(free, True), "backbone": {"weights"}})
    specs = [parse_spec(source.data) for source in recipe.sources]
    settings["sources"] = [
        (spec.label, spec.name, spec.domain, source.images, source.weight)
        + ((source.rare_classes.model_dump(),) if source.rare_classes else ())
        for spec, source in zip(specs, recipe.sources, strict=True)
    ]
    return settings


def _facts(segmenter: Segmenter, dataset: TrainingDataset) -> dict[str, Any]:
    space = dataset.domains[0].train_space
    return {
        "classes": {"names": space.names, "colours": space.colours},
        "weights_sha256": segmenter.backbone.weights_sha256,
        "sources": [
            {"label": domain.label, "images": len(domain), "fingerprint": domain.fingerprint()}
            for domain in dataset.domains
        ],
        "parameters": {
            "backbone": _count(segmenter.backbone) - _count(segmenter.backbone, trained=True),
            "adapters": _count(segmenter.backbone, trained=True),
            "head": _count(segmenter.head, trained=True),
        },
        "versions": versions(),
    }


def _check_data(run: Run, facts: dict[str, Any]) -> None:
    """Refuse to resume with other images or classes than before."""
    for old, new in zip(run.info["sources"], facts["sources"], strict=True):
        if old != new:
            raise UserError(
                f"{new['label']}: its files have changed since {run.path} was started ({old['images']} images then, "
                f"{new['images']} now); put them back, or start again with --overwrite"
            )
    if run.info["classes"]["names"] != list(facts["classes"]["names"]):
        raise UserError(f"{run.path}: the list of classes has changed; put it back, or start again with --overwrite")


def _count(module: nn.Module, trained: bool = False) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not trained)


def _fit(
    run: Run,
    module: SegmentationModule,
    dataset: TrainingDataset,
    rare: list[RareClasses | None],
    checkpoint: Path | None,
) -> None:
    recipe = run.recipe
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    with warnings.catch_warnings():
        for advice in (
            ".*does not have many workers.*",
            ".*treespec, LeafSpec.*is deprecated",
            "You're resuming from a",
            ".*`broadcast_buffers` is deprecated",
            "The .grad attribute of a Tensor",  # torch's compiler reads it for every input
        ):
            warnings.filterwarnings("ignore", advice)
        trainer = L.Trainer(
            max_steps=recipe.steps,
            devices=recipe.devices,
            strategy=DDPStrategy(broadcast_buffers=False) if recipe.devices > 1 else "auto",
            precision=recipe.precision,
            callbacks=[Recorder(run), ProgressBar(run)],
            plugins=[SafetensorsCheckpointIO()],
            default_root_dir=run.path,
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=False,
            use_distributed_sampler=False,
            num_sanity_val_steps=0,
        )
        sampler = StepBatchSampler(
            [len(domain) for domain in dataset.domains],
            recipe.batch_size // recipe.devices,
            recipe.steps,
            recipe.seed,
            lambda: trainer.global_step,
            weights=[source.weight for source in recipe.sources if source.weight] or None,
            rank=trainer.global_rank,
            world=trainer.world_size,
            rare=rare,
        )
        cv2.setNumThreads(0)  # OpenCV's thread pool does not survive the fork of the loader's processes
        loader = DataLoader(dataset, batch_sampler=sampler, num_workers=recipe.workers)
        try:
            trainer.fit(module, loader, ckpt_path=checkpoint)
        except SystemExit as error:  # Lightning turns an interrupt into this
            raise KeyboardInterrupt from error
        except DivergedError:
            raise
        except UserError as error:  # one from a loader process arrives after that process's traceback
            raise UserError(str(error).splitlines()[-1].removeprefix("recyclelora.errors.UserError: ")) from error
