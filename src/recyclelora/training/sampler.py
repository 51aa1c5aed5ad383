"""Batches that depend only on the step, so that a resumed training sees the same as an uninterrupted one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch

Key = tuple[int, int]


class StepBatchSampler:
    """Batches of keys `(number, index)` for the steps from `start()` to `steps`.

    Without weights, sample j of the whole training is image `permutation[j % length]` in pass j // length over all
    sources; every pass has its own random permutation, seeded by (seed, pass). With weights, one share per source, the
    source and its image are drawn at random for each sample, seeded by (seed, j). A process takes the batches of its
    rank.

    Args:
        lengths: number of images of each source; an index counts through all sources.
        batch_size: samples per step and process.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        batch_size: int,
        steps: int,
        seed: int,
        start: Callable[[], int],
        weights: Sequence[float] | None = None,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.lengths, self.batch_size, self.steps, self.seed = list(lengths), batch_size, steps, seed
        self.shares = None if weights is None else np.divide(weights, sum(weights))
        self.start, self.rank, self.world = start, rank, world
        self._pass, self._order = -1, torch.empty(0)

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[list[Key]]:
        draw = self._uniform if self.shares is None else self._weighted
        for step in range(self.start(), self.steps):
            first = (step * self.world + self.rank) * self.batch_size
            yield [(number, draw(number)) for number in range(first, first + self.batch_size)]

    def _uniform(self, number: int) -> int:
        length = sum(self.lengths)
        turn, place = divmod(number, length)
        if turn != self._pass:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + turn)
            self._pass, self._order = turn, torch.randperm(length, generator=generator)
        return int(self._order[place])

    def _weighted(self, number: int) -> int:
        rng = np.random.default_rng((self.seed, number, 1))  # the augmentation is seeded by (seed, number)
        source = int(rng.choice(len(self.lengths), p=self.shares))
        return sum(self.lengths[:source]) + int(rng.integers(self.lengths[source]))
