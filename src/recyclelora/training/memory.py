"""How much memory a training takes on one device, by what is in it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch._C._profiler import _ExtraFields_Allocation
from torch.distributed.tensor import DTensor
from torch.profiler import ProfilerActivity, profile

from recyclelora.training.module import SegmentationModule


@dataclass(frozen=True)
class Memory:
    """Bytes on one device, of tensors alone.

    `frozen` is the base, or its share with the strategy `fsdp`, and what adapters start from; `trained` are the trained
    weights, AdamW's two averages of each, and their own average, if the recipe has one. `step` is what a step takes
    besides, at its peak: activations, gradients, and whatever is computed on the way.
    """

    frozen: int
    trained: int
    step: int

    @property
    def total(self) -> int:
        """All of it. What the driver and the allocator of a GPU take for themselves is not in it."""
        return self.frozen + self.trained + self.step


def memory_of(module: SegmentationModule, step: int) -> Memory:
    """What a module holds once it has been trained for a step, whose peak is given."""
    kept = 4 if module.optim.average else 3
    trained = sum(_bytes(value) for value in module.trained().values())
    everything = [*module.parameters(), *module.buffers()]
    return Memory(sum(map(_bytes, everything)) - trained, kept * trained, step)


def _bytes(value: Tensor) -> int:
    own = value.to_local() if isinstance(value, DTensor) else value
    return own.numel() * own.element_size()


class Peak:
    """Measures how many bytes of tensors come into being at most, from `start` to `stop`, beside those there before.

    A GPU counts them itself; on a CPU torch's profiler lists every allocation.
    """

    def __init__(self) -> None:
        self.found = 0
        self._profile: profile | None = None
        self._before = 0
        self._ends = ExitStack()

    def start(self) -> None:
        """Begin."""
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
            self._before = torch.cuda.memory_allocated()
            return
        _prepare_profiler()
        with _without_stderr():  # the profiler prints that it starts and stops
            self._profile = self._ends.enter_context(profile(activities=[ProfilerActivity.CPU], profile_memory=True))

    def stop(self) -> None:
        """End; the result is in `found`."""
        if self._profile is None:
            self.found = torch.cuda.max_memory_allocated() - self._before if torch.cuda.is_available() else 0
            return
        with _without_stderr():
            self._ends.close()
        self.found = _highest(self._profile)
        self._profile = None


def _prepare_profiler() -> None:
    """Let torch's profiler see a tensor go that was there before: it prints so at the first of every 1,000 of them."""
    first = torch.empty(1)
    with _without_stderr(), profile(activities=[ProfilerActivity.CPU], profile_memory=True):
        del first


@contextmanager
def _without_stderr() -> Iterator[None]:
    """Drop what the process prints on its standard error meanwhile, torch's C++ code too."""
    shown = os.dup(2)
    try:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
            yield
    finally:
        os.dup2(shown, 2)
        os.close(shown)


def _highest(profiled: profile) -> int:
    """The highest sum of all allocations up to a time; those that are freed count as negative."""
    assert profiled.profiler is not None
    results = profiled.profiler.kineto_results
    assert results is not None
    changes, events = [], list(results.experimental_event_tree())
    while events:
        event = events.pop()
        events += event.children
        if isinstance(event.extra_fields, _ExtraFields_Allocation):
            changes.append((event.start_time_ns, event.extra_fields.alloc_size))
    highest = now = 0
    for _, size in sorted(changes):
        now += size
        highest = max(highest, now)
    return highest
