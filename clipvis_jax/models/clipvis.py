"""CLIP-VIS put together: frozen CLIP, pixel decoder, query decoder, and what one window of frames gives."""

import dataclasses
import functools
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, UInt8

from clipvis_jax.errors import InputError
from clipvis_jax.models import ops
from clipvis_jax.models.backbones import BACKBONES, Backbone
from clipvis_jax.models.clip_text import TextConfig, TextEncoder
from clipvis_jax.models.pixel_decoder import PixelDecoder, PixelDecoderConfig
from clipvis_jax.models.query_decoder import QueryDecoder, QueryDecoderConfig, mask_logits_from
from clipvis_jax.models.structs import ClipFeatures, FramePredictions, PixelFeatures, QueryPrediction
from clipvis_jax.models.text_classifier import TextClassifier, score_classes

PIXEL_MEAN = np.array([122.7709383, 116.7460125, 104.09373615], np.float32)
"""Mean of CLIP's training images, RGB, 0..255."""
PIXEL_STD = np.array([68.5005327, 66.6321579, 70.32316305], np.float32)
"""Standard deviation of CLIP's training images, RGB, 0..255."""

Variables = Mapping[str, Any]
"""A tree of arrays, by module name."""


@dataclasses.dataclass(frozen=True)
class ClipVisConfig:
    """Sizes of all parts of a model; ``dim`` and ``mask_dim`` of the two decoders are the same."""

    backbone: Backbone = BACKBONES["RN50"]
    text: TextConfig = TextConfig()
    pixel_decoder: PixelDecoderConfig = PixelDecoderConfig()
    query_decoder: QueryDecoderConfig = QueryDecoderConfig()

    def __post_init__(self) -> None:
        # The query decoder attends to the pixel decoder's memory, and multiplies mask embeddings with its features.
        for name in ("dim", "mask_dim"):
            needed, given = getattr(self.pixel_decoder, name), getattr(self.query_decoder, name)
            if given != needed:
                raise InputError(f"query_decoder.{name} {given}: give that of the pixel decoder, {needed}")


