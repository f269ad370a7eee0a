"""Training losses of all predictions: objectness, masks on sampled points, predicted mask IoU.

Every loss is a sum over the batch divided once, so that it does not depend on how the batch is split over devices.
Source: CLIP-VIS (arXiv 2403.12455), section III-E; points: PointRend (arXiv 1912.08193), section 3.3.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int, Key, PRNGKeyArray, UInt8

from clipvis_jax.models import ops
from clipvis_jax.models.query_decoder import mask_logits_from
from clipvis_jax.models.structs import QueryPrediction
from clipvis_jax.training.matching import MatchingConfig, match, matching_costs
from clipvis_jax.training.structs import LossReport, LossSums, Matches, PointDraws, Targets

LOSSES = ("object", "mask", "dice", "iou")
"""The kinds of losses, in the order of the last axis of ``LossReport.losses``."""

_SAVED = "sampled"


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """Weights of the losses (0 or more), and how many points they look at.

    Mask losses see ``num_points`` points of every matched pair: ``uncertain_share`` of them are those with the smallest
    absolute logit among ``oversampling`` times ``num_points`` candidates, the rest are random.
    """

    num_points: int = 12544
    oversampling: float = 3.0
    uncertain_share: float = 0.75
    object_weight: float = 2.0
    mask_weight: float = 5.0
    dice_weight: float = 5.0
    iou_weight: float = 2.0
    no_object_weight: float = 0.4
    matching: MatchingConfig = MatchingConfig()

    def __post_init__(self) -> None:
        if self.num_points < 1:
            raise ValueError(f"num_points {self.num_points}: give at least 1")
        if self.oversampling < 1:
            raise ValueError(f"oversampling {self.oversampling}: give at least 1")
        if not 0 <= self.uncertain_share <= 1:
            raise ValueError(f"uncertain_share {self.uncertain_share}: give a share between 0 and 1")
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name.endswith("_weight") and not value >= 0:
                raise ValueError(f"{field.name} {value}: give 0 or more")

    @property
    def num_candidates(self) -> int:
        """Number of points among which the uncertain ones are chosen."""
        return int(self.num_points * self.oversampling)

    @property
    def num_uncertain(self) -> int:
        """Number of points chosen by their uncertainty."""
        return int(self.num_points * self.uncertain_share)

    @property
    def weights(self) -> tuple[float, ...]:
        """Weights in the order of ``LOSSES``."""
        return self.object_weight, self.mask_weight, self.dice_weight, self.iou_weight


def draw_points(key: PRNGKeyArray, num_targets: int, config: LossConfig) -> PointDraws:
    """Draw the points of one image and layer; those of a target depend on its slot, not on the number of slots."""
    matching_key, target_key = jax.random.split(key)
    slot_keys = jax.vmap(lambda slot: jax.random.split(jax.random.fold_in(target_key, slot)))(jnp.arange(num_targets))

    def uniform(keys: Key[Array, " n"], count: int) -> Float[Array, "n p 2"]:
        return jax.vmap(lambda key: jax.random.uniform(key, (count, 2)))(keys)

    return PointDraws(
        matching=jax.random.uniform(matching_key, (config.num_points, 2)),
        candidates=uniform(slot_keys[:, 0], config.num_candidates),
        random=uniform(slot_keys[:, 1], config.num_points - config.num_uncertain),
    )


def point_keys(key: PRNGKeyArray, examples: Int[Array, " b"], num_layers: int) -> Key[Array, "l b"]:
    """Derive the keys of a step's draws from the step's key and every image's place in the global batch.

    So draws do not depend on the number of devices, nor on how a batch is cut up.
    """
    image_keys = jax.vmap(jax.random.fold_in, (None, 0))(key, examples)
    return jax.vmap(jax.vmap(jax.random.fold_in, (0, None)), (None, 0))(image_keys, jnp.arange(num_layers))


def stack_layers(predictions: tuple[QueryPrediction, ...]) -> QueryPrediction:
    """Stack the predictions of all layers along a new first axis."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *predictions)


