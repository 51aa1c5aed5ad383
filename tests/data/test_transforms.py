import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recyclelora.data import transforms
from recyclelora.data.labels import IGNORE
from recyclelora.data.transforms import Augment, Wanted, distort, rescaled_window
from recyclelora.errors import UserError


def sample(height=60, width=80, seed=0):
    """An image, and labels in blocks of 5 ids with an ignored stripe."""
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    blocks = rng.integers(0, 5, (height // 4 + 1, width // 4 + 1)).astype(np.uint8)
    labels = blocks.repeat(4, 0).repeat(4, 1)[:height, :width]
    labels[:3] = IGNORE
    return image, labels


def plain(crop, **changes):
    """An augmentation with everything switched off except what a test switches on."""
    return Augment(crop, **{"scale": (1.0, 1.0), "cat_max_ratio": 1.0, "flip": 0.0, "photometric": False} | changes)


def rng(seed=0):
    return np.random.default_rng(seed)


sizes = st.integers(1, 90)


@given(sizes, sizes, sizes, sizes, st.integers(0, 2**32))
@settings(max_examples=60)
def test_any_image_gives_the_crop_with_known_ids_and_the_same_bytes(height, width, crop_height, crop_width, seed):
    image, labels = sample(height, width)
    before = image.copy(), labels.copy()
    augment = Augment((crop_height, crop_width))
    new_image, new_labels, size = augment(image, labels, rng(seed))
    assert size == (crop_height, crop_width)
    assert new_image.shape == (crop_height, crop_width, 3)
    assert new_labels.shape == (crop_height, crop_width)
    assert new_image.dtype == new_labels.dtype == np.uint8
    assert set(np.unique(new_labels)) <= {*np.unique(labels), IGNORE}
    again = augment(image, labels, rng(seed))
    assert (new_image == again[0]).all()
    assert (new_labels == again[1]).all()
    assert (image == before[0]).all()
    assert (labels == before[1]).all()


def test_identity_when_the_crop_is_the_image_and_everything_is_off():
    for height, width in ((60, 60), (252, 252), (1, 1)):
        image, labels = sample(height, width)
        new_image, new_labels, _ = plain(height)(image, labels, rng())
        assert (new_image == image).all()
        assert (new_labels == labels).all()


def test_crop_is_an_unchanged_window_of_the_image():
    image, labels = sample(40, 100)
    labels = (np.arange(4000) % 251).astype(np.uint8).reshape(40, 100)
    windows = set()
    for seed in range(20):
        new_image, new_labels, _ = plain(40)(image, labels, rng(seed))
        left = next(x for x in range(61) if (labels[:, x : x + 40] == new_labels).all())
        assert (new_image == image[:, left : left + 40]).all()
        windows.add(left)
    assert len(windows) > 10


def test_crop_may_be_oblong():
    image, labels, _ = plain((20, 50))(*sample(), rng())
    assert image.shape == (20, 50, 3)
    assert labels.shape == (20, 50)


def test_shorter_edges_are_the_published_ones():
    augment = Augment(512)
    drawn = {augment.draw_size(1024, 2048, rng(seed)) for seed in range(400)}
    assert {height for height, _ in drawn} == {int(512 * 0.1 * i) for i in range(5, 21)}
    assert all(width == 2 * height for height, width in drawn)
    assert {width for _, width in (augment.draw_size(900, 600, rng(seed)) for seed in range(400))} >= {256, 307, 1024}


def test_scale_sets_the_bounds_of_the_shorter_edge():
    heights = {Augment(100, scale=(0.7, 1.2)).draw_size(300, 400, rng(seed))[0] for seed in range(200)}
    assert heights == {70, 80, 90, 100, 110, 120}


def test_longer_edge_is_at_most_four_crop_edges():
    for seed in range(40):
        height, width = Augment(50).draw_size(30, 300, rng(seed))
        assert width <= 200
        assert abs(width / height - 10) < 0.5


@pytest.mark.parametrize("size", [40, 104, 160])
def test_image_is_resized_bilinearly_and_labels_to_the_nearest(size):
    image, labels = sample(80, 80)
    new_image, new_labels, _ = plain(size)(image, labels, rng())
    assert (new_image == cv2.resize(image, (size, size), interpolation=cv2.INTER_LINEAR)).all()
    assert (new_labels == cv2.resize(labels, (size, size), interpolation=cv2.INTER_NEAREST)).all()


def mmseg_window(augment, labels, rng):
    """The rule of mmsegmentation's `RandomCrop.crop_bbox`."""

    def draw():
        top = rng.integers(max(labels.shape[0] - augment.height, 0) + 1)
        left = rng.integers(max(labels.shape[1] - augment.width, 0) + 1)
        return np.s_[top : top + augment.height, left : left + augment.width]

    window = draw()
    if augment.cat_max_ratio < 1:
        for _ in range(10):
            ids, counts = np.unique(labels[window], return_counts=True)
            counts = counts[ids != IGNORE]
            if len(counts) > 1 and np.max(counts) / np.sum(counts) < augment.cat_max_ratio:
                break
            window = draw()
    return window


def whole_first(augment, image, labels, rng):
    """The published order, without distortion: rescale the whole, pad it, draw windows of it, flip."""
    height, width = augment.draw_size(*labels.shape, rng)
    image = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
    labels = cv2.resize(labels, (width, height), interpolation=cv2.INTER_NEAREST)
    border = (0, max(0, augment.height - height), 0, max(0, augment.width - width))
    image = cv2.copyMakeBorder(image, *border, cv2.BORDER_CONSTANT, value=(0, 0, 0))
    labels = cv2.copyMakeBorder(labels, *border, cv2.BORDER_CONSTANT, value=IGNORE)
    window = mmseg_window(augment, labels, rng)
    image, labels = image[window], labels[window]
    return (image[:, ::-1], labels[:, ::-1]) if rng.random() < augment.flip else (image, labels)


@given(sizes, sizes, sizes, sizes, st.sampled_from([0.3, 0.75, 1.0]), st.integers(0, 2**32))
@settings(max_examples=150)
def test_window_first_gives_what_the_whole_first_gives(height, width, crop_height, crop_width, ratio, seed):
    image, labels = sample(height, width, seed)
    augment = plain((crop_height, crop_width), scale=(0.5, 2.0), cat_max_ratio=ratio, flip=0.5)
    one, other = rng(seed), rng(seed)
    new_image, new_labels, _ = augment(image, labels, one)
    expected_image, expected_labels = whole_first(augment, image, labels, other)
    assert (new_labels == expected_labels).all()
    assert np.abs(new_image.astype(int) - expected_image).max() <= 1
    assert one.random() == other.random()  # the draws that follow, of the distortion, are the same


@pytest.mark.parametrize("exact", [True, False])
@given(st.data())
@settings(max_examples=100)
def test_window_is_that_of_the_whole_rescaled_image_to_one_grey_level(exact, data):
    image, _ = sample(data.draw(sizes), data.draw(sizes))
    height, width = data.draw(st.integers(1, 300)), data.draw(st.integers(1, 300))
    top, left = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    window = np.s_[top : data.draw(st.integers(top + 1, height)), left : data.draw(st.integers(left + 1, width))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transforms, "WARP_IS_EXACT", exact and transforms.WARP_IS_EXACT)
        found = rescaled_window(image, (height, width), window)
    expected = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)[window]
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected).max() <= (1 if exact else 0)


