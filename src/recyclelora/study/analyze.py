"""The verb `analyze`: how trainings changed weights and features, as tables, heat maps and pictures.

Every figure but the norms is a function of `recyclelora.study.measures`, which names its source.
"""

from __future__ import annotations

import copy
import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from recyclelora.adapter.base import weight_matrix
from recyclelora.data.domain import Domain
from recyclelora.errors import UserError
from recyclelora.evaluation.targets import open_targets
from recyclelora.files import user_path, write_json
from recyclelora.methods.update import Update
from recyclelora.models.segmenter import Segmenter
from recyclelora.pages import plots
from recyclelora.pages.page import write_page
from recyclelora.pages.pictures import PICTURE_FILTERS
from recyclelora.pages.progress import shown
from recyclelora.pages.tables import print_table
from recyclelora.runs.build import base_of
from recyclelora.runs.predictor import load
from recyclelora.runs.run import Run, open_run
from recyclelora.study import measures
from recyclelora.study.updates import layer_updates

PARTS = 10
"""The energy of an update is shown for this many equal portions of the base's singular directions."""
TOP = 16
"""An update is compared with this many top singular directions of the base."""
Singular = tuple[Float[Tensor, "out k"], Float[Tensor, " k"], Float[Tensor, "k in"]]
"""U, S and V' of a base weight."""
MEASURES = {
    "norm": "norm of the update over the base's",
    "effective_rank": "effective rank of the update",
    "rank_efficiency": "effective rank of B A over its rank",
    "cosine_A": "mean |cos| among rows of A",
    "cosine_B": "mean |cos| among columns of B",
    "column_ratio": "column norms of A at its initial ones over elsewhere",
    "top_alignment": f"share of the update between the base's top {TOP} directions",
    "top_distance": f"Grassmann distance of B and the base's top {TOP} directions (1: orthogonal)",
    "main_sub_distance": "Grassmann distance of main and sub (1: orthogonal)",
    "main_sub_angle": "smallest principal angle of main and sub, degrees",
}


def measure(update: Update, singular: Singular) -> dict[str, Any]:
    """The figures of one update, given the singular vectors of its base; None where a figure needs factors."""
    A, B = update.A, update.B
    U, _, Vh = singular
    return {
        "layer": update.layer,
        "role": update.role,
        "rank": update.rank,
        "norm": float(update.delta.norm() / update.base.norm()),
        "effective_rank": measures.effective_rank(update.delta),
        "rank_efficiency": None if A is None or B is None else measures.rank_efficiency(B, A),
        "cosine_A": None if A is None else measures.mean_cosine(A),
        "cosine_B": None if B is None else measures.mean_cosine(B.T),
        "column_ratio": None if A is None or update.index is None else measures.column_norm_ratio(A, update.index),
        "top_alignment": measures.alignment_with_top(update.delta, U[:, :TOP], Vh[:TOP]),
        "top_distance": None if B is None else measures.grassmann_distance(B, U[:, :TOP]),
        "energy": measures.energy_profile(update.delta, U, PARTS).tolist(),
    }


def measure_all(updates: Sequence[Update]) -> list[dict[str, Any]]:
    """The figures of every update of a run, and the distance between main and sub in layers that have both."""
    layers = [list(group) for _, group in itertools.groupby(updates, lambda update: update.layer)]
    rows = []
    for group in shown(layers, "singular vectors", "layers"):
        singular = torch.linalg.svd(group[0].base.double(), full_matrices=False)
        columns = [update.B for update in group if update.B is not None]
        distance = angle = None
        if len(columns) == 2:
            distance = measures.grassmann_distance(*columns)
            angle = math.degrees(measures.principal_angles(*columns)[-1])
        both = {"main_sub_distance": distance, "main_sub_angle": angle}
        rows += [measure(update, singular) | both for update in group]
    return rows


def summarise(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float | None]]:
    """The mean of every measure over the layers, by role."""
    roles = dict.fromkeys(row["role"] for row in rows)
    return {
        role: {
            key: statistics.fmean(known)
            if (known := [row[key] for row in rows if row["role"] == role and row[key] is not None])
            else None
            for key in MEASURES
        }
        for role in roles
    }


