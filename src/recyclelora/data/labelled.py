"""Whether the labels of a data set can teach a model anything: checked before a training, and by `data check`."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int64

from recyclelora.data.domain import Domain
from recyclelora.data.labels import IGNORE, Labelling, LabelSpace
from recyclelora.errors import UserError


def unlabelled(space: LabelSpace, pixels: Int64[np.ndarray, "ids=256"]) -> str:
    """What is wrong with labels that hold so many pixels of each train id, with the fix; empty if nothing is.

    Nothing is known of labels without any pixel, such as those that could not be read.
    """
    if not pixels.any() or pixels[1 : len(space)].any():
        return ""
    if not pixels[0]:
        return (
            f"no pixel is labelled: all are {IGNORE} (ignored), or of classes that are not trained on, expected ids "
            f"from 0 ({space.names[0]}) to {len(space) - 1} ({space.names[-1]}); write the id of its class at each "
            "pixel"
        )
    if not pixels[IGNORE] or len(space) < 2:
        return ""
    lists = "" if len(space) == 2 else "list the two classes in classes.txt, and "
    return (
        f"masks of 0 and {IGNORE}: every pixel is 0 ({space.names[0]}) or {IGNORE}, which is ignored, and none is of "
        f"another class, expected 0 and 1 in masks of two classes; {lists}write 1 "
        f"({space.names[1] if len(space) == 2 else 'the second class'}) instead of {IGNORE}"
    )


def check_labelled(domain: Domain) -> None:
    """Refuse a source whose labels can teach nothing. Labels are read until one shows that they can.

    Raises:
        UserError: no pixel is labelled, the labels are masks of 0 and 255 for two classes, or one cannot be read.
    """
    space, pixels = domain.train_space, np.zeros(256, np.int64)
    for index in range(len(domain)):
        ids = np.bincount(domain.source.labels(index).ravel(), minlength=256)
        np.add.at(pixels, domain.labelling.to_train, ids)
        if pixels[1 : len(space)].any() or (pixels[0] and len(space) > 2):
            return
    if reason := unlabelled(space, pixels):
        raise UserError(f"{domain.label}: {len(domain)} labels were read, and {reason}")


def absent(labelling: Labelling, holding: Int64[np.ndarray, "classes"]) -> list[str]:
    """The classes that labels of this kind could hold, but that none of them does."""
    possible = {int(labelling.to_train[identity]) for identity in labelling.ids} - {IGNORE}
    return [labelling.train_space.names[identity] for identity in sorted(possible) if not holding[identity]]