def match_layers(
    predictions: QueryPrediction,
    mask_features: Float[Array, "b h4 w4 d"],
    targets: Targets,
    randomness: Key[Array, "l b"] | PointDraws,
    config: LossConfig,
) -> Matches:
    """Match queries and targets of every layer and image; see ``loss_sums`` for the arguments.

    Returns:
        Matches [l, b, n].
    """

    def image_costs(
        prediction: QueryPrediction,
        features: Float[Array, "h4 w4 d"],
        masks_packed: UInt8[Array, "n h w8"],
        absent: Bool[Array, " n"],
        randomness: PRNGKeyArray | PointDraws,
    ) -> Float[Array, "q n"]:
        points = _draws(randomness, absent.shape[0], config).matching
        # Sampling is linear: the logits at the points are the embeddings times the sampled features.
        sampled = ops.point_sample(features, points)
        logits = jnp.einsum(
            "qd,pd->qp", prediction.mask_embed.astype(jnp.float32), sampled, precision=jax.lax.Precision.HIGHEST
        )
        target_masks = jax.vmap(ops.point_sample_packed, (0, None))(masks_packed, points)
        return matching_costs(prediction.object_logits, logits, target_masks, absent, config.matching)

    def layer_costs(layer: tuple[QueryPrediction, Key[Array, " b"] | PointDraws]) -> Float[Array, "b q n"]:
        prediction, randomness = layer
        return jax.vmap(image_costs)(prediction, mask_features, targets.masks_packed, targets.absent, randomness)

    predictions, mask_features = jax.lax.stop_gradient((predictions, mask_features))
    costs = jax.lax.map(layer_costs, (predictions, randomness))
    return match(costs, jnp.broadcast_to(targets.valid, (costs.shape[0], *targets.valid.shape)), config.matching.method)


def loss_sums(
    predictions: QueryPrediction,
    mask_features: Float[Array, "b h4 w4 d"],
    targets: Targets,
    randomness: Key[Array, "l b"] | PointDraws,
    config: LossConfig,
) -> LossSums:
    """Match all layers' predictions with the targets and sum up every image's losses.

    Images do not see each other, so this may run on each device's part of a batch (``shard_map``). Layers are done one
    after the other, which bounds memory: mask logits at stride 4 exist for one layer at a time, and for matched
    queries alone.

    Args:
        predictions: Predictions with a first axis for the layers, see ``stack_layers``.
        mask_features: What mask embeddings are multiplied with.
        targets: The instances.
        randomness: Keys [l, b] (see ``point_keys``) or the draws themselves with these axes.
        config: Weights and numbers of points.

    Returns:
        Sums [b, l].
    """
    matches = match_layers(predictions, mask_features, targets, randomness, config)

    def layer_sums(layer: tuple[QueryPrediction, Matches, Key[Array, " b"] | PointDraws]) -> LossSums:
        prediction, layer_matches, randomness = layer
        image_sums = functools.partial(_image_sums, config=config)
        return jax.vmap(image_sums)(prediction, mask_features, targets, layer_matches, randomness)

    # The backward pass needs the samples alone; where they come from is not kept.
    policy = jax.checkpoint_policies.save_only_these_names(_SAVED)
    sums = jax.lax.map(jax.checkpoint(layer_sums, policy=policy), (predictions, matches, randomness))
    return jax.tree.map(jnp.transpose, sums)


def combine_sums(sums: LossSums, config: LossConfig) -> tuple[Float[Array, ""], LossReport]:
    """Divide the sums of a whole batch [l] and return the total loss, weighted, and its parts."""
    # Differs from the authors' code: object and iou are means over the whole batch, not means over each device's part.
    # The same goes for the number of targets, which is at least 1 for the whole batch, not for each device.
    num_targets = jnp.maximum(sums.targets, 1)
    losses = jnp.stack(
        [
            sums.object / sums.object_weight,
            sums.mask / num_targets,
            sums.dice / num_targets,
            sums.iou / jnp.maximum(sums.overlapping, 1),
        ],
        axis=-1,
    )
    total = jnp.sum(losses * jnp.asarray(config.weights))
    return total, LossReport(losses=losses, matched_iou=sums.matched_iou / jnp.maximum(sums.matched, 1))


