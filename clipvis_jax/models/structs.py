"""Arrays that the model's modules hand to each other, and the glossary of axis names for the whole package.

Axis letters mean the same everywhere: ``b`` images or frames of one batch, ``t`` frames of a video, ``q`` queries (in
track order: tracks), ``l`` prediction layers, ``c`` classes, ``s`` synonyms, ``e`` CLIP embedding, ``d`` model
width, ``h w`` pixels, ``h4 w4`` pixels at stride 4 (``h8 w8`` at stride 8, and so on), ``n`` tokens or padded
targets, ``p`` points.
Feature maps are channels last. Boolean masks are True where something is attended or kept.
"""

import flax.struct
from jaxtyping import Array, Float


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

    ``object_logits[..., 0]`` speaks for an object, ``[..., 1]`` for nothing; ``iou`` is the predicted mask IoU, 0..1
    (with a ReLU head 0 or more). The mask logits at any size are ``mask_embed`` times the mask features at that size.
    ``query_embed`` is what is matched over time.
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
