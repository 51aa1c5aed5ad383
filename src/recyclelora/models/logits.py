"""What the logits of a pixel say: its class, the probabilities of the classes, and how sure the model is.

A head returns either logits z, whose softmax are the probabilities, or the mass of each class, 0 or more, whose shares
of their sum are (`Head.SOFTMAX`). For the probabilities p of a pixel:

    confidence = max p       (Hendrycks and Gimpel, ICLR 2017)
    entropy = -sum p ln p    in nats, from 0 to ln(classes) (Shannon, Bell System Technical Journal 1948)

Logits may be at another size than the pixels that they are for. They are rescaled one class at a time to save memory.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from recyclelora.models.plan import Size


class Doubt(NamedTuple):
    """How sure a model is of each pixel: the probability of its class, and the entropy in nats."""

    confidence: Float[Tensor, "h w"]
    entropy: Float[Tensor, "h w"]


def highest(logits: Float[Tensor, "classes _ _"], size: Size) -> tuple[UInt8[Tensor, "h w"], Float[Tensor, "h w"]]:
    """The class of the highest logit at a size, and this logit, which is NaN if one of the pixel's logits is."""
    best = rescaled(logits[0], size).clone()
    classes = torch.zeros_like(best, dtype=torch.uint8)
    for number in range(1, len(logits)):
        channel = rescaled(logits[number], size)
        classes.masked_fill_(channel > best, number)
        torch.maximum(best, channel, out=best)
        del channel  # before the next is rescaled
    return classes, best


def doubt(
    logits: Float[Tensor, "classes _ _"], size: Size, best: Float[Tensor, "h w"], views: int, softmax: bool
) -> Doubt:
    """Confidence and entropy at a size, from logits that are summed over `views`; `best` as from `highest`.

    With d = z - max z the softmax is exp(d) / sum exp(d), and its entropy ln(sum exp(d)) - sum d exp(d) / sum exp(d);
    with masses s it is ln(sum s) - sum s ln(s) / sum s.
    """
    total, mean = torch.zeros_like(best), torch.zeros_like(best)
    for channel in logits:
        mass = rescaled(channel, size)
        if softmax:
            difference = (mass - best).div_(views)
            mass = difference.exp()
            mean.addcmul_(mass, difference)
        else:
            mean += torch.special.xlogy(mass, mass)
        total += mass
    total.clamp_(min=torch.finfo(total.dtype).tiny)
    confidence = total.reciprocal() if softmax else best / total
    return Doubt(confidence, total.log().sub_(mean.div_(total)).clamp_(min=0))


def probabilities(
    logits: Float[Tensor, "classes _ _"], size: Size, views: int, softmax: bool
) -> Float[Tensor, "classes h w"]:
    """The probabilities of the classes at a size, from logits that are summed over `views`."""
    found = torch.stack([rescaled(channel, size) for channel in logits])
    if softmax:
        found.sub_(found.amax(0)).div_(views).exp_()
    return found.div_(found.sum(0).clamp_(min=torch.finfo(found.dtype).tiny))


def rescaled(channel: Float[Tensor, "_ _"], size: Size) -> Float[Tensor, "h w"]:
    """The logits of one class at a size (h, w), interpolated bilinearly; as they are if they have this size."""
    if tuple(channel.shape) == size:
        return channel
    return F.interpolate(channel[None, None], size, mode="bilinear", align_corners=False)[0, 0]
