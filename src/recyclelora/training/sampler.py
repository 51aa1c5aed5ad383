"""Batches that depend only on the step, so that a resumed training sees the same as an uninterrupted one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from recyclelora.data.dataset import Key
from recyclelora.training.rare_classes import RareClasses


class StepBatchSampler:
    """Batches of keys for the steps from `start` to `steps`.

    Without weights, sample j of the whole training is image `permutation[j % length]` in pass j // length over all
    sources; every pass has its own random permutation, seeded by (seed, pass). With weights, one share per source, the
    source and its image are drawn at random for each sample, seeded by (seed, j). If the source has rare classes, the
    image is then replaced by one that is drawn for one of them, so the shares of the sources stay. A process takes the
    batches of its rank.

    Args:
        lengths: number of images of each source; an index counts through all sources.
        batch_size: samples per step and process.
        rare: how images are drawn for rare classes, for each source; None for a source that does not do so.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        batch_size: int,
        steps: int,
        seed: int,
        start: int = 0,
        weights: Sequence[float] | None = None,
        rank: int = 0,
        world: int = 1,
        rare: Sequence[RareClasses | None] | None = None,
    ) -> None:
        self.lengths, self.batch_size, self.steps, self.seed = list(lengths), batch_size, steps, seed
        self.shares = None if weights is None else np.divide(weights, sum(weights))
        self.start, self.rank, self.world = start, rank, world
        self.ends = np.cumsum(self.lengths)
        self.rare = [None] * len(self.lengths) if rare is None else list(rare)
        self._pass, self._order = -1, torch.empty(0)

    def __len__(self) -> int:
        return max(0, self.steps - self.start)

    def __iter__(self) -> Iterator[list[Key]]:
        for step in range(self.start, self.steps):
            first = (step * self.world + self.rank) * self.batch_size
            yield [self._key(number) for number in range(first, first + self.batch_size)]

    def _key(self, number: int) -> Key:
        index = self._uniform(number) if self.shares is None else self._weighted(number)
        source = int(np.searchsorted(self.ends, index, side="right"))
        if (rare := self.rare[source]) is None:
            return Key(number, index)
        image, wanted = rare.draw(np.random.default_rng((self.seed, number, 2)))
        return Key(number, int(self.ends[source]) - self.lengths[source] + image, wanted)

    def _uniform(self, number: int) -> int:
        length = sum(self.lengths)
        turn, place = divmod(number, length)
        if turn != self._pass:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + turn)
            self._pass, self._order = turn, torch.randperm(length, generator=generator)
        return int(self._order[place])

    def _weighted(self, number: int) -> int:
        rng = np.random.default_rng((self.seed, number, 1))  # (seed, number) seeds the augmentation
        source = int(rng.choice(len(self.lengths), p=self.shares))
        return sum(self.lengths[:source]) + int(rng.integers(self.lengths[source]))
