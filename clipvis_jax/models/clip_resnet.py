"""CLIP's modified ResNet (RN50, RN101, RN50x4, RN50x16, RN50x64) and its attention pool over masks."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from clipvis_jax.models import ops
from clipvis_jax.models.clip_text import Activation
from clipvis_jax.models.layers import Conv, count_blocks
from clipvis_jax.models.sizes import check_sizes
from clipvis_jax.models.structs import ClipFeatures

EXPANSION = 4
"""A bottleneck's output channels over its inner width."""


@dataclasses.dataclass(frozen=True)
class ResNetConfig:
    """Sizes of a CLIP ResNet.

    ``depths``: bottlenecks per stage; ``width``: channels after the stem; ``embed_dim``: joint embedding;
    ``pool_grid``: side of the square of positions that the attention pool was trained with (image size / 32).
    """

    kind: ClassVar[str] = "resnet"
    text_activation: ClassVar[Activation] = "quick_gelu"
    """Of the text encoders that OpenAI trained with them."""
    # Matches the authors' code: an empty mask leaves the ResNet models undecided between all classes.
    ignores_empty_masks: ClassVar[bool] = True
    torch_modules: ClassVar[Mapping[str, str]] = {
        r"trunk/stem_conv(\d)": "visual.conv{1}",
        r"trunk/stem_norm(\d)": "visual.bn{1}",
        r"trunk/stage(\d)_block(\d+)/conv(\d)": "visual.layer{1}.{2}.conv{3}",
        r"trunk/stage(\d)_block(\d+)/norm(\d)": "visual.layer{1}.{2}.bn{3}",
        r"trunk/stage(\d)_block(\d+)/shortcut_conv": "visual.layer{1}.{2}.downsample.0",
        r"trunk/stage(\d)_block(\d+)/shortcut_norm": "visual.layer{1}.{2}.downsample.1",
        r"visual_head/query": "visual.attnpool.q_proj",
        r"visual_head/key": "visual.attnpool.k_proj",
        r"visual_head/value": "visual.attnpool.v_proj",
        r"visual_head/out": "visual.attnpool.c_proj",
    }
    """open_clip's names of our modules, see ``weights.torch_names``."""

    depths: tuple[int, int, int, int] = (3, 4, 6, 3)
    width: int = 64
    embed_dim: int = 1024
    pool_grid: int = 7
    head_dim: int = 64

    def __post_init__(self) -> None:
        check_sizes("backbone", self)

    @property
    def channels(self) -> tuple[int, int, int, int]:
        """Channels of res2 to res5."""
        c2, c3, c4, c5 = (self.width * EXPANSION * 2**stage for stage in range(4))
        return c2, c3, c4, c5

    @classmethod
    def from_shapes(cls, shapes: Mapping[str, tuple[int, ...]]) -> "ResNetConfig | None":
        """Read the sizes off the shapes of a checkpoint, under open_clip's names; None if it is no CLIP ResNet.

        Raises:
            KeyError: An entry is missing.
            ValueError: An entry has an unexpected shape.
        """
        if not {"visual.conv1.weight", "visual.layer1.0.conv1.weight"} <= shapes.keys():
            return None
        embed_dim, channels = shapes["visual.attnpool.c_proj.weight"]
        d1, d2, d3, d4 = (count_blocks(shapes, f"visual.layer{stage}.") for stage in range(1, 5))
        pool_grid = math.isqrt(shapes["visual.attnpool.positional_embedding"][0] - 1)
        return cls((d1, d2, d3, d4), width=channels // 32, embed_dim=embed_dim, pool_grid=pool_grid)

    def trunk(self, dtype: DTypeLike) -> nn.Module:
        """Make the module image -> feature maps."""
        return ResNetTrunk(self, dtype=dtype)

    def visual_head(self, dtype: DTypeLike) -> nn.Module:
        """Make the module dense feature and masks -> embeddings."""
        return MaskedAttentionPool(self, dtype=dtype)


RESNETS: dict[str, ResNetConfig] = {
    "RN50": ResNetConfig(),
    "RN101": ResNetConfig(depths=(3, 4, 23, 3), embed_dim=512),
    "RN50x4": ResNetConfig(depths=(4, 6, 10, 6), width=80, embed_dim=640, pool_grid=9),
    "RN50x16": ResNetConfig(depths=(6, 8, 18, 8), width=96, embed_dim=768, pool_grid=12),
    "RN50x64": ResNetConfig(depths=(3, 15, 36, 10), width=128, embed_dim=1024, pool_grid=14),
}
"""The published ones, by open_clip's names."""


class FrozenBatchNorm(nn.Module):
    """BatchNorm with its stored statistics: a per-channel scale and shift (eps 1e-5)."""

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        shape = (x.shape[-1],)
        scale = self.param("scale", nn.initializers.ones, shape)
        bias = self.param("bias", nn.initializers.zeros, shape)
        mean = self.param("mean", nn.initializers.zeros, shape)
        var = self.param("var", nn.initializers.ones, shape)
        factor = scale * jax.lax.rsqrt(var + 1e-5)
        return (x.astype(jnp.float32) * factor + (bias - mean * factor)).astype(self.dtype)


def _avg_pool(x: Float[Array, "b h w c"], stride: int) -> Float[Array, "b h2 w2 c"]:
    return nn.avg_pool(x, (stride, stride), (stride, stride)) if stride > 1 else x


class Bottleneck(nn.Module):
    """Residual block whose stride is an average pool before the last convolution and before the shortcut's."""

    width: int
    stride: int
    has_projection: bool
    norm: Callable[..., nn.Module]
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c2"]:
        def conv(features: int, size: int, name: str) -> nn.Conv:
            return Conv(features, size, use_bias=False, dtype=self.dtype, name=name)

        def norm(name: str) -> nn.Module:
            return self.norm(dtype=self.dtype, name=name)

        y = nn.relu(norm("norm1")(conv(self.width, 1, "conv1")(x)))
        y = nn.relu(norm("norm2")(conv(self.width, 3, "conv2")(y)))
        y = _avg_pool(y, self.stride)
        y = norm("norm3")(conv(self.width * EXPANSION, 1, "conv3")(y))
        if self.has_projection:
            x = norm("shortcut_norm")(conv(self.width * EXPANSION, 1, "shortcut_conv")(_avg_pool(x, self.stride)))
        return nn.relu(x + y)


class ResNetTrunk(nn.Module):
    """Convolutional part: normalised image -> feature maps at strides 4 to 32; ``norm`` makes its batch norms."""

    config: ResNetConfig
    dtype: DTypeLike = jnp.float32
    norm: Callable[..., nn.Module] = FrozenBatchNorm

    @nn.compact
    def __call__(self, image: Float[Array, "b h w 3"]) -> ClipFeatures:
        width = self.config.width
        x = image.astype(self.dtype)
        stem = (
            nn.Conv(width // 2, (3, 3), 2, padding=1, use_bias=False, dtype=self.dtype, name="stem_conv1"),
            Conv(width // 2, 3, use_bias=False, dtype=self.dtype, name="stem_conv2"),
            Conv(width, 3, use_bias=False, dtype=self.dtype, name="stem_conv3"),
        )
        for index, conv in enumerate(stem, start=1):
            x = nn.relu(self.norm(dtype=self.dtype, name=f"stem_norm{index}")(conv(x)))
        x = _avg_pool(x, 2)
        maps = []
        for stage, depth in enumerate(self.config.depths):
            for index in range(depth):
                x = Bottleneck(
                    width=width * 2**stage,
                    stride=2 if stage > 0 and index == 0 else 1,
                    has_projection=index == 0,
                    norm=self.norm,
                    dtype=self.dtype,
                    name=f"stage{stage + 1}_block{index}",
                )(x)
            maps.append(x)
        return ClipFeatures(*maps)


class MaskedAttentionPool(nn.Module):
    """CLIP's attention pool, restricted to one mask per query.

    Keys and values are the pixels of res5 with the pool's positions, resized from their square grid; the query is
    the mean over all pixels, whatever the mask. So the scores are computed once per frame and head, and only the
    masked softmax and the weighted sum differ from instance to instance.
    """

    config: ResNetConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, res5: Float[Array, "b h w c"], masks: Bool[Array, "b q h w"]) -> Float[Array, "b q e"]:
        batch, height, width, channels = res5.shape
        heads = channels // self.config.head_dim
        grid = self.config.pool_grid
        position = self.param("position_embedding", nn.initializers.normal(channels**-0.5), (grid * grid + 1, channels))

        def dense(features: int, name: str) -> nn.Dense:
            return nn.Dense(features, dtype=self.dtype, name=name)

        # Matches the authors' code: no class token among the keys, and the mean over the plain pixels as the query.
        grid_position = ops.resize_bilinear(position[1:].reshape(1, grid, grid, channels), (height, width))
        pixels = res5 + grid_position.astype(res5.dtype)
        query = jnp.mean(res5.astype(jnp.float32), axis=(1, 2)) + position[0]
        query = dense(channels, "query")(query.astype(res5.dtype)).reshape(batch, heads, -1)
        key = dense(channels, "key")(pixels).reshape(batch, height * width, heads, -1)
        value = dense(channels, "value")(pixels).reshape(batch, height * width, heads, -1)

        scores = jnp.einsum("bhd,bnhd->bhn", query, key, preferred_element_type=jnp.float32)
        scores = scores / np.float32(np.sqrt(self.config.head_dim))
        keep = masks.reshape(batch, -1, 1, height * width)
        weights = jnp.where(keep, scores[:, None], -jnp.inf)
        weights = jnp.exp(weights - jnp.max(weights, axis=-1, keepdims=True, where=keep, initial=-1e30))
        # An empty mask gives zero attention, as in the authors' version of PyTorch, instead of 0 / 0.
        weights = weights / jnp.maximum(jnp.sum(weights, axis=-1, keepdims=True), 1e-30)
        pooled = jnp.einsum("bqhn,bnhd->bqhd", weights.astype(self.dtype), value)
        return dense(self.config.embed_dim, "out")(pooled.reshape(batch, -1, channels))
