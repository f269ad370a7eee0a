"""Compiled programs as text (XLA's HLO): their functions, how often each runs, and how large arrays are.

By hand, because XLA's own reader is not in jaxlib's public interface.
"""

import dataclasses
import math
import re
from collections import defaultdict

OPCODE = re.compile(r"(?:^|[\s)}\]])(?P<opcode>[a-z][a-z0-9\-]*)\((?P<operands>[^()]*)\)")
"""An instruction's operation and its operands."""

_COMPUTATION = re.compile(r"^(?P<entry>ENTRY )?%?(?P<name>[\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?(?P<name>[\w.\-]+) = (?P<rest>.*)$")
_ARRAY = re.compile(r"\b(?P<type>pred|[a-z]+\d+[a-z0-9]*)\[(?P<shape>[\d,]*)\]")
_CALLED = re.compile(
    r"\b(?:calls|to_apply|body|condition|true_computation|false_computation|branch_computations|called_computations)="
    r"(?:\{(?P<many>[^}]*)\}|%?(?P<one>[\w.\-]+))"
)
_TRIP_COUNT = re.compile(r'known_trip_count"?[=:]\{"?n"?[=:]"?(\d+)')
_CONSTANT = re.compile(r"s32\[\]\S* constant\((\d+)\)")


@dataclasses.dataclass
class Computation:
    """A function of the program: its lines by name, in order."""

    lines: dict[str, str] = dataclasses.field(default_factory=dict)
    is_entry: bool = False


def split(hlo_text: str) -> dict[str, Computation]:
    """Return the functions of a program by name."""
    computations: dict[str, Computation] = {}
    current = Computation()
    for line in hlo_text.splitlines():
        if match := _COMPUTATION.match(line):
            current = computations[match["name"]] = Computation(is_entry=bool(match["entry"]))
        elif match := _INSTRUCTION.match(line):
            current.lines[match["name"]] = match["rest"]
    return computations


def count_executions(computations: dict[str, Computation]) -> dict[str, int]:
    """Count how often every computation runs: its callers' executions, times the rounds of a loop."""
    callers: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for name, computation in computations.items():
        for text in computation.lines.values():
            rounds = _rounds(text, computations) if " while(" in text else 1
            for called in called_by(text):
                callers[called].append((name, rounds))
    executions: dict[str, int] = {name: 1 for name, computation in computations.items() if computation.is_entry}

    def count(name: str) -> int:
        if name not in executions:
            executions[name] = 0  # nothing calls itself
            executions[name] = sum(count(caller) * rounds for caller, rounds in callers[name])
        return executions[name]

    return {name: count(name) for name in computations}


def _rounds(loop: str, computations: dict[str, Computation]) -> int:
    """Return how many rounds a loop makes, 1 if that is not to be seen."""
    if match := _TRIP_COUNT.search(loop):
        return int(match[1])
    condition = re.search(r"condition=%?([\w.\-]+)", loop)
    lines = computations[condition[1]].lines.values() if condition and condition[1] in computations else ()
    # JAX's loops over an axis count from 0 up to a constant.
    constants = [int(match[1]) for text in lines if (match := _CONSTANT.search(text))]
    return constants[0] if len(constants) == 1 else 1


def called_by(text: str) -> list[str]:
    """Return the names of the functions that an instruction calls."""
    return [name for match in _CALLED.finditer(text) for name in _names(match)]


def _names(match: re.Match[str]) -> list[str]:
    return re.findall(r"[\w.\-]+", match["many"] or match["one"])


def result_of(text: str) -> str:
    """Return the type of an instruction's result."""
    match = OPCODE.search(text)
    return text[: match.start("opcode")] if match else text


def size_of(shapes: str) -> int:
    """Return the bytes of all arrays in the text of a type, layouts aside."""
    total = 0
    for match in _ARRAY.finditer(re.sub(r"\{[^}]*\}", "", shapes)):
        numbers = [int(number) for number in match["shape"].split(",") if number]
        bits = 8 if match["type"] == "pred" else int(re.search(r"\d+", match["type"])[0])  # type: ignore[index]
        total += math.ceil(math.prod(numbers) * bits / 8)
    return total


def operand_sizes(text: str, computation: Computation) -> list[int]:
    """Return the bytes of an instruction's operands."""
    match = OPCODE.search(text)
    names = re.findall(r"%?([\w.\-]+)\s*(?:,|$)", match["operands"]) if match else []
    return [size_of(result_of(computation.lines[name])) for name in names if name in computation.lines]
