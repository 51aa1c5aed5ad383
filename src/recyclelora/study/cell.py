"""One training of a grid with its targets, and its result, a small file that can be kept and shared."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from recyclelora.data.opening import parse_spec
from recyclelora.errors import UserError
from recyclelora.evaluation.bootstrap import DRAWS
from recyclelora.evaluation.scores import Scores
from recyclelora.evaluation.targets import Limit
from recyclelora.files import parse_json
from recyclelora.models.weights import SOURCES
from recyclelora.recipe import Recipe, make_recipe
from recyclelora.training.train import decisive

FREE = {"evaluation.batch_size"}
"""Settings that do not change any result."""


@dataclass(frozen=True)
class Cell:
    """One training and the targets that it is scored on; `limit` as in `recyclelora.evaluation.targets`."""

    variant: str
    recipe: Recipe
    targets: tuple[str, ...]
    split: str | None = None
    limit: Limit = None

    @property
    def name(self) -> str:
        """The name of its files."""
        return f"{re.sub(r'[^A-Za-z0-9_.=-]', '_', self.variant)}--{self.recipe.seed}"

    def settings(self) -> dict[str, Any]:
        """The settings that the result depends on, by keys such as `optim.lr`; paths of files are left out."""
        facts = {**decisive(self.recipe), "evaluation": self.recipe.evaluation.model_dump()}
        weights = self.recipe.backbone.weights
        facts["backbone"]["weights"] = weights if weights in SOURCES else Path(weights).name
        facts["scored"] = {
            "targets": [_without_root(text) for text in self.targets],
            "split": self.split,
            "limit": dict(self.limit) if isinstance(self.limit, Mapping) else self.limit,
            "draws": DRAWS,
        }
        return dict(_leaves(json.loads(json.dumps(facts))))

    def differences(self, settings: Mapping[str, Any]) -> list[str]:
        """How the settings of a result differ from this cell's; a setting that the result lacks had its default."""
        recipe = make_recipe({"sources": self.recipe.model_dump()["sources"], "method": self.recipe.method})
        asked, default = self.settings(), Cell("", recipe, self.targets).settings()
        scored = settings.get("scored.targets", [])
        if set(asked["scored.targets"]) <= set(scored):
            asked["scored.targets"] = scored
        return [
            f"{key} {settings.get(key, default.get(key))} in place of {asked.get(key)}"
            for key in sorted({*asked, *settings} - FREE)
            if settings.get(key, default.get(key)) != asked.get(key)
        ]


def _without_root(target: str) -> str:
    """A target without its path; a folder of the user's own keeps the label that it has from its path."""
    left = target.partition("=")[0]
    return f"{parse_spec(target).label}:folder" if left == "folder" else left


def _leaves(facts: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in facts.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


@dataclass(frozen=True)
class CellResult:
    """The scores and costs of a training, or the `error` of a training that diverged. Confusion matrices are left out.

    `settings` are what the result depends on (`Cell.settings`), `data` the sources with their fingerprints, `peak_gib`
    the peak memory of its process (None where another process trained it).
    """

    variant: str
    seed: int
    settings: Mapping[str, Any]
    scale: float | None
    threads: int = 0
    versions: Mapping[str, str] = field(default_factory=dict)
    error: str | None = None
    parameters: Mapping[str, int] = field(default_factory=dict)
    weights_sha256: str = ""
    data: Sequence[Mapping[str, Any]] = ()
    step_seconds: float | None = None
    peak_gib: float | None = None
    final_loss: float | None = None
    protocol: str = ""
    targets: tuple[Scores, ...] = ()
    wall_seconds: float | None = None

    def to_json(self) -> dict[str, Any]:
        """The content of the file, as plain values."""
        values = dict(vars(self))
        if self.error is None:
            del values["error"]
            scores = [score.to_json() for score in self.targets]
            values["targets"] = [{key: s[key] for key in s if key != "confusion"} for s in scores]
            return values
        known = ("variant", "seed", "settings", "scale", "threads", "versions", "error", "wall_seconds")
        return {key: values[key] for key in known}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> CellResult:
        """The result in a file.

        Raises:
            TypeError, KeyError, ValueError: a key is missing or unknown, or a value has the wrong type.
        """
        if not isinstance(values, Mapping):
            raise TypeError(f"it holds a {type(values).__name__}")
        needed = {"weights_sha256", "data", "targets", "parameters"} if "error" not in values else set()
        if lacking := needed - values.keys():
            raise KeyError(min(lacking))
        scores = tuple(Scores.from_json(target) for target in values.get("targets", ()))
        cls(**{**values, "targets": scores})  # refuses unknown keys
        result: CellResult = _RESULT.validate_python(values)
        if lacking := {"method", "optim.lr"} - result.settings.keys():
            raise KeyError(f"settings.{min(lacking)}")
        shares = [share for score in result.targets for share in (score.miou, *score.iou.values(), *score.resampled)]
        if any(share is not None and not 0 <= share <= 1 for share in shares):
            raise ValueError("a score is not between 0 and 1")
        return result


_RESULT = TypeAdapter(CellResult)


def read_result(file: Path) -> CellResult:
    """The result in a file.

    Raises:
        UserError: the file is damaged.
    """
    try:
        return CellResult.from_json(parse_json(file.read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{file}: damaged ({reason}); remove it to have it made again") from error


def read_cell(cell: Cell, records: Path) -> CellResult | None:
    """The result of a cell that was done earlier, restricted to the targets of the cell; None if there is no result.

    Raises:
        UserError: the file is damaged, or was made with other settings.
    """
    file = records / f"{cell.name}.json"
    if not file.is_file():
        return None
    result = read_result(file)
    if differences := cell.differences(result.settings):
        raise UserError(
            f"{file}: made with {'; '.join(differences)}; choose another --out, or remove it to have it made again"
        )
    labels = [parse_spec(text).label for text in cell.targets]
    return replace(result, targets=tuple(score for score in result.targets if score.label in labels))
