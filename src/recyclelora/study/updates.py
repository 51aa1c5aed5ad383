"""How the trainings of runs changed the weights of their base."""

from __future__ import annotations

from recyclelora.errors import UserError
from recyclelora.methods import get_method
from recyclelora.methods.update import Update
from recyclelora.runs.build import base_of
from recyclelora.runs.run import Run, open_finished


def layer_updates(run: Run, weights: str | None = None) -> list[Update]:
    """The updates of a finished run, block by block; if there are two adapters, those of both.

    Raises:
        UserError: the run is not finished, was saved with its merged backbone, or its method changes no weights.
    """
    open_finished(run.path)
    if run.is_merged:
        raise UserError(
            f"{run.path}: its adapters are merged and cannot be told apart; analyze the run of the training"
        )
    method = get_method(run.recipe.method)
    try:
        return list(method.updates(base_of(run, weights).backbone, run.recipe.adapter, run.adapter))
    except UserError as error:
        raise UserError(f"{run.path}: {error}") from error
