"""The memory of a training by its parts, against what is counted by hand."""

import pytest
import torch
from torch import nn

from miniatures import TINY
from recyclelora.recipe import make_recipe
from recyclelora.runs.build import build
from recyclelora.training.memory import Memory, Peak, memory_of
from recyclelora.training.module import SegmentationModule

SIZE = 2**18
"""Numbers in a tensor, of 4 bytes."""


@pytest.fixture
def measured():
    """The peak of a call, in tensors of a MiB."""

    def measure(call):
        peak = Peak()
        peak.start()
        result = call()
        peak.stop()
        del result
        return peak.found / (4 * SIZE)

    return measure


def test_the_highest_sum_counts_and_not_that_of_all(measured):
    def call():
        first = torch.ones(3 * SIZE)
        del first
        kept = torch.ones(2 * SIZE)
        return kept + 1  # 4 at once, 7 in all

    assert measured(call) == pytest.approx(4, abs=0.01)
    assert measured(lambda: None) == 0


def test_what_was_there_before_does_not_count(measured):
    before = torch.ones(5 * SIZE)
    assert measured(lambda: before.mul_(2)) == pytest.approx(0, abs=0.01)


def test_the_profiler_prints_nothing(measured, capfd):
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]):
        pass  # by someone else, who lets it print
    capfd.readouterr()
    before = [torch.ones(SIZE) for _ in range(3)]
    assert measured(before.clear) == 0
    assert capfd.readouterr() == ("", "")


def test_a_backward_pass_takes_activations_and_gradients(measured):
    width = 512
    layers = [nn.Linear(width, width, bias=False) for _ in range(8)]
    x = torch.ones(2, width)

    def call():
        y = x
        for layer in layers:
            y = layer(y)
        y.sum().backward()

    assert measured(call) == pytest.approx(8, abs=0.1)  # gradients: a MiB for each layer


def test_checkpointing_shows_in_the_peak(measured):
    block = nn.Sequential(*[nn.Sigmoid() for _ in range(6)])
    x = torch.ones(SIZE, requires_grad=True)

    def plain():
        block(block(block(x))).sum().backward()

    def saving():
        y = x
        for _ in range(3):
            y = torch.utils.checkpoint.checkpoint(block, y, use_reentrant=False)
        y.sum().backward()

    assert measured(plain) >= 18
    assert measured(saving) <= 12


@pytest.mark.parametrize("average", [0.0, 0.9])
def test_what_is_held_is_counted_as_named(average):
    settings = {"sources": ["streets"], "backbone": TINY, "adapter": {"r_main": 4, "r_sub": 2}, "crop": 64}
    recipe = make_recipe({**settings, "optim": {"average": average}})
    module = SegmentationModule(build(recipe, 5), recipe)
    sizes = {name: 4 * value.numel() for name, value in module.named_parameters()}
    trained = sum(size for name, size in sizes.items() if "recycle_delta" in name or ".head." in name)
    start = {name: value for name, value in module.named_buffers() if name.endswith(("B0.default", "index.default"))}
    assert {value.dtype for value in start.values()} == {torch.float32, torch.int64}
    others = sum(4 * value.numel() for name, value in module.named_buffers() if name not in start)
    found = memory_of(module, 7)
    assert found.trained == (4 if average else 3) * trained
    drawn = sum(value.numel() * value.element_size() for value in start.values())
    assert found.frozen == sum(sizes.values()) - trained + drawn + others
    assert found.step == 7
    assert Memory(1, 2, 4).total == 7
