"""Where the kernels of a program that was compiled for a GPU are: by part of the model and by kind; no GPU needed.

A kernel is a fusion or a library call of the program's text, those of loops times their rounds. Copies beside them and
what a library call starts on its own are not in it. What an instruction reads and writes counts whole, also where it
looks single rows up: an upper bound.
"""

import dataclasses
import re
from collections import defaultdict

from clipvis_jax.compilation.hlo_text import (
    OPCODE,
    Computation,
    called_by,
    count_executions,
    operand_sizes,
    result_of,
    size_of,
    split,
)

_PARTS = {
    r"ResNetTrunk|ConvNextTrunk": "image encoder",
    r"PixelDecoder/layer\d+/attention/": "deformable attention",
    r"PixelDecoder": "pixel decoder, the rest",
    r"QueryDecoder": "query decoder",
    r"while/body": "matching and losses, in loops",
    r"jvp": "losses, the rest",
}
_OPTIMIZER = "optimizer and the rest"
_KINDS = {
    "scatter-adds": ("scatter",),
    "look-ups": ("gather", "dynamic-slice"),
    "sums": ("reduce", "reduce-window"),
}
"""Kinds of fusions by the operations in them, the first that applies."""
_MOVES = {"parameter", "constant", "copy", "transpose", "bitcast", "reshape", "slice", "concatenate", "pad", "convert"}
"""Of a fusion that only moves numbers."""
_CONTROL_FLOW = ("while", "conditional", "call")


@dataclasses.dataclass(frozen=True)
class Kernels:
    """All kernels of a part and a kind.

    Attributes:
        part: Of the model, forward or backward.
        kind: What they do.
        executions: How often they run in a step.
        bytes: What they read and write, an upper bound.
        estimated_us: XLA's estimate of those that are loop fusions (element by element, look-ups), in microseconds.
            It has none worth the name of others.
    """

    part: str
    kind: str
    executions: int
    bytes: int
    estimated_us: float


def find_kernels(hlo_text: str) -> tuple[Kernels, ...]:
    """Sum up the kernels of a program, the most frequent first."""
    computations = split(hlo_text)
    executions = count_executions(computations)
    totals: dict[tuple[str, str], list[float]] = defaultdict(lambda: [0, 0, 0.0])
    for name in _control_flow(computations):
        for text in computations[name].lines.values():
            match = OPCODE.search(text)
            if match is None or match["opcode"] not in ("fusion", "custom-call"):
                continue
            size = size_of(result_of(text)) + sum(operand_sizes(text, computations[name]))
            estimate = re.search(r'"exec_time_us":([\d.e+-]+)', text) if "kind=kLoop" in text else None
            total = totals[_part(text), _kind(text, computations)]
            total[0] += executions[name]
            total[1] += executions[name] * size
            total[2] += executions[name] * float(estimate[1]) if estimate else 0
    kernels = [Kernels(*key, int(count), int(size), us) for key, (count, size, us) in totals.items()]
    return tuple(sorted(kernels, key=lambda row: -row.executions))


def _control_flow(computations: dict[str, Computation]) -> list[str]:
    """Return the functions whose instructions start kernels: the entry, and what loops and branches run."""
    found = [name for name, computation in computations.items() if computation.is_entry]
    for name in found:  # grows while it is gone through
        for text in computations[name].lines.values():
            match = OPCODE.search(text)
            if match and match["opcode"] in _CONTROL_FLOW:
                # Loops of known length do not compute their condition.
                called = called_by(text.replace("condition=", "ignored="))
                found += [name for name in called if name in computations and name not in found]
    return found


def _part(text: str) -> str:
    source = re.search(r'op_name="([^"]*)"', text)
    path = source[1] if source else ""
    part = next((part for regex, part in _PARTS.items() if re.search(regex, path)), _OPTIMIZER)
    return part if part == _OPTIMIZER else f"{part}, {'backward' if 'transpose(jvp' in path else 'forward'}"


def _kind(text: str, computations: dict[str, Computation]) -> str:
    if re.search(r'"__(cudnn|cublas|triton)', text):
        return "products"
    if " custom-call(" in text:
        return "library calls"
    operations = set()
    for name in called_by(text):
        lines = computations[name].lines.values() if name in computations else ()
        operations |= {match["opcode"] for line in lines if (match := OPCODE.search(line))}
    for kind, names in _KINDS.items():
        if operations & set(names):
            return kind
    return "copies" if operations and operations <= _MOVES else "element by element"
