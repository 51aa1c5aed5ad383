"""Batches depend only on the step, not on where a training starts or how many processes share it."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from recyclelora.data.transforms import Wanted
from recyclelora.training.rare_classes import RareClasses
from recyclelora.training.sampler import StepBatchSampler

RARE = RareClasses(np.array([1, 4, 7]), np.array([0.2, 0.3, 0.5]), [np.array(i) for i in ([0, 2], [1], [0, 1, 2])], 9.0)


def batches(length, batch_size, steps, seed=0, start=0, **processes):
    return list(StepBatchSampler([length], batch_size, steps, seed, start, **processes))


def passes(length, count, seed=0):
    """The order of the images in each of the first passes over the data."""
    return [tuple(key.image for key in batch) for batch in batches(length, length, count, seed)]


lengths, sizes, counts, seeds = st.integers(1, 30), st.integers(1, 9), st.integers(0, 20), st.integers(0, 10_000)


@given(lengths, sizes, counts, seeds)
@settings(deadline=None)
def test_every_image_comes_once_per_pass(length, batch_size, steps, seed):
    drawn = batches(length, batch_size, steps, seed)
    assert [len(batch) for batch in drawn] == [batch_size] * steps
    keys = [key for batch in drawn for key in batch]
    assert [key.number for key in keys] == list(range(steps * batch_size))
    assert {key.wanted for key in keys} <= {None}
    indices = [key.image for key in keys]
    for first in range(0, len(indices), length):
        turn = indices[first : first + length]
        assert set(turn) <= set(range(length))
        assert len(set(turn)) == len(turn)


@given(lengths, sizes, counts, seeds, st.integers(1, 4))
@settings(deadline=None)
def test_processes_share_the_batches_of_one(length, batch_size, steps, seed, world):
    ranks = [batches(length, batch_size, steps, seed, rank=rank, world=world) for rank in range(world)]
    together = [[key for batch in step for key in batch] for step in zip(*ranks, strict=True)]
    assert together == batches(length, world * batch_size, steps, seed)


@given(lengths, sizes, counts, seeds, st.integers(0, 25), st.integers(1, 3))
@settings(deadline=None)
def test_a_later_start_gives_the_remaining_batches(length, batch_size, steps, seed, start, world):
    for rank in range(world):
        whole = batches(length, batch_size, steps, seed, rank=rank, world=world)
        assert batches(length, batch_size, steps, seed, start, rank=rank, world=world) == whole[start:]


@pytest.mark.parametrize("seed", [0, 1, 17])
def test_passes_differ_from_each_other_and_from_those_of_other_seeds(seed):
    ours = passes(30, 20, seed)
    assert len(set(ours)) == 20
    assert not set(ours) & set(passes(30, 20, seed + 1))
    assert tuple(range(30)) not in ours


def test_every_place_of_a_pass_is_equally_likely_for_an_image():
    firsts = [order[0] for order in passes(4, 2000)]
    assert all(400 < firsts.count(image) < 600 for image in range(4))


def test_weights_are_the_shares_of_the_sources_and_images_are_drawn_evenly():
    sampler = StepBatchSampler([2, 6], 10, 400, 3, weights=[3.0, 1.0])
    drawn = Counter(key.image for batch in sampler for key in batch)
    first = drawn[0] + drawn[1]
    assert 0.72 < first / 4000 < 0.78
    assert all(abs(drawn[i] / 4000 - 0.375) < 0.03 for i in (0, 1))
    assert all(abs(drawn[i] / 4000 - 0.25 / 6) < 0.012 for i in range(2, 8))


@given(sizes, counts, seeds, st.integers(0, 25), st.integers(1, 3))
@settings(deadline=None, max_examples=30)
def test_weighted_batches_depend_only_on_the_step(batch_size, steps, seed, start, world):
    def drawn(size, **where):
        return list(StepBatchSampler([5, 3], size, steps, seed, weights=[1, 2], **where))

    whole = drawn(batch_size * world, start=0)
    ranks = [drawn(batch_size, start=start, rank=rank, world=world) for rank in range(world)]
    together = [[key for batch in step for key in batch] for step in zip(*ranks, strict=True)]
    assert together == whole[start:]


def keys(weights=None, rare=(None, RARE, None), steps=1000, seed=0, **where):
    sampler = StepBatchSampler([4, 3, 5], 3, steps, seed, weights=weights, **where, rare=rare)
    return [key for batch in sampler for key in batch]


@pytest.mark.parametrize("weights", [None, [2, 1, 1]])
def test_rare_classes_change_the_images_of_their_source_only(weights):
    for plain, key in zip(keys(weights, rare=None), keys(weights), strict=True):
        assert (4 <= plain.image < 7) == (4 <= key.image < 7)
        if 4 <= key.image < 7:
            label, pixels = key.wanted
            assert pixels == 9
            assert key.image - 4 in RARE.images[[1, 4, 7].index(label)]
        else:
            assert key == plain


@pytest.mark.parametrize("weights", [None, [1, 3, 1]])
def test_classes_are_drawn_with_their_probabilities_and_images_of_each_evenly(weights):
    drawn = [key for key in keys(weights, steps=4000) if key.wanted]
    classes = Counter(key.wanted.label for key in drawn)
    assert chisquare([classes[c] for c in RARE.classes], RARE.probabilities * len(drawn)).pvalue > 0.01
    for label, images in zip(RARE.classes, RARE.images, strict=True):
        counts = Counter(key.image - 4 for key in drawn if key.wanted.label == label)
        assert set(counts) == {*images.tolist()}
        assert len(images) == 1 or chisquare([*counts.values()]).pvalue > 0.01


@given(seeds, st.integers(0, 25), st.integers(1, 3), st.booleans())
@settings(deadline=None, max_examples=30)
def test_batches_of_rare_classes_depend_only_on_the_step(seed, start, world, weighted):
    weights = [1, 2, 3] if weighted else None

    def drawn(size, **where):
        return list(StepBatchSampler([4, 3, 5], size, 12, seed, weights=weights, rare=[None, RARE, None], **where))

    whole = drawn(2 * world, start=0)
    ranks = [drawn(2, start=start, rank=rank, world=world) for rank in range(world)]
    assert [[key for batch in step for key in batch] for step in zip(*ranks, strict=True)] == whole[start:]


def test_without_a_share_of_the_crop_no_class_is_wanted():
    rare = RareClasses(RARE.classes, RARE.probabilities, RARE.images, 0.0)
    assert {key.wanted for key in keys(rare=[rare] * 3)} == {None}
    assert Wanted(7, 9.0) in {key.wanted for key in keys()}
