"""Rein: learnable tokens refine the features of every block (Wei et al., CVPR 2024, arXiv 2312.04265), from the paper.

    f (n, c) --- block ---> f --- + delta f --->        of the next block; f are the patches' features

    S       = softmax(f T' / sqrt(c))                   T = A B (m, c): tokens of this block, of low rank
    delta f = (f + S[:, 1:] (T[1:] W_T + b_T)) W_f + b_f

The first token is left out of the second product, so that a patch that resembles none of the others is not forced onto
them. W_T, b_T, W_f and b_f are shared by all blocks. W_f and b_f start at 0, so that the model starts as it was. There
is nothing to merge: the tokens stay.

The queries of a mask head are linked to the tokens, one to each: their contents are made from the tokens of all blocks.

    Q_i     = T_i W_each + b_each, shared by all blocks
    Q       = [max over i of Q_i, mean over i, Q_last] W_all + b_all
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from recyclelora.errors import UserError


class SharedProjections(nn.Module):
    """W_T, b_T and W_f, b_f."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.tokens = nn.Linear(channels, channels)
        self.features = nn.Linear(channels, channels)
        nn.init.zeros_(self.features.weight)
        nn.init.zeros_(self.features.bias)


class ReinBlock(nn.Module):
    """A frozen block and the tokens that refine what comes out of it."""

    def __init__(self, block: nn.Module, shared: SharedProjections, tokens: int, rank: int, prefix: int) -> None:
        super().__init__()
        channels = shared.features.in_features
        self.block = block
        self.rein_shared = shared
        self.prefix = prefix  # class and register tokens before the patches
        bound = math.sqrt(6 / (tokens * rank + channels * rank))
        self.rein_A = nn.Parameter(torch.empty(tokens, rank).uniform_(-bound, bound))
        self.rein_B = nn.Parameter(torch.empty(rank, channels).uniform_(-bound, bound))

    def forward(self, x: Float[Tensor, "b n c"], *args: Any, **kwargs: Any) -> Float[Tensor, "b n c"]:
        x = self.block(x, *args, **kwargs)
        before, patches = x[:, : self.prefix], x[:, self.prefix :]
        return torch.cat([before, patches + self.refinement(patches)], 1)

    @property
    def tokens(self) -> Float[Tensor, "m c"]:
        """T of the paper."""
        return self.rein_A @ self.rein_B

    def refinement(self, f: Float[Tensor, "b n c"]) -> Float[Tensor, "b n c"]:
        """Delta f of the paper."""
        T = self.tokens
        S = torch.softmax(f @ T.T / math.sqrt(f.shape[-1]), -1)
        return self.rein_shared.features(f + S[..., 1:] @ self.rein_shared.tokens(T[1:]))  # type: ignore[no-any-return]


def attach_rein(model: nn.Module, tokens: int, rank: int) -> None:
    """Put tokens behind every block of a timm ViT; only they are trained.

    Args:
        tokens: m, of each block.
        rank: of a block's tokens as a matrix.
    """
    blocks: Any = model.blocks
    shared = SharedProjections(int(model.embed_dim))  # type: ignore[arg-type]
    for i, block in enumerate(blocks):
        blocks[i] = ReinBlock(block, shared, tokens, rank, int(getattr(model, "num_prefix_tokens", 0)))


class LinkedQueries(nn.Module):
    """Contents of a mask head's queries, made from the tokens of all blocks; stands for the head's table of them."""

    def __init__(self, blocks: Sequence[ReinBlock], width: int) -> None:
        super().__init__()
        self.blocks = tuple(blocks)  # a tuple is not registered: their parameters are the backbone's
        self.each = nn.Linear(blocks[0].rein_B.shape[1], width)
        self.all = nn.Linear(3 * width, width)

    @property
    def weight(self) -> Float[Tensor, "m width"]:
        """Q of the paper."""
        Q = self.each(torch.stack([block.tokens for block in self.blocks]))
        return self.all(torch.cat([Q.amax(0), Q.mean(0), Q[-1]], -1))  # type: ignore[no-any-return]


def link_queries(model: nn.Module, head: Any) -> None:
    """Have the queries of a mask head made from the tokens that `attach_rein` put into `model`.

    Raises:
        UserError: another number of tokens than of queries.
    """
    blocks: Any = model.blocks
    tokens, queries = len(blocks[0].rein_A), head.config.num_queries
    if tokens != queries:
        raise UserError(
            f"method rein: {tokens} tokens a block, but the head has {queries} queries, each of which is linked to one "
            f"token; set adapter.tokens={queries} or head_args.queries={tokens}"
        )
    head.take_query_contents(LinkedQueries(list(blocks), head.config.hidden_dim))
