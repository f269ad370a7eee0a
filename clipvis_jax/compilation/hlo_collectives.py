"""What a compiled program sends between chips, read from its text (XLA's HLO)."""

import dataclasses
import math
import re
from collections import defaultdict

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")

_COMPUTATION = re.compile(r"^(?P<entry>ENTRY )?%?(?P<name>[\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?(?P<name>[\w.\-]+) = (?P<rest>.*)$")
_OPCODE = re.compile(r"(?:^|[\s)}\]])(?P<opcode>[a-z][a-z0-9\-]*)\((?P<operands>[^()]*)\)")
_ARRAY = re.compile(r"\b(?P<type>pred|[a-z]+\d+[a-z0-9]*)\[(?P<shape>[\d,]*)\]")
_CALLED = re.compile(
    r"\b(?:calls|to_apply|body|condition|true_computation|false_computation|branch_computations|called_computations)="
    r"(?:\{(?P<many>[^}]*)\}|%?(?P<one>[\w.\-]+))"
)
_TRIP_COUNT = re.compile(r'known_trip_count"?[=:]\{"?n"?[=:]"?(\d+)')
_CONSTANT = re.compile(r"s32\[\]\S* constant\((\d+)\)")


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


@dataclasses.dataclass
class _Computation:
    """A function of the program: its lines by name, in order."""

    lines: dict[str, str] = dataclasses.field(default_factory=dict)
    is_entry: bool = False


def find_collectives(hlo_text: str) -> tuple[Collectives, ...]:
    """Sum up the collectives of a compiled program, by kind.

    Loops count with their number of rounds where it is in the text, else once.
    """
    computations = _split(hlo_text)
    found: dict[tuple[str, str], _Collective] = defaultdict(_Collective)
    executions = _count_executions(computations)
    for name, computation in computations.items():
        for instruction, text in computation.lines.items():
            match = _OPCODE.search(text)
            if match is None or executions[name] == 0:
                continue
            opcode = match["opcode"]
            kind = opcode.removesuffix("-start")
            if kind not in KINDS:
                continue
            operands = sum(
                _size(_result(computation.lines[operand]))
                for operand in re.findall(r"%?([\w.\-]+)\s*(?:,|$)", match["operands"])
                if operand in computation.lines
            )
            result = _size(text[: match.start("opcode")])
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


def _split(hlo_text: str) -> dict[str, _Computation]:
    computations: dict[str, _Computation] = {}
    current = _Computation()
    for line in hlo_text.splitlines():
        if match := _COMPUTATION.match(line):
            current = computations[match["name"]] = _Computation(is_entry=bool(match["entry"]))
        elif match := _INSTRUCTION.match(line):
            current.lines[match["name"]] = match["rest"]
    return computations


def _count_executions(computations: dict[str, _Computation]) -> dict[str, int]:
    """Count how often every computation runs: its callers' executions, times the rounds of a loop."""
    callers: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for name, computation in computations.items():
        for text in computation.lines.values():
            rounds = _rounds(text, computations) if " while(" in text else 1
            for match in _CALLED.finditer(text):
                for called in re.findall(r"[\w.\-]+", match["many"] or match["one"]):
                    callers[called].append((name, rounds))
    executions: dict[str, int] = {name: 1 for name, computation in computations.items() if computation.is_entry}

    def count(name: str) -> int:
        if name not in executions:
            executions[name] = 0  # nothing calls itself
            executions[name] = sum(count(caller) * rounds for caller, rounds in callers[name])
        return executions[name]

    return {name: count(name) for name in computations}


def _rounds(loop: str, computations: dict[str, _Computation]) -> int:
    """Return how many rounds a loop makes, 1 if that is not to be seen."""
    if match := _TRIP_COUNT.search(loop):
        return int(match[1])
    condition = re.search(r"condition=%?([\w.\-]+)", loop)
    lines = computations[condition[1]].lines.values() if condition and condition[1] in computations else ()
    # JAX's loops over an axis count from 0 up to a constant.
    constants = [int(match[1]) for text in lines if (match := _CONSTANT.search(text))]
    return constants[0] if len(constants) == 1 else 1


def _result(text: str) -> str:
    match = _OPCODE.search(text)
    return text[: match.start("opcode")] if match else text


def _size(shapes: str) -> int:
    """Return the bytes of all arrays in the text of a type, layouts aside."""
    total = 0
    for match in _ARRAY.finditer(re.sub(r"\{[^}]*\}", "", shapes)):
        numbers = [int(number) for number in match["shape"].split(",") if number]
        bits = 8 if match["type"] == "pred" else int(re.search(r"\d+", match["type"])[0])  # type: ignore[index]
        total += math.ceil(math.prod(numbers) * bits / 8)
    return total
