"""The sliding window against loops over single pixels and against one that holds all logits, and what it holds."""

import itertools

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal.windows import hann
from scipy.special import softmax
from scipy.stats import entropy
from torch.profiler import ProfilerActivity, profile

from labelled_files import picture, refused
from recyclelora.models.batches import Batches
from recyclelora.models.plan import Plan
from recyclelora.models.sliding import (
    _bands,
    class_probabilities,
    classify,
    classify_with_doubt,
    passes,
    summed_scores,
)
from recyclelora.models.windows import seen, window_starts
from references import bilinear

CLASSES = 5
TABLE = np.random.default_rng(0).normal(size=(CLASSES, 64, 64))
WEIGHTS = np.random.default_rng(1).normal(size=(CLASSES, 3)) / 100


class ByPlace:
    """Logits that depend on the colour of a pixel and on its place in the window."""

    def __init__(self):
        self.seen, self.batches = [], set()

    def __call__(self, images):
        self.seen.append(tuple(images.shape))
        self.batches.add(images.numpy().tobytes())
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
    """The logits of one view: at every pixel, the mean over the windows that see it, weighted if they are blended."""
    h, w = image.shape[:2]
    weigh = {"uniform": np.ones, "hann": between_zeros}[plan.blend]
    height, width = (fitting(side, plan.window, patch) for side in (h, w))
    padded = np.pad(image, ((0, max(0, height - h)), (0, max(0, width - w)), (0, 0)), mode="edge")
    tops = sorted({min(top, padded.shape[0] - height) for top in range(0, padded.shape[0], plan.stride)})
    lefts = sorted({min(left, padded.shape[1] - width) for left in range(0, padded.shape[1], plan.stride)})
    parts = {
        place: ByPlace.of(padded[place[0] :, place[1] :][:height, :width]) for place in itertools.product(tops, lefts)
    }
    rows, columns = weigh(height), weigh(width)
    scores = np.zeros((CLASSES, h, w))
    for y, x in np.ndindex(h, w):
        seen = [
            (part[:, y - top, x - left], rows[y - top] * columns[x - left])
            for (top, left), part in parts.items()
            if top <= y < top + height and left <= x < left + width
        ]
        values, weights = zip(*seen, strict=True)
        scores[:, y, x] = np.average(values, axis=0, weights=weights)
    return scores


def between_zeros(length):
    """Every second value of a Hann window of scipy that is 0 at its first and last."""
    return hann(2 * length + 1)[1::2]


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


def all_held(forward, image, plan, patch):
    """The logits at the plan's size, one operation after another on all of them; mirrored views in a mirrored sum."""
    size, total = plan.size(image.shape[:2]), 0
    for scale in plan.scales:
        sides = tuple(max(1, int(side * scale + 0.5)) for side in size)
        scores = total if sides == size else 0
        resized = image if sides == image.shape[:2] else cv2.resize(image, sides[::-1])
        for mirrored in (False, True)[: 1 + plan.flip]:
            view = resized[:, ::-1] if mirrored else resized
            before = scores.flip(2) if mirrored else scores
            scores = one_view_held(forward, view, plan, patch, before)
            scores = scores.flip(2) if mirrored else scores
        total = scores if sides == size else total + rescaled(scores, size)
    return total


def one_view_held(forward, image, plan, patch, before):
    (h, w), (height, width) = image.shape[:2], (fitting(side, plan.window, patch) for side in image.shape[:2])
    padded = np.pad(image, ((0, max(0, height - h)), (0, max(0, width - w)), (0, 0)), mode="edge")
    pixels = torch.from_numpy(padded).permute(2, 0, 1)
    tops, lefts = (window_starts(side, n, plan.stride) for side, n in zip(padded.shape, (height, width), strict=False))
    places = [np.s_[:, top : top + height, left : left + width] for top, left in itertools.product(tops, lefts)]
    counts = torch.zeros(1, *padded.shape[:2])
    for place in places:
        counts[place] += 1
    total = torch.zeros(CLASSES, *padded.shape[:2])
    total[:, :h, :w] = before * counts[:, :h, :w]
    for first in range(0, len(places), plan.batch_size):
        batch = places[first : first + plan.batch_size]
        for place, part in zip(batch, forward(torch.stack([pixels[place] for place in batch])), strict=True):
            total[place] += part
    return (total / counts)[:, :h, :w]


def rescaled(scores, size):
    """Each class at another size, as torch interpolates whole images."""
    return torch.stack([F.interpolate(one[None, None], size, mode="bilinear")[0, 0] for one in scores])


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