@dataclass(frozen=True)
class Drift:
    """How far features moved from the base's: CKA by domain and block, and pictures of the last block."""

    cka: dict[str, list[float]]
    pictures: dict[str, list[tuple[str, UInt8[np.ndarray, "h w 3"]]]]


def feature_drift(
    run: Run, updates: Sequence[Update], domains: Sequence[Domain], images: int, weights: str | None = None
) -> Drift:
    """Compare the features of a run's model to those of its base.

    Args:
        updates: the updates of the run; if it has two adapters, the features of each adapter are also shown separately.
        images: so many of each domain, evenly spaced, cut to the crop of the training at their middle.
    """
    base = base_of(run, weights)
    models = {"whole": load(run.path, weights, "cpu").segmenter}
    roles = list(dict.fromkeys(update.role for update in updates))
    models |= {role: with_role(base, updates, role) for role in roles if len(roles) > 1}
    cka, pictures = {}, {}
    for domain in domains:
        count = min(images, len(domain))
        chosen = [(2 * i + 1) * len(domain) // (2 * count) for i in range(count)]
        crops = [_crop(domain.image(index), run.recipe.crop, base.backbone.patch_size) for index in chosen]
        before = block_features(base, crops)
        after = {name: block_features(model, crops) for name, model in models.items()}
        cka[domain.label] = [
            measures.linear_cka(a.flatten(0, 1), b.flatten(0, 1)) for a, b in zip(before, after["whole"], strict=True)
        ]
        shown = [("image", crops[0]), ("base", _picture(before[-1][0], crops[0]))]
        for name, features in after.items():
            title = "change" if name == "whole" else f"change by {name}"
            shown.append((title, _picture(features[-1][0] - before[-1][0], crops[0])))
        pictures[domain.label] = shown
    return Drift(cka, pictures)


def with_role(base: Segmenter, updates: Sequence[Update], role: str) -> Segmenter:
    """A copy of the base to which only the updates of one role are added."""
    model = copy.deepcopy(base)
    for update in updates:
        if update.role == role:
            weight_matrix(model.backbone.model.get_submodule(update.layer)).data.add_(update.delta)
    return model


@torch.no_grad()
def block_features(
    model: Segmenter, crops: Sequence[UInt8[np.ndarray, "h w 3"]]
) -> list[Float[Tensor, "images patches c"]]:
    """The output of every block for the patches, before the final norm."""
    images = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2)
    vit: Any = model.backbone.model
    maps: list[Tensor] = vit.forward_intermediates(
        (images - model.mean) / model.std, indices=None, norm=False, output_fmt="NLC", intermediates_only=True
    )
    return maps


def _crop(image: UInt8[np.ndarray, "h w 3"], side: int, patch: int) -> UInt8[np.ndarray, "s s 3"]:
    side = side // patch * patch
    scale = max(1.0, side / min(image.shape[:2]))
    if scale > 1:
        size = [max(side, round(scale * length)) for length in image.shape[1::-1]]
        image = cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)
    top, left = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
    return np.ascontiguousarray(image[top : top + side, left : left + side])


def _picture(features: Float[Tensor, "patches c"], crop: UInt8[np.ndarray, "s s 3"]) -> UInt8[np.ndarray, "s s 3"]:
    """The first three principal components of the features, shown as colours at the size of the crop."""
    side = round(len(features) ** 0.5)
    colours = measures.principal_components(features, 3).view(side, side, 3).mul(255).to(torch.uint8).numpy()
    return cv2.resize(colours, (crop.shape[1], crop.shape[0]), interpolation=cv2.INTER_NEAREST)


