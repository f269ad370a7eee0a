"""Array structs that cross module borders, and the glossary of axis names.

Axis letters mean the same everywhere: ``b`` images or frames of one batch, ``t`` frames of a video, ``q`` queries (in
track order: tracks), ``l`` prediction layers, ``c`` classes, ``s`` synonyms, ``e`` CLIP embedding, ``d`` model
width, ``h w`` pixels, ``h4 w4`` pixels at stride 4 (``h8 w8`` at stride 8, and so on), ``n`` tokens or padded
targets, ``p`` points.
Feature maps are channels last. Boolean masks are True where something is attended or kept.
"""

from typing import Any

import flax.struct
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt8, UInt32


@flax.struct.dataclass
class ClipFeatures:
    """Feature maps of the frozen CLIP image encoder, at strides 4, 8, 16 and 32.

    ``res5`` is also CLIP's dense feature: what is pooled over masks to name them.
    """

    res2: Float[Array, "b h4 w4 c2"]
    res3: Float[Array, "b h8 w8 c3"]
    res4: Float[Array, "b h16 w16 c4"]
    res5: Float[Array, "b h32 w32 c5"]


@flax.struct.dataclass
class PixelFeatures:
    """What the pixel decoder hands to the query decoder.

    ``memory`` holds the three encoder outputs, coarse first (strides 32, 16, 8).
    """

    mask_features: Float[Array, "b h4 w4 d"]
    memory: tuple[Float[Array, "b h32 w32 d"], Float[Array, "b h16 w16 d"], Float[Array, "b h8 w8 d"]]


@flax.struct.dataclass
class QueryPrediction:
    """One prediction of the query decoder: objectness, mask embedding and mask quality of every query.

    ``object_logits[..., 0]`` speaks for an object, ``[..., 1]`` for nothing; ``iou`` (0..1) is the predicted mask
    IoU. The mask logits at any size are ``mask_embed`` times the mask features at that size. ``query_embed`` is what
    is matched over time.
    """

    object_logits: Float[Array, "... q 2"]
    iou: Float[Array, "... q"]
    mask_embed: Float[Array, "... q d"]
    query_embed: Float[Array, "... q d"]


@flax.struct.dataclass
class FramePredictions:
    """All that association and classification need of a window of frames, in each frame's own query order.

    ``mask_area`` is the number of stride-4 pixels with a positive mask logit, ``mask_prob_sum`` the sum of
    ``sigmoid(mask logit)`` over them. ``visual_embed`` is what is compared with class names. ``class_probs`` is 0
    beyond the vocabulary's real classes.
    """

    object_logits: Float[Array, "b q 2"]
    iou: Float[Array, "b q"]
    query_embed: Float[Array, "b q d"]
    visual_embed: Float[Array, "b q e"]
    class_probs: Float[Array, "b q c"]
    mask_logits: Float[Array, "b q h4 w4"]
    mask_area: Float[Array, "b q"]
    mask_prob_sum: Float[Array, "b q"]


@flax.struct.dataclass
class Targets:
    """The instances of a batch's images, filled up to the same number for every image.

    Slots that are not ``valid`` are padding and change nothing. ``masks_packed`` holds eight columns to a byte
    (``numpy.packbits`` along the width). ``absent`` marks an instance of the same video which this frame does not
    show: its mask is empty, and it is still to be matched. Frames of a video are images like any other.
    """

    masks_packed: UInt8[Array, "b n h w8"]
    valid: Bool[Array, "b n"]
    absent: Bool[Array, "b n"]


@flax.struct.dataclass
class TrainingBatch:
    """Images of one size, and what is in them.

    ``valid_size`` is the height and width of each image without its padding, which the network sees as zeros after
    normalisation; None if there is no padding.
    """

    images_u8: UInt8[Array, "b h w 3"]
    targets: Targets
    valid_size: Int[Array, "b 2"] | None = None

    @property
    def sizes(self) -> Int[Array, "#b 2"]:
        """Height and width of the images without padding."""
        return jnp.array([self.images_u8.shape[1:3]]) if self.valid_size is None else self.valid_size


@flax.struct.dataclass
class Matches:
    """For every target slot: its query, and whether it has one.

    Padded slots have none, and with more targets than queries some targets have none. There ``query`` is 0.
    """

    query: Int[Array, "... n"]
    matched: Bool[Array, "... n"]


@flax.struct.dataclass
class PointDraws:
    """Everything random in the losses: points (x, y), as fractions (0..1) of width and height.

    ``matching`` serves all queries and targets of an image; every target has ``candidates`` and ``random`` of its own.
    """

    matching: Float[Array, "... p 2"]
    candidates: Float[Array, "... n candidates 2"]
    random: Float[Array, "... n random 2"]


@flax.struct.dataclass
class LossSums:
    """Numerators and denominators of the losses, for every layer; sums of batches are sums of these.

    ``object`` is divided by ``object_weight``, ``mask`` and ``dice`` by ``targets``, ``iou`` by ``overlapping``
    (matched pairs that overlap at all). ``matched_iou`` over ``matched`` is a metric: the mean IoU of matched pairs.
    """

    object: Float[Array, "... l"]
    object_weight: Float[Array, "... l"]
    mask: Float[Array, "... l"]
    dice: Float[Array, "... l"]
    targets: Float[Array, "... l"]
    iou: Float[Array, "... l"]
    overlapping: Float[Array, "... l"]
    matched_iou: Float[Array, "... l"]
    matched: Float[Array, "... l"]


@flax.struct.dataclass
class LossReport:
    """What a batch's losses are, layer by layer; ``losses`` is not weighted, its last axis is ``LOSSES``."""

    losses: Float[Array, "l kinds"]
    matched_iou: Float[Array, " l"]


@flax.struct.dataclass
class StepMetrics:
    """What a training step reports; ``losses`` is not weighted, its last axis is ``training.losses.LOSSES``.

    ``gradient_norm`` is that before clipping.
    """

    total_loss: Float[Array, ""]
    losses: Float[Array, "l kinds"]
    matched_iou: Float[Array, " l"]
    gradient_norm: Float[Array, ""]


@flax.struct.dataclass
class TrainState:
    """All that a training run carries from step to step, besides the place in the data.

    ``step`` counts finished steps. Every random draw hangs on ``seed`` and ``step``.
    """

    step: Int[Array, ""]
    seed: UInt32[Array, ""]
    params: Any
    opt_state: Any
