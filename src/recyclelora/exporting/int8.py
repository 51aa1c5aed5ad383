"""An ONNX model whose matrices are products of 8-bit integers, and what this costs and gains.

float32 weights of a product  -> int8, one scale per column
inputs of the product         -> uint8, with the scale and zero point of the batch at hand  (dynamic quantisation)

Convolutions, norms, softmax and products of two activations stay in float32. Ranges that are calibrated on images
beforehand (static quantisation) were compared: they change more pixels and take longer; docs/export.md has the figures.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from recyclelora.data.opening import open_domain
from recyclelora.errors import UserError
from recyclelora.evaluation.scores import Predict, score_domain
from recyclelora.exporting import sliding
from recyclelora.exporting.check import Image, compared, counted
from recyclelora.exporting.onnx_model import quiet
from recyclelora.exporting.program import exporter
from recyclelora.exporting.trained import Scores, Trained
from recyclelora.recipe import Recipe
from recyclelora.recipe.settings import ValidationSettings
from recyclelora.training.held_out import HeldOut, hold_out

NAME = sliding.INT8_MODEL
LEAST_AGREEMENT = 0.95
IMAGES = 10
"""How many labelled images are scored."""
ROUNDS = 7
Forward = Callable[[UInt8[np.ndarray, "b 3 h w"]], Float[np.ndarray, "b classes h w"]]


@dataclass(frozen=True)
class Int8:
    """The int8 model beside the float model, both in onnxruntime.

    images: what the agreement is of, in words. agreement: the share of pixels with the same class. difference: the
    largest of a probability. time, size: as shares of the float model's; `spread` has the lowest and the highest time
    of a round, `threads` the number of onnxruntime's threads. labelled: what is scored, in words; None, as both mIoU,
    if no labels of a source can be opened.
    """

    images: str
    agreement: float
    difference: float
    time: float
    spread: tuple[float, float]
    threads: int
    size: float
    labelled: str | None
    miou: float | None
    float_miou: float | None

    @property
    def sound(self) -> bool:
        """Whether the int8 model still is the model: it may change details, but not one pixel of twenty."""
        return self.agreement >= LEAST_AGREEMENT

    def __str__(self) -> str:
        scores = "mIoU not measured, because no labels of a source could be opened"
        if self.labelled is not None:
            own, other = ("-" if miou is None else f"{100 * miou:.2f} %" for miou in (self.miou, self.float_miou))
            scores = f"mIoU {own} (float {other}) on {self.labelled}"
        low, high = self.spread
        speed = f"{self.time:.2f} of float's time ({low:.2f} to {high:.2f}, {self.threads} threads)"
        agreement = f"{100 * self.agreement:.2f} % of pixels have the class of float on {self.images}"
        return f"{scores}; {agreement}; {speed}, {self.size:.2f} of its size"

    def to_json(self) -> dict[str, Any]:
        """The part of `export.json`."""
        return asdict(self)


def add_int8(trained: Trained, folder: Path, to: Path, images: Sequence[Image], described: str) -> Int8:
    """Write the int8 model beside the float model in a folder, and compare the two.

    Args:
        to: where the folder will be, for the message.
        images: what they are compared on; `described` says what they are.

    Raises:
        UserError: fewer than 95 % of the pixels have the same class.
    """
    with quiet(), exporter(trained, "onnxruntime"):
        write(folder / sliding.MODEL, folder / NAME)
    made = compare(trained, folder, images, described)
    if not made.sound:
        raise UserError(
            f"{to}: the int8 model is not the model, {made}; expected the class of float on at least "
            f"{100 * LEAST_AGREEMENT:g} % of pixels; leave out --int8"
        )
    return made


def write(float_model: Path, target: Path) -> None:
    """Write a model with int8 products."""
    import onnxruntime
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with TemporaryDirectory(dir=target.parent) as folder:  # where there is space for models
        folded = Path(folder) / "model.onnx"  # weights that are cut or turned become constants, which can be quantised
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(folded)
        options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "weights.data")
        onnxruntime.InferenceSession(str(float_model), options, providers=["CPUExecutionProvider"])
        quantize_dynamic(
            folded, target, op_types_to_quantize=["MatMul", "Gemm"], per_channel=True, weight_type=QuantType.QInt8,
            use_external_data_format=Path(f"{float_model}.data").is_file(), extra_options={"MatMulConstBOnly": True},
        )  # fmt: skip


def compare(trained: Trained, folder: Path, images: Sequence[Image], described: str) -> Int8:
    """Compare the two models in a folder: on images, on labelled images of a source, and in time."""
    plan = trained.plan
    threads = os.cpu_count() or 1
    forwards = {name: sliding.open_model(folder / name, threads) for name in (sliding.MODEL, NAME)}
    models = {name: _scores(trained, forward) for name, forward in forwards.items()}
    parity = compared(models[sliding.MODEL], models[NAME], trained.probabilities, images, described)
    window = images[0][: plan.window, : plan.window].transpose(2, 0, 1)[None]
    ratios = _ratios(forwards[NAME], forwards[sliding.MODEL], window)
    sizes = {name: sum(file.stat().st_size for file in folder.glob(f"{name}*")) for name in models}
    labelled, mious = _mious(trained, [models[NAME], models[sliding.MODEL]])
    return Int8(
        images=described, agreement=parity.agreement, difference=parity.difference,
        time=float(np.median(ratios)), spread=(min(ratios), max(ratios)), threads=threads,
        size=sizes[NAME] / sizes[sliding.MODEL], labelled=labelled, miou=mious[0], float_miou=mious[1],
    )  # fmt: skip


def _scores(trained: Trained, forward: Forward) -> Scores:
    plan = trained.plan
    return lambda image: sliding.scores(forward, image, plan.window, plan.stride, plan.batch_size)


def _classes(scores: Scores) -> Predict:
    return lambda image: scores(image).argmax(0).astype(np.uint8)


def _ratios(one: Forward, other: Forward, window: UInt8[np.ndarray, "1 3 h w"]) -> list[float]:
    """The time of one model as a share of another's, for a window, taken in turn; the first round warms up."""
    ratios = []
    for _ in range(1 + ROUNDS):
        seconds = []
        for forward in (one, other):
            started = time.perf_counter()
            forward(window)
            seconds.append(time.perf_counter() - started)
        ratios.append(seconds[0] / seconds[1])
    return ratios[1:]


def _mious(trained: Trained, models: Sequence[Scores]) -> tuple[str | None, list[float | None]]:
    """What the models are scored on, in words, and the mIoU of each."""
    recipe = trained.model.run.recipe
    for held in _labelled(recipe):
        with suppress(UserError, OSError):
            found = [
                score_domain(_classes(scores), trained.model.space, held.domain, split=held.split).miou
                for scores in models
            ]
            seen = ", which were trained on" if held.split == "train" and recipe.validation is None else ""
            windows = f"at their own size, windows of {trained.plan.window}, stride {trained.plan.stride}"
            return f"{counted(len(held.domain))} of {held.domain.label} (split {held.split}{seen}; {windows})", found
    return None, [None] * len(models)


def _labelled(recipe: Recipe) -> list[HeldOut]:
    """Images of the sources that are not trained on, as far as there are such; nothing if they cannot be opened."""
    validation = (recipe.validation or ValidationSettings()).model_copy(update={"images": IMAGES})
    try:
        domains = [
            open_domain(source.data, "train", recipe.limit, source.images, recipe.seed) for source in recipe.sources
        ]
        return hold_out(recipe.model_copy(update={"validation": validation}), domains)[1]
    except (UserError, OSError):
        return []
