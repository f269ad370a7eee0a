"""Masks as Label Studio's brush has them: runs and literals of bits ("rle-pack") of pictures with 4 bytes per pixel.

32 bits say how many bytes there are, 5 how many bits a value has, 4 x 4 how many bits the four kinds of counts have
(all of these less one, but the first). Then, until all bytes are there: a bit that tells a run from literals, two for
the kind of count, the count less one, and the value or values. The last byte of a pixel, its opacity, is the mask.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool

_COUNT_BITS = (4, 8, 12, 16)


def encode_brush(mask: Bool[np.ndarray, "h w"]) -> list[int]:
    """Encode a mask, as runs alone; the numbers are bytes."""
    flat = mask.ravel()
    ends = np.append(np.flatnonzero(np.diff(flat)) + 1, flat.size)
    parts = [f"{4 * flat.size:032b}{7:05b}", *(f"{bits - 1:04b}" for bits in _COUNT_BITS)]
    for length, end in zip(np.diff(ends, prepend=0).tolist(), ends.tolist(), strict=True):
        value = 255 if flat[end - 1] else 0
        left = 4 * length
        while left:
            count = min(left, 2**16)
            kind = next(kind for kind, bits in enumerate(_COUNT_BITS) if count <= 2**bits)
            parts.append(f"1{kind:02b}{count - 1:0{_COUNT_BITS[kind]}b}{value:08b}")
            left -= count
    text = "".join(parts)
    text += "0" * (-len(text) % 8)
    return list(int(text, 2).to_bytes(len(text) // 8, "big"))


def decode_brush(rle: Sequence[int], size: tuple[int, int]) -> Bool[np.ndarray, "h w"]:
    """Decode the mask of a picture of this size (height and width); the numbers are bytes.

    Raises:
        ValueError: It is damaged or of another size; the message says why in one line.
    """
    bits = np.unpackbits(np.array(rle, np.uint8))
    place = 0

    def take(count: int) -> int:
        nonlocal place
        place += count
        if place > len(bits):
            raise ValueError("rle ends too early")
        return int("".join(map(str, bits[place - count : place])), 2)

    total, value_bits = take(32), take(5) + 1
    if total != size[0] * size[1] * 4 or value_bits != 8:
        raise ValueError(f"rle does not describe {size[1]}x{size[0]} pixels")
    count_bits = [take(4) + 1 for _ in range(4)]
    values = np.zeros(total, np.uint8)
    filled = 0
    while filled < total:
        is_run, kind = take(1), take(2)
        count = take(count_bits[kind]) + 1
        if filled + count > total:
            raise ValueError("rle describes too many pixels")
        if is_run:
            values[filled : filled + count] = take(8)
        else:
            literals = bits[place : place + 8 * count]
            place += 8 * count
            if place > len(bits):
                raise ValueError("rle ends too early")
            values[filled : filled + count] = np.packbits(literals)
        filled += count
    return values.reshape(*size, 4)[..., 3] > 0
