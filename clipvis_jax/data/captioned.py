"""Batches of captioned images for the pretraining of CLIP: an endless stream that the settings alone decide."""

import dataclasses
import sys
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from clipvis_jax.data.read_ahead import BatchStream
from clipvis_jax.data.shapes.captions import draw_captioned
from clipvis_jax.data.shapes.splits import SPLITS, ShapesConfig
from clipvis_jax.errors import InputError

_BATCHES_AHEAD = 2

_MARGINS = (1.0, 1.6)
"""Least and greatest side of a cut-out over the longer side of the object's box."""
_OFF_CENTRE = 0.1
"""How far an object may be from the middle of its cut-out, as a part of half the side."""
_GREY = 128
"""Beyond the image."""


@dataclasses.dataclass(frozen=True)
class CaptionedDataConfig:
    """What batches of captioned images are made of.

    Attributes:
        world: Which Shapes world, see ``ShapesConfig.seed``.
        size: Height and width of the images as they are drawn.
        batch_size: Images in a batch, over all processes.
        max_regions: Places for regions per image; where there are more, the last are left out.
        cut_outs: Single objects per image, on average, where single objects are shown; see `cut_objects`.
        num_images: After so many images the same ones come again, in the same order but with other sentences.
        num_workers: Processes that draw; 0 draws in the process that trains, beside its computation.
    """

    world: int = 0
    size: int = 160
    batch_size: int = 32
    max_regions: int = 5
    cut_outs: int = 3
    num_images: int = len(SPLITS["captions"].seeds)
    num_workers: int = 0

    def __post_init__(self) -> None:
        for name, low in (
            ("batch_size", 1),
            ("max_regions", 1),
            ("cut_outs", 1),
            ("num_images", 1),
            ("num_workers", 0),
        ):
            if getattr(self, name) < low:
                raise InputError(f"data.{name} {getattr(self, name)}: give {low} or more")
        self.shapes.video_seeds(0, self.num_images)

    @property
    def shapes(self) -> ShapesConfig:
        """The images as a split of the Shapes world."""
        return ShapesConfig(split="captions", seed=self.world, size=self.size, frames=1)


class CaptionedBatch(NamedTuple):
    """Images of a process's share of a batch, and what is said of them.

    Attributes:
        number: The batch's place in the stream.
        images: RGB.
        captions: A sentence about each image.
        names: What each image shows; sentences with the same name say the same.
        boxes: Of each image's regions: left, top, right and bottom as fractions (0..1); 0 in places not taken.
        region_captions: A sentence about each region; empty in places not taken.
        region_names: What each region is called; sentences with the same name say the same. Empty in places not taken.
    """

    number: int
    images: UInt8[np.ndarray, "b h w 3"]
    captions: list[str]
    names: list[str]
    boxes: Float[np.ndarray, "b n 4"]
    region_captions: list[list[str]]
    region_names: list[list[str]]


class CaptionedIterator(BatchStream[CaptionedBatch]):
    """The stream of a process's shares of all batches."""

    def __init__(self, config: CaptionedDataConfig, *, process_index: int = 0, process_count: int = 1) -> None:
        """Begin with the first batch.

        Raises:
            InputError: The processes do not divide the batch.
        """
        if config.batch_size % process_count:
            raise InputError(f"data.batch_size {config.batch_size}: give a multiple of the {process_count} processes")
        share = config.batch_size // process_count
        fingerprint = dataclasses.asdict(config)
        del fingerprint["num_workers"]
        source = _BatchSource(config, process_index * share, share)
        super().__init__(source, fingerprint, num_workers=config.num_workers, batches_ahead=_BATCHES_AHEAD)

    def _take(self, raw: dict[str, Any]) -> CaptionedBatch:
        # Copied, so that the workers' shared memory goes at once.
        return CaptionedBatch(**raw | {name: np.array(raw[name]) for name in ("images", "boxes")})


@dataclasses.dataclass(frozen=True)
class _BatchSource:
    """The shares of one process by their number; workers get a copy."""

    config: CaptionedDataConfig
    start: int
    share: int

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, index: int) -> dict[str, Any]:
        return draw_batch(self.config, int(index), self.start, self.share)._asdict()


def draw_batch(config: CaptionedDataConfig, number: int, start: int, count: int) -> CaptionedBatch:
    """Draw ``count`` images of a batch of the stream, from the batch's image ``start`` on."""
    first = number * config.batch_size + start
    images, captions, region_captions, region_names = [], [], [], []
    boxes = np.zeros((count, config.max_regions, 4), np.float32)
    for row, position in enumerate(range(first, first + count)):
        drawn = draw_captioned(config.shapes, position % config.num_images, variant=position // config.num_images)
        regions = drawn.regions[: config.max_regions]
        left, top, width, height = np.array([region.box for region in regions], np.float32).T
        boxes[row, : len(regions)] = np.stack([left, top, left + width, top + height], axis=1) / config.size
        empty = [""] * (config.max_regions - len(regions))
        images.append(drawn.image)
        captions.append(drawn.caption)
        region_captions.append([region.caption for region in regions] + empty)
        region_names.append([region.name for region in regions] + empty)
    return CaptionedBatch(number, np.stack(images), captions, captions, boxes, region_captions, region_names)


def cut_objects(batch: CaptionedBatch, count: int, size: int, rng: np.random.Generator) -> CaptionedBatch:
    """Cut single objects out of the images of a batch, each with the sentence about it alone and without regions.

    Args:
        batch: Images with regions.
        count: How many to cut out: the first regions of the batch, and if there are not so many, these again.
        size: Height and width of the cut-outs, to which squares about the regions' boxes are resized.
        rng: Decides how large the squares are and where in them the objects lie.
    """
    regions = [
        (padded, box, caption, name)
        for padded, boxes, captions, names in zip(
            map(_pad, batch.images), batch.boxes, batch.region_captions, batch.region_names, strict=True
        )
        for box, caption, name in zip(boxes * batch.images.shape[1], captions, names, strict=True)
        if name
    ]
    chosen = [regions[i % len(regions)] for i in range(count)]
    return CaptionedBatch(
        batch.number,
        images=np.stack([_cut(padded, box, size, rng) for padded, box, _, _ in chosen]),
        captions=[caption for _, _, caption, _ in chosen],
        names=[name for _, _, _, name in chosen],
        boxes=np.zeros((count, 0, 4), np.float32),
        region_captions=[[] for _ in chosen],
        region_names=[[] for _ in chosen],
    )


def _pad(image: UInt8[np.ndarray, "s s 3"]) -> Image.Image:
    """Put an image into the middle of a grey one of three times its side."""
    side = len(image)
    return Image.fromarray(np.pad(image, ((side, side), (side, side), (0, 0)), constant_values=_GREY))


def _cut(
    padded: Image.Image, box: Float[np.ndarray, " 4"], size: int, rng: np.random.Generator
) -> UInt8[np.ndarray, "s s 3"]:
    """Cut out a square about a box, which is given in pixels of the image that was padded."""
    corners = box.reshape(2, 2) + padded.width // 3
    half = (corners[1] - corners[0]).max() * rng.uniform(*_MARGINS) / 2
    centre = corners.mean(axis=0) + half * rng.uniform(-_OFF_CENTRE, _OFF_CENTRE, 2)
    left, top, right, bottom = (float(x) for x in (*(centre - half), *(centre + half)))
    return np.asarray(padded.resize((size, size), Image.Resampling.BILINEAR, box=(left, top, right, bottom)))
