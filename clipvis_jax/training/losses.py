"""Training losses of all predictions: objectness, masks on sampled points, predicted mask IoU.

Every loss is a sum over the batch divided once, so that it does not depend on how the batch is split over devices.
Source: CLIP-VIS (arXiv 2403.12455), section III-E; points: PointRend (arXiv 1912.08193), section 3.3.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int, Key, PRNGKeyArray, UInt8
from tyro.conf import Suppress

from clipvis_jax.errors import InputError
from clipvis_jax.models import ops
from clipvis_jax.models.query_decoder import mask_logits_from
from clipvis_jax.models.structs import QueryPrediction
from clipvis_jax.training.matching import MatchingConfig, match, matching_costs
from clipvis_jax.training.structs import MatchedImage, Matches, PointDraws, Ratio, Targets

LossFunction = Callable[[MatchedImage, "LossConfig"], Ratio]
"""A loss of one image and layer. Numerators and denominators are summed over the batch, then divided."""

_MATCHED_IOU = "matched_iou"
_SAVED = "sampled"


def object_loss(image: MatchedImage, config: "LossConfig") -> Ratio:
    """Cross-entropy of every query's objectness: a query that has a target shows an object."""
    matches = image.matches
    is_object = jnp.zeros(image.prediction.iou.shape, bool).at[matches.query].max(matches.matched)
    # Matches the authors' code: a query matched with an instance that the frame does not show is an object, too.
    log_probs = jax.nn.log_softmax(image.prediction.object_logits)
    weight = jnp.where(is_object, 1.0, config.no_object_weight)
    return Ratio(-jnp.sum(weight * jnp.where(is_object, log_probs[:, 0], log_probs[:, 1])), jnp.sum(weight))


def mask_loss(image: MatchedImage, _: "LossConfig") -> Ratio:
    """Binary cross-entropy of the mask logits at a target's points."""
    logits = image.point_logits
    cross_entropy = jnp.mean(jax.nn.softplus(logits) - logits * image.point_masks, axis=1)
    return Ratio(jnp.sum(cross_entropy, where=image.matches.matched), _num_targets(image))


def dice_loss(image: MatchedImage, _: "LossConfig") -> Ratio:
    """One less the Dice coefficient of the mask at a target's points."""
    probs, masks = jax.nn.sigmoid(image.point_logits), image.point_masks
    dice = 1 - (2 * jnp.sum(probs * masks, axis=1) + 1) / (jnp.sum(probs, axis=1) + jnp.sum(masks, axis=1) + 1)
    return Ratio(jnp.sum(dice, where=image.matches.matched), _num_targets(image))


def iou_loss(image: MatchedImage, _: "LossConfig") -> Ratio:
    """Absolute error of the predicted mask IoU."""
    iou = _sampled_iou(image)
    # Matches the authors' code: pairs without any overlap teach nothing about the IoU.
    counted = image.matches.matched.astype(jnp.float32) * (iou > 0)
    return Ratio(jnp.sum(counted * jnp.abs(image.prediction.iou[image.matches.query] - iou)), jnp.sum(counted))


def _num_targets(image: MatchedImage) -> Float[Array, ""]:
    return jnp.sum(image.targets.valid, dtype=jnp.float32)


def _sampled_iou(image: MatchedImage) -> Float[Array, " n"]:
    """Return the IoU of each slot's predicted mask at its points; a constant for the gradient."""
    # Matches the authors' code: the prediction is binarised, the sampled target is not.
    positive = (image.point_logits > 0).astype(jnp.float32)
    intersection = jnp.sum(positive * image.point_masks, axis=1)
    union = jnp.sum(positive, axis=1) + jnp.sum(image.point_masks, axis=1) - intersection
    return jax.lax.stop_gradient(intersection / jnp.maximum(union, 1e-6))


@dataclasses.dataclass(frozen=True)
class Loss:
    """An entry of the losses: how it is computed, and its weight in the total, 0 or more."""

    function: Suppress[LossFunction]  # no option of the command line
    weight: float = 1.0


