"""The plan of a data set: the size at which its images are scored, and the sliding window.

The resolution changes mIoU by about two points (Rein, Wei et al., CVPR 2024: 64.3 -> 66.1 at twice the size), so each
result names its protocol. Ground truth is never rescaled: logits are rescaled to its size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from recyclelora.errors import UserError, did_you_mean

Size = tuple[int, int]
"""Height and width in pixels."""

Blend = Literal["uniform", "hann"]
"""How logits are averaged where windows overlap: all alike, or each by a Hann window, so that borders leave no seam."""


class Window(NamedTuple):
    """Side and stride of a square sliding window in pixels."""

    side: int
    stride: int


@dataclass(frozen=True)
class Protocol:
    """The sizes at which images are scored, by the name of their data set, and the sliding window.

    A size (width, height) in pixels is the box that an image is scaled to fit, up or down, with its aspect kept. Other
    data sets are scored at their own size. `window` is None if the recipe sets it; `windows` has the exceptions.
    """

    sizes: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    window: Window | None = None
    windows: Mapping[str, Window] = field(default_factory=dict)


PROTOCOLS: Mapping[str, Protocol] = {
    "full": Protocol(),
    "soma-2048": Protocol(
        sizes={
            "cityscapes": (2048, 1024), "mapillary": (2048, 1024), "mapillary-half": (2048, 1024),
            "bdd100k": (1280, 720), "acdc": (1920, 1080),
        },
        window=Window(512, 341),
        windows={"acdc": Window(1024, 683)},
    ),
    "rein-1024": Protocol(
        sizes={"cityscapes": (1024, 512), "mapillary": (1024, 512), "mapillary-half": (1024, 512)},
        window=Window(512, 341),
    ),
}  # fmt: skip
"""`full`: every image at its own size; `soma-2048` and `rein-1024`: the settings of SoMA and of Rein."""


@dataclass(frozen=True)
class Plan:
    """How the images of one data set are scored: its protocol, resolved.

    `name` is the protocol's name with all deviations from it, as in "soma-2048, window 256". An image is scaled to fit
    `box` (width, height); None keeps its own size. `batch_size` windows are computed at once.
    """

    name: str
    window: int
    stride: int
    box: tuple[int, int] | None = None
    batch_size: int = 1
    flip: bool = False
    scales: tuple[float, ...] = (1.0,)
    blend: Blend = "uniform"

    @property
    def views(self) -> int:
        """How many times the model sees an image: at each scale, as it is and mirrored."""
        return len(self.scales) * (1 + self.flip)

    def size(self, own: Size) -> Size:
        """The size at which an image of size `own` is scored: the largest inside the box, turned as the image.

        The factor is the smaller ratio of the long edges and of the short edges; sides are rounded half up, as in
        mmcv's `imrescale`, which the published settings use.
        """
        if self.box is None:
            return own
        factor = min(max(self.box) / max(own), min(self.box) / min(own))
        return max(1, int(own[0] * factor + 0.5)), max(1, int(own[1] * factor + 0.5))


def make_plan(
    protocol: str,
    dataset: str,
    crop: int,
    patch: int = 1,
    *,
    window: int | None = None,
    stride: int | None = None,
    batch_size: int = 1,
    flip: bool = False,
    scales: Sequence[float] = (1.0,),
    blend: Blend = "uniform",
) -> Plan:
    """Make the plan of a data set from a protocol.

    Args:
        protocol: a name in `PROTOCOLS`.
        dataset: a row of `BENCHMARKS`; images of any other are scored at their own size.
        crop: window in pixels if neither the protocol nor `window` gives one.
        patch: patch size of the backbone in pixels; the window has to be a multiple of it.
        window, stride: replace the protocol's; if only `window` is given, the stride is two thirds of it.
        flip, scales: average the logits of the mirrored and the rescaled image.
        blend: how the logits of windows that overlap are averaged.

    Raises:
        UserError: an unknown protocol, a stride that leaves gaps, or a window that is not a multiple of the patch.
    """
    if protocol not in PROTOCOLS:
        raise UserError(f"unknown protocol {protocol!r}; {did_you_mean(protocol, PROTOCOLS)}")
    rules = PROTOCOLS[protocol]
    own = rules.windows.get(dataset, rules.window)
    side = window or (own.side if own else crop)
    usual = own.stride if own and own.side == side else max(1, side * 2 // 3)
    if stride is not None and not 1 <= stride <= side:
        raise UserError(f"protocol {protocol}: stride {stride} leaves gaps between windows of {side}; take 1 to {side}")
    changes = {
        f"window {side}": own is not None and side != own.side,
        f"stride {stride}": own is not None and stride not in (None, usual),
        "flip": flip,
        f"scales {' '.join(f'{scale:g}' for scale in scales)}": tuple(scales) != (1.0,),
        f"blend {blend}": blend != "uniform",
    }
    name = ", ".join([protocol, *(change for change, made in changes.items() if made)])
    if side < patch or side % patch:
        raise UserError(
            f"protocol {name}: window {side} is not a multiple of the backbone's patch {patch}; set the window to "
            f"{multiples_near(side, patch)} (--window, or evaluation.window in the recipe), or choose another protocol"
        )
    return Plan(name, side, stride or usual, rules.sizes.get(dataset), batch_size, flip, tuple(scales), blend)


def multiples_near(side: int, patch: int) -> str:
    """The multiples of the patch size below and above a side, for an error message."""
    return " or ".join(map(str, sorted({max(1, side // patch) * patch, max(1, -(-side // patch)) * patch})))
