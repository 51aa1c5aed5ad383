"""The initial factors of all weights of a model, computed in parallel on all cores or a GPU, and cached."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from tqdm import tqdm

from recyclelora.adapter.cache import factors_folder, through_cache
from recyclelora.adapter.config import RecycleLoraConfig
from recyclelora.adapter.factors import Factors, initial_factors, initial_factors_of_stack
from recyclelora.adapter.rrqr import check_ranks
from recyclelora.adapter.rrqr.lapack import one_blas_thread
from recyclelora.errors import UserError

_shared: ContextVar[bool] = ContextVar("shared", default=False)


def draw_factors(weights: dict[str, Tensor], config: RecycleLoraConfig) -> dict[str, Factors]:
    """Factors of named weights, with a progress bar on a terminal.

    Within `shared_among_processes` each process factorises a part of them, and gets the others' factors.
    Weights on the CPU are factorised in a thread pool with one BLAS thread each, the slowest first; those on a GPU
    are factorised there, all of one shape together. With a cache, the factors that it holds are read instead.

    Raises:
        ValueError: see `recyclelora.adapter.factors.initial_factors`; the message begins with the layer's name.
    """
    ranks = {key: config.of_layer(key).ranks for key in weights}
    for key, weight in weights.items():
        with _naming([key]):
            check_ranks(tuple(weight.shape), *ranks[key])
    return _gathered(weights, ranks, config) if _shared.get() else _drawn(weights, ranks, config)


def _gathered(
    weights: dict[str, Tensor], ranks: dict[str, tuple[int, int]], config: RecycleLoraConfig
) -> dict[str, Factors]:
    """As `_drawn`, each process with a part of the weights."""
    own: dict[str, Factors] = {}
    failure: Exception | None = None
    keys = shares({key: _work(weight) for key, weight in weights.items()}, dist.get_world_size())[dist.get_rank()]
    try:
        drawn = _drawn({key: weights[key] for key in keys}, ranks, config)
        own = {key: factors.on_cpu() for key, factors in drawn.items()}  # a GPU's number differs between processes
    except (ValueError, UserError) as error:  # which the others, who wait for the factors, have to know
        failure = error
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, (own, failure))
    made: dict[str, Factors] = {}
    for part, other_failure in found:
        if other_failure is not None:
            raise other_failure
        made |= part
    return {key: made[key] for key in weights}


def shares(work: Mapping[str, int], count: int) -> list[list[str]]:
    """Names in `count` parts of about the same work, each name in one of them; the same in all processes."""
    parts: list[list[str]] = [[] for _ in range(count)]
    loads = [0] * count
    for key in sorted(work, key=lambda key: (-work[key], key)):
        least = loads.index(min(loads))
        parts[least].append(key)
        loads[least] += work[key]
    return parts


def _drawn(
    weights: dict[str, Tensor], ranks: dict[str, tuple[int, int]], config: RecycleLoraConfig
) -> dict[str, Factors]:
    drawn: dict[str, Factors] = {}
    together = {key for key, weight in weights.items() if config.decomposition == "rrqr" and _is_on_gpu(weight)}
    alone = sorted(weights.keys() - together, key=lambda key: (-_work(weights[key]), key))
    with (
        tqdm(desc=f"{config.decomposition.upper()} of the weights", total=len(weights), disable=None) as bar,
        one_blas_thread(),
        ThreadPoolExecutor(min(len(alone), _cores()) or 1) as pool,
    ):
        jobs = {pool.submit(_factors, [weights[key]], ranks[key], config): key for key in alone}
        try:
            for keys in _stacks({key: weights[key] for key in weights if key in together}, ranks):
                with _naming(keys):
                    drawn |= zip(keys, _factors([weights[key] for key in keys], ranks[keys[0]], config), strict=True)
                bar.update(len(keys))
            for job in as_completed(jobs):
                with _naming([jobs[job]]):
                    (drawn[jobs[job]],) = job.result()
                bar.update()
        finally:
            pool.shutdown(cancel_futures=True)
    return drawn


@contextmanager
def shared_among_processes() -> Iterator[None]:
    """While it lasts, the processes of `torch.distributed`, if there are several, share the work of `draw_factors`.

    All of them have to adapt the same models meanwhile, as each waits for the others' factors.
    """
    token = _shared.set(dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1)
    try:
        yield
    finally:
        _shared.reset(token)


@contextmanager
def _naming(keys: list[str]) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise ValueError(f"layer {' or '.join(map(repr, keys))}: {error}") from error


def _factors(weights: list[Tensor], ranks: tuple[int, int], config: RecycleLoraConfig) -> list[Factors]:
    """The factors of one weight, or of several of one shape on one GPU; read from the cache if it has them."""
    settings = (*ranks, config.decomposition)

    def make(missing: list[Tensor]) -> list[Factors]:
        if config.decomposition == "rrqr" and _is_on_gpu(missing[0]):
            return initial_factors_of_stack(missing, *ranks)
        return [initial_factors(weight, *settings) for weight in missing]

    folder = factors_folder(config.cache_factors)
    return through_cache(folder, weights, settings, make) if folder else make(weights)


def _is_on_gpu(weight: Tensor) -> bool:
    return weight.is_cuda


def _stacks(weights: dict[str, Tensor], ranks: dict[str, tuple[int, int]]) -> list[list[str]]:
    """Names of weights, in groups of one shape and rank on one device that fit into its memory at once."""
    groups: dict[tuple[Any, ...], list[str]] = {}
    for key, weight in weights.items():
        groups.setdefault((tuple(weight.shape), weight.device, ranks[key]), []).append(key)
    stacks = []
    for (shape, device, _), keys in groups.items():
        m, n = shape
        bytes_each = 8 * (4 * m * n + 2 * n * n + 3 * min(m, n) * n)
        free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 2**30
        size = max(1, int(0.7 * free) // bytes_each)
        stacks += [keys[start : start + size] for start in range(0, len(keys), size)]
    return stacks


def _work(weight: Tensor) -> int:
    return weight.numel() * min(weight.shape)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
