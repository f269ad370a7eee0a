"""The training step: frozen CLIP, decoders, losses of all layers, one update of the decoders.

``make_train_step`` returns one compiled function for any number of devices. What it computes does not depend on how
many there are: losses are sums over the global batch, and random draws hang on the step and an image's place in the
batch.
"""

import dataclasses
import functools
from collections import Counter
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int, PRNGKeyArray, Shaped

from clipvis_jax.errors import InputError
from clipvis_jax.loop.sharding import (
    BATCH_AXES,
    batch_sharding,
    optimizer_shardings,
    parameter_shardings,
    replicated,
)
from clipvis_jax.loop.train_state import TrainState
from clipvis_jax.models.clipvis import ClipVis, Variables, decoder_shapes
from clipvis_jax.training.losses import LossConfig, combine_sums, loss_sums, point_keys, stack_layers
from clipvis_jax.training.matching import MatchingMethod
from clipvis_jax.training.structs import PointDraws, Ratio, StepMetrics, TrainingBatch

Remat = Literal["none", "layers", "everything"]


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """How a step is computed.

    Args:
        losses: What is minimised, and on how many points.
        accumulation: Number of parts in which a batch is done, one after the other, to save memory. The result is that
            of the whole batch, at the price of one more forward pass.
        remat: What the backward pass computes once more instead of keeping it: nothing, the decoders' layers, or the
            layers and all else in the decoders.
        dtype: Type of the computation; parameters and the deformable encoder are float32 in either.
    """

    losses: LossConfig = LossConfig()
    accumulation: int = 1
    remat: Remat = "none"
    dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        if self.accumulation < 1:
            raise InputError(f"step.accumulation {self.accumulation}: give at least 1")


def init_state(
    model: ClipVis,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    *,
    seed: int,
    params: Variables | None = None,
) -> TrainState:
    """Make the state of step 0, each part where it belongs.

    Args:
        model: The model.
        optimizer: The optimiser, see ``make_optimizer``.
        mesh: The devices.
        seed: Seeds the initial decoders and every draw of the training.
        params: Decoders to start from, instead of random ones.
    """
    shardings = state_shardings(model, optimizer, mesh)

    def make(params: Variables | None) -> TrainState:
        if params is None:
            params = model.init_decoders(jax.random.key(seed))
        return TrainState.first(optimizer, seed, params)

    return jax.jit(make, out_shardings=shardings)(params)


def abstract_state(model: ClipVis, optimizer: optax.GradientTransformation) -> TrainState:
    """Return the shapes and types of a state, without computing it."""
    return jax.eval_shape(functools.partial(TrainState.first, optimizer, 0), decoder_shapes(model.config))