@dataclasses.dataclass(frozen=True)
class ClipVis:
    """The modules of a model; all state is passed in.

    ``dtype`` is the type of the computation (float32 or bfloat16). Parameters, coordinates, softmax and norms'
    statistics are float32 in either. ``clip_vars`` is the frozen CLIP: ``trunk``, ``visual_head``, ``text`` and
    ``logit_scale``; ``params`` is what is trained: ``pixel_decoder`` and ``query_decoder``. ``encoder_dtype`` is the
    type of the deformable encoder's computation, by default ``dtype``. ``remat`` saves memory in training at the price
    of time: the decoders' layers are computed once more in the backward pass.
    """

    config: ClipVisConfig
    dtype: DTypeLike = jnp.float32
    encoder_dtype: DTypeLike | None = None
    remat: bool = False

    @property
    def trunk(self) -> nn.Module:
        """Image -> feature maps."""
        return self.config.backbone.trunk(self.dtype)

    @property
    def visual_head(self) -> nn.Module:
        """Dense feature and masks -> embeddings."""
        return self.config.backbone.visual_head(self.dtype)

    @property
    def text_encoder(self) -> nn.Module:
        """Tokens -> embeddings."""
        return TextEncoder(self.config.text, dtype=self.dtype)

    @property
    def pixel_decoder(self) -> nn.Module:
        """Feature maps -> mask features and memory."""
        encoder_dtype = self.dtype if self.encoder_dtype is None else self.encoder_dtype
        return PixelDecoder(self.config.pixel_decoder, dtype=self.dtype, encoder_dtype=encoder_dtype, remat=self.remat)

    @property
    def query_decoder(self) -> nn.Module:
        """Mask features and memory -> predictions."""
        return QueryDecoder(self.config.query_decoder, dtype=self.dtype, remat=self.remat)

    def init_clip(self, key: PRNGKeyArray) -> Variables:
        """Draw random variables for the frozen CLIP."""
        keys = jax.random.split(key, 3)
        # The sizes of all parameters are independent of the image's.
        res5 = jnp.zeros((1, 2, 2, self.config.backbone.channels[-1]))
        masks = jnp.ones((1, 1, 2, 2), bool)
        return {
            "trunk": self.trunk.init(keys[0], jnp.zeros((1, ops.STRIDE, ops.STRIDE, 3)))["params"],
            "visual_head": self.visual_head.init(keys[1], res5, masks)["params"],
            "text": self.text_encoder.init(keys[2], jnp.zeros((1, 2), jnp.int32))["params"],
            "logit_scale": jnp.asarray(np.log(1 / 0.07), jnp.float32),
        }

    def init_decoders(self, key: PRNGKeyArray) -> Variables:
        """Draw the initial values of what is trained."""
        pixel_key, query_key = jax.random.split(key)
        channels = self.config.backbone.channels
        sizes = (8, 4, 2, 1)
        features = ClipFeatures(*(jnp.zeros((1, n, n, c)) for n, c in zip(sizes, channels, strict=True)))
        pixel_features, pixel_decoder = self.pixel_decoder.init_with_output(pixel_key, features)
        query_decoder = self.query_decoder.init(query_key, pixel_features)
        return {"pixel_decoder": pixel_decoder["params"], "query_decoder": query_decoder["params"]}

    def _apply(self, module: nn.Module, variables: Variables, *inputs: Any) -> Any:
        with self._precision():
            return module.apply({"params": variables}, *inputs)

    def _precision(self) -> AbstractContextManager[None]:
        """Make float32 mean float32, also on devices whose default is to multiply with fewer bits."""
        exact = jnp.float32 in (jnp.dtype(self.dtype), jnp.dtype(self.encoder_dtype or self.dtype))
        return jax.default_matmul_precision("float32" if exact else "default")

    def extract_features(
        self, clip_vars: Variables, frames_u8: UInt8[Array, "b h w 3"], valid_size: Int[Array, "*#b 2"]
    ) -> ClipFeatures:
        """Normalise padded frames and run the frozen trunk.

        Pixels beyond ``valid_size`` (height, width; one for all frames, or one each) are padding and set to 0 *after*
        normalisation. Nothing masks them later: features, positions and attention see them.
        """
        # Matches the authors' code: padding is seen by all layers.
        heights, widths = valid_size.reshape(-1, 2, 1, 1).swapaxes(0, 1)
        rows = jnp.arange(frames_u8.shape[1])[:, None] < heights
        columns = jnp.arange(frames_u8.shape[2])[None, :] < widths
        image = (frames_u8.astype(jnp.float32) - PIXEL_MEAN) / PIXEL_STD
        image = jnp.where((rows & columns)[..., None], image, 0)
        return self._apply(self.trunk, clip_vars["trunk"], image)

    def decode_pixels(self, params: Variables, features: ClipFeatures) -> PixelFeatures:
        """Run the pixel decoder."""
        return self._apply(self.pixel_decoder, params["pixel_decoder"], features)

    def decode_queries(self, params: Variables, features: PixelFeatures) -> tuple[QueryPrediction, ...]:
        """Run the query decoder; the last prediction is the result."""
        return self._apply(self.query_decoder, params["query_decoder"], features)

    def encode_text(self, clip_vars: Variables, tokens: Int[Array, "b n"]) -> Float[Array, "b e"]:
        """Encode token ids; embeddings are not normalised."""
        return self._apply(self.text_encoder, clip_vars["text"], tokens).astype(jnp.float32)

    def embed_masks(
        self,
        clip_vars: Variables,
        features: ClipFeatures,
        pixel_features: PixelFeatures,
        prediction: QueryPrediction,
    ) -> Float[Array, "b q e"]:
        """Embed what every query's mask shows: CLIP's dense feature, pooled over the mask; not normalised.

        Source: CLIP-VIS, section III-D.
        """
        height, width = features.res5.shape[1:3]
        small = ops.resize_bilinear(pixel_features.mask_features, (height, width))
        masks = mask_logits_from(prediction.mask_embed, small) > 0
        return self.pool_masks(clip_vars, features.res5, masks)

    def pool_masks(
        self, clip_vars: Variables, res5: Float[Array, "b h32 w32 c5"], masks: Bool[Array, "b q h32 w32"]
    ) -> Float[Array, "b q e"]:
        """Embed what masks at stride 32 show of CLIP's dense feature; not normalised."""
        visual = self._apply(self.visual_head, clip_vars["visual_head"], res5, masks)
        if self.config.backbone.ignores_empty_masks:
            visual = jnp.where(jnp.any(masks, axis=(2, 3))[..., None], visual, 0)
        return visual.astype(jnp.float32)

    def name_embeddings(
        self, clip_vars: Variables, visual: Float[Array, "*shape e"], classifier: TextClassifier
    ) -> Float[Array, "*shape c"]:
        """Compare visual embeddings with a vocabulary: class logits, -inf beyond the vocabulary's classes.

        An embedding of zeros is equally far from all classes.
        """
        scale = jnp.minimum(jnp.exp(clip_vars["logit_scale"]), 100.0)
        return score_classes(classifier, visual, scale)

    def class_probs(
        self, clip_vars: Variables, visual: Float[Array, "*shape e"], classifier: TextClassifier
    ) -> Float[Array, "*shape c"]:
        """Turn ``name_embeddings`` into probabilities, 0..1, which add up to 1 over the vocabulary."""
        return jax.nn.softmax(self.name_embeddings(clip_vars, visual, classifier), axis=-1)

    def predict_frames(
        self,
        clip_vars: Variables,
        params: Variables,
        classifier: TextClassifier,
        frames_u8: UInt8[Array, "b h w 3"],
        valid_size: Int[Array, " 2"],
    ) -> FramePredictions:
        """Compute all that association and classification need of a window of frames.

        Pure; meant to be jitted once per padded size.

        Args:
            clip_vars: The frozen CLIP.
            params: The trained decoders.
            classifier: The vocabulary.
            frames_u8: Resized RGB frames, padded at the right and bottom to a multiple of 32.
            valid_size: Height and width before padding.
        """
        features = self.extract_features(clip_vars, frames_u8, valid_size)
        pixel_features = self.decode_pixels(params, features)
        prediction = self.decode_queries(params, pixel_features)[-1]
        mask_logits = mask_logits_from(prediction.mask_embed, pixel_features.mask_features)
        visual = self.embed_masks(clip_vars, features, pixel_features, prediction)
        positive = mask_logits > 0
        return FramePredictions(
            object_logits=prediction.object_logits,
            iou=prediction.iou,
            query_embed=prediction.query_embed,
            visual_embed=visual,
            class_probs=self.class_probs(clip_vars, visual, classifier),
            mask_logits=mask_logits,
            mask_area=jnp.sum(positive, axis=(2, 3), dtype=jnp.float32),
            mask_prob_sum=jnp.sum(jnp.where(positive, jax.nn.sigmoid(mask_logits), 0), axis=(2, 3)),
        )


# Tracing a model takes seconds. Equal models share what comes of it, however often they are made and loaded.


@functools.lru_cache(maxsize=16)
def jitted(model: ClipVis, method: str) -> jax.stages.Wrapped:
    """Return a method of a model, jitted: the same function, with what it has compiled, for all models that are equal.

    Args:
        model: The model.
        method: The name of the method.
    """
    return jax.jit(getattr(model, method))


@functools.lru_cache(maxsize=16)
def clip_shapes(config: ClipVisConfig) -> Variables:
    """Return shapes and types of ``clip_vars``, without computing any. Not to be changed."""
    return jax.eval_shape(ClipVis(config).init_clip, jax.random.key(0))


@functools.lru_cache(maxsize=16)
def decoder_shapes(config: ClipVisConfig) -> Variables:
    """Return shapes and types of ``params``, without computing any. Not to be changed."""
    return jax.eval_shape(ClipVis(config).init_decoders, jax.random.key(0))
