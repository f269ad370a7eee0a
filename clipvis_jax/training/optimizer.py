"""The optimiser: gradient clipping, AdamW with decay by path, a learning rate in steps."""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from clipvis_jax.errors import InputError
from clipvis_jax.loop.path_rules import apply_rules

DECAY_RULES: tuple[tuple[str, bool], ...] = (
    (r".*norm/(scale|bias)", False),
    (r"query_decoder/(query_feature|query_position|level_embedding)", False),
    # Matches the authors' code: their pixel decoder's level embedding is a bare parameter, not an embedding table.
    (r"pixel_decoder/level_embedding", True),
    (r".*/(kernel|bias)", True),
)
"""Which parameters decay: all but norms and embedding tables."""


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Settings of the optimiser; the defaults are the authors' for a batch of 16.

    The learning rate rises linearly from ``warmup_factor`` times its value over ``warmup_steps`` steps, and is
    multiplied by ``drop_factor`` at each of ``drop_steps``. Gradients are scaled down to the norm ``clip_norm`` over
    all parameters. See ``scale_to_batch`` for other batch sizes.
    """

    learning_rate: float = 1e-4
    weight_decay: float = 0.05
    clip_norm: float = 0.01
    num_steps: int = 368_750
    drop_steps: tuple[int, ...] = (327_778, 355_092)
    drop_factor: float = 0.1
    warmup_steps: int = 10
    warmup_factor: float = 1.0
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8

    def __post_init__(self) -> None:
        for name in ("learning_rate", "clip_norm", "num_steps", "epsilon"):
            if not getattr(self, name) > 0:
                raise InputError(f"optimizer.{name} {getattr(self, name)}: give more than 0")
        for name in ("weight_decay", "warmup_steps", "warmup_factor", "drop_factor"):
            if not getattr(self, name) >= 0:
                raise InputError(f"optimizer.{name} {getattr(self, name)}: give 0 or more")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"optimizer.{name} {getattr(self, name)}: give at least 0 and less than 1")
        if list(self.drop_steps) != sorted(set(self.drop_steps)):
            raise InputError(f"optimizer.drop_steps {self.drop_steps}: give them in rising order")
        if self.drop_steps and self.drop_steps[-1] > self.num_steps:
            raise InputError(
                f"optimizer.drop_steps {self.drop_steps}: lie beyond the {self.num_steps} steps of the training "
                "(optimizer.num_steps); give earlier ones, or none"
            )


def scale_to_batch(
    config: OptimizerConfig, *, batch_size: int, reference: int = 16, rule: Literal["linear", "sqrt"] = "linear"
) -> OptimizerConfig:
    """Adapt settings for a batch of ``reference`` images to ``batch_size``, for the same number of epochs.

    Steps shrink as the batch grows. The learning rate grows with the batch (``linear``, as detectron2 does it) or with
    its square root (``sqrt``, which suits Adam's normalised updates better when the batch is much larger). The warm-up
    keeps its number of images.
    """
    scale = batch_size / reference
    return dataclasses.replace(
        config,
        learning_rate=config.learning_rate * (scale if rule == "linear" else scale**0.5),
        num_steps=max(1, round(config.num_steps / scale)),
        drop_steps=tuple(round(step / scale) for step in config.drop_steps),
        warmup_steps=round(config.warmup_steps / scale),
    )


def make_schedule(config: OptimizerConfig) -> optax.Schedule:
    """Return the learning rate as a function of the step, which counts from 0."""

    def learning_rate(step: jax.typing.ArrayLike) -> jax.Array:
        step = jnp.asarray(step)
        progress = jnp.minimum(step / max(config.warmup_steps, 1), 1) if config.warmup_steps else 1.0
        warmup = config.warmup_factor * (1 - progress) + progress
        drops = jnp.sum(step >= jnp.asarray(config.drop_steps, jnp.int32))
        return config.learning_rate * warmup * config.drop_factor**drops

    return learning_rate


def clip_by_global_norm(max_norm: float) -> optax.GradientTransformation:
    """Scale gradients by min(1, max_norm / (norm + 1e-6)), the norm being that of all of them together."""
    # Matches the authors' code: PyTorch adds 1e-6, which optax.clip_by_global_norm does not.

    def clip(updates: Any, params: Any = None) -> Any:
        del params
        scale = jnp.minimum(1.0, max_norm / (optax.tree.norm(updates) + 1e-6))
        return jax.tree.map(lambda update: update * scale, updates)

    return optax.stateless(clip)


def make_optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
    """Return the authors' update: clipping, then AdamW with decoupled decay."""
    return optax.chain(
        clip_by_global_norm(config.clip_norm),
        optax.scale_by_adam(config.beta1, config.beta2, config.epsilon),
        optax.add_decayed_weights(config.weight_decay, mask=lambda params: apply_rules(params, DECAY_RULES)),
        optax.scale_by_learning_rate(make_schedule(config)),
    )
