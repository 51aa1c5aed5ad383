"""A layer with the two adapters of RecycleLoRA (arXiv 2603.28142), in difference form.

The paper trains A and B next to a frozen residual W_res = W0 - s B0 A0, so that the layer starts as W0:

    y = W_res x + s B A x,      s = alpha / (r_main + r_sub),   B = [B_main B_sub],   A = [A_main; A_sub]

This code computes the same without changing W0. It is exact at the start in every precision, because both differences
are exactly 0:

    y = W0 x + s ( B (A - A0) + (B - B0) A0 ) x = W0 x + s  up  down  x

                            +--- W0 (frozen) ------------------+
    x (in) -----------------+                                  (+)---> y (out)
                            +--- down (2r, in) --- up (out, 2r) * s
                                 [A - A0]          [B  B - B0]
                                 [  A0  ]
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
import torch.nn.functional as F
from peft.tuners._buffer_dict import BufferDict
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import Tensor, nn

from recyclelora.adapter.base import is_quantised, matrix_shape
from recyclelora.adapter.config import RecycleLoraConfig
from recyclelora.adapter.factors import Factors, one_hot
from recyclelora.adapter.step import AdaptedLinear, difference_of_columns, difference_of_rows

if TYPE_CHECKING:
    from jaxtyping import Float

    from recyclelora.adapter.step import Start

PREFIX = "recycle_"
Role = Literal["main", "sub"]


class RecycleLoraLayer(nn.Module, BaseTunerLayer):
    """A layer that can be written as a matrix, plus any number of named adapters; see the top of the file."""

    adapter_layer_names = ("recycle_A_main", "recycle_B_main", "recycle_A_sub", "recycle_B_sub")
    other_param_names = ("recycle_B0", "recycle_A0", "recycle_index", "scaling", "ranks")
    in_features: int
    out_features: int

    def __init__(
        self, base_layer: nn.Module, adapter_name: str, config: RecycleLoraConfig, factors: Factors | None
    ) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.recycle_A_main, self.recycle_B_main = nn.ParameterDict(), nn.ParameterDict()
        self.recycle_A_sub, self.recycle_B_sub = nn.ParameterDict(), nn.ParameterDict()
        self.recycle_B0 = BufferDict({}, persistent=True)
        self.recycle_A0 = BufferDict({}, persistent=True)
        self.recycle_index = BufferDict({}, persistent=True)
        self.scaling: dict[str, float] = {}
        self.ranks: dict[str, tuple[int, int]] = {}
        self.merged_adapters: list[str] = []
        self._unmerged_weight: Tensor | None = None
        self.out_features, self.in_features = matrix_shape(self.get_base_layer())
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, config, factors)

    @property
    def _weight(self) -> nn.Parameter:
        return cast(nn.Parameter, self.get_base_layer().weight)

    def update_layer(self, name: str, config: RecycleLoraConfig, factors: Factors | None) -> None:
        """Add an adapter with its initial factors; with None, add an empty one whose values are loaded later."""
        factors = factors or self._unloaded(config)
        # Each column of the basis is contiguous in memory; see step.py.
        rows, basis = factors.initial_rows(self.in_features), factors.basis.T.contiguous().T
        for role, part in self._parts(config.r_main, config.r_sub).items():
            getattr(self, f"recycle_A_{role}")[name] = nn.Parameter(rows[part].clone())
            getattr(self, f"recycle_B_{role}")[name] = nn.Parameter(basis[:, part].clone())
        self.recycle_B0[name] = basis
        if factors.index is not None:
            self.recycle_index[name] = factors.index
        else:
            self.recycle_A0[name] = rows
        self.ranks[name] = (config.r_main, config.r_sub)
        self.scaling[name] = config.scale
        self._move_adapter_to_device_of_base_layer(name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def _unloaded(self, config: RecycleLoraConfig) -> Factors:
        """Factors of NaN, so that an adapter that was not loaded cannot be mistaken for a trained one."""
        r = config.r_main + config.r_sub
        basis, rows = torch.full((self.out_features, r), torch.nan), torch.full((r, self.in_features), torch.nan)
        if config.decomposition != "rrqr":
            return Factors(basis=basis, index=None, rows=rows)
        return Factors(basis=basis, index=torch.zeros(r, dtype=torch.long), rows=None)

    @staticmethod
    def _parts(r_main: int, r_sub: int) -> dict[Role, slice]:
        """Which of the r = r_main + r_sub directions belong to which adapter."""
        parts: dict[Role, slice] = {"main": slice(0, r_main), "sub": slice(r_main, r_main + r_sub)}
        return {role: part for role, part in parts.items() if part.start < part.stop}

    def _factors(self, name: str) -> tuple[list[Tensor], list[Tensor]]:
        """A and B of an adapter, main before sub."""
        roles = self._parts(*self.ranks[name])
        return (
            [getattr(self, f"recycle_A_{role}")[name] for role in roles],
            [getattr(self, f"recycle_B_{role}")[name] for role in roles],
        )

    def factors_of(self, name: str) -> dict[Role, tuple[Tensor, Tensor, Start, Tensor]]:
        """A, B, A0 and B0 for each role of an adapter; a one-hot A0 as the columns of its ones."""
        B0, A0 = self._start(name)
        return {
            role: (
                getattr(self, f"recycle_A_{role}")[name],
                getattr(self, f"recycle_B_{role}")[name],
                A0[part],
                B0[:, part],
            )
            for role, part in self._parts(*self.ranks[name]).items()
        }

    def _start(self, name: str) -> tuple[Float[Tensor, "out r"], Start]:
        """B0, and A0 or the columns of its ones."""
        held = self.recycle_index if name in self.recycle_index else self.recycle_A0
        return self.recycle_B0[name], held[name]

    def difference_factors(self, name: str) -> tuple[Float[Tensor, "r2 in"], Float[Tensor, "out r2"]]:
        """`down` and `up` with s up down = the change of the weight."""
        A, B = self._factors(name)
        B0, A0 = self._start(name)
        rows = difference_of_rows(A, A0)
        dense = A0 if A0.is_floating_point() else one_hot(A0, self.in_features, rows.dtype)
        return torch.cat([rows, dense]), torch.cat([*B, difference_of_columns(B, B0)], 1)

    def lora_weights(self, name: str) -> tuple[Float[Tensor, "r2 ..."], Float[Tensor, "out r2 ..."]]:
        """`difference_factors` in the shapes that the weights of a LoRA have on a layer of this kind."""
        return self.difference_factors(name)

    def _product(self, x: Float[Tensor, "..."], down: Float[Tensor, "..."], up: Float[Tensor, "..."]) -> Tensor:
        """The output of a LoRA with these weights for x, on a layer of this kind."""
        return F.linear(F.linear(x, down), up)

    def get_delta_weight(self, name: str) -> Float[Tensor, "..."]:
        """The change of the base weight by one adapter, in the weight's shape."""
        down, up = self.difference_factors(name)
        delta = (up @ down) * self.scaling[name]
        return delta if is_quantised(self.get_base_layer()) else delta.view(self._weight.shape)

    def forward(self, x: Float[Tensor, "..."], *args: Any, **kwargs: Any) -> Float[Tensor, "..."]:
        if self.disable_adapters and self.merged:
            self.unmerge()
        names = [name for name in self.active_adapters if name in self.scaling]
        if self.disable_adapters or self.merged or not names:
            return self.base_layer(x, *args, **kwargs)  # type: ignore[no-any-return]
        if len(names) == 1 and not args and not kwargs and self._is_plain():
            A, B = self._factors(names[0])
            base = cast(nn.Linear, self.base_layer)
            scale, start = self.scaling[names[0]], self._start(names[0])
            return AdaptedLinear.apply(x, base.weight, base.bias, scale, *start, *A, *B)  # type: ignore[no-any-return]
        result: Tensor = self.base_layer(x, *args, **kwargs)
        for name in names:
            down, up = self.lora_weights(name)
            change = self._product(self._cast_input_dtype(x, down.dtype), down, up) * self.scaling[name]
            result = result + change.to(result.dtype)
        return result

    def _is_plain(self) -> bool:
        """Whether the base is a plain linear layer with a frozen weight, which `AdaptedLinear` computes itself."""
        base = self.base_layer
        hooks = (base._forward_hooks, base._forward_pre_hooks, base._backward_hooks, base._backward_pre_hooks)
        return type(base) is nn.Linear and not base.weight.requires_grad and not any(hooks)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Write W0 + the adapters' changes into the base; W0 is kept, so that `unmerge` restores it exactly.

        Raises:
            ValueError: the merged weight is not finite (with `safe_merge`), or the base is quantised, so that rounding
                would lose the change.
        """
        if is_quantised(self.get_base_layer()):
            raise ValueError(
                f"a {type(self.get_base_layer()).__name__} cannot take a merged weight, because rounding to few bits "
                "would lose the change: save the adapter, load it onto the base in full precision, and merge there"
            )
        for name in check_adapters_to_merge(self, adapter_names) or []:
            if name not in self.scaling:
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
        """Put W0 back, bit for bit."""
        if self._unmerged_weight is None:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
            return
        self._weight.data = self._unmerged_weight.to(self._weight.device)
        self._unmerged_weight = None
        self.merged_adapters.clear()

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        return True

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        """Move an adapter to the device of its base, in float32 or more: a lower precision would damage B0."""
        weight = self._weight
        for attribute in self.adapter_layer_names + self.other_param_names:
            held = getattr(self, attribute)
            if not isinstance(held, nn.ParameterDict | BufferDict) or adapter_name not in held:
                continue
            tensor = held[adapter_name]
            if tensor.device.type == "meta":
                continue
            dtype = tensor.dtype
            if dtype.is_floating_point and weight.is_floating_point():
                dtype = torch.promote_types(weight.dtype, torch.float32)
            moved = tensor.data.to(device or weight.device, dtype)
            trained = isinstance(tensor, nn.Parameter)
            held[adapter_name] = nn.Parameter(moved, tensor.requires_grad) if trained else moved

    def __repr__(self) -> str:
        return f"recyclelora.{super().__repr__()}"


class RecycleLoraLinear(RecycleLoraLayer):
    """An adapted `nn.Linear`, or a quantised one from bitsandbytes."""


class RecycleLoraConv2d(RecycleLoraLayer):
    """An adapted `nn.Conv2d`, its kernel (out, in, height, width) flattened to (out, in height width)."""

    def lora_weights(self, name: str) -> tuple[Float[Tensor, "r2 c h w"], Float[Tensor, "out r2 1 1"]]:
        base = cast(nn.Conv2d, self.get_base_layer())
        down, up = self.difference_factors(name)
        return down.view(-1, base.in_channels, *base.kernel_size), up[:, :, None, None]

    def _product(
        self, x: Float[Tensor, "b c h w"], down: Float[Tensor, "r2 c kh kw"], up: Float[Tensor, "out r2 1 1"]
    ) -> Float[Tensor, "b out h_ w_"]:
        base = cast(nn.Conv2d, self.get_base_layer())
        return F.conv2d(base._conv_forward(x, down, None), up)
