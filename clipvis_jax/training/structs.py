"""Arrays of a training step; axis names are those of `clipvis_jax.models.structs`."""

from typing import NamedTuple

import flax.struct
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt8

from clipvis_jax.models.structs import QueryPrediction


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
class MatchedImage:
    """What a loss sees of one image and prediction layer.

    Target slot ``i`` belongs to query ``matches.query[i]`` where ``matches.matched[i]``. ``point_logits`` are that
    query's mask logits at the slot's own points, ``point_masks`` (0..1) the target's mask there.
    """

    prediction: QueryPrediction
    targets: Targets
    matches: Matches
    point_logits: Float[Array, "n p"]
    point_masks: Float[Array, "n p"]


class Ratio(NamedTuple):
    """A loss before its division: sums over a part of the batch, which may be added to those of other parts.

    A quotient whose ``denominator`` is 0 counts as 0.
    """

    numerator: Float[Array, "..."]
    denominator: Float[Array, "..."]


@flax.struct.dataclass
class StepMetrics:
    """What a training step reports; ``losses`` are by name and layer, not weighted.

    ``matched_iou`` is the mean IoU of matched pairs at the losses' points, ``gradient_norm`` that before clipping.
    """

    total_loss: Float[Array, ""]
    losses: dict[str, Float[Array, " l"]]
    matched_iou: Float[Array, " l"]
    gradient_norm: Float[Array, ""]