def test_window_of_a_large_image_is_that_of_the_whole():
    image = rng().integers(0, 256, (60, 8192, 3), dtype=np.uint8)
    for width in (2731, 8191, 12000):
        window = np.s_[5:40, width - 100 : width]
        expected = cv2.resize(image, (width, 44), interpolation=cv2.INTER_LINEAR)[window]
        assert np.abs(rescaled_window(image, (44, width), window).astype(int) - expected).max() <= 1


def test_image_is_not_shared_with_the_crop():
    image, labels = sample(60, 60)
    new_image, _, _ = plain(60)(image, labels, rng())
    assert not np.shares_memory(new_image, image)


def test_smaller_image_is_padded_black_and_ignored_before_the_distortion():
    image, labels = np.full((40, 40, 3), 200, np.uint8), np.zeros((40, 40), np.uint8)
    new_image, new_labels, _ = plain(40, scale=(0.5, 0.5))(image, labels, rng())
    assert (new_labels[:20, :20] == 0).all()
    assert (new_labels == IGNORE).sum() == 40 * 40 - 20 * 20
    assert (new_image[:20, :20] == 200).all()
    assert not new_image[new_labels == IGNORE].any()
    brightened = [plain(40, scale=(0.5, 0.5), photometric=True)(image, labels, rng(seed))[0][-1] for seed in range(20)]
    assert any(padding.any() for padding in brightened)