def _authors_losses() -> dict[str, Loss]:
    return {
        "object": Loss(object_loss, 2.0),
        "mask": Loss(mask_loss, 5.0),
        "dice": Loss(dice_loss, 5.0),
        "iou": Loss(iou_loss, 2.0),
    }


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """What is minimised, and how many points it looks at.

    ``terms`` are the losses by name; another one is an entry more: ``{**LossConfig().terms, "mine": Loss(function)}``.
    Mask losses see ``num_points`` points of every matched pair: ``uncertain_share`` of them are those with the smallest
    absolute logit among ``oversampling`` times ``num_points`` candidates, the rest are random. ``no_object_weight`` is
    the weight of queries without a target in the objectness loss.
    """

    num_points: int = 12544
    oversampling: float = 3.0
    uncertain_share: float = 0.75
    no_object_weight: float = 0.4
    terms: Mapping[str, Loss] = dataclasses.field(default_factory=_authors_losses, hash=False)
    matching: MatchingConfig = MatchingConfig()

    def __post_init__(self) -> None:
        if self.num_points < 1:
            raise InputError(f"step.losses.num_points {self.num_points}: give at least 1")
        if self.oversampling < 1:
            raise InputError(f"step.losses.oversampling {self.oversampling}: give at least 1")
        if not 0 <= self.uncertain_share <= 1:
            raise InputError(f"step.losses.uncertain_share {self.uncertain_share}: give a share between 0 and 1")
        weights = {f"terms.{name}.weight": term.weight for name, term in self.terms.items()}
        for name, weight in ({"no_object_weight": self.no_object_weight} | weights).items():
            if not weight >= 0:
                raise InputError(f"step.losses.{name} {weight}: give 0 or more")
        if not self.terms:
            raise InputError("step.losses.terms: has no loss; give at least one")
        if _MATCHED_IOU in self.terms:
            raise InputError(f"step.losses.terms.{_MATCHED_IOU}: is the name of a metric; choose another one")

    @property
    def num_candidates(self) -> int:
        """Number of points among which the uncertain ones are chosen."""
        return int(self.num_points * self.oversampling)

    @property
    def num_uncertain(self) -> int:
        """Number of points chosen by their uncertainty."""
        return int(self.num_points * self.uncertain_share)


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

    So draws do not depend on the number of devices, nor on how a batch is sharded.
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
) -> dict[str, Ratio]:
    """Match all layers' predictions with the targets and compute every image's part of the losses.

    Images do not see each other, so this may run on each device's part of a batch (``shard_map``). Layers are done one
    after the other, which bounds memory: mask logits at stride 4 exist for one layer at a time, and for matched
    queries alone.

    Args:
        predictions: Predictions with a first axis for the layers, see ``stack_layers``.
        mask_features: What mask embeddings are multiplied with.
        targets: The instances.
        randomness: Keys [l, b] (see ``point_keys``) or the draws themselves with these axes.
        config: The losses and their settings.

    Returns:
        Numerators and denominators [b, l] of every loss, and of the metric ``matched_iou``.
    """
    matches = match_layers(predictions, mask_features, targets, randomness, config)

    def layer_sums(layer: tuple[QueryPrediction, Matches, Key[Array, " b"] | PointDraws]) -> dict[str, Ratio]:
        prediction, layer_matches, randomness = layer
        image_sums = functools.partial(_image_sums, config=config)
        return jax.vmap(image_sums)(prediction, mask_features, targets, layer_matches, randomness)

    # The backward pass needs the samples alone; where they come from is not kept.
    policy = jax.checkpoint_policies.save_only_these_names(_SAVED)
    sums = jax.lax.map(jax.checkpoint(layer_sums, policy=policy), (predictions, matches, randomness))
    return jax.tree.map(jnp.transpose, sums)


def combine_sums(
    sums: Mapping[str, Ratio], config: LossConfig
) -> tuple[Float[Array, ""], dict[str, Float[Array, " l"]], Float[Array, " l"]]:
    """Divide the sums of a whole batch [l].

    Returns:
        The total loss; every loss by layer, not weighted; the mean IoU of matched pairs by layer.
    """
    # Differs from the authors' code: object and iou are means over the whole batch, not means over each device's part.
    # The same goes for the number of targets: the losses of targets are 0 if the whole batch has none.
    means = {name: x.numerator / jnp.where(x.denominator > 0, x.denominator, 1) for name, x in sums.items()}
    matched_iou = means.pop(_MATCHED_IOU)
    weights = jnp.asarray([term.weight for term in config.terms.values()])
    total = jnp.sum(jnp.stack([means[name] for name in config.terms], axis=-1) * weights)
    return total, means, matched_iou


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
) -> dict[str, Ratio]:
    """Compute what one layer and image add to every loss."""
    logit_maps = mask_logits_from(prediction.mask_embed[matches.query][None], mask_features[None])[0]
    points = _choose_points(
        jax.lax.stop_gradient(logit_maps), _draws(randomness, targets.valid.shape[0], config), config
    )
    logits = checkpoint_name(_sample_maps(logit_maps, checkpoint_name(points, _SAVED)), _SAVED)
    masks = checkpoint_name(jax.vmap(ops.point_sample_packed)(targets.masks_packed, points), _SAVED)

    image = MatchedImage(prediction, targets, matches, logits, masks)
    sums = {name: term.function(image, config) for name, term in config.terms.items()}
    matched = matches.matched.astype(jnp.float32)
    return sums | {_MATCHED_IOU: Ratio(jnp.sum(matched * _sampled_iou(image)), jnp.sum(matched))}


def _sample_maps(maps: Float[Array, "n h w"], points_norm: Float[Array, "n p 2"]) -> Float[Array, "n p"]:
    """Sample every map at its own points."""
    return jax.vmap(ops.point_sample)(maps[..., None], points_norm)[..., 0]


def _choose_points(logit_maps: Float[Array, "n h w"], draws: PointDraws, config: LossConfig) -> Float[Array, "n p 2"]:
    """Choose every target's points: the uncertain candidates, then the random points."""
    logits = _sample_maps(logit_maps, draws.candidates)
    _, index = jax.lax.top_k(-jnp.abs(logits), config.num_uncertain)
    uncertain = jnp.take_along_axis(draws.candidates, index[..., None], axis=1)
    return jnp.concatenate([uncertain, draws.random], axis=1)
