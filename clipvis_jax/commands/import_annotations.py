"""``clipvis import``."""

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import arg

from clipvis_jax.commands.interrupt import stopping_at_once
from clipvis_jax.errors import InputError
from clipvis_jax.io.terminal import print_lines


@dataclasses.dataclass(frozen=True)
class Import:
    """Make a data set of annotations that another tool wrote.

    Videos become annotations.json in YouTube-VIS format, pictures the same in COCO format, with their images in
    JPEGImages/ beside it: what 'clipvis eval --dataset' and trainings take. A source with several splits gives a folder
    for each. Ids are renumbered, classes without instances left out; boxes become rectangular masks.

    Formats:
      cvat-coco    CVAT's "COCO 1.0", a folder per task; with track ids a video, otherwise pictures
      cvat-xml     CVAT for video, or for images, 1.1: polygons, masks, boxes, ellipses
      mots         MOTS pictures (CVAT's "MOTS PNG 1.0": instances/*.png, labels.txt), or MOTS as text
      labelstudio  its JSON (brushes, polygons, boxes, also of videos) or COCO export
      yolo-seg     data.yaml, images/ and labels/*.txt with polygons
      roboflow     COCO segmentation: a folder per split with _annotations.coco.json
      davis        JPEGImages/VIDEO/*.jpg and Annotations/VIDEO/*.png

    For example:
      clipvis import cvat-coco task_1 task_2 --out data/mine
      clipvis import mots exported/mots --images clip.mp4 --out data/mine
    """

    format: Annotated[
        Literal["cvat-coco", "cvat-xml", "mots", "labelstudio", "yolo-seg", "roboflow", "davis"],
        tyro.conf.Positional,
        arg(metavar="FORMAT"),
    ]
    """One of those above."""
    source: Annotated[tuple[Path, ...], tyro.conf.Positional, arg(metavar="SOURCE [SOURCE ...]", help_behavior_hint="")]
    """Folders that the tool exported, unpacked, or files in them."""
    out: Annotated[Path, arg(metavar="DIR")]
    """Folder for the data set; it must not exist yet."""
    images: Annotated[Path | None, arg(metavar="PATH", help_behavior_hint="(default: where the format has them)")] = (
        None
    )
    """Folder of the pictures; or the video that was annotated, of which the frames are written."""
    link: bool = False
    """Make hard links to the pictures in place of copies; only on the same disk."""

    def run(self) -> None:
        """Run ``clipvis import``.

        Raises:
            InputError: A source or a picture cannot be used; nothing was written.
        """
        if not self.source:
            raise InputError("SOURCE: name the folder or file that the tool exported")
        with stopping_at_once():
            from clipvis_jax.data.importing import import_annotations
        lines = import_annotations(
            self.format, list(self.source), self.out, images=self.images, link=self.link, show_progress=True
        )
        print_lines(*lines)
