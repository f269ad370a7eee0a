"""Masks on the host: from logits at stride 4 to run-length codes at the video's size, and compressed meanwhile.

Both resizing steps of the method (stride 4 to the padded input, its valid part to the original size) are linear and
separable, so each axis is one small matrix that does both.
"""

import dataclasses
import zlib
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from pycocotools import mask as coco_mask

Rle = dict[str, Any]
"""A mask as pycocotools writes it: ``size`` [height, width] and compressed ``counts`` (text)."""

_REACH = 2
"""A pixel of the result depends on logits at most this many cells apart along an axis."""


def bilinear_matrix(size_in: int, size_out: int) -> Float[np.ndarray, "out in"]:
    """Return the matrix that resizes one axis: half-pixel centres, edges clamped, no antialiasing."""
    centre = np.maximum((np.arange(size_out) + 0.5) * (size_in / size_out) - 0.5, 0)
    low = np.minimum(centre.astype(int), size_in - 1)
    high = np.minimum(low + 1, size_in - 1)
    share = centre - low
    matrix = np.zeros((size_out, size_in))
    rows = np.arange(size_out)
    np.add.at(matrix, (rows, low), 1 - share)
    np.add.at(matrix, (rows, high), share)
    return matrix


@dataclasses.dataclass(frozen=True)
class MaskResizer:
    """Brings mask logits at stride 4 to the original size.

    Sizes are (height, width): of the logits, of the padded input, of its valid part and of the original.
    """

    logits_size: tuple[int, int]
    padded_size: tuple[int, int]
    valid_size: tuple[int, int]
    original_size: tuple[int, int]

    @cached_property
    def _axes(self) -> tuple[Float[np.ndarray, "h_out h"], Float[np.ndarray, "w_out w"]]:
        y, x = (
            bilinear_matrix(valid, original) @ bilinear_matrix(size, padded)[:valid]
            for size, padded, valid, original in zip(
                self.logits_size, self.padded_size, self.valid_size, self.original_size, strict=True
            )
        )
        return y.astype(np.float32), x.astype(np.float32)

    def positive_region(self, logits: Float[np.ndarray, "h4 w4"]) -> tuple[slice, slice, Float[np.ndarray, "h w"]]:
        """Resize the part of a mask that can be positive.

        Returns:
            Rows and columns of the original size outside which no logit is positive, and the logits inside.
        """
        positive = logits > 0
        y, rows_in, rows_out = _affected(self._axes[0], np.any(positive, axis=1, keepdims=True)[:, 0])
        x, columns_in, columns_out = _affected(self._axes[1], np.any(positive, axis=0, keepdims=True)[0])
        # Transposed, because run lengths go down the columns: no copy is needed for them.
        return rows_out, columns_out, (x @ logits[rows_in, columns_in].T @ y.T).T

    def mask(self, logits: Float[np.ndarray, "h4 w4"]) -> Bool[np.ndarray, "h w"]:
        """Return a mask at the original size, True where the resized logit is positive."""
        rows, columns, region = self.positive_region(logits)
        mask = np.zeros(self.original_size, bool, order="F")
        mask[rows, columns] = region > 0
        return mask


def _affected(
    matrix: Float[np.ndarray, "out in"], positive: Bool[np.ndarray, " in"]
) -> tuple[Float[np.ndarray, "part_out part_in"], slice, slice]:
    """Cut an axis' matrix to the outputs that see any positive input, and to all inputs that these see."""
    rows = np.flatnonzero(matrix[:, positive].any(axis=1))
    if len(rows) == 0:
        return matrix[:0, :0], slice(0, 0), slice(0, 0)
    outputs = slice(rows[0], rows[-1] + 1)
    columns = np.flatnonzero(matrix[outputs].any(axis=0))
    inputs = slice(columns[0], columns[-1] + 1)
    return matrix[outputs, inputs], inputs, outputs


def encode_rle(mask: Bool[np.ndarray, "h w"]) -> Rle:
    """Encode a mask as COCO's compressed run lengths."""
    rle = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    return {"size": list(rle["size"]), "counts": rle["counts"].decode("ascii")}


def decode_rle(rle: Rle) -> Bool[np.ndarray, "h w"]:
    """Decode COCO's compressed run lengths."""
    return coco_mask.decode(rle).astype(bool)


def pack_mask_logits(logits: Float[np.ndarray, "q h4 w4"]) -> list[bytes]:
    """Compress mask logits, one text of bytes per mask, so that the masks that follow from them stay the same.

    A resized pixel is a weighted mean of a few neighbouring logits. Where all of them have one sign, the sign of the
    mean is known; the numbers matter near a change of sign only. So we keep all signs, and the numbers of cells with
    a change of sign nearby, at full precision. A text is the length of the compressed bits (signs, then flags of exact
    cells), these, and the numbers.
    """
    positive = logits > 0
    exact = _near_sign_change(positive)
    signs = np.packbits(positive.reshape(len(logits), -1), axis=1)
    flags = np.packbits(exact.reshape(len(logits), -1), axis=1)
    packed = []
    for i in range(len(logits)):
        bits = zlib.compress(signs[i].tobytes() + flags[i].tobytes(), level=1)
        packed.append(len(bits).to_bytes(4) + bits + logits[i][exact[i]].astype(np.float32).tobytes())
    return packed


def unpack_mask_logits(packed: bytes, size: tuple[int, int]) -> Float[np.ndarray, "h4 w4"]:
    """Restore mask logits; 1 and -1 stand for values whose sign alone matters.

    Raises:
        ValueError, zlib.error: They are of another size, or something else.
    """
    cells = size[0] * size[1]
    values_start = 4 + int.from_bytes(packed[:4])
    planes = np.frombuffer(zlib.decompress(packed[4:values_start]), np.uint8).reshape(2, (cells + 7) // 8)
    signs, exact = np.unpackbits(planes, axis=1, count=cells)
    logits = signs.astype(np.float32) * 2 - 1
    logits[exact.astype(bool)] = np.frombuffer(packed, np.float32, offset=values_start)
    return logits.reshape(size)


def _near_sign_change(positive: Bool[np.ndarray, "q h w"]) -> Bool[np.ndarray, "q h w"]:
    """Mark cells within ``_REACH`` of which, in a square, both signs occur."""
    any_positive, any_negative = positive, ~positive
    for axis in (1, 2):
        any_positive = _dilate(any_positive, axis)
        any_negative = _dilate(any_negative, axis)
    return any_positive & any_negative


def _dilate(flags: Bool[np.ndarray, "q h w"], axis: int) -> Bool[np.ndarray, "q h w"]:
    result = flags.copy()
    source, target = np.moveaxis(flags, axis, 0), np.moveaxis(result, axis, 0)
    for shift in range(1, _REACH + 1):
        target[shift:] |= source[:-shift]
        target[:-shift] |= source[shift:]
    return result
