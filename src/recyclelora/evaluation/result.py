"""The result of an evaluation, with everything that it depends on.

The model is that of the last step: none is chosen on the data it is scored on. The weights that were best in the
training's validation, on images of the source, can be scored beside it.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from recyclelora.data.domain import Domain
from recyclelora.evaluation.scores import Predict, Scores, mean_miou
from recyclelora.evaluation.targets import Target
from recyclelora.runs.predictor import Predictor
from recyclelora.runs.run import versions


@dataclass
class Evaluation:
    """The scores of a model on the targets scored so far; `limit` images of each target, or all if it is None.

    `beside` has the scores of the same run's best checkpoint, if they were asked for.
    """

    model: Predictor
    targets: Sequence[Target]
    limit: int | None = None
    scores: list[Scores] = field(default_factory=list)
    beside: Evaluation | None = None

    @property
    def all(self) -> list[Evaluation]:
        """This evaluation, and the one beside it if there is one."""
        return [self] if self.beside is None else [self, self.beside]

    @property
    def complete(self) -> bool:
        """Whether all is scored."""
        return all(len(each.scores) == len(each.targets) for each in self.all)

    @property
    def protocol(self) -> str:
        """The name of the protocol with all departures from it; if targets differ in these, each name once."""
        return protocol_name(self.model, self.targets)

    @property
    def mean_miou(self) -> float | None:
        """The mean over targets; None before all are scored."""
        return mean_miou(self.scores) if len(self.scores) == len(self.targets) else None

    def to_json(self) -> dict[str, Any]:
        """The content of the results file: the scores, and everything that they depend on."""
        run, settings = self.model.run, self.model.evaluation
        return {
            "run": run.path.name,
            "method": run.recipe.method,
            "complete": self.complete,
            "protocol": {
                "name": self.protocol,
                "flip": settings.flip,
                "scales": settings.scales,
                "limit": self.limit,
                "targets": {target.spec.label: self._protocol_of(target) for target in self.targets},
            },
            "step": run.step,
            "checkpoint": run.info.get("checkpoint", "last"),
            "finished": run.finished,
            "weights_sha256": run.info["weights_sha256"],
            "trained_sha256": run.trained_sha256,
            "mean_miou": self.mean_miou,
            "targets": [score.to_json() for score in self.scores],
            **({} if self.beside is None else {"beside": self.beside.to_json()}),
            "recipe": run.recipe.model_dump(mode="json"),
            "versions": versions(),
        }

    def _protocol_of(self, target: Target) -> dict[str, Any]:
        plan = self.model.plan(target.domain.dataset)
        return {
            "data": target.spec.name,
            "split": target.split,
            "name": plan.name,
            "size": plan.box,
            "window": plan.window,
            "stride": plan.stride,
            **({"reading": target.domain.notes} if target.domain.notes else {}),
        }


def predict_as(model: Predictor, domain: Domain) -> Predict:
    """The function that predicts images of a domain, with the plan of its data set."""
    return functools.partial(model.predict, dataset=domain.dataset)


def protocol_name(model: Predictor, targets: Sequence[Target]) -> str:
    """The name of the protocol with all departures from it; if targets differ in these, each name once."""
    return " / ".join(dict.fromkeys(model.plan(target.domain.dataset).name for target in targets))
