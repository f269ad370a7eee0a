"""Augmentation: geometry by hand, pixels against Pillow and numpy, masks against pycocotools."""

import numpy as np
import pytest
from memory_dataset import encode_counts, triangle
from PIL import Image
from pycocotools import mask as coco_mask

from clipvis_jax.data.transforms import LargeScaleJitter, ShortSideResize, View
from clipvis_jax.errors import InputError

FRAME = (48, 64)


def unpack(packed):
    return np.unpackbits(np.ascontiguousarray(packed), axis=1).astype(bool)


def random_frame(seed=0, size=FRAME):
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


class FixedNumbers(np.random.Generator):
    """Gives the numbers it is told to."""

    def __init__(self, randoms=(), uniform=None, integer=None):
        super().__init__(np.random.PCG64(0))
        self._randoms, self._uniform, self._integer = list(randoms), uniform, integer

    def random(self):
        return self._randoms.pop(0)

    def uniform(self, low, high):
        assert low <= self._uniform <= high
        return self._uniform

    def integers(self, stop):
        assert self._integer < stop
        return self._integer


def draw(augmentation, frame_size, canvas_size, **numbers):
    return augmentation.draw(FixedNumbers(**numbers), frame_size, canvas_size)


def test_jitter_up_and_crop_by_hand():
    # 480x640 into 1024x1024: factor 1.5 * min(1024/480, 1024/640) = 2.4 -> 1152x1536; spare 128 and 512, of which 0.25.
    view = draw(LargeScaleJitter(), (480, 640), (1024, 1024), randoms=[0.7, 0.25], uniform=1.5)
    assert view == View((480, 640), False, (1152, 1536), (32, 128), (1024, 1024), 128)
    assert view.content_size == (1024, 1024)


def test_jitter_down_and_pad_by_hand():
    view = draw(LargeScaleJitter(), (480, 640), (1024, 1024), randoms=[0.3, 0.9], uniform=0.5)
    assert view == View((480, 640), True, (384, 512), (0, 0), (1024, 1024), 128)
    assert view.content_size == (384, 512)
    assert view.valid_size == (1024, 1024), "grey padding is part of the picture"


def test_jitter_never_vanishes():
    view = draw(LargeScaleJitter(), (2, 2000), (64, 64), randoms=[0.9, 0.9], uniform=0.1)
    assert view.resized_size == (1, 6)


def test_jitter_draws_its_whole_range():
    rng = np.random.default_rng(0)
    views = [LargeScaleJitter().draw(rng, (500, 1000), (1024, 1024)) for _ in range(2000)]
    scales = np.array([view.resized_size[1] / 1024 for view in views])
    assert 0.1 <= scales.min() < 0.11
    assert 1.99 < scales.max() <= 2.0
    np.testing.assert_allclose(scales.mean(), 1.05, atol=4 * 1.9 / np.sqrt(12 * 2000))
    np.testing.assert_allclose(np.mean([view.flip for view in views]), 0.5, atol=0.05)


def test_short_side_by_hand():
    canvas = (800, 1344)
    view = draw(ShortSideResize(), (720, 1280), canvas, randoms=[0.9], integer=0)
    assert view == View((720, 1280), False, (750, 1333), (0, 0), canvas)  # 800x1422 is too long
    assert view.valid_size == (750, 1333)
    view = draw(ShortSideResize(), (600, 800), canvas, randoms=[0.1], integer=0)
    assert (view.resized_size, view.flip) == ((800, 1067), True)
    # Upright: 800x450 is the largest that fits.
    assert draw(ShortSideResize(), (1280, 720), canvas, randoms=[0.9], integer=0).resized_size == (800, 450)
    view = draw(ShortSideResize((360, 480), 1333), (720, 1280), canvas, randoms=[0.9], integer=1)
    assert view.resized_size == (480, 853)


