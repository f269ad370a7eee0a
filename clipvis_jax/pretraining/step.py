"""A step of CLIP's pretraining: losses on whole images and on regions, one update of everything.

Besides CLIP's own loss on whole images there is the same loss on regions: dense features are pooled over boxes, with
the head that CLIP-VIS later pools masks with, and compared with sentences about what the boxes show. No masks are seen.
"""

import dataclasses
import functools
from typing import Any, NamedTuple, no_type_check

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, UInt8

from clipvis_jax.errors import InputError
from clipvis_jax.loop.sharding import batch_sharding, replicated
from clipvis_jax.loop.train_state import TrainState
from clipvis_jax.models.clipvis import PIXEL_MEAN, PIXEL_STD, ClipVis, Variables
from clipvis_jax.pretraining.contrastive import box_masks, contrastive_loss, shrink_boxes


@dataclasses.dataclass(frozen=True)
class ClipOptimizerConfig:
    """AdamW with a learning rate that rises, stays, and falls to 0.

    It rises linearly for ``warmup_steps`` and falls linearly over the last ``decay_share`` of the steps. ``clip_norm``
    limits the norm of all gradients together.
    """

    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    num_steps: int = 4000
    warmup_steps: int = 200
    decay_share: float = 0.25
    clip_norm: float = 1.0
    beta1: float = 0.9
    beta2: float = 0.98
    epsilon: float = 1e-6

    def __post_init__(self) -> None:
        for name in ("learning_rate", "num_steps", "clip_norm", "epsilon"):
            if not getattr(self, name) > 0:
                raise InputError(f"optimizer.{name} {getattr(self, name)}: give more than 0")
        if not 0 <= self.decay_share <= 1:
            raise InputError(f"optimizer.decay_share {self.decay_share}: give a share from 0 to 1")
        if not 0 <= self.warmup_steps < self.num_steps * (1 - self.decay_share):
            raise InputError(
                f"optimizer.warmup_steps {self.warmup_steps}: give 0 or more, and fewer than the "
                f"{self.num_steps * (1 - self.decay_share):.0f} steps before the learning rate falls"
            )


@dataclasses.dataclass(frozen=True)
class ClipLossConfig:
    """What is minimised.

    Attributes:
        image_weight: Weight of the loss on whole images and their captions.
        region_weight: Weight of the loss on regions and their captions.
        smallest_box: Regions are pooled over boxes shrunk to a random share of their sides, this at least: dense
            features must name an object by any part of it.
        all_names: Regions of whole images must find their sentences among the names of all classes that captions show
            as well, and not among the sentences of their batch alone. Stages of single objects are as without it.
        max_logit_scale: Upper limit of the temperature's factor.
    """

    image_weight: float = 0.5
    region_weight: float = 1.0
    all_names: bool = False
    smallest_box: float = 0.4
    max_logit_scale: float = 100.0

    def __post_init__(self) -> None:
        for name in ("image_weight", "region_weight"):
            if getattr(self, name) < 0:
                raise InputError(f"losses.{name} {getattr(self, name)}: give 0 or more")
        if not 0 < self.smallest_box <= 1:
            raise InputError(f"losses.smallest_box {self.smallest_box}: give a share above 0, at most 1")


@no_type_check  # of the fields at run time, which fails where JAX's tree functions put placeholders into them
@flax.struct.dataclass
class CaptionedInputs:
    """A batch on the devices: images, tokens, boxes, and numbers that are equal where names are."""

    images_u8: UInt8[Array, "b h w 3"]
    caption_tokens: Int[Array, "b n1"]
    caption_names: Int[Array, " b"]
    boxes: Float[Array, "b n 4"]
    region_tokens: Int[Array, "b n n2"]
    region_names: Int[Array, "b n"]
    valid: Bool[Array, "b n"]


class LoneTexts(NamedTuple):
    """Texts that belong to no picture, and numbers that are equal where texts say the same."""

    tokens: Int[np.ndarray, "k n"]
    names: Int[np.ndarray, " k"]


