"""What a compiled program sends between chips, read from its text (XLA's HLO)."""

import dataclasses
import re
from collections import defaultdict

from clipvis_jax.compilation.hlo_text import OPCODE, count_executions, operand_sizes, size_of, split

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")


@dataclasses.dataclass(frozen=True)
class Collectives:
    """All collectives of one kind.

    Attributes:
        kind: One of ``KINDS``.
        instructions: How many of them the program has.
        executions: How often they run in all; those in a loop run as often as the loop.
        size: Bytes on each chip, of all executions together: of the operands or of the results, whichever are more.
    """

    kind: str
    instructions: int
    executions: int
    size: int


@dataclasses.dataclass
class _Collective:
    """One collective; compilers write one several times, in parts that overlap with computation, under one id."""

    size: int = 0
    executions: int = 0


def find_collectives(hlo_text: str) -> tuple[Collectives, ...]:
    """Sum up the collectives of a compiled program, by kind.

    Loops count with their number of rounds where it is in the text, else once.
    """
    computations = split(hlo_text)
    found: dict[tuple[str, str], _Collective] = defaultdict(_Collective)
    executions = count_executions(computations)
    for name, computation in computations.items():
        for instruction, text in computation.lines.items():
            match = OPCODE.search(text)
            if match is None or executions[name] == 0:
                continue
            opcode = match["opcode"]
            kind = opcode.removesuffix("-start")
            if kind not in KINDS:
                continue
            operands = sum(operand_sizes(text, computation))
            result = size_of(text[: match.start("opcode")])
            # What an asynchronous one returns holds its operands as well.
            size = max(operands, result - operands if opcode != kind else result)
            channel = re.search(r"channel_id=(\d+)", text)
            collective = found[kind, channel[1] if channel else f"{name}/{instruction}"]
            collective.size = max(collective.size, size)
            collective.executions = max(collective.executions, executions[name])
    return tuple(
        Collectives(
            kind,
            instructions=len(own),
            executions=sum(collective.executions for collective in own),
            size=sum(collective.size * collective.executions for collective in own),
        )
        for kind in KINDS
        if (own := [collective for (found_kind, _), collective in found.items() if found_kind == kind])
    )
