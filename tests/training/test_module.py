"""The schedules of a training step are those of mmengine, with which the published work trains."""

import pytest
from schedules import of_mmengine

from recyclelora.training.module import cosine, rate_factor


@pytest.mark.parametrize(
    ("steps", "warmup"), [(40_000, 0), (40_000, 10_000), (200, 0), (200, 2), (200, 199), (3, 0), (2, 0), (1, 0)]
)
@pytest.mark.parametrize("power", [0.9, 2.0, 0.0])
def test_every_step_has_the_rate_and_the_weight_decay_of_mmengine(steps, warmup, power):
    expected = of_mmengine([(1.0, 0.05), (0.5, 0.0)], steps, power, warmup)
    for step, ((rate, decay), (half, raised)) in enumerate(expected):
        found = rate_factor(step, steps, power, warmup)
        assert (found, found / 2) == pytest.approx((rate, half), abs=1e-12)
        assert cosine(step, steps, 0.05, 1e-5) == pytest.approx(decay, abs=1e-12)
        assert cosine(step, steps, 0.0, 1e-5) == pytest.approx(raised, abs=1e-12)


def test_the_rate_is_that_of_the_formula_and_exactly_0_at_the_last_step():
    assert [rate_factor(i, 40) for i in range(40)] == pytest.approx([(1 - i / 39) ** 0.9 for i in range(40)])
    assert rate_factor(39, 40) == rate_factor(40, 40) == 0
    assert rate_factor(0, 1) == rate_factor(1, 1) == 1
    assert [rate_factor(i, 1, warmup=0, power=power) for i in range(2) for power in (0.0, 0.9)] == [1] * 4


def test_a_warm_up_rises_linearly_to_the_full_rate_from_where_the_polynomial_falls():
    rates = [rate_factor(i, 40, warmup=10) for i in range(40)]
    assert rates[:10] == pytest.approx([1e-6 + (1 - 1e-6) * i / 9 for i in range(10)])
    assert rates[9] == rates[10] == 1
    assert rates[10:] == [rate_factor(i, 30) for i in range(30)]
    assert [rate_factor(i, 3, warmup=1) for i in range(3)] == [1e-6, 1, 0]
    assert [rate_factor(i, 3, warmup=2) for i in range(3)] == pytest.approx([1e-6, 1, 1])


def test_the_weight_decay_ends_one_step_before_its_bound():
    values = [cosine(step, 10, 0.5, 0.1) for step in range(11)]
    assert (values[0], values[5], values[10]) == pytest.approx((0.5, 0.3, 0.1))
    assert values[9] > 0.1
    assert cosine(12, 10, 0.5, 0.1) == pytest.approx(0.1)