@no_type_check  # of the fields at run time, which fails where JAX's tree functions put placeholders into them
@flax.struct.dataclass
class ClipMetrics:
    """What a step reports: losses, not weighted, and how often the closest text of the batch was a right one."""

    total_loss: Float[Array, ""]
    image_loss: Float[Array, ""]
    region_loss: Float[Array, ""]
    image_accuracy: Float[Array, ""]
    region_accuracy: Float[Array, ""]
    logit_scale: Float[Array, ""]
    gradient_norm: Float[Array, ""]


def make_clip_optimizer(config: ClipOptimizerConfig) -> optax.GradientTransformation:
    """Return the update: clipping, then AdamW with decoupled decay."""
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(
            make_clip_schedule(config),
            b1=config.beta1,
            b2=config.beta2,
            eps=config.epsilon,
            weight_decay=config.weight_decay,
            mask=_is_matrix,
        ),
    )


def make_clip_schedule(config: ClipOptimizerConfig) -> optax.Schedule:
    """Return the learning rate as a function of the step, which counts from 0."""
    corners = [0, config.warmup_steps, round((1 - config.decay_share) * config.num_steps), config.num_steps]
    rates = [0.0, config.learning_rate, config.learning_rate, 0.0]
    return lambda step: jnp.interp(step, jnp.array(corners, jnp.float32), jnp.array(rates))


def _is_matrix(params: Any) -> Any:
    """Mark what decays: all but vectors and embedding tables."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)


def init_clip_state(
    model: ClipVis,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    *,
    seed: int,
    clip_vars: Variables | None = None,
) -> TrainState:
    """Make the state of step 0, with a copy on every device; its ``params`` are the whole CLIP.

    Args:
        model: The model.
        optimizer: The optimiser, see ``make_clip_optimizer``.
        mesh: The devices.
        seed: Seeds the initial CLIP and every draw of the training.
        clip_vars: CLIP to start from, instead of a random one.
    """

    def make(clip_vars: Variables | None) -> TrainState:
        return TrainState.first(optimizer, seed, _init_clip(model, seed) if clip_vars is None else clip_vars)

    return jax.jit(make, out_shardings=replicated(mesh))(clip_vars)


def abstract_clip_state(model: ClipVis, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """Return shapes, types and places of a state, without computing it."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=replicated(mesh)),
        jax.eval_shape(lambda: TrainState.first(optimizer, 0, _init_clip(model, 0))),
    )


def _init_clip(model: ClipVis, seed: int) -> Variables:
    return jax.tree_util.tree_map_with_path(_init_residual, model.init_clip(jax.random.key(seed)))


def _init_residual(path: jax.tree_util.KeyPath, value: Array) -> Array:
    """Begin residual blocks as, or close to, the identity: zero-init."""
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    if name.endswith("/norm3/scale"):
        return jnp.zeros_like(value)  # as CLIP's code does
    if name.endswith("layer_scale"):
        return jnp.full_like(value, 0.1)  # ConvNeXt's 1e-6 is for deep networks and long trainings
    return value


def make_clip_step(
    model: ClipVis,
    losses: ClipLossConfig,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    *,
    norm_momentum: float,
    more_texts: LoneTexts | None = None,
) -> jax.stages.Wrapped:
    """Return the jitted step ``(state, batch) -> (state, metrics)`` for a mesh.

    The batch is sharded over the devices; negatives come from all of it. The given state is used up. A step whose loss
    or gradient is not finite changes no parameter. ``more_texts`` are what regions are compared with besides.
    """

    def step(state: TrainState, batch: CaptionedInputs) -> tuple[TrainState, ClipMetrics]:
        key = jax.random.fold_in(jax.random.key(state.seed), state.step)
        (total, (metrics, statistics)), gradients = jax.value_and_grad(clip_loss, argnums=1, has_aux=True)(
            model, state.params, batch, losses, key, norm_momentum=norm_momentum, more_texts=more_texts
        )
        gradient_norm = optax.tree.norm(gradients)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        params["trunk"] = unflatten_dict(flatten_dict(params["trunk"]) | flatten_dict(statistics))
        finite = jnp.isfinite(total) & jnp.isfinite(gradient_norm)
        params, opt_state = jax.tree.map(
            lambda new, old: jnp.where(finite, new, old), (params, opt_state), (state.params, state.opt_state)
        )
        metrics = dataclasses.replace(metrics, gradient_norm=gradient_norm)
        return TrainState(step=state.step + 1, seed=state.seed, params=params, opt_state=opt_state), metrics

    return jax.jit(
        step,
        in_shardings=(replicated(mesh), batch_sharding(mesh)),
        out_shardings=(replicated(mesh), replicated(mesh)),
        donate_argnums=0,
    )


