"""``clipvis prepare``."""

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import arg

from clipvis_jax.commands.interrupt import stopping_at_once
from clipvis_jax.data.catalog import CATALOG, open_dataset
from clipvis_jax.data.prepared import open_prepared, prepare
from clipvis_jax.io.terminal import print_lines


@dataclasses.dataclass(frozen=True)
class Prepare:
    """Write a data set, images included, into a few large files.

    They are in tensorflow-datasets' format (ArrayRecord), quick to read in any order and made for object stores;
    records and images are the same as in the published files, which can be used without preparing as well. An
    interrupted preparation goes on where it stopped when the same command is given again; one that is finished is
    not repeated.

    Known data sets:
      lvvis_train, lvvis_val, lvvis_test
      ytvis19_train, ytvis19_valid, ytvis19_test, and the same for ytvis21 and ovis
      burst_train, burst_val, burst_test (as published), burst_val_converted (YouTube-VIS format)
      lvis_train, lvis_train_norare, lvis_val, coco_train, coco_val

    For example:
      clipvis prepare lvvis_val --source data --out prepared
      clipvis prepare lvis_train_norare --source data --out gs://bucket/prepared --level frames
      clipvis prepare my/annotations.json --source my/images --out prepared
    """

    dataset: Annotated[str, tyro.conf.Positional, arg(metavar="DATASET")]
    """Name of a known data set, or an annotation file in YouTube-VIS, COCO or BURST format."""
    source: Annotated[Path, arg(metavar="DIR")]
    """Folder that holds the known data sets; for an annotation file, the folder of its images."""
    out: Annotated[str, arg(metavar="DIR")]
    """Where to write: a folder, or a path of an object store (gs://...). Files go to a folder named after the data
    set."""
    level: Literal["videos", "frames"] = "videos"
    """One record per video (for evaluation), or one per annotated frame (for training on single frames)."""
    verify: Annotated[bool, arg(help_behavior_hint="")] = False
    """Compare all files with their checksums in the end."""

    def run(self) -> None:
        """Run ``clipvis prepare``.

        Raises:
            InputError: The data set cannot be read, or the files cannot be written.
        """
        with stopping_at_once():
            if self.dataset in CATALOG:
                dataset = open_dataset(self.dataset, data_root=self.source, show_progress=True)
            else:
                dataset = open_dataset(self.dataset, images=self.source, show_progress=True)
        folder = prepare(dataset, self.out, level=self.level, show_progress=True)
        prepared = open_prepared(folder)
        if self.verify:
            prepared.verify(show_progress=True)
        print_lines(f"{prepared.name}: {len(prepared)} {self.level}, {len(prepared.categories)} classes")
        print_lines(f"wrote {folder}")
