"""The sliding window against loops over single pixels, and what it holds in memory."""

import itertools

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.profiler import ProfilerActivity, profile

from labelled_files import picture, refused
from recyclelora.models.plan import Plan
from recyclelora.models.sliding import classify, summed_scores, window_starts
from references import bilinear

CLASSES = 5
TABLE = np.random.default_rng(0).normal(size=(CLASSES, 64, 64))
WEIGHTS = np.random.default_rng(1).normal(size=(CLASSES, 3)) / 100


class ByPlace:
    """Logits that depend on the colour of a pixel and on its place in the window."""

    def __init__(self):
        self.seen = []

    def __call__(self, images):
        self.seen.append(tuple(images.shape))
        return torch.from_numpy(np.stack([self.of(image) for image in images.permute(0, 2, 3, 1).numpy()])).float()

    @staticmethod
    def of(window):
        h, w = window.shape[:2]
        return TABLE[:, :h, :w] + np.moveaxis(window @ WEIGHTS.T, -1, 0)


def by_colour(images):
    """A class that depends only on the colour of each pixel."""
    return images.astype(np.int64) @ np.array([1, 3, 7]) % CLASSES


def of_single_pixels(images):
    classes = torch.from_numpy(by_colour(images.permute(0, 2, 3, 1).numpy()))
    return torch.nn.functional.one_hot(classes, CLASSES).permute(0, 3, 1, 2).float()


def fitting(side, window, patch):
    return min(window, side + -side % patch)


def by_loops(image, plan, patch):
    """The logits of one view: at every pixel, the mean over the windows that see it."""
    h, w = image.shape[:2]
    height, width = (fitting(side, plan.window, patch) for side in (h, w))
    padded = np.pad(image, ((0, max(0, height - h)), (0, max(0, width - w)), (0, 0)), mode="edge")
    tops = sorted({min(top, padded.shape[0] - height) for top in range(0, padded.shape[0], plan.stride)})
    lefts = sorted({min(left, padded.shape[1] - width) for left in range(0, padded.shape[1], plan.stride)})
    parts = {
        place: ByPlace.of(padded[place[0] :, place[1] :][:height, :width]) for place in itertools.product(tops, lefts)
    }
    scores = np.zeros((CLASSES, h, w))
    for y, x in np.ndindex(h, w):
        scores[:, y, x] = np.mean(
            [
                part[:, y - top, x - left]
                for (top, left), part in parts.items()
                if top <= y < top + height and left <= x < left + width
            ],
            axis=0,
        )
    return scores


def expected_scores(image, plan, patch):
    """The sum over scales and mirror images of what the loops give."""
    size, total = plan.size(image.shape[:2]), 0
    for scale in plan.scales:
        sides = [max(1, int(side * scale + 0.5)) for side in size]
        view = image if sides == list(image.shape[:2]) else cv2.resize(image, sides[::-1])
        total = total + bilinear(by_loops(view, plan, patch), size)
        if plan.flip:
            total = total + bilinear(by_loops(view[:, ::-1], plan, patch)[:, :, ::-1], size)
    return total


