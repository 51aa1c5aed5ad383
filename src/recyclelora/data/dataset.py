"""Domains as a PyTorch data set of augmented crops."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypedDict

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor
from torch.utils.data import Dataset

from recyclelora.data.domain import Domain
from recyclelora.data.transforms import Augment, Wanted
from recyclelora.errors import UserError


class Key(NamedTuple):
    """A sample: its number in the whole training, its image, and what its crop should hold, if anything."""

    number: int
    image: int
    wanted: Wanted | None = None


class TrainingSample(TypedDict):
    """An RGB crop, its train ids, the (h, w) of its part without `"normalised"` padding, and its number."""

    image: UInt8[Tensor, "3 h w"]
    labels: Int64[Tensor, "h w"]
    size: Int64[Tensor, "2"]
    number: Int64[Tensor, ""]


def parts(batch: TrainingSample, count: int) -> list[TrainingSample]:
    """A batch of samples in `count` equal parts, in order.

    Raises:
        RuntimeError: its samples cannot be shared equally.
    """
    image, labels, size, number = (
        value.unflatten(0, (count, -1)) for value in (batch["image"], batch["labels"], batch["size"], batch["number"])
    )
    return [{"image": image[i], "labels": labels[i], "size": size[i], "number": number[i]} for i in range(count)]


class TrainingDataset(Dataset[TrainingSample]):
    """Augmented crops of the images of several domains, one domain after another.

    The image of a key is counted through all domains. `seed` and the number of a sample seed its augmentation, so the
    same key gives the same bytes in any process.

    Raises:
        UserError: there is no domain, or the domains have different train classes.
    """

    def __init__(self, domains: Sequence[Domain], augment: Augment, seed: int = 0) -> None:
        if not domains:
            raise UserError("no domain to train on, expected at least one")
        first = domains[0]
        for other in domains[1:]:
            if other.train_space.names != first.train_space.names:
                raise UserError(
                    f"{other.label}: trained with {_names(other)}, but {first.label} with {_names(first)}; "
                    "only domains with the same classes can be trained together"
                )
        self.domains, self.augment, self.seed = list(domains), augment, seed
        self.ends = np.cumsum([len(domain) for domain in domains])

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, key: Key | tuple[int, int]) -> TrainingSample:
        number, index, wanted = Key(*key)
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        which = int(np.searchsorted(self.ends, index, side="right"))
        domain = self.domains[which]
        image, labels = domain.read(index - int(self.ends[which]) + len(domain))
        image, labels, size = self.augment(image, labels, np.random.default_rng((self.seed, number)), wanted)
        return {
            "image": _image_tensor(image),
            "labels": _label_tensor(labels),
            "size": torch.tensor(size),
            "number": torch.tensor(number),
        }


def _image_tensor(image: UInt8[np.ndarray, "h w 3"]) -> UInt8[Tensor, "3 h w"]:
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))


def _label_tensor(labels: UInt8[np.ndarray, "h w"]) -> Int64[Tensor, "h w"]:
    return torch.from_numpy(labels.astype(np.int64))


def _names(domain: Domain) -> str:
    names = domain.train_space.names
    return f"{len(names)} classes ({', '.join(names[:3])}{', ...' * (len(names) > 3)})"