def test_padding_after_normalisation_comes_last_at_the_bottom_and_right():
    image, labels = np.full((40, 30, 3), 200, np.uint8), np.zeros((40, 30), np.uint8)
    image[:, :15] = labels[:, :15] = 7
    augment = plain(40, scale=(0.8, 0.8), flip=1.0, photometric=True, pad="normalised")
    distorted = set()
    for seed in range(20):
        new_image, new_labels, size = augment(image, labels, rng(seed))
        assert size == (40, 32)  # the shorter edge is rescaled to 32, of the longer 43 rows 40 are kept
        assert (new_labels[:, :16] == 0).all()
        assert (new_labels[:, 16:32] == 7).all()
        assert (new_labels[:, 32:] == IGNORE).all()
        assert not new_image[:, 32:].any()  # a change of brightness does not reach the padding
        distorted.add(int(new_image[0, 0, 0]))
    assert len(distorted) > 5
    for seed in range(5):
        image, labels = sample(30, 50)
        one = plain(40, scale=(0.5, 2.0), flip=0.5, photometric=True)(image, labels, rng(seed))
        other = plain(40, scale=(0.5, 2.0), flip=0.5, photometric=True, pad="normalised")(image, labels, rng(seed))
        assert one[2] == (40, 40)
        rows, columns = other[2]
        flipped = (one[1][:, 0] == IGNORE).all() and columns < 40
        part = np.s_[:rows, 40 - columns :] if flipped else np.s_[:rows, :columns]
        assert (one[0][part] == other[0][:rows, :columns]).all()
        assert (one[1][part] == other[1][:rows, :columns]).all()


def share_of_the_largest(labels):
    counts = np.bincount(labels[labels != IGNORE], minlength=1)
    return counts.max() / counts.sum()


@given(st.floats(0.55, 1.0), st.integers(0, 2**32))
@settings(max_examples=40)
def test_no_class_exceeds_the_ratio_where_ten_draws_can_avoid_it(ratio, seed):
    labels = np.indices((90, 90)).sum(0).astype(np.uint8) % 2  # every crop of even size holds half of either class
    labels[:, ::3] = IGNORE
    augment = plain(30, scale=(3.0, 3.0), cat_max_ratio=ratio)
    _, cropped, _ = augment(np.zeros((90, 90, 3), np.uint8), labels, rng(seed))
    assert share_of_the_largest(cropped) <= ratio


def test_ratio_makes_uniform_crops_rarer():
    labels = np.zeros((40, 160), np.uint8)
    labels[:, 110:] = 1  # of the 121 places of a window, 21 are mixed enough
    image = np.zeros((40, 160, 3), np.uint8)

    def uniform(ratio):
        crops = (plain(40, cat_max_ratio=ratio)(image, labels, rng(seed))[1] for seed in range(200))
        return sum(share_of_the_largest(crop) > 0.75 for crop in crops)

    assert uniform(1.0) > 140
    assert uniform(0.75) < 60


def test_crop_without_labelled_pixels_is_drawn_again():
    labels = np.full((40, 160), IGNORE, np.uint8)
    labels[:, 80:] = np.arange(40)[:, None] % 4
    augment = plain(40, cat_max_ratio=0.99)
    crops = [augment(np.zeros((40, 160, 3), np.uint8), labels, rng(seed))[1] for seed in range(100)]
    assert sum((crop == IGNORE).all() for crop in crops) <= 1


def draws_of(augment, labels):
    """How many windows are drawn from the labels in their own size."""
    one, other = rng(5), rng(5)
    augment.draw_window(labels, labels.shape, one)
    for count in range(1, 20):
        other.integers(labels.shape[0] - augment.height + 1)
        other.integers(labels.shape[1] - augment.width + 1)
        if other.bit_generator.state == one.bit_generator.state:
            return count
    raise AssertionError("another number of draws")


def test_a_class_of_exactly_the_ratio_is_too_much_and_the_eleventh_crop_is_taken():
    labels = np.tile(np.array([0, 0, 0, 1], np.uint8), (30, 30))  # three quarters of each crop of 20 columns
    assert draws_of(plain(20, cat_max_ratio=0.75), labels) == 11
    assert draws_of(plain(20, cat_max_ratio=0.76), labels) == 1
    labels[:, :100] = 1  # whatever the crop is, it is taken
    assert draws_of(plain(20, cat_max_ratio=0.5), labels) == 11


def test_a_crop_of_one_class_is_drawn_again_unless_the_ratio_is_1():
    labels = np.full((30, 90), 3, np.uint8)
    labels[0, 0] = IGNORE
    assert draws_of(plain(20, cat_max_ratio=0.999), labels) == 11
    assert draws_of(plain(20, cat_max_ratio=1.0), labels) == 1


@given(st.integers(0, 2**32), st.integers(0, 4), st.floats(0, 500))
@settings(max_examples=60)
def test_a_wanted_class_is_looked_for_in_ten_crops_of_any_scale(seed, label, pixels):
    _, labels = sample(60, 80, seed)
    augment = plain(30, scale=(0.5, 2.0), cat_max_ratio=0.75)
    one, other = rng(seed), rng(seed)
    found = augment.draw_crop(labels, one, Wanted(label, pixels))
    for attempt in range(11):
        size = augment.draw_size(60, 80, other)
        resized = cv2.resize(labels, size[::-1], interpolation=cv2.INTER_NEAREST)
        expected = resized[mmseg_window(augment, resized, other)]
        if attempt < 10 and (expected == label).sum() > pixels:
            break
    assert found.size == size
    assert (found.labels == expected).all()
    assert one.bit_generator.state == other.bit_generator.state


