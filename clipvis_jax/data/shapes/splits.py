"""Settings of a set of Shapes videos, and the seeds that belong to each split.

Every video is drawn from one whole number, its seed. The splits own ranges of seeds that do not overlap, so a video
for evaluation can never be one that was trained on.
"""

import dataclasses

from clipvis_jax.data.shapes.classes import Part
from clipvis_jax.errors import InputError

WORLD_VERSION = 2
"""To be raised when the same seed would give another video."""


@dataclasses.dataclass(frozen=True, slots=True)
class Split:
    """What the videos of a split show.

    Attributes:
        seeds: The seeds that belong to it.
        parts: The parts of the classes that objects are taken from.
        default_count: Videos, if nobody says how many.
        instances: Fewest and most objects of a video.
        twin: Probability that an object gets the class of another one in the video.
        look_alike: Probability that it differs from another one in one of pattern, colour and shape only.
        leave: Probability that an object leaves the picture and returns.
        meet: Probability that its way crosses that of the object before it.
        bars: Most bars that objects pass behind.
        bar_width: Narrowest and widest bar, as parts of the frame's side.
        duration: The part of its scene's time, 0 to 1, that a video shows in however many frames: its middle. All of
            it is fast: from one of 20 frames to the next, half of the objects overlap themselves by less than 0.5. At
            a quarter the pace is about that of natural videos (docs/shapes.md).
    """

    seeds: range
    parts: tuple[Part, ...]
    default_count: int
    instances: tuple[int, int] = (2, 8)
    twin: float = 0.12
    look_alike: float = 0.25
    leave: float = 0.25
    meet: float = 0.3
    bars: int = 2
    bar_width: tuple[float, float] = (0.05, 0.2)
    duration: float = 1.0


_EVERYTHING: tuple[Part, ...] = ("base", "novel", "unseen")

SPLITS = {
    # Objects without masks would teach the decoders that novel objects are background: here there are none.
    "train": Split(range(0, 10_000_000), ("base",), default_count=2000),
    # For CLIP; its images have no masks.
    "captions": Split(range(10_000_000, 100_000_000), ("base", "novel"), default_count=100_000, instances=(2, 5)),
    "val": Split(range(100_000_000, 101_000_000), _EVERYTHING, default_count=200, duration=0.25),
    "test": Split(range(101_000_000, 102_000_000), _EVERYTHING, default_count=200, duration=0.25),
    # As val, but for the pace.
    "fast": Split(range(103_000_000, 104_000_000), _EVERYTHING, default_count=100),
    # Hard to track: many objects, twins whose ways cross, broad bars, a fast pace.
    "occlusion": Split(
        range(102_000_000, 103_000_000),
        _EVERYTHING,
        default_count=100,
        instances=(4, 8),
        twin=0.35,
        look_alike=0.35,
        leave=0.35,
        meet=0.6,
        bars=3,
        bar_width=(0.14, 0.3),
    ),
}

TRAINED_ON = ("train", "captions")
"""Splits that models are trained on; the others are for evaluation."""


@dataclasses.dataclass(frozen=True)
class ShapesConfig:
    """Which videos to draw.

    Attributes:
        split: A name in `SPLITS`.
        seed: Another world with the same classes and the same splits, 0 to 2**32 - 1.
        size: Height and width in pixels.
        frames: Frames of a video; 1 gives images, each of a random moment of another scene than the seed's video.
    """

    split: str = "train"
    seed: int = 0
    size: int = 160
    frames: int = 20

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise InputError(f"split {self.split!r}: not in the Shapes world; choose one of {', '.join(SPLITS)}")
        if not 0 <= self.seed < 2**32:
            raise InputError(f"seed {self.seed}: must be between 0 and {2**32 - 1}")
        if not 64 <= self.size <= 2048:
            raise InputError(f"size {self.size}: must be between 64 and 2048 pixels")
        if not 1 <= self.frames <= 1000:
            raise InputError(f"frames {self.frames}: must be between 1 and 1000")

    def video_seeds(self, first: int = 0, count: int | None = None) -> range:
        """Return the seeds of some videos of the split, ``count`` of them from number ``first`` on.

        Raises:
            InputError: They reach into the seeds of other splits; evaluated like this, a model could have been
                trained on them.
        """
        split = SPLITS[self.split]
        count = split.default_count if count is None else count
        if count < 1:
            raise InputError(f"{count} Shapes videos were asked for; ask for 1 or more")
        if first < 0 or first + count > len(split.seeds):
            raise InputError(
                f"Shapes videos {first} to {first + count - 1}: split {self.split!r} has numbers 0 to "
                f"{len(split.seeds) - 1}, and other splits, which may be trained on, own the seeds outside; "
                "ask for fewer videos, or earlier ones"
            )
        return split.seeds[first : first + count]


def check_held_out(config: ShapesConfig) -> None:
    """Make sure that a model is not evaluated on a split that it was trained on.

    Raises:
        InputError: It would be.
    """
    if config.split in TRAINED_ON:
        held_out = ", ".join(name for name in SPLITS if name not in TRAINED_ON)
        raise InputError(f"split {config.split!r} is for training; evaluate on one of {held_out}")
