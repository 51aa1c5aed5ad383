"""Protocols resolved for a data set, against the published settings and mmcv's rule of sizes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labelled_files import refused
from recyclelora.data.opening import BENCHMARKS
from recyclelora.models.plan import PROTOCOLS, Plan, make_plan

SIDES = st.integers(1, 4000)


def test_every_data_set_of_a_protocol_is_a_row_of_the_table():
    for protocol in PROTOCOLS.values():
        assert {*protocol.sizes, *protocol.windows} <= BENCHMARKS.keys()


@pytest.mark.parametrize(
    ("protocol", "dataset", "own", "scored", "window"),
    [  # (height, width)
        ("soma-2048", "cityscapes", (1024, 2048), (1024, 2048), (512, 341)),
        ("soma-2048", "bdd100k", (720, 1280), (720, 1280), (512, 341)),
        ("soma-2048", "mapillary", (2448, 3264), (1024, 1365), (512, 341)),
        ("soma-2048", "mapillary-half", (1224, 1632), (1024, 1365), (512, 341)),
        ("soma-2048", "mapillary", (3264, 2448), (1365, 1024), (512, 341)),
        ("soma-2048", "acdc", (1080, 1920), (1080, 1920), (1024, 683)),
        ("soma-2048", "camvid", (360, 480), (360, 480), (512, 341)),
        ("rein-1024", "cityscapes", (1024, 2048), (512, 1024), (512, 341)),
        ("rein-1024", "mapillary", (2448, 3264), (512, 683), (512, 341)),
        ("rein-1024", "bdd100k", (720, 1280), (720, 1280), (512, 341)),
        ("rein-1024", "acdc", (1080, 1920), (1080, 1920), (512, 341)),
        ("full", "cityscapes", (1024, 2048), (1024, 2048), (96, 64)),
        ("full", "", (5, 7), (5, 7), (96, 64)),
    ],
)
def test_sizes_and_windows_of_the_published_settings(protocol, dataset, own, scored, window):
    plan = make_plan(protocol, dataset, 96)
    assert (plan.name, plan.size(own), (plan.window, plan.stride)) == (protocol, scored, window)


@given(st.tuples(SIDES, SIDES), st.tuples(SIDES, SIDES))
def test_an_image_fits_its_box_and_touches_it(box, own):
    size = Plan("", 1, 1, box).size(own)
    assert size[0] == size[1] or own[0] == own[1] or (size[0] > size[1]) == (own[0] > own[1]) or min(size) == 1
    assert max(size) <= max(box)
    assert min(size) <= min(box)
    assert max(size) == max(box) or min(size) == min(box)
    factor = max(size) / max(own)
    assert abs(min(size) - min(own) * factor) <= 0.5 + 0.5 * min(own) / max(own) + 1e-6 or min(size) == 1
    assert Plan("", 1, 1, box).size(own[::-1]) == size[::-1]
    assert Plan("", 1, 1, box[::-1]).size(own) == size
    assert Plan("", 1, 1).size(own) == own


@pytest.mark.parametrize(
    ("protocol", "dataset", "changes", "name", "window"),
    [
        ("soma-2048", "cityscapes", {"window": 64}, "soma-2048, window 64", (64, 42)),
        ("soma-2048", "cityscapes", {"window": 512}, "soma-2048", (512, 341)),
        ("soma-2048", "acdc", {"window": 512}, "soma-2048, window 512", (512, 341)),
        ("soma-2048", "acdc", {"window": 1024}, "soma-2048", (1024, 683)),
        ("soma-2048", "acdc", {"stride": 683}, "soma-2048", (1024, 683)),
        ("soma-2048", "cityscapes", {"stride": 256}, "soma-2048, stride 256", (512, 256)),
        ("soma-2048", "", {"window": 64, "stride": 64}, "soma-2048, window 64, stride 64", (64, 64)),
        ("soma-2048", "", {"window": 1}, "soma-2048, window 1", (1, 1)),
        ("full", "", {"window": 48}, "full", (48, 32)),
        ("full", "", {"stride": 5}, "full", (96, 5)),
        ("full", "", {"flip": True}, "full, flip", (96, 64)),
        ("full", "", {"scales": [1.0]}, "full", (96, 64)),
        ("full", "", {"blend": "uniform"}, "full", (96, 64)),
        ("full", "", {"flip": True, "blend": "hann"}, "full, flip, blend hann", (96, 64)),
        (
            "rein-1024",
            "",
            {"flip": True, "scales": [0.75, 1.0, 1.25]},
            "rein-1024, flip, scales 0.75 1 1.25",
            (512, 341),
        ),
    ],
)
def test_deviations_from_the_protocol_are_in_the_name(protocol, dataset, changes, name, window):
    plan = make_plan(protocol, dataset, 96, **changes)
    assert (plan.name, (plan.window, plan.stride)) == (name, window)


def test_the_batch_is_not_part_of_the_protocol():
    assert make_plan("full", "", 96, batch_size=7) == Plan("full", 96, 64, batch_size=7)


@pytest.mark.parametrize("stride", [0, 513])
def test_a_stride_that_leaves_gaps_is_refused(stride):
    refused(
        lambda: make_plan("rein-1024", "cityscapes", 96, stride=stride),
        f"protocol rein-1024: stride {stride} leaves gaps between windows of 512; take 1 to 512",
    )


def test_an_unknown_protocol_is_refused_with_the_nearest():
    refused(lambda: make_plan("soma-1024", "", 96), "unknown protocol 'soma-1024'", "did you mean", "'soma-2048'")


@pytest.mark.parametrize(("window", "nearest"), [(50, "48 or 64"), (60, "48 or 64"), (5, "16")])
def test_a_window_that_is_not_a_multiple_is_refused_with_the_nearest(window, nearest):
    refused(
        lambda: make_plan("soma-2048", "", 96, 16, window=window, stride=1),
        f"protocol soma-2048, window {window}, stride 1: window {window} is not a multiple of the backbone's patch 16",
        f"set the window to {nearest} (--window",
    )
    assert make_plan("soma-2048", "", 96, 16, window=64).window == 64
