"""``clipvis shapes``."""

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import arg

from clipvis_jax.data.shapes.splits import ShapesConfig
from clipvis_jax.data.shapes.writing import write_ytvis
from clipvis_jax.io.terminal import print_lines


@dataclasses.dataclass(frozen=True)
class Shapes:
    """Draw videos of the Shapes world, with full ground truth.

    Writes JPEGImages/ and annotations.json (YouTube-VIS format) into the output folder. The same options give the
    same bytes; after an interruption, the same command goes on.

    For example:
      clipvis shapes --split val --out shapes/val
      clipvis shapes --split occlusion --out shapes/occlusion --count 50 --size 192
    """

    out: Annotated[Path, arg(metavar="DIR")]
    """Folder to write into; made if it does not exist."""
    split: Literal["train", "val", "test", "fast", "occlusion"] = "val"
    """train shows base classes only, the others base, novel and unseen ones; fast and occlusion are hard to track."""
    count: Annotated[
        int | None, arg(metavar="N", help_behavior_hint="(default: 200; train 2000; fast, occlusion 100)")
    ] = None
    """Number of videos."""
    first: Annotated[int, arg(metavar="N")] = 0
    """Number of the first video, from 0."""
    size: Annotated[int, arg(metavar="PIXELS")] = 160
    """Height and width."""
    frames: Annotated[int, arg(metavar="N")] = 20
    """Frames of a video; 1 makes images."""
    seed: Annotated[int, arg(metavar="N")] = 0
    """Another world: other videos of the same classes."""

    def run(self) -> None:
        """Run ``clipvis shapes``.

        Raises:
            InputError: An option or the output folder cannot be used.
        """
        config = ShapesConfig(split=self.split, seed=self.seed, size=self.size, frames=self.frames)
        written = write_ytvis(config, self.out, count=self.count, first=self.first, show_progress=True)
        print_lines(f"wrote {written}")
