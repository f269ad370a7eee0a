"""CLIP's ConvNeXt (base_w, base_w_320, large_d, large_d_320, xxlarge) and its pooled visual head."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar, Literal

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from clipvis_jax.models.clip_text import Activation
from clipvis_jax.models.kernels.depthwise_convolution import depthwise_convolution
from clipvis_jax.models.layers import LayerNorm, count_blocks
from clipvis_jax.models.sizes import check_sizes
from clipvis_jax.models.structs import ClipFeatures


@dataclasses.dataclass(frozen=True)
class ConvNextConfig:
    """Sizes of a ConvNeXt.

    ``depths`` and ``dims``: blocks and channels per stage; ``projection``: how the pooled feature reaches the joint
    embedding of ``embed_dim`` (``large_d`` models have an MLP); ``norm_eps`` is 1e-6, 1e-5 in ``xxlarge``.
    """

    kind: ClassVar[str] = "convnext"
    text_activation: ClassVar[Activation] = "gelu"
    """Of the text encoders that were trained with them."""
    ignores_empty_masks: ClassVar[bool] = False

    depths: tuple[int, int, int, int] = (3, 3, 27, 3)
    dims: tuple[int, int, int, int] = (128, 256, 512, 1024)
    embed_dim: int = 640
    projection: Literal["linear", "mlp"] = "linear"
    norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        check_sizes("backbone", self)

    @property
    def channels(self) -> tuple[int, int, int, int]:
        """Channels of res2 to res5."""
        return self.dims

    @property
    def torch_modules(self) -> Mapping[str, str]:
        """open_clip's names of our modules, see ``weights.torch_names``."""
        block = r"trunk/stage(\d)_block(\d+)"
        return {
            r"trunk/stem_conv": "visual.trunk.stem.0",
            r"trunk/stem_norm": "visual.trunk.stem.1",
            r"trunk/downsample(\d)_norm": "visual.trunk.stages.{1-1}.downsample.0",
            r"trunk/downsample(\d)_conv": "visual.trunk.stages.{1-1}.downsample.1",
            block: "visual.trunk.stages.{1-1}.blocks.{2}",
            f"{block}/depthwise": "visual.trunk.stages.{1-1}.blocks.{2}.conv_dw",
            f"{block}/norm": "visual.trunk.stages.{1-1}.blocks.{2}.norm",
            f"{block}/expand": "visual.trunk.stages.{1-1}.blocks.{2}.mlp.fc1",
            f"{block}/contract": "visual.trunk.stages.{1-1}.blocks.{2}.mlp.fc2",
            r"visual_head/norm": "visual.trunk.head.norm",
            r"visual_head/expand": "visual.head.mlp.fc1",
            r"visual_head/projection": "visual.head.mlp.fc2" if self.projection == "mlp" else "visual.head.proj",
        }

    @classmethod
    def from_shapes(cls, shapes: Mapping[str, tuple[int, ...]]) -> "ConvNextConfig | None":
        """Read the sizes off the shapes of a checkpoint, under open_clip's names; None if it is no CLIP ConvNeXt.

        Raises:
            KeyError: An entry is missing.
        """
        if "visual.trunk.stem.0.weight" not in shapes:
            return None
        stages = [f"visual.trunk.stages.{stage}.blocks." for stage in range(4)]
        d1, d2, d3, d4 = (shapes[f"{stage}0.conv_dw.weight"][0] for stage in stages)
        n1, n2, n3, n4 = (count_blocks(shapes, stage) for stage in stages)
        mlp = "visual.head.mlp.fc1.weight" in shapes
        # The norms' epsilon is in no key; among the published models only the largest has another one.
        largest = CONVNEXTS["convnext_xxlarge"]
        return cls(
            (n1, n2, n3, n4),
            (d1, d2, d3, d4),
            embed_dim=shapes["visual.head.mlp.fc2.weight" if mlp else "visual.head.proj.weight"][0],
            projection="mlp" if mlp else "linear",
            norm_eps=largest.norm_eps if (d1, d2, d3, d4) == largest.dims else cls.norm_eps,
        )

    def trunk(self, dtype: DTypeLike) -> nn.Module:
        """Make the module image -> feature maps."""
        return ConvNextTrunk(self, dtype=dtype)

    def visual_head(self, dtype: DTypeLike) -> nn.Module:
        """Make the module dense feature and masks -> embeddings."""
        return MaskedMeanPool(self, dtype=dtype)


