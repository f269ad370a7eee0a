"""Count the matrix products of a traced function, those in loops as often as the loops run."""

import math
from typing import Any

from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn


def count_matmul_flops(jaxpr: ClosedJaxpr | Jaxpr) -> int:
    """Return the floating-point operations of all products and convolutions, over all devices.

    A product and the addition that follows it are two. Where only one of several branches runs, the largest counts, of
    forms for different platforms the smallest; of a loop whose end is not known beforehand, one round. XLA's own count
    takes one round of any loop.
    """
    inner = jaxpr.jaxpr if isinstance(jaxpr, ClosedJaxpr) else jaxpr
    return sum(_count_equation(equation) for equation in inner.eqns)


def _count_equation(equation: JaxprEqn) -> int:
    match equation.primitive.name:
        case "dot_general":
            return 2 * math.prod(_shape(equation.outvars[0])) * _contracted(equation)
        case "conv_general_dilated":
            return 2 * math.prod(_shape(equation.outvars[0])) * _window(equation)
        case "cond":
            # Forms for different platforms are the same computation; what some add are no products of the model.
            smallest_or_largest = max if equation.params.get("branches_platforms") is None else min
            return smallest_or_largest(count_matmul_flops(branch) for branch in equation.params["branches"])
        case "scan":
            return equation.params["length"] * count_matmul_flops(equation.params["jaxpr"])
        case "shard_map":
            return equation.params["mesh"].size * count_matmul_flops(equation.params["jaxpr"])
        case _:
            inner = (x for value in equation.params.values() for x in _jaxprs(value))
            return sum(count_matmul_flops(jaxpr) for jaxpr in inner)


def _jaxprs(value: Any) -> list[ClosedJaxpr | Jaxpr]:
    if isinstance(value, ClosedJaxpr | Jaxpr):
        return [value]
    return [x for part in value for x in _jaxprs(part)] if isinstance(value, list | tuple) else []


def _shape(variable: Any) -> tuple[int, ...]:
    return variable.aval.shape


def _contracted(equation: JaxprEqn) -> int:
    """Return the length of the sum behind every number of a product."""
    (contracting, _), _ = equation.params["dimension_numbers"]
    shape = _shape(equation.invars[0])
    return math.prod(shape[axis] for axis in contracting)


def _window(equation: JaxprEqn) -> int:
    """Return how many products are added up in every number of a convolution, its padding included.

    In the gradient of a strided convolution most of them have a zero between the strides, and do not count.
    """
    spec = equation.params["dimension_numbers"].rhs_spec
    kernel = _shape(equation.invars[1])
    products = math.prod(kernel) // kernel[spec[0]]
    return products // math.prod(equation.params["lhs_dilation"])
