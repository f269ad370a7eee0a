"""Resizing of masks against PyTorch's, and packing that changes no mask."""

import numpy as np
import pytest
import scipy.ndimage

from clipvis_jax.masks.resize import MaskResizer, decode_rle, encode_rle, pack_mask_logits, unpack_mask_logits

SIZES = [
    # original, valid part of the input, padded input
    ((720, 1280), (480, 853), (480, 864)),
    ((96, 150), (64, 100), (64, 128)),
    ((33, 47), (64, 91), (64, 96)),
    ((1, 1), (32, 32), (32, 32)),
    ((1000, 17), (256, 4), (256, 32)),
]


def resizer_of(sizes):
    original, valid, padded = sizes
    return MaskResizer((padded[0] // 4, padded[1] // 4), padded, valid, original)


def smooth_logits(rng, size, count=6):
    noise = rng.standard_normal((count, *size))
    logits = np.stack([scipy.ndimage.gaussian_filter(noise[i], i) for i in range(count)])
    logits /= np.abs(logits).max(axis=(1, 2), keepdims=True)
    logits[0] = -1  # an empty mask
    logits[1] = np.abs(logits[1]) + 1e-3  # a full one
    logits[2] = np.round(logits[2], 1)  # exact zeros
    return (10 * logits).astype(np.float32)


def resize_by_torch(logits, sizes):
    torch = pytest.importorskip("torch")
    original, valid, padded = sizes
    tensor = torch.from_numpy(logits)[None].double()  # in float32 its coordinates are off by up to 1e-5 pixels
    tensor = torch.nn.functional.interpolate(tensor, padded, mode="bilinear", align_corners=False)
    tensor = tensor[..., : valid[0], : valid[1]]
    return torch.nn.functional.interpolate(tensor, original, mode="bilinear", align_corners=False)[0].numpy()


@pytest.mark.parametrize("sizes", SIZES)
def test_resizing_equals_torch(sizes):
    resizer = resizer_of(sizes)
    logits = smooth_logits(np.random.default_rng(0), resizer.logits_size)
    for mask, expected in zip(logits, resize_by_torch(logits, sizes), strict=True):
        rows, columns, region = resizer.positive_region(mask)
        np.testing.assert_allclose(region, expected[rows, columns], atol=1e-5)
        outside = expected.copy()
        outside[rows, columns] = -1
        assert not (outside > 0).any()
        unclear = np.abs(expected) < 1e-5
        np.testing.assert_array_equal(resizer.mask(mask) | unclear, (expected > 0) | unclear)


@pytest.mark.parametrize("sizes", SIZES)
def test_packing_changes_no_mask(sizes):
    resizer = resizer_of(sizes)
    logits = smooth_logits(np.random.default_rng(1), resizer.logits_size)
    for mask, packed in zip(logits, pack_mask_logits(logits), strict=True):
        unpacked = unpack_mask_logits(packed, resizer.logits_size)
        np.testing.assert_array_equal(unpacked > 0, mask > 0)
        np.testing.assert_array_equal(resizer.mask(unpacked), resizer.mask(mask))


def test_packing_is_small_for_masks_of_objects():
    y, x = np.mgrid[:120, :216]
    disc = (30 - np.hypot(y - 60, x - 100)).astype(np.float32)
    (packed,) = pack_mask_logits(disc[None])
    assert len(packed) < disc.nbytes / 8


def test_run_lengths_round_trip():
    mask = np.random.default_rng(2).random((37, 53)) > 0.5
    rle = encode_rle(mask)
    assert rle["size"] == [37, 53]
    assert isinstance(rle["counts"], str)
    np.testing.assert_array_equal(decode_rle(rle), mask)