@given(cases(), views())
@settings(max_examples=100, deadline=None)
def test_passes_of_the_model_are_known_before(case, view):
    patch, plan, image = made(case, **view)
    calls = []

    def forward(windows):
        calls.append(len(windows))
        return of_single_pixels(windows)

    classify(forward, image, plan, patch, "cpu")
    assert passes(image.shape[:2], plan, patch) == len(calls)
    assert max(calls) <= plan.batch_size


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


BLENDS = st.sampled_from(["uniform", "hann"])


@given(cases(), BLENDS)
@settings(max_examples=60, deadline=None)
def test_overlapping_logits_are_averaged(case, blend):
    patch, plan, image = made(case, blend=blend)
    scores = summed_scores(ByPlace(), image, plan, patch, "cpu")
    np.testing.assert_allclose(scores, by_loops(image, plan, patch), rtol=1e-6, atol=1e-6)


@given(cases(), views(), BLENDS)
@settings(max_examples=60, deadline=None)
def test_scales_and_mirror_images_are_summed_at_the_size_of_the_plan(case, more, blend):
    patch, plan, image = made(case, **more, blend=blend)
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


@given(cases(largest=40), views())
@settings(max_examples=80, deadline=None)
def test_logits_and_classes_are_those_of_a_window_that_holds_all_logits(case, more):
    patch, plan, image = made(case, **more)
    expected = all_held(ByPlace(), image, plan, patch)
    assert torch.equal(summed_scores(ByPlace(), image, plan, patch, "cpu"), expected)
    highest = rescaled(expected, image.shape[:2]).argmax(0)
    np.testing.assert_array_equal(classify(ByPlace(), image, plan, patch, "cpu"), highest)


def bands_of(forward, image, plan, patch):
    return _bands(Batches(forward, plan.batch_size), seen(image, plan, patch, "cpu"))


@given(cases(largest=40), st.booleans())
@settings(max_examples=80, deadline=None)
def test_bands_hold_the_logits_of_the_whole_to_the_bit(case, flip):
    patch, plan, image = made(case, flip=flip)
    model, whole = ByPlace(), ByPlace()
    with torch.inference_mode():
        bands = [band.clone() for band in bands_of(model, image, plan, patch)]
    assert torch.equal(torch.cat(bands, 1), all_held(whole, image, plan, patch))
    assert sorted(model.seen) == sorted(whole.seen)
    assert model.batches == whole.batches


@given(cases(largest=40), st.booleans())
@settings(max_examples=30, deadline=None)
def test_bands_of_blended_windows_hold_the_logits_of_the_whole(case, flip):
    patch, plan, image = made(case, flip=flip, blend="hann")
    with torch.inference_mode():
        bands = [band.clone() for band in bands_of(ByPlace(), image, plan, patch)]
    assert torch.equal(torch.cat(bands, 1), summed_scores(ByPlace(), image, plan, patch, "cpu"))


@pytest.mark.parametrize(("blend", "highest"), [("uniform", 0.5), ("hann", 0.2)])
def test_blended_windows_leave_no_jump_at_their_borders(blend, highest):
    """Two windows that disagree by 1: the average goes from one to the other, at once or step by step."""

    def alternating(images):
        return (images[:, :1, :1, :1] > 0) * torch.ones(len(images), 2, *images.shape[-2:])

    image = np.zeros((16, 24, 3), np.uint8)
    image[:, 8:] = 1
    scores = summed_scores(alternating, image, Plan("test", 16, 8, blend=blend), 1, "cpu")[0, 0]
    assert (scores[0], scores[-1]) == (0, 1)
    assert scores.diff().abs().max() == pytest.approx(highest, abs=0.02)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("blend", ["uniform", "hann"])
def test_a_row_goes_on_as_soon_as_no_window_reaches_it(flip, blend):
    image, plan = picture(37, 20), Plan("test", 16, 5, flip=flip, blend=blend)
    with torch.inference_mode():
        bands = [band.shape[1] for band in bands_of(ByPlace(), image, plan, 1)]
    assert bands == [5, 5, 5, 5, 1, 16]  # windows start at rows 0, 5, 10, 15, 20 and 21


@pytest.mark.parametrize("flip", [False, True])
def test_images_may_be_read_only_or_views(flip):
    image, plan = picture(20, 30), Plan("test", 16, 11, flip=flip)
    expected = by_colour(image)
    fixed = image.copy()
    fixed.flags.writeable = False
    np.testing.assert_array_equal(classify(of_single_pixels, fixed, plan, 1, "cpu"), expected)
    turned = np.ascontiguousarray(image[::-1, :, ::-1])[::-1, :, ::-1]
    np.testing.assert_array_equal(classify(of_single_pixels, turned, plan, 1, "cpu"), expected)


