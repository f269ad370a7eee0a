"""Multi-scale deformable attention: every query samples a few learned points of every level.

Source: Deformable DETR (arXiv 2010.04159), equation 3.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from clipvis_jax.models.kernels.deformable_sampling import LevelShapes, sample_levels


def reference_points(level_shapes: LevelShapes) -> Float[np.ndarray, "n 2"]:
    """Return the centre (x, y) of every pixel of every level, as a fraction of its level's width and height."""
    points = []
    for height, width in level_shapes:
        y, x = np.meshgrid(
            (np.arange(height, dtype=np.float32) + 0.5) / height,
            (np.arange(width, dtype=np.float32) + 0.5) / width,
            indexing="ij",
        )
        points.append(np.stack([x.ravel(), y.ravel()], axis=-1))
    return np.concatenate(points)


def initial_offsets(num_heads: int, num_levels: int, num_points: int) -> Float[np.ndarray, " f"]:
    """Return the offset biases: head h looks in direction 2 pi h / heads, point p at distance p + 1 (max norm)."""
    angle = 2 * np.pi * np.arange(num_heads) / num_heads
    direction = np.stack([np.cos(angle), np.sin(angle)], axis=-1)
    direction = direction / np.abs(direction).max(axis=-1, keepdims=True)
    distance = np.arange(1, num_points + 1)
    offsets = direction[:, None, None, :] * distance[None, None, :, None]
    return np.broadcast_to(offsets, (num_heads, num_levels, num_points, 2)).reshape(-1).astype(np.float32)


class DeformableAttention(nn.Module):
    """Deformable self-attention over the concatenated pixels of all levels.

    Coordinates and attention weights are computed in float32 whatever ``dtype`` is.
    """

    num_heads: int
    num_points: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, query: Float[Array, "b n d"], pixels: Float[Array, "b n d"], level_shapes: LevelShapes
    ) -> Float[Array, "b n d"]:
        batch, length, dim = pixels.shape
        shape = (batch, length, self.num_heads, len(level_shapes), self.num_points)
        num_samples = self.num_heads * len(level_shapes) * self.num_points

        values = nn.Dense(dim, dtype=self.dtype, kernel_init=nn.initializers.xavier_uniform(), name="value")(
            pixels
        ).reshape(batch, length, self.num_heads, -1)
        bias = initial_offsets(self.num_heads, len(level_shapes), self.num_points)
        offsets_px = nn.Dense(
            2 * num_samples,
            dtype=jnp.float32,
            precision=jax.lax.Precision.HIGHEST,
            kernel_init=nn.initializers.zeros,
            bias_init=lambda key, shape, dtype: jnp.asarray(bias, dtype),
            name="offsets",
        )(query).reshape(*shape, 2)
        weights = nn.Dense(
            num_samples,
            dtype=jnp.float32,
            precision=jax.lax.Precision.HIGHEST,
            kernel_init=nn.initializers.zeros,
            name="weights",
        )(query).reshape(*shape[:3], -1)
        weights = jax.nn.softmax(weights, axis=-1).reshape(shape)

        size = np.array([(width, height) for height, width in level_shapes], np.float32)
        centre_px = reference_points(level_shapes)[:, None] * size - 0.5
        points_px = jnp.asarray(centre_px)[None, :, None, :, None] + offsets_px
        sampled = sample_levels(values, points_px, weights, level_shapes).reshape(batch, length, dim)
        return nn.Dense(dim, dtype=self.dtype, kernel_init=nn.initializers.xavier_uniform(), name="out")(sampled)
