"""Forward and backward of an adapted linear layer at the cost of a plain LoRA of the same total rank.

    y   = W0 x + b + [B0  D_B] [v; u]        v = s D_A x,  u = s A x = v + s A0 x,  A = A0 + D_A,  B = B0 + D_B
    dB  = g u'
    dA  = h x'                               h = s B' g
    dx  = W0' g + D_A' h + s A0' (D_B' g)

D_A and D_B are what is trained, and a gradient with respect to a difference is that with respect to the factor. The
gradients need only x and u, like those of a plain LoRA, and nothing else is kept. If A0 comes from an RRQR it is
one-hot; it is then given as the columns of its ones, and a product with it selects columns. The base's product is part
of the function, so that the change is added in place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad

if TYPE_CHECKING:
    from jaxtyping import Float, Int64

    Start = Float[Tensor, "r in"] | Int64[Tensor, " r"]
    """A0, or the columns of its ones."""


def adapted_linear(
    x: Float[Tensor, "*batch in"],
    weight: Float[Tensor, "out in"],
    bias: Float[Tensor, " out"] | None,
    scale: float,
    B0: Float[Tensor, "out r"],
    A0: Start,
    *differences: Float[Tensor, "..."],
) -> Float[Tensor, "*batch out"]:
    """y from x, a linear layer with a frozen weight, and the differences of its adapters, first all D_A, then all D_B.

    Under autocast, everything is computed in its type; else the change is computed in the type of the differences.
    """
    autocast = _autocast_dtype(x)
    if autocast is not None:
        x = x.to(autocast)
    return AdaptedLinear.apply(  # type: ignore[no-any-return]
        x, weight, bias, scale, autocast or differences[0].dtype, B0, A0, *differences
    )


def with_change(
    y: Float[Tensor, "*batch out"],
    x: Float[Tensor, "*batch in"],
    scale: float,
    B0: Float[Tensor, "out r"],
    A0: Start,
    differences: Sequence[Float[Tensor, "..."]],
) -> Float[Tensor, "*batch out"]:
    """The output y of any base, changed by adapters on its input x, by plain operations in the type of x."""
    D_A, D_B = _halves([difference.to(x.dtype) for difference in differences])
    rows = _rows(x)
    v = rows @ torch.cat(D_A).T * scale
    x0 = rows @ A0.to(x.dtype).T if A0.is_floating_point() else rows.index_select(1, A0)
    both, up = torch.cat([v, torch.add(v, x0, alpha=scale)], 1), torch.cat([B0.to(x.dtype), *D_B], 1).T
    if y.dtype == x.dtype:
        return torch.addmm(_rows(y), both, up).reshape(y.shape)
    return y + (both @ up).reshape(y.shape).to(y.dtype)


def is_transformed() -> bool:
    """Whether a transform is active that needs plain operations: `torch.func`, forward-mode, or tracing."""
    if torch.compiler.is_compiling():
        return False
    return (
        torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
        or torch.jit.is_tracing()  # type: ignore[attr-defined]
    )  # fmt: skip


class AdaptedLinear(torch.autograd.Function):
    """`adapted_linear` of an x that autocast has cast already; `small` is the type in which the change is computed."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Float[Tensor, "*batch in"],
        weight: Float[Tensor, "out in"],
        bias: Float[Tensor, " out"] | None,
        scale: float,
        small: torch.dtype,
        B0: Float[Tensor, "out r"],
        A0: Start,
        *differences: Float[Tensor, "..."],
    ) -> Float[Tensor, "*batch out"]:
        D_A, D_B = _halves(differences)
        w, b = weight, bias
        if weight.dtype != x.dtype and torch.is_autocast_enabled(x.device.type):
            w, b = weight.to(x.dtype), None if bias is None else bias.to(x.dtype)
        rows = _rows(x)
        y = F.linear(rows, w, b)
        narrow = rows.to(small)
        v = (narrow @ torch.cat(D_A).to(small).T).mul_(scale)
        x0 = narrow @ A0.to(small).T if A0.is_floating_point() else narrow.index_select(1, A0)
        u = torch.add(v, x0, alpha=scale)
        up = torch.cat([B0, *D_B], 1).to(small).T
        if y.dtype == small:
            y.addmm_(torch.cat([v, u], 1), up)
        else:
            y += torch.cat([v, u], 1) @ up
        ctx.scale = scale
        ctx.save_for_backward(x, u, w, B0, A0, *differences)
        # A view would forbid the caller to change the result in place; nothing else holds this memory.
        return torch.ops.aten._unsafe_view(y, (*x.shape[:-1], y.shape[-1]))  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, grad: Float[Tensor, "*batch out"]) -> tuple[Tensor | None, ...]:
        x, u, w, B0, A0, *differences = ctx.saved_tensors
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            return _differentiable_backward(ctx, grad, x, w, B0, A0, differences, u.dtype)
        small, r, scale = u.dtype, B0.shape[1], ctx.scale
        if torch.compiler.is_compiling():
            differences = _after(grad, differences)
        D_A, D_B = _halves(differences)
        rows, g = _rows(x), _rows(grad)
        narrow = g.to(small)
        start, difference = (narrow @ torch.cat([B0, *D_B], 1).to(small)).split(r, 1)
        h = torch.add(start, difference).mul_(scale)
        dA = (h.T @ rows.to(small)).to(D_A[0].dtype)
        dB = (narrow.T @ u).to(D_B[0].dtype)
        dx = None
        if ctx.needs_input_grad[0]:
            dx = g @ w
            wide = dx if dx.dtype == small else dx.to(small)
            wide.addmm_(h, torch.cat(D_A).to(small))
            if A0.is_floating_point():
                wide.addmm_(difference, A0.to(small), alpha=scale)
            else:
                wide.index_add_(1, A0, difference, alpha=scale)
            dx = wide.to(x.dtype).view(x.shape)
        db = g.sum(0) if ctx.needs_input_grad[2] else None
        ranks = [a.shape[0] for a in D_A]
        return (
            dx,
            None,
            db,
            None,
            None,
            None,
            None,
            *dA.split(ranks),
            *(part.contiguous() for part in dB.split(ranks, 1)),
        )