@given(cases(), views(), BLENDS)
@settings(max_examples=30, deadline=None)
def test_probabilities_and_doubt_are_of_the_mean_logits_at_the_size_of_the_image(case, more, blend):
    patch, plan, image = made(case, **more, blend=blend)
    own = bilinear(expected_scores(image, plan, patch), image.shape[:2])
    expected = softmax(own / (len(plan.scales) * (1 + plan.flip)), axis=0)
    found = classify_with_doubt(ByPlace(), image, plan, patch, "cpu")
    np.testing.assert_array_equal(found.classes, classify(ByPlace(), image, plan, patch, "cpu"))
    np.testing.assert_allclose(found.confidence, expected.max(0), atol=1e-4)
    np.testing.assert_allclose(found.entropy, entropy(expected, axis=0), atol=1e-4)
    np.testing.assert_allclose(class_probabilities(ByPlace(), image, plan, patch, "cpu"), expected, atol=1e-4)


def test_with_equal_logits_the_first_class_is_taken():
    def equal(images):
        return torch.zeros(len(images), CLASSES, *images.shape[-2:])

    assert not classify(equal, picture(9, 7), Plan("test", 4, 3), 1, "cpu").any()


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
@pytest.mark.parametrize("number", [0, 1, 2])
@pytest.mark.parametrize(("height", "count"), [(16, "1 of 256"), (27, "2 of 432"), (43, "3 of 688")])
def test_a_pixel_without_a_finite_score_has_no_class(wrong, number, height, count):
    def forward(images):
        scores = torch.zeros(len(images), 3, 16, 16)
        scores[:, number, 2, 3] = wrong
        return scores

    image, plan = np.zeros((height, 16, 3), np.uint8), Plan("one", window=16, stride=15)
    for action in (classify, classify_with_doubt):
        refused(lambda: action(forward, image, plan, 16, "cpu"), f"the scores of {count} pixels are NaN or infinite")  # noqa: B023


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
        ((320, 448), (224, 160), True),
        ((560, 784), (224, 160), False),
        ((80, 112), (224, 160), False),
    ],
)
def test_of_a_rescaled_image_memory_holds_the_logits_and_one_batch(image, box, flip):
    classes, window, batch_size = 150, 32, 2

    def model(images):
        return torch.ones(len(images), classes, *images.shape[-2:])

    plan = Plan("test", window, 21, box, batch_size, flip)
    scores, batch = 4 * classes * 160 * 224, 4 * classes * window**2 * batch_size
    # In addition to the logits: a batch and a mirrored window, then single classes and masks at the image's size.
    bound = scores + max(2 * batch, 15 * image[0] * image[1]) + 2 * 4 * 160 * 224
    assert scores < peak(lambda: classify(model, picture(*image), plan, 16, "cpu")) < bound < 1.4 * scores


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(("batch_size", "blend"), [(1, "uniform"), (3, "uniform"), (1, "hann")])
def test_memory_holds_the_logits_of_one_row_of_windows_of_each_view(flip, batch_size, blend):
    classes, window, width = 150, 32, 96

    def model(images):
        return torch.ones(len(images), classes, *images.shape[-2:])

    def of(height):
        return peak(lambda: classify(model, picture(height, width), plan, 16, "cpu"))

    plan = Plan("test", window, 21, None, batch_size, flip, blend=blend)
    row, batch = 4 * classes * window * width, 4 * classes * window**2 * batch_size
    # In addition: a mirrored window, and counts and single classes of one row of windows.
    bound = (1 + flip) * (row + batch) + 4 * classes * window**2 * flip + 8 * 4 * window * width
    assert row < of(320) < bound < 4 * classes * 320 * width * 0.5
    assert of(320) - of(160) < 4 * 160 * width  # the classes of 160 rows more, not their logits


def test_doubt_takes_a_few_numbers_of_a_pixel_and_no_logits():
    classes, width = 150, 96

    def model(images):
        return torch.ones(len(images), classes, *images.shape[-2:])

    def of(height):
        return peak(lambda: classify_with_doubt(model, picture(height, width), Plan("test", 32, 21), 16, "cpu"))

    # A class, confidence and entropy, in parts and then in one array: 18 bytes; the logits would take 600.
    assert of(320) - of(160) < 20 * 160 * width