def analyze(
    runs: str | Path | Sequence[str | Path],
    out: str | Path,
    targets: str | Sequence[str] = (),
    images: int = 4,
    weights: str | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Analyse runs into a page, `out`, and a JSON file beside it, whose content is returned.

    Args:
        targets: data sets on whose images features are compared, as in `recyclelora.evaluate`; not compared without.
        images: number of images of each target.
        weights: where the base weights lie now, if not where the recipes say.
        overwrite: replace the files of an earlier call.

    Raises:
        UserError: no runs, files that exist, two runs of one name; as `layer_updates` and `open_targets`.
    """
    out = user_path(out)
    if out.suffix != ".html":
        raise UserError(f"--out {out}: expected a file name ending in .html")
    for file in (out, out.with_suffix(".json")):
        if file.exists() and not overwrite:
            raise UserError(f"{file} exists; choose another --out or replace it with --overwrite")
    runs = [runs] if isinstance(runs, str | Path) else runs
    opened = {Path(run).name: open_run(run) for run in runs}
    if not opened:
        raise UserError("no runs to analyse are given; give folders of finished trainings")
    if len(opened) < len(runs):
        raise UserError("two runs have folders of the same name; rename one of them")
    domains = [target.domain for target in open_targets([targets] if isinstance(targets, str) else targets)]
    rows, drifts = {}, {}
    for name, run in opened.items():
        updates = layer_updates(run, weights)
        rows[name] = measure_all(updates)
        if domains:
            drifts[name] = feature_drift(run, updates, domains, images, weights)
    result = {
        name: {
            "method": run.recipe.method,
            "means": summarise(rows[name]),
            "layers": rows[name],
            "cka": drifts[name].cka if name in drifts else {},
        }
        for name, run in opened.items()
    }
    write_json(out.with_suffix(".json"), result)
    _write_page(out, result, drifts)
    return result


def print_analysis(result: Mapping[str, Any]) -> None:
    """Print the means over layers, one row per measure."""
    columns = {label: result[name]["means"][role] for label, (name, role) in columns_of(result).items()}
    rows = [
        [title, *("–" if means[key] is None else f"{means[key]:.3g}" for means in columns.values())]
        for key, title in MEASURES.items()
    ]
    print_table(["mean over layers", *columns], rows)


def columns_of(result: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """The run and the role of each column; the column of a run with one adapter has only the name of the run."""
    return {
        f"{name}: {role}" if len(run["means"]) > 1 else name: (name, role)
        for name, run in result.items()
        for role in run["means"]
    }


def _write_page(out: Path, result: Mapping[str, Any], drifts: Mapping[str, Drift]) -> None:
    named = columns_of(result)
    columns = {label: result[name]["means"][role] for label, (name, role) in named.items()}
    grids = {
        label: [row for row in result[name]["layers"] if row["role"] == role] for label, (name, role) in named.items()
    }
    maps = {
        MEASURES[key]: plots.layer_maps({label: layer_grid(rows, key) for label, rows in grids.items()})
        for key in MEASURES
    }
    energy = {label: np.mean([row["energy"] for row in rows], axis=0).tolist() for label, rows in grids.items()}
    cka = {f"{name}, {label}": values for name, run in result.items() for label, values in run["cka"].items()}
    write_page(
        out,
        "analysis.html.j2",
        PICTURE_FILTERS,
        result=result,
        measures=MEASURES,
        columns=columns,
        maps={title: picture for title, picture in maps.items() if picture},
        energy=plots.lines(energy, "tenth of the base's left singular directions, 0: most major", "share of energy"),
        cka=plots.lines(cka, "block", "CKA with the base's features") if cka else "",
        pictures={name: drift.pictures for name, drift in drifts.items()},
    )


def layer_grid(rows: Sequence[Mapping[str, Any]], key: str) -> dict[str, list[float | None]]:
    """A measure by kind of layer and block: `attn.qkv` -> one value per block."""
    grid: dict[str, dict[int, float | None]] = {}
    for row in rows:
        parts = row["layer"].split(".")
        number = next((i for i, part in enumerate(parts) if part.isdigit()), None)
        block, kind = (0, row["layer"]) if number is None else (int(parts[number]), ".".join(parts[number + 1 :]))
        grid.setdefault(kind, {})[block] = row[key]
    depth = 1 + max((block for values in grid.values() for block in values), default=0)
    return {kind: [values.get(block) for block in range(depth)] for kind, values in grid.items()}