@st.composite
def cases(draw, largest=16):
    """A patch, a window of whole patches without gaps, and an image smaller or larger than the window."""
    patch = draw(st.sampled_from([1, 2, 4, 7]))
    window = patch * draw(st.integers(-(-4 // patch), 5))
    stride = draw(st.integers(max(1, window // 4), window))
    options = {"window": window, "stride": stride, "batch_size": draw(st.integers(1, 5))}
    return patch, options, picture(*draw(st.tuples(*[st.integers(1, largest)] * 2)), draw(st.integers(0, 99)))


@st.composite
def views(draw):
    """Another size, scales and mirror images."""
    box = draw(st.none() | st.tuples(*[st.integers(4, 16)] * 2))
    scales = draw(st.lists(st.sampled_from([0.5, 0.75, 1.0, 1.5]), min_size=1, max_size=3))
    return {"box": box, "scales": tuple(scales), "flip": draw(st.booleans())}


def made(case, **more):
    """Plans are made in the tests: beartype, which checks them, draws random numbers, and no strategy may."""
    patch, options, image = case
    return patch, Plan("test", **options, **more), image


# Windows along an axis


@given(st.integers(1, 300), st.integers(0, 300), st.data())
@settings(max_examples=200, deadline=None)
def test_windows_cover_the_axis_in_steps_of_at_most_the_stride(window, beyond, data):
    length, stride = window + beyond, data.draw(st.integers(1, window))
    starts = window_starts(length, window, stride)
    covered = {pixel for start in starts for pixel in range(start, start + window)}
    assert covered == set(range(length))
    assert all(0 < b - a <= stride for a, b in itertools.pairwise(starts))
    assert starts[-1] == length - window
    # As mmsegmentation counts them: https://github.com/open-mmlab/mmsegmentation, EncoderDecoder.slide_inference.
    count = max(length - window + stride - 1, 0) // stride + 1
    assert starts == [min(i * stride, length - window) for i in range(count)]


def test_an_axis_of_one_window_has_one_window():
    assert [window_starts(64, 64, stride) for stride in (1, 43, 64)] == [[0]] * 3


# Logits


@given(cases(largest=30))
@settings(max_examples=80, deadline=None)
def test_a_model_of_single_pixels_predicts_the_same_through_every_window(case):
    patch, plan, image = made(case)
    given_image = image.copy()
    predicted = classify(of_single_pixels, image, plan, patch, "cpu")
    assert predicted.dtype == np.uint8
    np.testing.assert_array_equal(predicted, by_colour(image))
    np.testing.assert_array_equal(image, given_image)


@given(cases())
@settings(max_examples=40, deadline=None)
def test_overlapping_logits_are_averaged(case):
    patch, plan, image = made(case)
    scores = summed_scores(ByPlace(), image, plan, patch, "cpu")
    np.testing.assert_allclose(scores, by_loops(image, plan, patch), atol=1e-5)


@given(cases(), views())
@settings(max_examples=60, deadline=None)
def test_scales_and_mirror_images_are_summed_at_the_size_of_the_plan(case, more):
    patch, plan, image = made(case, **more)
    scores = summed_scores(ByPlace(), image, plan, patch, "cpu")
    assert tuple(scores.shape[1:]) == plan.size(image.shape[:2])
    np.testing.assert_allclose(scores, expected_scores(image, plan, patch), atol=1e-4)


@given(cases(), views())
@settings(max_examples=60, deadline=None)
def test_the_class_has_the_highest_logit_at_the_size_of_the_image(case, more):
    patch, plan, image = made(case, **more)
    predicted = classify(ByPlace(), image, plan, patch, "cpu")
    assert predicted.shape == image.shape[:2]
    at_own_size = bilinear(expected_scores(image, plan, patch), image.shape[:2])
    chosen = np.take_along_axis(at_own_size, predicted[None].astype(np.int64), 0)[0]
    np.testing.assert_allclose(chosen, at_own_size.max(0), atol=1e-4)  # a tie may go either way


def test_with_equal_logits_the_first_class_is_taken():
    def equal(images):
        return torch.zeros(len(images), CLASSES, *images.shape[-2:])

    assert not classify(equal, picture(9, 7), Plan("test", 4, 3), 1, "cpu").any()


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_pixel_without_a_finite_score_has_no_class(wrong, number):
    def forward(images):
        scores = torch.zeros(len(images), 3, 16, 16)
        scores[:, number, 2, 3] = wrong
        return scores

    image, plan = np.zeros((16, 16, 3), np.uint8), Plan("one", window=16, stride=16)
    refused(lambda: classify(forward, image, plan, 16, "cpu"), "the scores of 1 of 256 pixels are NaN or infinite")


def test_a_scaled_image_is_interpolated_between_the_centres_of_pixels():
    seen = []

    def watch(images):
        seen.append(images)
        return torch.zeros(len(images), CLASSES, *images.shape[-2:])

    image = picture(12, 20)
    classify(watch, image, Plan("test", 64, 43, (36, 30)), 1, "cpu")
    expected = bilinear(np.moveaxis(image, -1, 0), (22, 36))
    np.testing.assert_allclose(seen[0][0], expected, atol=1)  # OpenCV rounds


# Batches and memory


@given(cases(largest=30))
@settings(max_examples=40, deadline=None)
def test_batches_are_full_and_of_one_size(case):
    patch, plan, image = made(case)
    model = ByPlace()
    classify(model, image, plan, patch, "cpu")
    height, width = (fitting(side, plan.window, patch) for side in image.shape[:2])
    starts = [
        window_starts(max(side, n), n, plan.stride) for side, n in zip(image.shape, (height, width), strict=False)
    ]
    batches, rest = divmod(len(starts[0]) * len(starts[1]), plan.batch_size)
    assert model.seen == [(n, 3, height, width) for n in [plan.batch_size] * batches + [rest] * bool(rest)]


def peak(action):
    """The most bytes that tensors take at once during an action, beyond those before it."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        action()
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    changes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    return max(itertools.accumulate(changes))


def test_the_peak_of_memory_is_seen():
    assert peak(lambda: (torch.zeros(1000), torch.zeros(3000))) == 16_000
    assert peak(lambda: [torch.zeros(1000).sum() for _ in range(4)]) < 5_000


@pytest.mark.parametrize(
    ("image", "box", "flip"),
    [
        ((160, 224), None, False),
        ((160, 224), None, True),
        ((320, 448), (224, 160), True),
        ((80, 112), (224, 160), False),
    ],
)
def test_memory_holds_the_logits_of_one_image_and_one_batch(image, box, flip):
    classes, window, batch_size = 150, 32, 2

    def model(images):
        return torch.ones(len(images), classes, *images.shape[-2:])

    plan = Plan("test", window, 21, box, batch_size, flip)
    scores, batch = 4 * classes * 160 * 224, 4 * classes * window**2 * batch_size
    # In addition to logits and batch: some single classes at the image's size, and a mirrored window.
    bound = scores + 2 * batch + 6 * 4 * image[0] * image[1]
    assert scores < peak(lambda: classify(model, picture(*image), plan, 16, "cpu")) < bound < 1.4 * scores
