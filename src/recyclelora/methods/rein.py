"""Rein: learnable tokens refine the features of every block (Wei et al., CVPR 2024, arXiv 2312.04265).

The code follows the formulas of the paper:

    f (n, c) --- block ---> f --- + delta f ---> next block         f are the patches' features

    S       = softmax(f T' / sqrt(c))                   T = A B (m, c): tokens of this block, of low rank
    delta f = (f + S[:, 1:] (T[1:] W_T + b_T)) W_f + b_f

The second product leaves out the first token, so that a patch that resembles none of the others is not forced onto
them. W_T, b_T, W_f and b_f are shared by all blocks. W_f and b_f start at 0, so that the model starts unchanged. There
is nothing to merge: the tokens stay in the model.

Each query of a mask head is linked to one token: its contents are computed from this token in all blocks.

    Q_i     = T_i W_each + b_each, shared by all blocks
    Q       = [max over i of Q_i, mean over i, Q_last] W_all + b_all
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from recyclelora.errors import UserError
from recyclelora.methods.base import Method, MethodSettings
from recyclelora.models.backbone import Backbone
from recyclelora.models.heads.mask_head import MaskHead


class ReinSettings(MethodSettings):
    """Tokens per block, and the rank of a block's tokens as a matrix; the published values are 100 and 16."""

    tokens: int = Field(100, gt=1)
    rank: int = Field(16, gt=0)


class SharedProjections(nn.Module):
    """The projections that all blocks share: W_T, b_T and W_f, b_f."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.tokens = nn.Linear(channels, channels)
        self.features = nn.Linear(channels, channels)
        nn.init.zeros_(self.features.weight)
        nn.init.zeros_(self.features.bias)


class ReinBlock(nn.Module):
    """A frozen block and the tokens that refine its output."""

    def __init__(self, block: nn.Module, shared: SharedProjections, tokens: int, rank: int, prefix: int) -> None:
        super().__init__()
        channels = shared.features.in_features
        self.block = block
        self.rein_shared = shared
        self.prefix = prefix  # number of class and register tokens before the patches
        bound = math.sqrt(6 / (tokens * rank + channels * rank))
        self.rein_A = nn.Parameter(torch.empty(tokens, rank).uniform_(-bound, bound))
        self.rein_B = nn.Parameter(torch.empty(rank, channels).uniform_(-bound, bound))

    def forward(self, x: Float[Tensor, "b n c"], *args: Any, **kwargs: Any) -> Float[Tensor, "b n c"]:
        x = self.block(x, *args, **kwargs)
        before, patches = x[:, : self.prefix], x[:, self.prefix :]
        return torch.cat([before, patches + self.refinement(patches)], 1)

    @property
    def tokens(self) -> Float[Tensor, "m c"]:
        """The block's tokens, T in the paper."""
        return self.rein_A @ self.rein_B

    def refinement(self, f: Float[Tensor, "b n c"]) -> Float[Tensor, "b n c"]:
        """The change of the features, delta f in the paper."""
        T = self.tokens
        S = torch.softmax(f @ T.T / math.sqrt(f.shape[-1]), -1)
        return self.rein_shared.features(f + S[..., 1:] @ self.rein_shared.tokens(T[1:]))  # type: ignore[no-any-return]


def attach_rein(model: nn.Module, tokens: int, rank: int) -> None:
    """Add tokens after every block of a timm ViT.

    Args:
        tokens: m, the number of tokens per block.
        rank: the rank of a block's tokens as a matrix.
    """
    blocks: Any = model.blocks
    shared = SharedProjections(int(model.embed_dim))  # type: ignore[arg-type]
    for i, block in enumerate(blocks):
        blocks[i] = ReinBlock(block, shared, tokens, rank, int(getattr(model, "num_prefix_tokens", 0)))


class LinkedQueries(nn.Module):
    """Contents of a mask head's queries, computed from the tokens of all blocks; replaces the head's own table."""

    def __init__(self, blocks: Sequence[ReinBlock], width: int) -> None:
        super().__init__()
        self.blocks = tuple(blocks)  # a tuple is not registered: the parameters belong to the backbone
        self.each = nn.Linear(blocks[0].rein_B.shape[1], width)
        self.all = nn.Linear(3 * width, width)

    @property
    def weight(self) -> Float[Tensor, "m width"]:
        """The contents of the queries, Q in the paper."""
        Q = self.each(torch.stack([block.tokens for block in self.blocks]))
        return self.all(torch.cat([Q.amax(0), Q.mean(0), Q[-1]], -1))  # type: ignore[no-any-return]


class Rein(Method[ReinSettings]):
    """Tokens after every block, and a mask head's queries computed from them."""

    settings = ReinSettings

    def _attach(self, backbone: Backbone, settings: ReinSettings, draw: bool, cache_factors: bool) -> None:
        attach_rein(backbone.model, settings.tokens, settings.rank)

    def keep(self, backbone: Backbone, settings: ReinSettings) -> None:
        attach_rein(backbone.model, settings.tokens, settings.rank)

    def role(self, name: str) -> str:
        return "adapter" if ".rein_A" in name or ".rein_B" in name else super().role(name)

    def _needed(self, backbone: Backbone, settings: ReinSettings) -> set[str]:
        return {name for name, _ in backbone.model.named_parameters() if "rein_" in name}

    def link_head(self, backbone: Backbone, head: nn.Module) -> None:
        """Compute the queries of a mask head from the tokens; other heads are left unchanged.

        Raises:
            UserError: the numbers of tokens and queries differ.
        """
        if not isinstance(head, MaskHead):
            return
        blocks = list(backbone.model.blocks)
        tokens, queries = len(blocks[0].rein_A), head.queries
        if tokens != queries:
            raise UserError(
                f"method rein: {tokens} tokens per block, but the head has {queries} queries, each of which is linked "
                f"to one token; set adapter.tokens={queries} or head_args.queries={tokens}"
            )
        head.take_query_contents(LinkedQueries(blocks, head.width))


METHOD = Rein("rein", "Wei et al., CVPR 2024, arXiv 2312.04265")
