"""The 360 classes of the Shapes world, and which part of them a training may see.

A class is a pattern, a colour and a shape, and its name says the three: "striped teal star". Its part is one of

- ``base``: masks and captions are seen in training,
- ``novel``: only captions are seen, never masks,
- ``unseen``: nothing is seen; its pattern, its colour and its shape are known from other classes.
"""

import dataclasses
import functools
from typing import Literal, get_args

from clipvis_jax.data.records import Category

Rgb = tuple[int, int, int]
Part = Literal["base", "novel", "unseen"]

SHAPES = (
    "arrow",
    "bolt",
    "circle",
    "cross",
    "diamond",
    "flower",
    "heart",
    "moon",
    "ring",
    "square",
    "star",
    "triangle",
)

COLOURS: dict[str, Rgb] = {
    "red": (214, 32, 38),
    "orange": (255, 136, 14),
    "yellow": (250, 220, 40),
    "green": (56, 160, 44),
    "teal": (20, 184, 176),
    "blue": (40, 84, 224),
    "purple": (132, 48, 184),
    "pink": (255, 142, 196),
    "brown": (112, 70, 44),
    "white": (244, 244, 240),
}

PATTERNS = ("plain", "striped", "dotted")

PARTITIONS: dict[Part, int] = {"base": 0, "novel": 2, "unseen": 3}
"""A part's number in `Category.partition`: 0 is base, 2 and 3 are novel for the evaluator."""

_PARTS: tuple[Part, ...] = get_args(Part)
_CYCLE = 20
_FIRST_NOVEL, _FIRST_UNSEEN = 12, 17
"""Of 20 classes 12 are base, 5 novel and 3 unseen."""


@dataclasses.dataclass(frozen=True, slots=True)
class ShapeClass:
    """What a class looks like: one of `PATTERNS`, of `COLOURS` and of `SHAPES`."""

    pattern: str
    colour: str
    shape: str

    @property
    def name(self) -> str:
        """The class's name, for example "striped teal star"."""
        return f"{self.pattern} {self.colour} {self.shape}"

    @property
    def part(self) -> Part:
        """The part of the classes that it belongs to."""
        # Diagonals through the cube of all classes, so chosen that the parts have 216, 90 and 54 classes, that every
        # pattern, colour and shape occurs in each part in nearly equal shares, and every pair of them in base.
        rank = (
            17 * SHAPES.index(self.shape) + 2 * tuple(COLOURS).index(self.colour) + 7 * PATTERNS.index(self.pattern)
        ) % _CYCLE
        return "base" if rank < _FIRST_NOVEL else "novel" if rank < _FIRST_UNSEEN else "unseen"

    def likeness(self, other: "ShapeClass") -> int:
        """Count what two classes share of pattern, colour and shape, 0 to 3."""
        return (self.pattern == other.pattern) + (self.colour == other.colour) + (self.shape == other.shape)


CLASSES = tuple(ShapeClass(pattern, colour, shape) for shape in SHAPES for colour in COLOURS for pattern in PATTERNS)
"""All classes; a class's number is its place here."""


def class_names() -> tuple[str, ...]:
    """Return the names of all classes, in the order of their numbers."""
    return tuple(shape_class.name for shape_class in CLASSES)


@functools.cache
def classes_of(parts: tuple[Part, ...]) -> tuple[int, ...]:
    """Return the numbers of all classes of some parts."""
    return tuple(number for number, shape_class in enumerate(CLASSES) if shape_class.part in parts)


def categories() -> tuple[Category, ...]:
    """Return all classes as categories; their ids are their numbers plus one."""
    return tuple(
        Category(number + 1, shape_class.name, partition=PARTITIONS[shape_class.part])
        for number, shape_class in enumerate(CLASSES)
    )
