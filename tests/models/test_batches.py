"""Windows of several images fill batches together; what they give is what each image gives alone."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from labelled_files import picture
from recyclelora.models.batches import Ahead, Batches
from recyclelora.models.plan import Plan
from recyclelora.models.sliding import classify_seen, classify_with_doubt
from recyclelora.models.windows import seen

WEIGHTS = torch.from_numpy(np.random.default_rng(1).normal(size=(4, 3))).float() / 50


class Counted:
    """Logits of pixels and of their places in the window; notes the shapes of the batches."""

    def __init__(self):
        self.shapes = []

    def __call__(self, windows):
        self.shapes.append(tuple(windows.shape))
        rows = torch.linspace(0, 1, windows.shape[2])[:, None]
        return torch.einsum("bchw,kc->bkhw", windows.float(), WEIGHTS) + rows


def together(forward, images, plan):
    ahead = Ahead(seen(image, plan, 1, "cpu") for image in images)
    batches = Batches(forward, plan.batch_size, ahead)
    for _ in images:
        yield classify_seen(batches, next(ahead), plan)


def test_eight_images_of_one_window_take_one_pass():
    images = [picture(12, 16, seed=number) for number in range(8)]
    model, plan = Counted(), Plan("test", 16, 10, batch_size=8)
    found = list(together(model, images, plan))
    assert model.shapes == [(8, 3, 12, 16)]
    alone = Counted()
    for image, each in zip(images, found, strict=True):
        expected = classify_with_doubt(alone, image, plan, 1, "cpu")
        for part, right in zip(each, expected, strict=True):
            np.testing.assert_allclose(part, right, atol=1e-6)
    assert alone.shapes == [(1, 3, 12, 16)] * 8


def test_the_last_windows_of_an_image_share_their_batch_with_the_next():
    images = [picture(16, 16 + 10 * number) for number in (4, 3, 2)]
    model = Counted()
    list(together(model, images, Plan("test", 16, 10, batch_size=4)))
    assert [shape[0] for shape in model.shapes] == [4, 4, 4]


@given(
    st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30)), min_size=1, max_size=6),
    st.integers(1, 9),
    st.booleans(),
    st.sampled_from([(1.0,), (0.5, 1.0), (1.5,)]),
)
@settings(max_examples=30, deadline=None)
def test_several_images_give_what_each_gives_alone(sizes, batch_size, flip, scales):
    images = [picture(*size, seed=number) for number, size in enumerate(sizes)]
    plan = Plan("test", 12, 7, batch_size=batch_size, flip=flip, scales=scales)
    model, alone = Counted(), Counted()
    for image, each in zip(images, together(model, images, plan), strict=True):
        expected = classify_with_doubt(alone, image, plan, 1, "cpu")
        np.testing.assert_array_equal(each.classes, expected.classes)
        np.testing.assert_allclose(each.confidence, expected.confidence, atol=1e-6)
        np.testing.assert_allclose(each.entropy, expected.entropy, atol=1e-6)
    assert sum(shape[0] for shape in model.shapes) == sum(shape[0] for shape in alone.shapes)
    assert max(shape[0] for shape in model.shapes) <= batch_size
    if len(images) == 1:
        assert model.shapes == alone.shapes


def test_images_are_made_only_as_far_ahead_as_a_batch_needs():
    made = []

    def images():
        for number in range(100):
            made.append(number)
            yield seen(picture(8, 8), plan, 1, "cpu")

    plan = Plan("test", 8, 5, batch_size=4)
    ahead = Ahead(images())
    batches = Batches(Counted(), 4, ahead)
    found = [len(made) for _ in range(9) if classify_seen(batches, next(ahead), plan)]
    assert found == [4, 4, 4, 4, 8, 8, 8, 8, 12]


def test_images_of_other_shapes_do_not_make_all_images_wait():
    sizes = [(8, 8), *[(4, 4)] * 50]
    made = []
    plan = Plan("test", 8, 5, batch_size=4)
    ahead = Ahead(made.append(size) or seen(picture(*size), plan, 1, "cpu") for size in sizes)
    classify_seen(Batches(Counted(), 4, ahead), next(ahead), plan)
    assert len(made) == 5


def test_an_error_comes_when_it_is_its_turn():
    def images():
        for _ in range(2):
            yield seen(picture(8, 8), plan, 1, "cpu")
        raise OSError("the third")

    plan = Plan("test", 8, 5, batch_size=4)
    ahead = Ahead(images())
    batches = Batches(Counted(), 4, ahead)
    for _ in range(2):
        classify_seen(batches, next(ahead), plan)
    with pytest.raises(OSError, match="the third"):
        next(ahead)