def clip_loss(
    model: ClipVis,
    clip_vars: Variables,
    batch: CaptionedInputs,
    losses: ClipLossConfig,
    key: PRNGKeyArray,
    *,
    norm_momentum: float = 0.0,
    more_texts: LoneTexts | None = None,
) -> tuple[Float[Array, ""], tuple[ClipMetrics, Variables]]:
    """Return the total loss, its parts, and the new statistics of the trunk's batch norms."""
    share = jax.random.uniform(key, batch.valid.shape, minval=losses.smallest_box, maxval=1.0)
    res5, statistics = train_trunk(model, clip_vars, batch.images_u8, norm_momentum)
    grid = (res5.shape[1], res5.shape[2])
    regions = box_masks(shrink_boxes(batch.boxes, share), grid)
    everything = jnp.ones((len(res5), 1, *grid), bool)
    visual = model.pool_masks(clip_vars, res5, jnp.concatenate([everything, regions], axis=1))
    scale = jnp.minimum(jnp.exp(clip_vars["logit_scale"]), losses.max_logit_scale)

    captions = model.encode_text(clip_vars, batch.caption_tokens)
    all_valid = jnp.ones(len(res5), bool)
    image_loss, image_accuracy = contrastive_loss(visual[:, 0], captions, scale, batch.caption_names, all_valid)

    def flat(x: Array) -> Array:
        return x.reshape(-1, *x.shape[2:])

    region_loss = region_accuracy = jnp.zeros(())
    if batch.boxes.shape[1]:
        region_loss, region_accuracy = contrastive_loss(
            flat(visual[:, 1:]),
            model.encode_text(clip_vars, flat(batch.region_tokens)),
            scale,
            flat(batch.region_names),
            flat(batch.valid),
            more_text=None if more_texts is None else model.encode_text(clip_vars, jnp.asarray(more_texts.tokens)),
            more_names=None if more_texts is None else jnp.asarray(more_texts.names),
        )
    total = losses.image_weight * image_loss + losses.region_weight * region_loss
    metrics = ClipMetrics(
        total_loss=total,
        image_loss=image_loss,
        region_loss=region_loss,
        image_accuracy=image_accuracy,
        region_accuracy=region_accuracy,
        logit_scale=scale,
        gradient_norm=jnp.zeros(()),
    )
    return total, (metrics, statistics)


def train_trunk(
    model: ClipVis, clip_vars: Variables, images_u8: UInt8[Array, "b h w 3"], norm_momentum: float
) -> tuple[Float[Array, "b h32 w32 c5"], Variables]:
    """Return CLIP's dense feature, and the statistics of batch norms: ``norm_momentum`` of the old ones is kept.

    Norms use the mean and variance of the batch (of all devices); all else uses the stored ones, which are parameters.
    """
    image = (images_u8.astype(jnp.float32) - PIXEL_MEAN) / PIXEL_STD
    trunk, params = model.trunk, flatten_dict(clip_vars["trunk"])
    stored = {path: params.pop(path) for path in list(params) if path[-1] in ("mean", "var")}
    if stored:  # only ResNets have them
        trunk = trunk.clone(norm=functools.partial(nn.BatchNorm, use_running_average=False, momentum=norm_momentum))
    variables = {"params": unflatten_dict(params), "batch_stats": unflatten_dict(stored)}
    features, seen = trunk.apply(variables, image, mutable=["batch_stats"])
    return features.res5, seen.get("batch_stats", {})
