"""Training of the batch norms that CLIP's ResNets have, which all else uses with stored statistics."""

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from clipvis_jax.models.clip_resnet import FrozenBatchNorm

STATISTICS = "statistics"
"""Collection in which norms leave what they saw of a batch; make it mutable in ``apply``."""


@contextmanager
def batch_statistics() -> Generator[None, None, None]:
    """Within this block, batch norms use the mean and variance of the batch (of all devices) and leave them behind."""

    def normalize(next_call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], context: Any) -> Any:
        norm = context.module
        if not isinstance(norm, FrozenBatchNorm) or context.method_name != "__call__" or norm.is_initializing():
            return next_call(*args, **kwargs)
        x = args[0].astype(jnp.float32)
        mean = jnp.mean(x, axis=(0, 1, 2))
        var = jnp.mean(jnp.square(x), axis=(0, 1, 2)) - jnp.square(mean)
        for name, value in (("mean", mean), ("var", var)):
            norm.sow(STATISTICS, name, jax.lax.stop_gradient(value), reduce_fn=lambda _, new: new, init_fn=lambda: None)
        params = norm.variables["params"]
        factor = params["scale"] * jax.lax.rsqrt(var + 1e-5)
        return (x * factor + (params["bias"] - mean * factor)).astype(norm.dtype)

    with nn.intercept_methods(normalize):
        yield


def update_statistics(params: Mapping[str, Any], statistics: Mapping[str, Any], momentum: float) -> dict[str, Any]:
    """Move stored means and variances towards those of a batch; everything else stays.

    Args:
        params: A tree of parameters.
        statistics: What ``batch_statistics`` collected while it was applied.
        momentum: Weight of what is stored, 0..1.
    """
    updated = dict(params)
    for name, value in statistics.items():
        old = params[name]
        updated[name] = (
            update_statistics(old, value, momentum)
            if isinstance(value, Mapping)
            else momentum * old + (1 - momentum) * value
        )
    return updated
