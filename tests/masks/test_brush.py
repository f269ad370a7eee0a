"""Label Studio's run lengths."""

import numpy as np
import pytest

from clipvis_jax.masks.brush import decode_brush, encode_brush


@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (200, 300)])
@pytest.mark.parametrize("share", [0, 0.3, 1])
def test_masks_come_back(shape, share):
    mask = np.random.default_rng(0).random(shape) < share
    np.testing.assert_array_equal(decode_brush(encode_brush(mask), shape), mask)


def test_what_label_studio_wrote():
    """Of label_studio_sdk 2.1's mask2rle."""
    mask = np.array([[0, 1, 1], [0, 0, 1]], bool)
    written = [0, 0, 0, 24, 57, 27, 252, 96, 19, 255, 206, 1, 31, 248]
    np.testing.assert_array_equal(decode_brush(written, (2, 3)), mask)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rle: rle[:-4], "ends too early"),
        (lambda rle: [], "ends too early"),
        (lambda rle: [0, 0, 0, 9, *rle[4:]], "does not describe 3x2 pixels"),
        (lambda rle: [*rle[:7], *[255] * 20], "too many pixels"),
    ],
)
def test_damage_is_told(change, message):
    rle = encode_brush(np.ones((2, 3), bool))
    with pytest.raises(ValueError, match=message):
        decode_brush(change(rle), (2, 3))