def _draws(randomness: PRNGKeyArray | PointDraws, num_targets: int, config: LossConfig) -> PointDraws:
    return randomness if isinstance(randomness, PointDraws) else draw_points(randomness, num_targets, config)


def _image_sums(
    prediction: QueryPrediction,
    mask_features: Float[Array, "h4 w4 d"],
    targets: Targets,
    matches: Matches,
    randomness: PRNGKeyArray | PointDraws,
    *,
    config: LossConfig,
) -> LossSums:
    """Sum up the losses of one layer and image."""
    matched = matches.matched.astype(jnp.float32)
    is_object = jnp.zeros(prediction.iou.shape, bool).at[matches.query].max(matches.matched)
    # Matches the authors' code: a query matched with an instance that the frame does not show is an object, too.
    log_probs = jax.nn.log_softmax(prediction.object_logits)
    weight = jnp.where(is_object, 1.0, config.no_object_weight)
    object_sum = -jnp.sum(weight * jnp.where(is_object, log_probs[:, 0], log_probs[:, 1]))

    logit_maps = mask_logits_from(prediction.mask_embed[matches.query][None], mask_features[None])[0]
    points = _choose_points(
        jax.lax.stop_gradient(logit_maps), _draws(randomness, targets.valid.shape[0], config), config
    )
    logits = checkpoint_name(_sample_maps(logit_maps, checkpoint_name(points, _SAVED)), _SAVED)
    masks = checkpoint_name(jax.vmap(ops.point_sample_packed)(targets.masks_packed, points), _SAVED)

    cross_entropy = jnp.mean(jax.nn.softplus(logits) - logits * masks, axis=1)
    probs = jax.nn.sigmoid(logits)
    dice = 1 - (2 * jnp.sum(probs * masks, axis=1) + 1) / (jnp.sum(probs, axis=1) + jnp.sum(masks, axis=1) + 1)
    # Matches the authors' code: the prediction is binarised, the sampled target is not.
    positive = (logits > 0).astype(jnp.float32)
    intersection = jnp.sum(positive * masks, axis=1)
    union = jnp.sum(positive, axis=1) + jnp.sum(masks, axis=1) - intersection
    iou = jax.lax.stop_gradient(intersection / jnp.maximum(union, 1e-6))
    # Matches the authors' code: pairs without any overlap teach nothing about the IoU.
    overlapping = matched * (iou > 0)

    return LossSums(
        object=object_sum,
        object_weight=jnp.sum(weight),
        mask=jnp.sum(cross_entropy, where=matches.matched),
        dice=jnp.sum(dice, where=matches.matched),
        targets=jnp.sum(targets.valid, dtype=jnp.float32),
        iou=jnp.sum(overlapping * jnp.abs(prediction.iou[matches.query] - iou)),
        overlapping=jnp.sum(overlapping),
        matched_iou=jnp.sum(matched * iou),
        matched=jnp.sum(matched),
    )


def _sample_maps(maps: Float[Array, "n h w"], points_norm: Float[Array, "n p 2"]) -> Float[Array, "n p"]:
    """Sample every map at its own points."""
    return jax.vmap(ops.point_sample)(maps[..., None], points_norm)[..., 0]


def _choose_points(logit_maps: Float[Array, "n h w"], draws: PointDraws, config: LossConfig) -> Float[Array, "n p 2"]:
    """Choose every target's points: the uncertain candidates, then the random points."""
    logits = _sample_maps(logit_maps, draws.candidates)
    _, index = jax.lax.top_k(-jnp.abs(logits), config.num_uncertain)
    uncertain = jnp.take_along_axis(draws.candidates, index[..., None], axis=1)
    return jnp.concatenate([uncertain, draws.random], axis=1)