@pytest.mark.parametrize("flip", [False, True])
def test_frame_is_pillows_resized_frame(flip):
    frame = random_frame()
    view = View(FRAME, flip, (72, 96), (5, 11), (64, 64), 128)
    mirrored = frame[:, ::-1] if flip else frame
    resized = np.asarray(Image.fromarray(np.ascontiguousarray(mirrored)).resize((96, 72), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(view.frame(frame), resized[5:69, 11:75])


@pytest.mark.parametrize(("padding", "value"), [(128, 128), (None, 0)])
def test_padding_at_the_right_and_bottom(padding, value):
    canvas = View(FRAME, False, (24, 32), (0, 0), (64, 64), padding).frame(np.full((*FRAME, 3), 7, np.uint8))
    assert (canvas[:24, :32] == 7).all()
    canvas[:24, :32] = value
    assert (canvas == value).all()


def test_flip_by_hand():
    frame = np.zeros((2, 32, 3), np.uint8)
    frame[0, 3] = 200
    mask = np.zeros((2, 32), bool)
    mask[0, 3] = mask[1, 30] = True
    view = View((2, 32), True, (2, 32), (0, 0), (32, 32), 128)
    assert np.argwhere(view.frame(frame)[:2, :, 0]).tolist() == [[0, 28]]
    assert np.argwhere(unpack(view.mask(encode_counts(mask)))).tolist() == [[0, 28], [1, 1]]
    # The polygon around pixels 2..5 comes to lie around 26..29.
    polygon = ((2.0, 0.0, 6.0, 0.0, 6.0, 2.0, 2.0, 2.0),)
    np.testing.assert_array_equal(
        np.argwhere(unpack(view.mask(polygon))), [[y, x] for y in range(2) for x in range(26, 30)]
    )


def test_polygons_equal_pycocotools():
    rng = np.random.default_rng(0)
    view = View(FRAME, False, FRAME, (0, 0), (64, 64), 128)
    for _ in range(20):
        polygons = (*triangle(rng), *triangle(rng))
        expected = coco_mask.decode(
            coco_mask.merge(coco_mask.frPyObjects([list(polygon) for polygon in polygons], *FRAME))
        )
        np.testing.assert_array_equal(unpack(view.mask(polygons))[:48, :64], expected)


def test_moved_polygons_equal_pycocotools_on_moved_corners():
    rng = np.random.default_rng(1)
    view = View(FRAME, True, (96, 192), (20, 50), (64, 64), 128)
    num_visible = 0
    for _ in range(100):
        polygons = triangle(rng)
        corners = np.reshape(polygons[0], (3, 2))
        # Drawn on the whole resized frame, cut out afterwards.
        moved = np.stack([(64 - corners[:, 0]) * 3, corners[:, 1] * 2], axis=1).ravel().tolist()
        whole = coco_mask.decode(coco_mask.frPyObjects([moved], 96, 192))[:, :, 0]
        expected, found = whole[20:84, 50:114].astype(bool), unpack(view.mask(polygons))
        np.testing.assert_array_equal(found, expected)
        num_visible += expected.any()
    assert num_visible > 50


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("size", [(48, 64), (31, 41), (96, 128), (75, 99)])
def test_run_lengths_are_resized_as_pillow_does(flip, size):
    mask = np.random.default_rng(0).random(FRAME) < 0.5
    mirrored = np.ascontiguousarray(mask[:, ::-1] if flip else mask).astype(np.uint8)
    expected = np.asarray(Image.fromarray(mirrored).resize(size[::-1], Image.Resampling.NEAREST)).astype(bool)
    offset = tuple(max(n - 64, 0) // 2 for n in size)
    view = View(FRAME, flip, size, offset, (64, 64))
    found = unpack(view.mask(encode_counts(mask)))
    height, width = view.content_size
    np.testing.assert_array_equal(
        found[:height, :width], expected[offset[0] : offset[0] + 64, offset[1] : offset[1] + 64]
    )
    assert not found[height:].any()
    assert not found[:, width:].any()


def test_polygons_and_run_lengths_move_alike():
    """A mask moves with its object: both kinds cover the same ground but for the outline."""
    rng = np.random.default_rng(2)
    for _ in range(30):
        view = LargeScaleJitter(0.5, 2.0).draw(rng, FRAME, (64, 64))
        polygons = triangle(rng)
        whole = coco_mask.decode(coco_mask.frPyObjects([list(polygons[0])], *FRAME))[:, :, 0]
        drawn, resized = unpack(view.mask(polygons)), unpack(view.mask(encode_counts(whole)))
        scale = view.resized_size[0] / FRAME[0]
        assert (drawn ^ resized).sum() <= 60 * scale * max(scale, 1)  # an outline's length times a source pixel


def test_masks_follow_the_pixels():
    """White objects on black: the mask is where the picture is white."""
    rng = np.random.default_rng(3)
    for _ in range(30):
        view = LargeScaleJitter(0.7, 2.0).draw(rng, FRAME, (64, 64))
        mask = coco_mask.decode(coco_mask.frPyObjects([list(triangle(rng)[0])], *FRAME))[:, :, 0]
        canvas = view.frame(np.repeat(mask[:, :, None] * np.uint8(255), 3, axis=2))
        height, width = view.content_size
        white, found = canvas[:height, :width, 0] > 127, unpack(view.mask(encode_counts(mask)))[:height, :width]
        assert (white ^ found).mean() < 0.05
        assert not (white & ~found & (canvas[:height, :width, 0] == 255)).any() or view.resized_size < FRAME


@pytest.mark.parametrize(
    "polygon",
    [
        (100.0, 10.0, 120.0, 10.0, 110.0, 30.0),
        (-40.0, 10.0, -20.0, 10.0, -30.0, 30.0),
        (10.0, -50.0, 20.0, -50.0, 15.0, -20.0),
        (1e6, 1e6, 1e6, 2e6, 2e6, 2e6),
        (5.0, 5.0, 20.0, 20.0),
    ],
)
def test_polygons_outside_the_frame_leave_nothing(polygon):
    view = View(FRAME, False, (48, 64), (0, 0), (96, 96), 128)
    assert not view.mask((polygon,)).any()


def test_polygons_are_cut_at_the_frame():
    view = View(FRAME, False, (48, 64), (0, 0), (96, 96), 128)
    found = unpack(view.mask(((-10.0, -10.0, 90.0, -10.0, 90.0, 90.0, -10.0, 90.0),)))
    assert found[:48, :64].all()
    assert found.sum() == 48 * 64


def test_an_object_may_be_cropped_away():
    view = View(FRAME, False, (96, 128), (32, 64), (64, 64), 128)
    assert not view.mask(((2.0, 2.0, 10.0, 2.0, 6.0, 10.0),)).any()


@pytest.mark.parametrize("counts", [encode_counts(np.ones((48, 65), bool)), encode_counts(np.ones((4, 4), bool))])
def test_run_lengths_of_another_size_are_refused(counts):
    with pytest.raises(InputError, match="do not add up to 48 x 64 pixels"):
        View(FRAME, False, FRAME, (0, 0), (64, 64)).mask(counts)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LargeScaleJitter(min_scale=0.0), "data.augmentation.min_scale 0.0"),
        (lambda: LargeScaleJitter(min_scale=2.0, max_scale=1.0), "data.augmentation.min_scale 2.0"),
        (lambda: LargeScaleJitter(flip_probability=1.5), "data.augmentation.flip_probability 1.5"),
        (lambda: LargeScaleJitter(padding=256), "data.augmentation.padding 256"),
        (lambda: ShortSideResize(short_sides=()), "short_sides"),
        (lambda: ShortSideResize(max_long_side=100), "data.augmentation.max_long_side 100"),
    ],
)
def test_bad_settings(make, message):
    with pytest.raises(InputError, match=message):
        make()