def test_a_wanted_class_is_more_often_in_the_crop():
    image, labels = np.zeros((40, 160, 3), np.uint8), np.zeros((40, 160), np.uint8)
    labels[:, 150:] = 1

    def share(wanted):
        crops = (plain(40)(image, labels, rng(seed), wanted)[1] for seed in range(200))
        return np.mean([(crop == 1).sum() > 100 for crop in crops])

    assert share(None) < 0.15
    assert share(Wanted(1, 100)) > 0.5


def test_wholly_ignored_image_still_gives_a_crop():
    _, labels, _ = Augment(20)(np.zeros((40, 40, 3), np.uint8), np.full((40, 40), IGNORE, np.uint8), rng())
    assert (labels == IGNORE).all()


def test_flip_mirrors_image_and_labels_with_its_probability():
    image, labels = sample(50, 50)
    mirrored = plain(50, flip=1.0)(image, labels, rng())
    assert (mirrored[0] == image[:, ::-1]).all()
    assert (mirrored[1] == labels[:, ::-1]).all()
    flipped = sum((plain(50, flip=0.3)(image, labels, rng(seed))[1] != labels).any() for seed in range(300))
    assert 60 < flipped < 120


def test_photometric_changes_the_image_but_not_the_labels():
    image, labels = sample(50, 50)
    changed = [plain(50, photometric=True)(image, labels, rng(seed)) for seed in range(20)]
    assert any((new_image != image).any() for new_image, _, _ in changed)
    assert all((new_labels == labels).all() for _, new_labels, _ in changed)


def test_distortion_stays_within_its_bounds():
    greys = np.full((4, 4, 3), 100, np.uint8)  # without colour, only brightness and contrast show
    levels = [int(distort(greys, rng(seed))[0, 0, 0]) for seed in range(2000)]
    assert min(levels) >= (100 - 32) // 2
    assert max(levels) <= (100 + 32) * 1.5
    assert min(levels) < 50
    assert max(levels) > 150
    assert 0.22 < np.mean([level == 100 for level in levels]) < 0.3  # neither of the two, each of probability 1/2

    red = np.full((4, 4, 3), (120, 60, 60), np.uint8)  # brightest 1.5 * 152: nothing is clipped
    hsv = np.array([cv2.cvtColor(distort(red, rng(seed)), cv2.COLOR_RGB2HSV)[0, 0] for seed in range(1000)], int)
    hues = (hsv[:, 0] + 90) % 180 - 90
    assert -20 <= hues.min() < -15
    assert 15 < hues.max() <= 20
    assert 0.4 < np.mean(np.abs(hues) <= 1) < 0.65
    assert hsv[:, 1].min() < 80  # of 127
    assert hsv[:, 1].max() > 180


class OnlyHue(np.random.Generator):
    """Random numbers that switch on nothing but the change of hue, whose steps it records."""

    def __init__(self, seed):
        super().__init__(np.random.PCG64(seed))
        self.chances, self.steps = iter([0.9, 0.9, 0.1, 0.9, 0.1]), []

    def random(self):
        return next(self.chances)

    def integers(self, low, high):
        self.steps.append(int(super().integers(low, high)))
        return self.steps[-1]


def test_hue_moves_by_18_steps_down_to_17_up_as_published():
    image, _ = sample(20, 20)
    seen = set()
    for seed in range(500):
        draws = OnlyHue(seed)
        changed = distort(image, draws)
        (step,) = draws.steps
        hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
        hsv[..., 0] = (hsv[..., 0].astype(int) + step) % 180
        assert (changed == (cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB) if step else image)).all()
        seen.add(step)
    assert seen == set(range(-18, 18))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"crop": 0}, "crop is 0"),
        ({"crop": (64, -1)}, r"crop is \(64, -1\)"),
        ({"crop": 64, "scale": (2.0, 0.5)}, r"scale is \(2.0, 0.5\)"),
        ({"crop": 64, "scale": (1.01, 1.09)}, r"scale is \(1.01, 1.09\)"),
        ({"crop": 64, "cat_max_ratio": 0.0}, "cat_max_ratio is 0.0"),
        ({"crop": 64, "flip": 1.5}, "flip 1.5"),
    ],
)
def test_values_out_of_range_are_named(arguments, message):
    with pytest.raises(UserError, match=message):
        Augment(**arguments)
