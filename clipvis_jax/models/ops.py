"""Small array operations shared by models and losses: resizing, sampling at points, position encoding, padding."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

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


def _corners(
    points_norm: Float[Array, "p 2"], height: int, width: int
) -> list[tuple[Int[Array, " p"], Int[Array, " p"], Float[Array, " p"]]]:
    """Return row, column and bilinear weight of the four pixels around each point; outside the map the weight is 0."""
    x = points_norm[:, 0] * width - 0.5
    y = points_norm[:, 1] * height - 0.5
    left, top = jnp.floor(x), jnp.floor(y)
    corners = []
    for row in (top, top + 1):
        for column in (left, left + 1):
            inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
            weight = jnp.where(inside, (1 - jnp.abs(x - column)) * (1 - jnp.abs(y - row)), 0)
            corners.append(
                (
                    jnp.clip(row, 0, height - 1).astype(jnp.int32),
                    jnp.clip(column, 0, width - 1).astype(jnp.int32),
                    weight,
                )
            )
    return corners


def point_sample(x: Float[Array, "h w c"], points_norm: Float[Array, "p 2"]) -> Float[Array, "p c"]:
    """Sample a map bilinearly at points (x, y), given as fractions (0..1) of its width and height.

    Pixel centres lie at half pixels; outside the map counts as 0. Computes in float32.
    Matches the authors' code: ``F.grid_sample(align_corners=False, padding_mode="zeros")``.
    """
    height, width, channels = x.shape
    table = x.reshape(height * width, channels)
    sampled = jnp.zeros((points_norm.shape[0], channels), jnp.float32)
    for row, column, weight in _corners(points_norm, height, width):
        pixels = table.at[row * width + column].get(mode="promise_in_bounds")
        sampled += pixels.astype(jnp.float32) * weight[:, None]
    return sampled


def point_sample_packed(packed: UInt8[Array, "h w8"], points_norm: Float[Array, "p 2"]) -> Float[Array, " p"]:
    """Sample a mask as ``point_sample`` does, out of its bits: eight columns to a byte, the first one highest."""
    height, row_bytes = packed.shape
    table = packed.reshape(-1)
    sampled = jnp.zeros(points_norm.shape[0], jnp.float32)
    for row, column, weight in _corners(points_norm, height, 8 * row_bytes):
        byte = table.at[row * row_bytes + column // 8].get(mode="promise_in_bounds").astype(jnp.int32)
        sampled += ((byte >> (7 - column % 8)) & 1) * weight
    return sampled


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
