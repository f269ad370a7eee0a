"""Captioned images for the pretraining of CLIP: sentences about images and about regions of them."""

import dataclasses
from collections import Counter
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8

from clipvis_jax.data.records import Box
from clipvis_jax.data.shapes.classes import CLASSES, COLOURS, PATTERNS, SHAPES
from clipvis_jax.data.shapes.frames import draw_frame, draw_labels
from clipvis_jax.data.shapes.outlines import area
from clipvis_jax.data.shapes.scenes import Actor, build_scene
from clipvis_jax.data.shapes.splits import ShapesConfig

_ENTROPY_OF_CAPTIONS = 3

_TEMPLATES = (
    "{}",
    "{}.",
    "a photo of {}.",
    "This is a photo of {}",
    "There is {} in the scene",
    "a photo of {} in the scene",
)
"""Sentences in the words of `text.PROMPT_TEMPLATES`, in which classes are asked for later."""

_NUMBERS = ("a", "two", "three", "four", "five", "six", "seven", "eight")
_SMALL, _LARGE = 0.115, 0.165
"""Radii, as parts of the image's side, below and above which an object is called small and large."""

_SIZE_WORDS = ("small", "medium", "large")
_SIZED_SHARE = 0.25
"""How often a caption says how large an object is."""

_MIN_VISIBLE = 0.5
"""Captions speak of objects that show at least half of their area."""


@dataclasses.dataclass(frozen=True, slots=True)
class Region:
    """An object of an image: the box around what is visible of it, and a sentence about it alone."""

    box: Box
    class_number: int
    name: str
    caption: str


@dataclasses.dataclass(frozen=True)
class CaptionedImage:
    """An image, a sentence about all objects that show well, and one about each of them. Never empty."""

    image: UInt8[np.ndarray, "h w 3"]
    caption: str
    regions: tuple[Region, ...]


def draw_captioned(config: ShapesConfig, index: int, variant: int = 0) -> CaptionedImage:
    """Draw image ``index`` of a split with its captions; usually of the split ``captions``, which has no unseen class.

    Args:
        config: Its number of frames plays no role: an image is a video of one frame.
        index: The image's number.
        variant: Other sentences about the same image.

    Raises:
        InputError: The split has no such image.
    """
    config = dataclasses.replace(config, frames=1)
    scene = build_scene(config, index)
    labels = draw_labels(scene, 0)
    actors = [actor for actor in scene.actors if actor.class_number is not None]
    visible = np.bincount(labels.ravel(), minlength=len(actors) + 1)[1:]
    shares = visible / [area(actor.figure.shape) * actor.poses[0].radius ** 2 for actor in actors]
    described = [i for i in range(len(actors)) if shares[i] >= _MIN_VISIBLE] or [int(np.argmax(shares))]

    rng = np.random.default_rng((_ENTROPY_OF_CAPTIONS, config.seed, *config.video_seeds(index, 1), variant))
    names = [_class_name(actors[i]) for i in described]
    sizes = [_size_word(actors[i].poses[0].radius / config.size) for i in described]
    regions = tuple(
        Region(_box(labels == i + 1), actors[i].class_number or 0, name, write_caption([name], [size], rng))
        for i, name, size in zip(described, names, sizes, strict=True)
    )
    return CaptionedImage(draw_frame(scene, 0), write_caption(names, sizes, rng), regions)


def write_caption(names: Sequence[str], sizes: Sequence[str], rng: np.random.Generator) -> str:
    """Write a sentence that names some objects in any order.

    Args:
        names: The objects' class names; several of one class are counted ("two plain red circles").
        sizes: "small", "medium" or "large" for each object; mentioned now and then.
        rng: Source of all choices.
    """
    things = [
        f"{size} {name}" if rng.random() < _SIZED_SHARE else name for name, size in zip(names, sizes, strict=True)
    ]
    counted = list(Counter(things).items())
    phrases = [_counted(*counted[i]) for i in rng.permutation(len(counted))]
    listed = " and ".join([", ".join(phrases[:-1]), phrases[-1]] if len(phrases) > 1 else phrases)
    template = _TEMPLATES[rng.integers(len(_TEMPLATES))]
    if not listed.startswith("a "):
        template = template.replace("There is", "There are")
    return template.format(listed)


def caption_words() -> tuple[str, ...]:
    """Return every word and mark that captions consist of, in lower case: what a tokenizer must know."""
    words = {word for template in _TEMPLATES for word in template.lower().replace("{}", "").rstrip(".").split()}
    words |= {"the", "are", "and", ",", ".", *_NUMBERS, *_SIZE_WORDS}
    return tuple(sorted(words | {*PATTERNS, *COLOURS, *SHAPES} | {_plural(shape) for shape in SHAPES}))


def _class_name(actor: Actor) -> str:
    return CLASSES[actor.class_number or 0].name


def _counted(thing: str, number: int) -> str:
    return f"{_NUMBERS[number - 1]} {thing if number == 1 else _plural(thing)}"


def _plural(thing: str) -> str:
    return f"{thing}es" if thing.endswith("cross") else f"{thing}s"


def _size_word(radius: float) -> str:
    return "small" if radius < _SMALL else "large" if radius > _LARGE else "medium"


def _box(mask: np.ndarray) -> Box:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    left, top = int(columns[0]), int(rows[0])
    return float(left), float(top), float(columns[-1] + 1 - left), float(rows[-1] + 1 - top)
