"""Small array operations shared by the models: resizing, position encoding, padding."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

STRIDE = 32
"""Networks see images padded to a multiple of this."""


def pad_to_multiple(size: int, multiple: int = STRIDE) -> int:
    """Round a length in pixels up to a multiple."""
    return -(-size // multiple) * multiple


def resize_bilinear(x: Float[Array, "b h w c"], size: tuple[int, int]) -> Float[Array, "b h_out w_out c"]:
    """Resize feature maps to ``size`` (height, width): half-pixel centres, edges clamped, no antialiasing.

    Computes in float32 and returns the input's type.
    Matches the authors' code: ``F.interpolate(mode="bilinear", align_corners=False)``.
    """
    if x.shape[1:3] == size:
        return x
    shape = (x.shape[0], *size, x.shape[3])
    resized = jax.image.resize(
        x.astype(jnp.float32), shape, "linear", antialias=False, precision=jax.lax.Precision.HIGHEST
    )
    return resized.astype(x.dtype)


def sine_position_encoding(height: int, width: int, dim: int) -> Float[np.ndarray, "h w d"]:
    """Encode pixel positions by sines and cosines: the first ``dim / 2`` features encode y, the others x.

    Positions count from 1 and are scaled to (0, 2 pi] over the whole, padded map; wavelengths grow
    geometrically up to 10000. Even features are sines, odd ones cosines. Source: DETR, as in Mask2Former.
    """
    half = dim // 2
    frequency = 10000.0 ** (2 * (np.arange(half, dtype=np.float32) // 2) / half)

    def encode(length: int) -> Float[np.ndarray, "n f"]:
        position = np.arange(1, length + 1, dtype=np.float32)
        position = position / (position[-1] + np.float32(1e-6)) * np.float32(2 * np.pi)
        angle = (position[:, None] / frequency).astype(np.float32)
        encoding = np.empty_like(angle)
        encoding[:, 0::2] = np.sin(angle[:, 0::2])
        encoding[:, 1::2] = np.cos(angle[:, 1::2])
        return encoding

    y, x = encode(height), encode(width)
    return np.concatenate(
        [
            np.broadcast_to(y[:, None], (height, width, half)),
            np.broadcast_to(x[None, :], (height, width, half)),
        ],
        axis=-1,
    )