def state_shardings(model: ClipVis, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """Return where every part of a state lives."""
    state = abstract_state(model, optimizer)
    return dataclasses.replace(
        jax.tree.map(lambda _: replicated(mesh), state),
        params=parameter_shardings(mesh, state.params),
        opt_state=optimizer_shardings(mesh, optimizer, state.opt_state, state.params),
    )


def make_train_step(
    model: ClipVis,
    config: TrainingConfig,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    *,
    draws: PointDraws | None = None,
) -> jax.stages.Wrapped:
    """Compile the training step ``(state, clip_vars, batch) -> (state, metrics)`` for a mesh.

    The given state is used up. A step whose losses or gradients are not finite changes no parameter: its metrics say
    so (see ``first_non_finite``), and the state is as good as before.

    Args:
        model: The model; its types and ``remat`` are overruled by ``config``.
        config: How to compute.
        optimizer: The optimiser.
        mesh: The devices, see ``make_mesh``.
        draws: Recorded draws [l, b, ...] to use in every step instead of random ones.

    Raises:
        InputError: The matcher cannot run on these devices, see ``check_matcher``.
    """
    check_matcher(config.losses.matching.method, mesh)
    model = dataclasses.replace(
        model, dtype=jnp.dtype(config.dtype), encoder_dtype=jnp.dtype("float32"), remat=config.remat != "none"
    )

    def step(state: TrainState, clip_vars: Variables, batch: TrainingBatch) -> tuple[TrainState, StepMetrics]:
        check_batch(batch, mesh, config.accumulation)
        images = (batch, jnp.arange(batch.images_u8.shape[0]), draws)
        key = jax.random.fold_in(jax.random.key(state.seed), state.step)
        loss = functools.partial(_batch_loss, _Setup(model, config, mesh))
        (total, (losses, matched_iou)), gradients = jax.value_and_grad(loss, has_aux=True)(
            state.params, clip_vars, images, key
        )
        gradient_norm = optax.tree.norm(gradients)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        changed = (optax.apply_updates(state.params, updates), opt_state)
        finite = jnp.isfinite(total) & jnp.isfinite(gradient_norm)
        params, opt_state = jax.tree.map(
            lambda new, old: jnp.where(finite, new, old), changed, (state.params, state.opt_state)
        )
        metrics = StepMetrics(total_loss=total, losses=losses, matched_iou=matched_iou, gradient_norm=gradient_norm)
        return dataclasses.replace(state, step=state.step + 1, params=params, opt_state=opt_state), metrics

    state_placement = state_shardings(model, optimizer, mesh)
    return jax.jit(
        step,
        in_shardings=(state_placement, replicated(mesh), batch_sharding(mesh)),
        out_shardings=(state_placement, replicated(mesh)),
        donate_argnums=0,
    )


def check_batch(batch: TrainingBatch, mesh: Mesh, accumulation: int) -> None:
    """Raise InputError if devices and accumulation do not divide the global batch."""
    size, parts = batch.images_u8.shape[0], mesh.size * accumulation
    if size % parts:
        raise InputError(
            f"data.batch_size {size}: must be a multiple of {parts} ({mesh.size} devices x {accumulation} accumulated "
            "parts)"
        )


def check_matcher(method: MatchingMethod, mesh: Mesh) -> None:
    """Raise InputError if the assignment cannot be solved on the host for these devices.

    A CPU device that calls the host keeps one of the process's few threads, as many as cores, until the host has the
    costs; another of the threads must bring them. Devices that keep all of them wait for ever.
    """
    devices = list(mesh.devices.flat)
    most = max(Counter(device.process_index for device in devices).values())
    if method == "host" and devices[0].platform == "cpu" and most > 1:
        raise InputError(
            f"step.losses.matching.method host: the {most} CPU devices of a process may wait for each other for ever; "
            "choose device"
        )


def first_non_finite(metrics: StepMetrics) -> str | None:
    """Name the losses that are not finite, all of the first layer that has any; else the gradient, if it is not."""
    by_layer = zip(*(np.asarray(losses).tolist() for losses in metrics.losses.values()), strict=True)
    for layer, losses in enumerate(by_layer):
        wrong = {name: loss for name, loss in zip(metrics.losses, losses, strict=True) if not np.isfinite(loss)}
        if wrong:
            named = ", ".join(f"loss '{name}' is {loss}" for name, loss in wrong.items())
            return f"in layer {layer} (of 0..{len(metrics.matched_iou) - 1}) {named}"
    if not np.isfinite(norm := float(metrics.gradient_norm)):
        return f"all losses are finite, but the norm of the gradient is {norm}"
    return None


@dataclasses.dataclass(frozen=True)
class _Setup:
    """What a step is compiled for."""

    model: ClipVis
    config: TrainingConfig
    mesh: Mesh


_Images = tuple[TrainingBatch, Int[Array, " b"], PointDraws | None]
"""Images, their places in the global batch, and recorded draws for them, if any."""


def _batch_loss(
    setup: _Setup, params: Variables, clip_vars: Variables, images: _Images, key: PRNGKeyArray
) -> tuple[Float[Array, ""], tuple[dict[str, Float[Array, " l"]], Float[Array, " l"]]]:
    """Return the total loss of a whole batch; its parts and the IoU of matched pairs, by layer."""
    # Every device does its own images, from pixels to losses, and waits for none. Left to itself, XLA might send maps
    # that are looked up, here or in a backward pass, to all devices.
    by_image, by_layer_and_image = P(BATCH_AXES), P(None, BATCH_AXES)
    sums = jax.shard_map(
        functools.partial(_device_sums, setup),
        mesh=setup.mesh,
        in_specs=(P(), P(), (by_image, by_image, by_layer_and_image), P()),
        out_specs=P(BATCH_AXES),
        check_vma=False,
    )(params, clip_vars, images, key)
    total, losses, matched_iou = combine_sums(jax.tree.map(lambda x: jnp.sum(x, axis=0), sums), setup.config.losses)
    return total, (losses, matched_iou)


def _device_sums(
    setup: _Setup, params: Variables, clip_vars: Variables, images: _Images, key: PRNGKeyArray
) -> dict[str, Ratio]:
    """Sum up numerators and denominators of the losses [1, l] over a device's images, part by part."""
    part_sums = functools.partial(_part_sums, setup)
    parts = setup.config.accumulation
    if parts == 1:
        sums = part_sums(params, clip_vars, images, key)
    else:
        # The gradient of the sums' quotients needs the whole batch's sums. So the forward pass goes through all parts
        # and keeps nothing; the backward pass does each part once more, knowing the sums.
        once_more = jax.checkpoint(part_sums)

        batch, examples, draws = images
        by_part = (_split(batch, parts), _split(examples, parts), _split(draws, parts, axis=1))
        sums_by_part = jax.lax.map(lambda part: once_more(params, clip_vars, part, key), by_part)
        sums = jax.tree.map(lambda x: jnp.sum(x, axis=0), sums_by_part)
    return jax.tree.map(lambda x: x[None], sums)


def _split(tree: Any, parts: int, *, axis: int = 0) -> Any:
    """Split an axis of all leaves into ``parts`` along a new first axis."""

    def split(x: Shaped[Array, "..."]) -> Shaped[Array, "..."]:
        shape = (*x.shape[:axis], parts, x.shape[axis] // parts, *x.shape[axis + 1 :])
        return jnp.moveaxis(x.reshape(shape), axis, 0)

    return jax.tree.map(split, tree)


def _part_sums(
    setup: _Setup, params: Variables, clip_vars: Variables, images: _Images, key: PRNGKeyArray
) -> dict[str, Ratio]:
    """Run the network on images and sum up what they add to the losses [l]."""
    model, config = setup.model, setup.config
    batch, examples, draws = images
    features = jax.lax.stop_gradient(model.extract_features(clip_vars, batch.images_u8, batch.sizes))
    decode_pixels, decode_queries = model.decode_pixels, model.decode_queries
    if config.remat == "everything":
        decode_pixels, decode_queries = jax.checkpoint(decode_pixels), jax.checkpoint(decode_queries)
    pixels = decode_pixels(params, features)
    predictions = stack_layers(decode_queries(params, pixels))
    randomness = point_keys(key, examples, predictions.iou.shape[0]) if draws is None else draws
    sums = loss_sums(predictions, pixels.mask_features, batch.targets, randomness, config.losses)
    return jax.tree.map(lambda x: jnp.sum(x, axis=0), sums)
