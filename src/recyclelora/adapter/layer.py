"""A layer with the two adapters of RecycleLoRA (arXiv 2603.28142), in difference form.

The paper trains A and B next to a frozen residual W_res = W0 - s B0 A0, so that the layer starts as W0:

    y = W_res x + s B A x,      s = alpha / (r_main + r_sub),   B = [B_main B_sub],   A = [A_main; A_sub]

This code trains the differences D_A = A - A0 and D_B = B - B0 instead, which start at zero, and W0 stays as it is:

    y = W0 x + s ( B D_A + D_B A0 ) x = W0 x + s  up  down  x,       B = B0 + D_B

                            +--- W0 (frozen) ------------------+
    x (in) -----------------+                                  (+)---> y (out)
                            +--- down (2r, in) --- up (out, 2r) * s
                                 [ D_A ]           [B  D_B]
                                 [ A0  ]

Both compute the same. In this form the start is exact in every precision, and a small change keeps its digits in every
precision as well: next to a 1 in A0, bfloat16 would round a change of 0.001 away.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
import torch.nn.functional as F
from peft.tuners._buffer_dict import BufferDict
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import Tensor, nn

from recyclelora.adapter.base import as_weight, device_of, fetched, is_quantised, matrix_shape
from recyclelora.adapter.config import LayerSettings, RecycleLoraConfig
from recyclelora.adapter.factors import Factors, one_hot
from recyclelora.adapter.step import adapted_linear, is_transformed, with_change

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Float

    from recyclelora.adapter.step import Start

PREFIX = "recycle_"
Role = Literal["main", "sub"]
LINEAR_FORWARD = nn.Linear.forward
BASE = "__base__"
"""PEFT's name for the base without an adapter, in `adapter_names`."""


