"""Bounds of the sizes in configurations: far above published models, and low enough to be built in seconds.

A configuration may come with weights from anywhere; one of a million layers would keep a machine busy until it dies.
"""

import dataclasses
from typing import Any, get_args, get_origin

from clipvis_jax.errors import InputError

MAX_INPUT_SIDE = 2**14
"""Longest side of the network's input, in pixels."""
_HIGHEST = {
    "num_layers": 64,
    "depths": 64,
    "num_heads": 256,
    "num_points": 16,
    "num_queries": 10_000,
    "context_length": 4096,
    "vocab_size": 2**20,
    "pool_grid": 256,
}
_HIGHEST_WIDTH = 2**14
"""Of everything else that is a number of channels."""


def check_sizes(part: str, config: Any) -> None:
    """Check the fields of a part's configuration: whole numbers within bounds, choices that exist.

    Args:
        part: What messages call it.
        config: A dataclass of whole numbers, tuples of them, ``Literal``s and floats between 0 and 1.

    Raises:
        InputError: One line that names the field and what it may be.
    """
    for field in dataclasses.fields(config):
        value, where = getattr(config, field.name), f"{part}.{field.name}"
        choices = get_args(field.type)
        if get_origin(field.type) is tuple:
            if not isinstance(value, tuple) or len(value) != len(choices):
                raise InputError(f"{where} {value!r}: give {len(choices)} whole numbers")
            numbers = value
        elif choices:
            if value not in choices:
                raise InputError(f"{where} {value!r}: give one of {', '.join(choices)}")
            continue
        elif field.type is float:
            if not (isinstance(value, float) and 0 < value < 1):
                raise InputError(f"{where} {value!r}: give a number between 0 and 1")
            continue
        else:
            numbers = (value,)
        highest = _HIGHEST.get(field.name, _HIGHEST_WIDTH)
        for number in numbers:
            if type(number) is not int or not 1 <= number <= highest:
                raise InputError(f"{where} {number!r}: give a whole number from 1 to {highest}")
