"""The measure of seams: where borders lie, and what counts as a jump."""

import numpy as np
import pytest

from recyclelora.models.plan import Plan
from seams import borders, jumps


def test_borders_are_where_windows_begin_and_end_inside_the_image():
    assert borders(100, 40, 30) == [30, 40, 60, 70]  # windows start at 0, 30 and 60
    assert borders(95, 40, 30) == [30, 40, 55, 70]
    assert borders(40, 40, 30) == borders(25, 40, 30) == []


@pytest.mark.parametrize("axis", [1, 2])
def test_a_slope_has_no_seam_and_a_step_at_a_border_has_one(axis):
    slope = np.broadcast_to(np.linspace(0, 1, 101)[:, None], (2, 101, 101))
    across, beside = jumps(slope, Plan("test", 60, 41))
    assert across / beside == pytest.approx(1)
    stepped = slope + 0.1 * (np.arange(101) >= 41)[:, None]
    across, beside = jumps(stepped.swapaxes(1, axis), Plan("test", 60, 41))  # borders at 41 and 60
    assert (across, beside) == (pytest.approx(0.02 + 0.1), pytest.approx(0.02))
