"""EoMT, the Encoder-only Mask Transformer (Kerssies et al., CVPR 2025, arXiv 2503.19108), of transformers' parts.

    patches --- the first blocks ---> patches + queries --- the last L blocks ---> norm
      queries --- linear ---> classes             patches --- two upsamplings by 2 ---> (4 h, 4 w)
      queries --- three layers ---> masks, as products with the upsampled patches

There is no decoder: the queries are tokens of the ViT, which its own blocks, with the method's adapters, refine. In
training every query predicts before each of these blocks as well as after the last, and may then attend only to the
patches inside its mask. With mask annealing fewer and fewer queries are held to this, block after block, so that in the
end the blocks attend freely and inference costs a few tokens more.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import EomtConfig
from transformers.models.eomt.modeling_eomt import EomtMaskHead, EomtScaleBlock

from recyclelora.models.heads.head import check_sizes
from recyclelora.models.heads.mask_head import MaskHead, Prediction
from recyclelora.models.joining import Joining

POWER = 0.9
"""The exponent with which the share of masked queries falls from 1 to 0."""

MOST_UPSAMPLINGS = 5
"""Patches of 32 pixels are upsampled to single pixels by so many; each one more takes four times the memory."""


class EomtHead(MaskHead):
    """Queries in the last blocks of the backbone. Its features are what they predict, as `joining` has it.

    Args:
        channels: channels of the backbone's last map.
        blocks: L, how many of the last blocks the queries join. The published numbers are 3 for ViT-S and ViT-B, 4 for
            ViT-L and 5 for ViT-g.
        upsampling_layers: by 2 each, of the patches for the masks; two make masks at stride 4 of patches of 16 pixels.
        points: pixels sampled from a mask for its loss.
    """

    FINAL_NORM = True
    PYRAMID = False

    def __init__(
        self,
        channels: Sequence[int],
        classes: int,
        queries: int = 100,
        blocks: int = 3,
        upsampling_layers: int = 2,
        points: int = 12_544,
    ) -> None:
        check_sizes(queries=queries, points=points, blocks=blocks, upsampling_layers=upsampling_layers)
        if upsampling_layers > MOST_UPSAMPLINGS:
            raise ValueError(f"upsampling_layers is {upsampling_layers}, expected at most {MOST_UPSAMPLINGS}")
        config = EomtConfig(
            hidden_size=channels[-1],
            num_labels=classes,
            num_queries=queries,
            num_blocks=blocks,
            num_upscale_blocks=upsampling_layers,
            train_num_points=points,
        )
        super().__init__(config)
        self.contents: nn.Module = nn.Embedding(queries, channels[-1])
        self.upsampling = EomtScaleBlock(config)
        self.mask_projection = EomtMaskHead(config)
        self.class_predictor = nn.Linear(channels[-1], classes + 1)
        self.register_buffer("shares", torch.ones(blocks))
        self.masked = (True,) * blocks
        self.register_load_state_dict_post_hook(EomtHead._see_shares)

    shares: Tensor
    """The share of queries that attend inside their masks, for each of the blocks."""

    @property
    def width(self) -> int:
        return int(self.config.hidden_size)

    def take_query_contents(self, contents: nn.Module) -> None:
        self.contents = contents

    def begin_step(self, progress: float) -> None:
        """Anneal the masks: each of the L blocks in its turn, over 1 / (L + 2) of the training, the last of it without.

        From the start of a block's turn to its end the share is (1 - p) ** 0.9, where p goes from 0 to 1.
        """
        blocks = len(self.shares)
        turns = [progress * (blocks + 2) - number - 1 for number in range(blocks)]
        self.shares.copy_(torch.tensor([(1 - min(max(turn, 0.0), 1.0)) ** POWER for turn in turns]))
        self._see_shares()

    def _see_shares(self, keys: Any = None) -> None:
        """Which blocks have masks at inference: those where at least half of the queries would have them."""
        self.masked = tuple(share >= 0.5 for share in self.shares.tolist())

    def joining(self, keys: Sequence[int] | None = None) -> Joining:
        held = None
        if keys is not None:
            draws = [np.random.default_rng(key).random((len(self.shares), self.queries)) for key in keys]
            held = torch.from_numpy(np.stack(draws)).to(self.shares) < self.shares[:, None]
        tokens: Any = self.contents.weight
        return Joining(tokens, len(self.shares), partial(self._predict, held))

    def _predict(
        self,
        held: Bool[Tensor, "b blocks q"] | None,
        number: int,
        patches: Float[Tensor, "b c h w"],
        queries: Float[Tensor, "b q c"],
    ) -> tuple[Bool[Tensor, "b q h w"] | None, Sequence[Tensor]]:
        """Where queries may look in a block, and what they predict before it; at inference, only what is needed.

        Args:
            held: for each image and block, the queries that are held to their masks; None at inference.
        """
        last = number == len(self.shares)
        if held is None and not last and not self.masked[number]:
            return None, ()
        masks = torch.einsum("bqc,bchw->bqhw", self.mask_projection(queries), self.upsampling(patches))
        allowed = None
        if not last:
            allowed = F.interpolate(masks.detach(), patches.shape[-2:], mode="bilinear", align_corners=False) > 0
            if held is not None:
                allowed = allowed | ~held[:, number, :, None, None]
        return allowed, (self.class_predictor(queries), masks) if last or held is not None else ()

    def predictions(self, features: list[Float[Tensor, "..."]]) -> list[Prediction]:
        """The class logits and mask logits of `features`, where they alternate."""
        return list(zip(features[::2], features[1::2], strict=True))


HEAD = EomtHead
