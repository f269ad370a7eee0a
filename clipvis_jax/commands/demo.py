"""``clipvis demo``."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import arg

from clipvis_jax.commands.interrupt import stopping_at_once

if TYPE_CHECKING:
    from collections.abc import Sequence

    from clipvis_jax.data.records import Dataset
    from clipvis_jax.evaluation.outcomes import Outcome

_MIN_SCORE = 0.4
"""Lower ones are mostly second tracks of the same object, which the method does not suppress."""


@dataclasses.dataclass(frozen=True)
class Demo:
    """Run the bundled model on the bundled clip: needs no weights, no data and no network.

    The model was trained on the Shapes world alone: masks of base classes, captions of base and novel ones. Asked for
    all 360 classes at once, it segments, tracks and names the objects of a clip that it never saw, novel and unseen
    classes among them. Prints what became of every object, and writes tracks.json and overlay.mp4.
    """

    out: Annotated[Path, arg(metavar="DIR")] = Path("clipvis_demo")
    """Folder for the results; made if it does not exist. Results of an earlier run are replaced."""

    def run(self) -> None:
        """Run ``clipvis demo``.

        Raises:
            InputError: A bundled file is missing or damaged, or the output folder cannot be used.
        """
        with stopping_at_once():
            from clipvis_jax import bundled, outputs
            from clipvis_jax.data.catalog import open_dataset
            from clipvis_jax.dataset_run import DatasetFrames
            from clipvis_jax.evaluation import ground_truth_from, parse_results
            from clipvis_jax.evaluation.outcomes import instance_outcomes
            from clipvis_jax.loading import enable_compilation_cache, load
            from clipvis_jax.segmenter import InferenceConfig
            from clipvis_jax.video import FrameSelection

            bundled.check_files()
            dataset = open_dataset(bundled.CLIP)
            source, selection = DatasetFrames(dataset, 0), FrameSelection()
            names = [category.name for category in dataset.categories]
            enable_compilation_cache()
            segmenter = load(bundled.MODEL, config=InferenceConfig(size=bundled.SIZE, temp_dir=self.out))
        with outputs.output_folder(self.out) as out:
            result = segmenter.predict(source, names, min_score=_MIN_SCORE, show_progress=True)
            written = outputs.write_results(out, result, source, selection, overlay=True, show_progress=True)
        ground_truth = ground_truth_from(dataset)
        records = result.to_ytvis(source.record.id, [category.id for category in dataset.categories])
        _print_outcomes(dataset, instance_outcomes(ground_truth, parse_results(records, ground_truth)))
        print("wrote " + " and ".join(str(path) for path in written))


def _print_outcomes(dataset: "Dataset", outcomes: "Sequence[Outcome]") -> None:
    """Print what became of every true object, and how many were found and named."""
    from rich.console import Console
    from rich.table import Table

    from clipvis_jax.data.shapes.classes import PARTITIONS

    seen = {"base": "masks and captions", "novel": "captions", "unseen": "neither"}
    seen_of = {number: f"{seen[part]} ({part})" for part, number in PARTITIONS.items()}
    categories = {category.id: category for category in dataset.categories}
    table = Table(title="What became of the objects", title_justify="left")
    for heading in ("object", "seen in training", "named as", "overlap", ""):
        table.add_column(heading, justify="right" if heading == "overlap" else "left")
    right = 0
    for outcome in sorted(outcomes, key=lambda outcome: categories[outcome.annotation.category_id].partition or 0):
        category = categories[outcome.annotation.category_id]
        is_right = outcome.named == category.id
        right += is_right
        table.add_row(
            category.name,
            seen_of[category.partition or 0],
            "-" if outcome.named is None else categories[outcome.named].name,
            f"{outcome.track_overlap:.2f}",
            "right" if is_right else "missed" if outcome.named is None else "wrong",
        )
    Console().print(table)
    found = sum(outcome.named is not None for outcome in outcomes)
    print(
        f"{found} of {len(outcomes)} objects found, {right} of them named rightly out of {len(categories)} class names"
    )
