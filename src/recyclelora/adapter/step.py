"""Forward and backward of an adapted linear layer at the cost of a plain LoRA of the same total rank.

    y  = W0 x + b + [B0  D_B] [v; u]        v = s D_A x,  u = s A x = v + s A0 x,  D_A = A - A0,  D_B = B - B0
    dB = g u'
    dA = h x'                               h = s B' g
    dx = W0' g + D_A' h + s A0' (D_B' g)

The gradients need only x and u, like those of a plain LoRA, and nothing else is kept: the differences are small and
are computed again. If A0 comes from an RRQR it is one-hot; it is then given as the columns of its ones, and a product
with it selects columns. Each column of B is contiguous in memory, so that adapters are joined cheaply and gradients
have the same order. The base's product is part of the function, so that the change is added in place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Float, Int64

    Start = Float[Tensor, "r in"] | Int64[Tensor, " r"]
    """A0, or the columns of its ones."""


def difference_of_rows(A: Sequence[Float[Tensor, "_ in"]], A0: Start) -> Float[Tensor, "r in"]:
    """D_A = A - A0, for the A of all adapters, stacked."""
    joined = torch.cat(list(A))
    if A0.is_floating_point():
        return joined.sub_(A0)
    return joined.scatter_add_(1, A0[:, None], joined.new_full((len(joined), 1), -1.0))


def difference_of_columns(B: Sequence[Float[Tensor, "out _"]], B0: Float[Tensor, "out r"]) -> Float[Tensor, "out r"]:
    """D_B = B - B0, for the B of all adapters, side by side."""
    return torch.cat([b.T for b in B]).sub_(B0.T).T


class AdaptedLinear(torch.autograd.Function):
    """Computes y from x, a linear layer with a frozen weight, and its adapters' factors, first all A, then all B."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Float[Tensor, "*batch in"],
        weight: Float[Tensor, "out in"],
        bias: Float[Tensor, " out"] | None,
        scale: float,
        B0: Float[Tensor, "out r"],
        A0: Start,
        *factors: Float[Tensor, "..."],
    ) -> Float[Tensor, "*batch out"]:
        A, B = factors[: len(factors) // 2], factors[len(factors) // 2 :]
        autocast = _autocast_dtype(x)
        rows, w, b = x.reshape(x.shape[:-1].numel(), x.shape[-1]), weight, bias
        if autocast is not None:
            rows, w, b = rows.to(autocast), w.to(autocast), None if b is None else b.to(autocast)
        small = autocast or B0.dtype  # the type in which the change is computed
        y = F.linear(rows, w, b)
        narrow = rows.to(small)
        v = narrow.matmul(difference_of_rows(A, A0).to(small).T).mul_(scale)
        x0 = narrow @ A0.to(small).T if A0.is_floating_point() else narrow.index_select(1, A0)
        u = torch.add(v, x0, alpha=scale)
        up = torch.cat([B0.T, difference_of_columns(B, B0).T]).to(small)
        if y.dtype == small:
            y.addmm_(torch.cat([v, u], 1), up)
        else:
            y += torch.cat([v, u], 1) @ up
        ctx.scale, ctx.shape, ctx.dtype = scale, x.shape, x.dtype
        ctx.save_for_backward(rows, u, w, B0, A0, *factors)
        return y.view(*x.shape[:-1], weight.shape[0])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Float[Tensor, "*batch out"]) -> tuple[Tensor | None, ...]:
        rows, u, w, B0, A0, *factors = ctx.saved_tensors
        A, B = factors[: len(factors) // 2], factors[len(factors) // 2 :]
        small, r, scale = u.dtype, B0.shape[1], ctx.scale
        g = grad.reshape(len(rows), grad.shape[-1])
        narrow = g.to(small)
        if torch.compiler.is_compiling():
            A, B = _after(grad, A), _after(grad, B)
        up = torch.cat([B0.T, difference_of_columns(B, B0).T]).to(small)
        start, difference = (narrow @ up.T).split(r, 1)
        h = torch.add(start, difference).mul_(scale)
        dA = h.T.matmul(rows.to(small)).to(A[0].dtype)
        dB = u.T.matmul(narrow).to(B[0].dtype).T
        dx = None
        if ctx.needs_input_grad[0]:
            dx = g @ w
            wide = dx if dx.dtype == small else dx.to(small)
            wide.addmm_(h, difference_of_rows(A, A0).to(small))
            if A0.is_floating_point():
                wide.addmm_(difference, A0.to(small), alpha=scale)
            else:
                wide.index_add_(1, A0, difference, alpha=scale)
            dx = wide.to(ctx.dtype).view(ctx.shape)
        db = g.sum(0) if ctx.needs_input_grad[2] else None
        ranks = [a.shape[0] for a in A]
        return dx, None, db, None, None, None, *dA.split(ranks), *dB.split(ranks, 1)


def _after(grad: Tensor, factors: Sequence[Tensor]) -> list[Tensor]:
    """The factors, made to depend on the gradient: else a compiler keeps results of the factors from the forward pass.

    The added value is zero, in a form that the compiler cannot simplify.
    """
    zero = grad.flatten()[0].isnan() & False
    return [factor + zero.to(factor.dtype) for factor in factors]


def _autocast_dtype(x: Tensor) -> torch.dtype | None:
    """The type in which autocast computes; None if it is off or does not apply to x."""
    device = x.device.type
    if x.dtype == torch.float64 or not torch.is_autocast_enabled(device):
        return None
    return torch.get_autocast_dtype(device)
