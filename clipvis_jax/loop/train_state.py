"""What a training carries from step to step."""

from typing import Any

import flax.struct
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, UInt32


@flax.struct.dataclass
class TrainState:
    """All that a training run carries from step to step, besides the place in the data.

    ``step`` counts finished steps. Every random draw hangs on ``seed`` and ``step``.
    """

    step: Int[Array, ""]
    seed: UInt32[Array, ""]
    params: Any
    opt_state: Any

    @classmethod
    def first(cls, optimizer: optax.GradientTransformation, seed: int, params: Any) -> "TrainState":
        """Return the state before the first step."""
        return cls(jnp.zeros((), jnp.int32), jnp.asarray(seed, jnp.uint32), params, optimizer.init(params))
