"""Batches as a function of the step alone, so that a resumed training sees what an uninterrupted one would."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

Key = tuple[int, int]


class StepBatchSampler:
    """Batches of keys `(number, index)` for the steps from `start()` to `steps`.

    Sample number j of the whole training is image `permutation[j % length]` of pass j // length over the data; every
    pass has its own permutation, drawn from (seed, pass). A process takes the batches of its rank.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        steps: int,
        seed: int,
        start: Callable[[], int],
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.length, self.batch_size, self.steps, self.seed = length, batch_size, steps, seed
        self.start, self.rank, self.world = start, rank, world

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[list[Key]]:
        drawn, order = -1, torch.empty(0)
        for step in range(self.start(), self.steps):
            first = (step * self.world + self.rank) * self.batch_size
            batch = []
            for number in range(first, first + self.batch_size):
                turn, place = divmod(number, self.length)
                if turn != drawn:
                    drawn, order = turn, self._permutation(turn)
                batch.append((number, int(order[place])))
            yield batch

    def _permutation(self, turn: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + turn)
        return torch.randperm(self.length, generator=generator)
