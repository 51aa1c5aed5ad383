"""The segmentation model: normalise -> backbone -> head.

uint8 RGB (b, 3, h, w) --- backbone ---> feature maps --- head ---> logits (b, classes, h, w)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64, UInt8
from torch import Tensor, nn

from recyclelora.models.backbone import Backbone
from recyclelora.models.batches import Ahead, Batches
from recyclelora.models.heads.head import Head
from recyclelora.models.joining import check_joining
from recyclelora.models.plan import Plan
from recyclelora.models.sliding import Classified, class_probabilities, classify, classify_seen
from recyclelora.models.windows import Seen, seen


class Segmenter(nn.Module):
    """Backbone and head as one model that takes uint8 RGB images.

    Image sizes must be multiples of the backbone's patch; `predict` takes any size, with a sliding window.
    """

    head: Head
    mean: Tensor
    std: Tensor

    def __init__(self, backbone: Backbone, head: Head) -> None:
        super().__init__()
        if (joining := head.joining()) is not None:
            check_joining(backbone.model, backbone.model_name, joining.blocks)
        self.backbone = backbone
        self.head = head
        self.register_buffer("mean", 255 * torch.tensor(backbone.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(backbone.std).view(3, 1, 1), persistent=False)

    def features(
        self,
        images: UInt8[Tensor, "b 3 h w"],
        sizes: Int64[Tensor, "b 2"] | None = None,
        keys: Sequence[int] | None = None,
    ) -> list[Float[Tensor, "b ..."]]:
        """What the head takes of normalised images: the backbone's feature maps, or what its `joining` returns.

        Args:
            sizes: beyond these (h, w) the images are 0.
            keys: as in `Head.joining`.
        """
        normalised = (images - self.mean) / self.std
        if sizes is not None:
            rows, columns = (torch.arange(side, device=images.device) for side in images.shape[-2:])
            inside = (rows < sizes[:, :1])[:, None, :, None] & (columns < sizes[:, 1:])[:, None, None]
            normalised = normalised * inside
        features: list[Tensor] = self.backbone(normalised, self.head.joining(keys))
        return features

    def forward(self, images: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b classes h w"]:
        scores: Tensor = self.head(self.features(images), images.shape[-2:])
        return scores

    def loss(
        self,
        images: UInt8[Tensor, "b 3 h w"],
        labels: Int64[Tensor, "b h w"],
        sizes: Int64[Tensor, "b 2"] | None = None,
        keys: Sequence[int] | None = None,
        amounts: Float[Tensor, " n"] | None = None,
    ) -> Float[Tensor, ""]:
        """The head's loss on a batch; `sizes` as in `features`, `keys` and `amounts` as in `Head.loss`."""
        if keys is None:
            keys = torch.randint(2**31, (len(images),)).tolist()
        return self.head.loss(self.features(images, sizes, keys), labels, keys, amounts)

    def predict(self, image: UInt8[np.ndarray, "h w 3"], plan: Plan) -> UInt8[np.ndarray, "h w"]:
        """Train ids of one image of any size, at its own size; see `recyclelora.models.sliding`."""
        return classify(self, image, plan, self.backbone.patch_size, self.mean.device)

    def seen_ahead(self, images: Iterable[UInt8[np.ndarray, "_ _ 3"]], plan: Plan) -> tuple[Ahead, Batches]:
        """Images for `predict_seen`, and the batches that their windows fill together."""
        patch, device = self.backbone.patch_size, self.mean.device
        ahead = Ahead(seen(image, plan, patch, device) for image in images)
        return ahead, Batches(self, plan.batch_size, ahead)

    def predict_seen(self, image: Seen, plan: Plan, batches: Batches) -> Classified:
        """Train ids as `predict`, with confidence and entropy, of an image of `seen_ahead`; they are taken in order."""
        return classify_seen(batches, image, plan, self.head.SOFTMAX)

    def probabilities(self, image: UInt8[np.ndarray, "h w 3"], plan: Plan) -> Float32[np.ndarray, "classes h w"]:
        """The probabilities of the classes of one image of any size, at its own size."""
        patch, device = self.backbone.patch_size, self.mean.device
        return class_probabilities(self, image, plan, patch, device, self.head.SOFTMAX)
