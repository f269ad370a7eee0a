"""Scenes: what is in a video and how it moves, worked out before anything is drawn.

Lengths are first parts of the frame's side and times parts of the scene's duration, so that the same seed gives the
same objects on the same ways at any size and any number of frames from two on. A single frame is of another scene.
"""

import dataclasses
import math
from functools import cached_property

import numpy as np
from jaxtyping import Float, Int

from clipvis_jax.data.shapes.backgrounds import clutter_figure, make_background
from clipvis_jax.data.shapes.classes import CLASSES, COLOURS, classes_of
from clipvis_jax.data.shapes.drawing import Figure, Pose
from clipvis_jax.data.shapes.splits import SPLITS, ShapesConfig, Split

Times = Float[np.ndarray, " t"]

_MARGIN = 0.1
"""How much of the background lies outside the frame at each side, for the camera to move."""

_MIN_RADIUS, _MAX_RADIUS = 0.095, 0.22
_ALWAYS_IN_SIGHT = 2
"""So many objects are in front of everything and never leave: every video shows two."""

_ENTROPY_OF_CLASSES, _ENTROPY_OF_SCENE, _ENTROPY_OF_NOISE = 0, 1, 2
"""Keep random streams of one seed apart."""


@dataclasses.dataclass(frozen=True, slots=True)
class Actor:
    """A figure and its pose in every frame. ``class_number`` is None for a distractor, which is of no class."""

    figure: Figure
    class_number: int | None
    poses: tuple[Pose, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Bar:
    """A post or beam across the picture from pixel ``start`` to ``stop``; actors before ``rank`` are behind it."""

    upright: bool
    start: int
    stop: int
    colour: Float[np.ndarray, " 3"]
    rank: int


@dataclasses.dataclass(frozen=True)
class Scene:
    """All that `frames` needs to draw any frame.

    Attributes:
        size: Height and width of the frames in pixels.
        margin: By how much the background is larger than the frames on each side.
        background_seed: Decides the background.
        actors: From back to front.
        bars: In the order of their ranks.
        camera: How far everything is moved in each frame, right and down, in whole pixels.
        light: Direction of the light on the screen.
        shadows: Whether actors have shadows.
        gains: Brightness of each frame and channel.
        shading: Brightness of each place in the frame.
        noise: Standard deviation of the noise.
        noise_entropy: Seed of the noise; the frame's number is put after it.
    """

    size: int
    margin: int
    background_seed: np.random.SeedSequence
    actors: tuple[Actor, ...]
    bars: tuple[Bar, ...]
    camera: Int[np.ndarray, "t 2"]
    light: tuple[float, float]
    shadows: bool
    gains: Float[np.ndarray, "t 3"]
    shading: Float[np.ndarray, "h w 1"]
    noise: float
    noise_entropy: tuple[int, ...]

    @cached_property
    def background(self) -> Float[np.ndarray, "rows columns 3"]:
        """What is behind everything; drawn when it is asked for, which ground truth alone need not wait for."""
        rng = np.random.default_rng(self.background_seed)
        return make_background(rng, self.size + 2 * self.margin, self.size, most_clutter=5)


def build_scene(config: ShapesConfig, index: int) -> Scene:
    """Work out video ``index`` of a split.

    Raises:
        InputError: The split has no such video.
    """
    (video_seed,) = config.video_seeds(index, 1)
    split = SPLITS[config.split]
    seed = np.random.SeedSequence((_ENTROPY_OF_SCENE, config.seed, video_seed))
    rng = np.random.default_rng(seed)
    # How many numbers these two draw depends on the size and the number of frames, on which nothing else may depend.
    background_seed, camera_seed = seed.spawn(2)
    first, last = 0.5 - split.duration / 2, 0.5 + split.duration / 2
    times = np.linspace(first, last, config.frames) if config.frames > 1 else rng.random(1)

    lowest, highest = split.instances
    class_numbers = _choose_classes(rng, config, index, int(rng.integers(lowest, highest + 1)))
    actors = _make_actors(rng, split, class_numbers, times, config.size)
    bars = _make_bars(rng, split, len(class_numbers), config.size) if rng.random() < 0.6 or split.bars > 2 else []
    for _ in range(rng.integers(3)):
        actors.insert(0, _make_distractor(rng, times, config.size))
        bars = [dataclasses.replace(bar, rank=bar.rank + 1) for bar in bars]

    margin = math.ceil(_MARGIN * config.size)
    angle = float(rng.uniform(0, 2 * math.pi))
    return Scene(
        size=config.size,
        margin=margin,
        background_seed=background_seed,
        actors=tuple(actors),
        bars=tuple(sorted(bars, key=lambda bar: bar.rank)),
        camera=_move_camera(np.random.default_rng(camera_seed), times, config.size, margin),
        light=(math.cos(angle), math.sin(angle)),
        shadows=bool(rng.random() < 0.6),
        gains=_change_light(rng, times),
        shading=_shade(rng, config.size),
        noise=float(rng.uniform(0, 7)),
        noise_entropy=(_ENTROPY_OF_NOISE, config.seed, video_seed),
    )


def _choose_classes(rng: np.random.Generator, config: ShapesConfig, index: int, count: int) -> list[int]:
    """Choose a class for each object, the frontmost first."""
    split = SPLITS[config.split]
    allowed = classes_of(split.parts)
    # The first two go round all classes, so that a set of some hundred videos shows each of them.
    chosen = []
    for turn in (2 * index, 2 * index + 1):
        entropy = (_ENTROPY_OF_CLASSES, config.seed, split.seeds.start, turn // len(allowed))
        chosen.append(allowed[np.random.default_rng(entropy).permutation(len(allowed))[turn % len(allowed)]])
    while len(chosen) < count:
        model = chosen[rng.integers(len(chosen))]
        kind = rng.random()
        if kind < split.twin:
            chosen.append(model)
        elif kind < split.twin + split.look_alike:
            similar = [number for number in allowed if CLASSES[number].likeness(CLASSES[model]) == 2]
            chosen.append(similar[rng.integers(len(similar))])
        else:
            chosen.append(allowed[rng.integers(len(allowed))])
    return chosen


def _make_actors(
    rng: np.random.Generator, split: Split, class_numbers: list[int], times: Times, size: int
) -> list[Actor]:
    """Give every object its way; returns them from back to front."""
    radii = _MIN_RADIUS * (_MAX_RADIUS / _MIN_RADIUS) ** rng.random(len(class_numbers))
    starts = _spread(rng, radii)
    meetings = rng.uniform(0.25, 0.75, (len(class_numbers), 2))
    moments = rng.uniform(0.3, 0.7, len(class_numbers))
    actors = []
    for number, class_number in enumerate(class_numbers):
        radius = float(radii[number])
        kind = rng.random()
        if number >= _ALWAYS_IN_SIGHT and kind < split.leave:
            xy = _leave_and_return(rng, split, starts[number], radius, times)
        else:
            if rng.random() < split.meet:
                # Objects by twos have one meeting point, each with its own speed.
                pair = number // 2
                velocity = (meetings[pair] - starts[number]) / moments[pair]
            else:
                speed, angle = rng.uniform(0.05, 1.3), rng.uniform(0, 2 * math.pi)
                velocity = speed * np.array([math.cos(angle), math.sin(angle)])
            xy = _bounce(starts[number] + velocity * times[:, None], 0.7 * radius, 1 - 0.7 * radius)
        shape_class = CLASSES[class_number]
        figure = Figure(shape_class.shape, shape_class.pattern, COLOURS[shape_class.colour])
        actors.append(Actor(figure, class_number, _poses(rng, xy, radius, times, size)))
    return actors[::-1]


def _make_distractor(rng: np.random.Generator, times: Times, size: int) -> Actor:
    """Make something of no class that moves as objects do."""
    velocity = rng.uniform(-0.6, 0.6, 2)
    xy = _bounce(rng.uniform(0.1, 0.9, 2) + velocity * times[:, None], -0.1, 1.1)
    radius = float(rng.uniform(0.06, 0.15))
    return Actor(clutter_figure(rng), None, _poses(rng, xy, radius, times, size))


def _poses(
    rng: np.random.Generator, xy: Float[np.ndarray, "t 2"], radius: float, times: Times, size: int
) -> tuple[Pose, ...]:
    """Add rotation, growing and shrinking to a way, and go over to pixels."""
    angle, turns = rng.normal(0, 0.35), rng.uniform(-0.8, 0.8) * (rng.random() < 0.7)
    change, rate, phase = rng.uniform(0, 0.3), rng.uniform(0.5, 1.5), rng.random()
    if len(times) == 1:
        angle = angle + rng.uniform(0, 1) * turns * 2 * math.pi
    return tuple(
        Pose(
            x * size,
            y * size,
            size * radius * (1 + change * math.sin(2 * math.pi * (rate * time + phase))),
            angle + 2 * math.pi * turns * time,
        )
        for (x, y), time in zip(xy.tolist(), times.tolist(), strict=True)
    )


def _spread(rng: np.random.Generator, radii: Float[np.ndarray, " n"]) -> Float[np.ndarray, "n 2"]:
    """Choose starting points apart from each other: of some candidates always the loneliest."""
    points = np.zeros((len(radii), 2))
    for number, radius in enumerate(radii):
        candidates = rng.uniform(radius, 1 - radius, (10, 2))
        if number:
            gaps = np.sqrt(((candidates[:, None] - points[:number]) ** 2).sum(-1)) - radii[:number]
            points[number] = candidates[np.argmax(gaps.min(axis=1))]
        else:
            points[number] = candidates[0]
    return points


def _bounce(xy: Float[np.ndarray, "t 2"], low: float, high: float) -> Float[np.ndarray, "t 2"]:
    """Reflect a straight way at the walls."""
    span = high - low
    folded = np.mod(xy - low, 2 * span)
    return low + np.minimum(folded, 2 * span - folded)


def _leave_and_return(
    rng: np.random.Generator, split: Split, start: Float[np.ndarray, " 2"], radius: float, times: Times
) -> Float[np.ndarray, "t 2"]:
    """Leave the picture at the nearest side and come back, or come in and leave again; a quarter of the video away."""
    side = int(np.argmin([start[0], 1 - start[0], start[1], 1 - start[1]]))
    axis, outwards = side // 2, 1 if side % 2 else -1
    edge = 1 - start[axis] if outwards > 0 else start[axis]
    if split.duration < 1:  # only time enough to pass the edge and come back
        nearest, farthest = edge - 0.3 * radius, edge + 1.2 * radius
    else:
        nearest, farthest = 0.0, 1.35 * (edge + 1.5 * radius)
    shown = (times - (0.5 - split.duration / 2)) / split.duration  # 0 to 1 in the video
    phase = shown * rng.uniform(0.9, 1.2) + (0.5 if rng.random() < 0.3 else 0.0)
    away = 1 - np.abs(1 - 2 * np.mod(phase, 1))  # 0 to 1 and back
    xy = np.tile(start, (len(times), 1))
    xy[:, axis] += outwards * (nearest + (farthest - nearest) * away)
    xy[:, 1 - axis] += rng.uniform(-0.3, 0.3) * times
    return xy


def _make_bars(rng: np.random.Generator, split: Split, num_objects: int, size: int) -> list[Bar]:
    """Put bars in front of the objects at the back."""
    bars = []
    for _ in range(rng.integers(1, split.bars + 1)):
        width = rng.uniform(*split.bar_width)
        start = rng.uniform(0.05, 0.95 - width)
        grey = rng.uniform(40, 200)
        colour = (grey + rng.uniform(-25, 25, 3)).astype(np.float32)
        rank = int(rng.integers(max(0, num_objects - 4), num_objects - _ALWAYS_IN_SIGHT + 1))
        bars.append(Bar(bool(rng.random() < 0.65), round(start * size), round((start + width) * size), colour, rank))
    return bars


def _move_camera(rng: np.random.Generator, times: Times, size: int, margin: int) -> Int[np.ndarray, "t 2"]:
    """Pan slowly, and shake in half of the videos."""
    pan = rng.uniform(-0.05, 0.05, 2) * (times[:, None] - 0.5) * 2
    strength = rng.uniform(0.004, 0.02) * (rng.random() < 0.5)
    moved = np.round((pan + strength * rng.normal(size=(len(times), 2))) * size)
    return np.clip(moved, -margin, margin).astype(np.int64)


def _change_light(rng: np.random.Generator, times: Times) -> Float[np.ndarray, "t 3"]:
    """Make the picture darker and brighter, tint it, and sometimes switch a lamp."""
    change, rate, phase = rng.uniform(0, 0.16), rng.uniform(0.3, 1.5), rng.random()
    waves = np.array([math.sin(2 * math.pi * (rate * time + phase)) for time in times.tolist()])
    gain = rng.uniform(0.85, 1.1) * (1 + change * waves)
    if rng.random() < 0.15:
        gain = np.where(times > rng.uniform(0.2, 0.8), gain * rng.uniform(0.72, 0.88), gain)
    return (gain[:, None] * rng.uniform(0.94, 1.06, 3)).astype(np.float32)


def _shade(rng: np.random.Generator, size: int) -> Float[np.ndarray, "h w 1"]:
    """Make one side of the picture up to a fifth brighter than the other."""
    slope_x, slope_y = rng.uniform(-0.1, 0.1, 2).astype(np.float32)
    axis = np.linspace(-1, 1, size, dtype=np.float32)
    return (1 + slope_x * axis[None, :] + slope_y * axis[:, None])[..., None]