class RecycleLoraLayer(nn.Module, BaseTunerLayer):
    """A layer that can be written as a matrix, plus any number of named adapters; see the top of the file."""

    adapter_layer_names = tuple(f"{PREFIX}delta_{factor}_{role}" for role in ("main", "sub") for factor in "AB")
    other_param_names = tuple(f"{PREFIX}{name}" for name in ("B0", "A0", "index", "scale", "dropout"))
    in_features: int
    out_features: int

    def __init__(
        self,
        base_layer: nn.Module,
        name: str,
        config: RecycleLoraConfig,
        settings: LayerSettings,
        factors: Factors | None,
    ) -> None:
        super().__init__()
        self.base_layer = base_layer
        for attribute in self.adapter_layer_names:
            setattr(self, attribute, nn.ParameterDict())
        self.recycle_B0 = BufferDict({}, persistent=True)
        self.recycle_A0 = BufferDict({}, persistent=True)
        self.recycle_index = BufferDict({}, persistent=True)
        self.recycle_scale = BufferDict({}, persistent=True)
        self.recycle_dropout = nn.ModuleDict()
        self.settings: dict[str, LayerSettings] = {}
        self.merged_adapters: list[str] = []
        self.cast_input_dtype_enabled = True
        self._unloaded: set[str] = set()
        self._unmerged_weight: Tensor | None = None
        self.out_features, self.in_features = matrix_shape(self.get_base_layer())
        self._active_adapter = name
        self.update_layer(name, config, settings, factors)

    @property
    def scaling(self) -> dict[str, float]:
        """The scale s of each adapter."""
        return {name: settings.scale for name, settings in self.settings.items()}

    @property
    def _weight(self) -> nn.Parameter:
        return cast(nn.Parameter, self.get_base_layer().weight)

    def update_layer(
        self, name: str, config: RecycleLoraConfig, settings: LayerSettings, factors: Factors | None
    ) -> None:
        """Add an adapter with its initial factors, in place of one of the same name.

        Without factors, an empty adapter is added, which raises an error when it is used before its values are loaded.
        """
        self._discard(name)
        if factors is None:
            self._unloaded.add(name)
            factors = self._nothing(config, settings)
        start = torch.nan if name in self._unloaded else 0.0
        for role, part in _parts(settings).items():
            r = part.stop - part.start
            getattr(self, f"{PREFIX}delta_A_{role}")[name] = nn.Parameter(torch.full((r, self.in_features), start))
            getattr(self, f"{PREFIX}delta_B_{role}")[name] = nn.Parameter(torch.full((self.out_features, r), start))
        self.recycle_B0[name] = factors.basis
        if factors.index is not None:
            self.recycle_index[name] = factors.index
        else:
            self.recycle_A0[name] = factors.rows
        self.recycle_scale[name] = torch.tensor(settings.scale)
        if config.dropout:
            self.recycle_dropout[name] = nn.Dropout(config.dropout)
        self.settings[name] = settings
        self._move_adapter_to_device_of_base_layer(name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def _discard(self, name: str) -> None:
        for attribute in self.adapter_layer_names + self.other_param_names:
            held = getattr(self, attribute)
            if name in held:
                del held[name]
        self.settings.pop(name, None)
        self._unloaded.discard(name)

    def delete_adapter(self, adapter_name: str) -> None:
        super().delete_adapter(adapter_name)
        self._discard(adapter_name)

    def _nothing(self, config: RecycleLoraConfig, settings: LayerSettings) -> Factors:
        """Factors that cannot be mistaken for real ones."""
        r = settings.r_main + settings.r_sub
        basis, rows = torch.full((self.out_features, r), torch.nan), torch.full((r, self.in_features), torch.nan)
        if config.decomposition != "rrqr":
            return Factors(basis=basis, index=None, rows=rows)
        return Factors(basis=basis, index=torch.full((r,), -1), rows=None)

    def check_loaded(self, name: str) -> None:
        """Raise ValueError if an adapter was added without its values, and they were not loaded since."""
        if name not in self._unloaded or torch.compiler.is_compiling():
            return
        B0, A0 = self._start(name)
        tensors = [B0, A0, *self._differences(name)]
        if any(t.device.type == "meta" or bool(t.isnan().any()) or (t == -1).all() for t in tensors):
            raise ValueError(
                f"adapter {name!r} has no values: it was added with init_weights=False, as a saved configuration says, "
                "and no file was loaded into it; load it with `PeftModel.from_pretrained` or `load_adapter`, or set "
                "init_weights=True for a new adapter"
            )
        self._unloaded.discard(name)

    def _differences(self, name: str) -> list[Tensor]:
        """D_A of main and sub, then D_B of main and sub."""
        roles = _parts(self.settings[name])
        return [self._held(f"delta_{factor}_{role}", name) for factor in "AB" for role in roles]

    def _held(self, attribute: str, name: str) -> Tensor:
        holder = getattr(self, PREFIX + attribute)
        return fetched(holder, name, holder[name])

    def _start(self, name: str) -> tuple[Float[Tensor, "out r"], Start]:
        """B0, and A0 or the columns of its ones."""
        return self._held("B0", name), self._held("index" if name in self.recycle_index else "A0", name)

    def factors_of(self, name: str) -> dict[Role, tuple[Tensor, Tensor, Start, Tensor]]:
        """D_A, D_B, A0 and B0 for each role of an adapter; a one-hot A0 as the columns of its ones."""
        B0, A0 = self._start(name)
        return {
            role: (
                self._held(f"delta_A_{role}", name),
                self._held(f"delta_B_{role}", name),
                A0[part],
                B0[:, part],
            )
            for role, part in _parts(self.settings[name]).items()
        }

    def difference_factors(self, name: str) -> tuple[Float[Tensor, "r2 in"], Float[Tensor, "out r2"]]:
        """`down` and `up` with s up down = the change of the weight."""
        self.check_loaded(name)
        differences = self._differences(name)
        half = len(differences) // 2
        D_A, D_B = torch.cat(differences[:half]), torch.cat(differences[half:], 1)
        B0, A0 = self._start(name)
        dense = A0.to(D_A) if A0.is_floating_point() else one_hot(A0, self.in_features, D_A.dtype)
        return torch.cat([D_A, dense]), torch.cat([B0.to(D_B) + D_B, D_B], 1)

    def lora_weights(self, name: str) -> tuple[Float[Tensor, "r2 ..."], Float[Tensor, "out r2 ..."]]:
        """`difference_factors` in the shapes that the weights of a LoRA have on a layer of this kind."""
        return self.difference_factors(name)

    def get_delta_weight(self, name: str) -> Float[Tensor, "..."]:
        """The change of the base weight by one adapter, in the weight's shape."""
        down, up = self.difference_factors(name)
        return as_weight(self.get_base_layer(), (up @ down) * self.settings[name].scale)

    def forward(self, x: Float[Tensor, "..."], *args: Any, **kwargs: Any) -> Float[Tensor, "..."]:
        rows = kwargs.pop("adapter_names", None)
        if self.disable_adapters and self.merged:
            self.unmerge()
        if rows is not None and self.merged:
            raise ValueError("`adapter_names` has no effect on merged adapters: call `unmerge_adapter` first")
        names = [name for name in rows or self.active_adapters if name in self.settings]
        if self.disable_adapters or self.merged or not names:
            return self.base_layer(x, *args, **kwargs)  # type: ignore[no-any-return]
        for name in set(names):
            self.check_loaded(name)
        if rows is not None:
            return self._forward_of_rows(x, rows, *args, **kwargs)
        if len(names) == 1 and not args and not kwargs and self._is_plain(x, names[0]):
            base, scale = cast(nn.Linear, self.base_layer), self.settings[names[0]].scale
            return adapted_linear(
                x, base.weight, base.bias, scale, *self._start(names[0]), *self._differences(names[0])
            )
        result: Tensor = self.base_layer(x, *args, **kwargs)
        for name in names:
            result = self._with_change(result, x, name)
        return result

    def _with_change(self, y: Float[Tensor, "..."], x: Float[Tensor, "..."], name: str) -> Float[Tensor, "..."]:
        """The base's output, changed by an adapter on its input."""
        x = self._cast_input_dtype(x, self._differences(name)[0].dtype)
        return self._add_change(y, self.recycle_dropout[name](x) if name in self.recycle_dropout else x, name)

    def _add_change(self, y: Float[Tensor, "..."], x: Float[Tensor, "..."], name: str) -> Float[Tensor, "..."]:
        return with_change(y, x, self.settings[name].scale, *self._start(name), self._differences(name))

    def _forward_of_rows(
        self, x: Float[Tensor, "b ..."], rows: Sequence[str], *args: Any, **kwargs: Any
    ) -> Float[Tensor, "b ..."]:
        """Each row of the batch by the adapter that `rows` names for it."""
        if len(rows) != len(x):
            raise ValueError(f"`adapter_names` has {len(rows)} names, expected one for each of the {len(x)} inputs")
        result: Tensor = self.base_layer(x, *args, **kwargs)
        for name in sorted(set(rows) & self.settings.keys()):
            at = torch.tensor([i for i, row in enumerate(rows) if row == name], device=x.device)
            result = result.index_copy(0, at, self._with_change(result[at], x[at], name))
        return result

    def _is_plain(self, x: Float[Tensor, "..."], name: str) -> bool:
        """Whether `adapted_linear` may compute the base itself: a frozen linear layer that nobody has changed."""
        base = self.base_layer
        hooks = (base._forward_hooks, base._forward_pre_hooks, base._backward_hooks, base._backward_pre_hooks)
        everywhere = (
            nn.modules.module._global_forward_hooks, nn.modules.module._global_forward_pre_hooks,
            nn.modules.module._global_backward_hooks, nn.modules.module._global_backward_pre_hooks,
        )  # fmt: skip
        return (
            type(base) is nn.Linear
            and "forward" not in base.__dict__
            and nn.Linear.forward is LINEAR_FORWARD
            and type(base.weight) is nn.Parameter
            and not base.weight.requires_grad
            and not any(hooks)
            and not any(everywhere)
            and not (self.training and name in self.recycle_dropout)
            and (self.cast_input_dtype_enabled or x.dtype == self._differences(name)[0].dtype)
            and not is_transformed()
        )

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Write W0 + the adapters' changes into the base; W0 is kept, so that `unmerge` restores it exactly.

        Raises:
            ValueError: the merged weight is not finite (with `safe_merge`), an adapter was never loaded, or the base is
                quantised, so that rounding would lose the change.
        """
        if is_quantised(self.get_base_layer()):
            raise ValueError(
                f"a {type(self.get_base_layer()).__name__} cannot take a merged weight, because rounding to few bits "
                "would lose the change: save the adapter, load it onto the base in full precision, and merge there"
            )
        for name in check_adapters_to_merge(self, adapter_names) or []:
            if name not in self.settings:
                continue
            weight = self._weight
            merged = (weight.data + self.get_delta_weight(name).detach()).to(weight.dtype)
            if safe_merge and not torch.isfinite(merged).all():
                raise ValueError(f"NaN or Inf in the merged weight: adapter {name!r} is broken")
            if self._unmerged_weight is None:
                self._unmerged_weight = weight.data
            weight.data = merged
            self.merged_adapters.append(name)

    def unmerge(self) -> None:
        """Put W0 back, bit for bit, in the type that the weight has now."""
        if self._unmerged_weight is None:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
            return
        self._weight.data = self._unmerged_weight.to(self._weight)
        self._unmerged_weight = None
        self.merged_adapters.clear()

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        return True

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        """Move an adapter to where its base computes, in float32 or more."""
        weight = self._weight
        device = device or device_of(self.get_base_layer())
        for attribute in self.adapter_layer_names + self.other_param_names:
            held = getattr(self, attribute)
            if not isinstance(held, nn.ParameterDict | BufferDict) or adapter_name not in held:
                continue
            tensor = held[adapter_name]
            if "meta" in (tensor.device.type, device.type):
                continue
            dtype = tensor.dtype
            if dtype.is_floating_point and weight.is_floating_point():
                dtype = torch.promote_types(weight.dtype, torch.float32)
            moved = tensor.data.to(device, dtype)
            trained = isinstance(tensor, nn.Parameter)
            held[adapter_name] = nn.Parameter(moved, tensor.requires_grad) if trained else moved

    def to_type_of_base(self, name: str) -> None:
        """Keep what an adapter trains in the type of the base's weight, for `autocast_adapter_dtype=False`.

        The start stays in float32.
        """
        if self._weight.is_floating_point():
            for attribute in self.adapter_layer_names:
                held = getattr(self, attribute)
                if name in held:
                    held[name] = nn.Parameter(held[name].data.to(self._weight.dtype), held[name].requires_grad)

    def __repr__(self) -> str:
        return f"recyclelora.{super().__repr__()}"


def _parts(settings: LayerSettings) -> dict[Role, slice]:
    """Which of the r = r_main + r_sub directions belong to which adapter."""
    r_main, r_sub, _ = settings
    parts: dict[Role, slice] = {"main": slice(0, r_main), "sub": slice(r_main, r_main + r_sub)}
    return {role: part for role, part in parts.items() if part.start < part.stop}


class RecycleLoraLinear(RecycleLoraLayer):
    """An adapted `nn.Linear`, a quantised one from bitsandbytes, or a `Conv1D` of transformers."""


class RecycleLoraConv2d(RecycleLoraLayer):
    """An adapted `nn.Conv2d`, its kernel (out, in, height, width) flattened to (out, in height width)."""

    def lora_weights(self, name: str) -> tuple[Float[Tensor, "r2 c h w"], Float[Tensor, "out r2 1 1"]]:
        base = cast(nn.Conv2d, self.get_base_layer())
        down, up = self.difference_factors(name)
        return down.view(-1, base.in_channels, *base.kernel_size), up[:, :, None, None]

    def _add_change(
        self, y: Float[Tensor, "b out h_ w_"], x: Float[Tensor, "b c h w"], name: str
    ) -> Float[Tensor, "b out h_ w_"]:
        base = cast(nn.Conv2d, self.get_base_layer())
        down, up = self.lora_weights(name)
        change: Tensor = F.conv2d(base._conv_forward(x, down, None), up) * self.settings[name].scale
        return y + change.to(y.dtype)