def _differentiable_backward(
    ctx: Any,
    grad: Float[Tensor, "*batch out"],
    x: Float[Tensor, "*batch in"],
    w: Float[Tensor, "out in"],
    B0: Float[Tensor, "out r"],
    A0: Start,
    differences: Sequence[Float[Tensor, "..."]],
    small: torch.dtype,
) -> tuple[Tensor | None, ...]:
    """The gradients by plain operations, for a backward pass that is itself differentiated."""
    y = with_change(F.linear(x, w), x.to(small), ctx.scale, B0, A0, differences)
    inputs = {0: x, **dict(enumerate(differences, 7))}  # their places among the arguments of `forward`
    wanted = [place for place in inputs if ctx.needs_input_grad[place]]
    found = torch.autograd.grad(y, [inputs[place] for place in wanted], grad, create_graph=True)
    gradients: dict[int, Tensor | None] = dict(zip(wanted, found, strict=True))
    gradients[2] = _rows(grad).sum(0) if ctx.needs_input_grad[2] else None
    return tuple(gradients.get(place) for place in range(len(ctx.needs_input_grad)))


def _rows(x: Float[Tensor, "*batch n"]) -> Float[Tensor, "rows n"]:
    return x.reshape(x.shape[:-1].numel(), x.shape[-1])


def _halves(differences: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    half = len(differences) // 2
    return list(differences[:half]), list(differences[half:])


def _after(grad: Tensor, differences: Sequence[Tensor]) -> list[Tensor]:
    """The differences, made to depend on the gradient: else a compiler keeps results of them from the forward pass.

    The added value is zero, in a form that the compiler cannot simplify.
    """
    zero = grad.flatten()[0].isnan() & False
    return [difference + zero.to(difference.dtype) for difference in differences]


def _autocast_dtype(x: Tensor) -> torch.dtype | None:
    """The type in which autocast computes; None if it is off or does not apply to x."""
    device = x.device.type
    if x.dtype == torch.float64 or not torch.is_autocast_enabled(device):
        return None
    return torch.get_autocast_dtype(device)