CONVNEXTS: dict[str, ConvNextConfig] = {
    "convnext_base_w": ConvNextConfig(),
    "convnext_large_d": ConvNextConfig(dims=(192, 384, 768, 1536), embed_dim=768, projection="mlp"),
    "convnext_xxlarge": ConvNextConfig((3, 4, 30, 3), (384, 768, 1536, 3072), embed_dim=1024, norm_eps=1e-5),
}
"""The published ones, by open_clip's names. ``convnext_base_w_320`` and ``convnext_large_d_320`` differ from their
namesakes in the training image size alone, which a convolutional network does not show."""


class DepthwiseConv(nn.Module):
    """Depthwise convolution with zero padding."""

    kernel_size: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        size, channels = self.kernel_size, x.shape[-1]
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (size, size, 1, channels))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        return depthwise_convolution(x.astype(jnp.float32), kernel, bias).astype(self.dtype)


class ConvNextBlock(nn.Module):
    """7x7 depthwise convolution, LayerNorm, MLP with exact GELU, layer scale, residual."""

    norm_eps: float
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        channels = x.shape[-1]
        y = DepthwiseConv(kernel_size=7, dtype=self.dtype, name="depthwise")(x)
        y = LayerNorm(epsilon=self.norm_eps, dtype=self.dtype, name="norm")(y)
        y = nn.Dense(4 * channels, dtype=self.dtype, name="expand")(y)
        y = nn.Dense(channels, dtype=self.dtype, name="contract")(nn.gelu(y, approximate=False))
        scale = self.param("layer_scale", nn.initializers.constant(1e-6), (channels,))
        return x + y * scale.astype(self.dtype)


class ConvNextTrunk(nn.Module):
    """Convolutional part: normalised image -> feature maps at strides 4 to 32."""

    config: ConvNextConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, image: Float[Array, "b h w 3"]) -> ClipFeatures:
        def norm(name: str) -> nn.LayerNorm:
            return LayerNorm(epsilon=self.config.norm_eps, dtype=self.dtype, name=name)

        def patchify(features: int, size: int, name: str) -> nn.Conv:
            return nn.Conv(features, (size, size), strides=size, padding="VALID", dtype=self.dtype, name=name)

        x = norm("stem_norm")(patchify(self.config.dims[0], 4, "stem_conv")(image.astype(self.dtype)))
        maps = []
        for stage, (depth, dim) in enumerate(zip(self.config.depths, self.config.dims, strict=True), start=1):
            if stage > 1:
                x = patchify(dim, 2, f"downsample{stage}_conv")(norm(f"downsample{stage}_norm")(x))
            for index in range(depth):
                x = ConvNextBlock(self.config.norm_eps, dtype=self.dtype, name=f"stage{stage}_block{index}")(x)
            maps.append(x)
        return ClipFeatures(*maps)


class MaskedMeanPool(nn.Module):
    """Mean of res5 over each query's mask, head norm, projection to the joint embedding."""

    config: ConvNextConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, res5: Float[Array, "b h w c"], masks: Bool[Array, "b q h w"]) -> Float[Array, "b q e"]:
        weights = masks.astype(jnp.float32)
        area = jnp.sum(weights, axis=(2, 3))[..., None]
        # Matches the authors' code: an empty mask pools to 0.
        pooled = jnp.einsum("bqhw,bhwc->bqc", weights, res5.astype(jnp.float32)) / (area + 1e-8)
        x = LayerNorm(epsilon=self.config.norm_eps, dtype=self.dtype, name="norm")(pooled)
        if self.config.projection == "mlp":
            x = nn.gelu(nn.Dense(2 * self.config.embed_dim, dtype=self.dtype, name="expand")(x), approximate=False)
        return nn.Dense(self.config.embed_dim, use_bias=False, dtype=self.dtype, name="projection")(x)
