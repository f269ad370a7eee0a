"""``clipvis demo``."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from rich.console import Console
from rich.table import Table
from tyro.conf import arg

from clipvis_jax import bundled
from clipvis_jax.commands import predict_outputs
from clipvis_jax.commands.interrupt import stopping_at_once
from clipvis_jax.data.catalog import open_dataset
from clipvis_jax.data.records import Dataset
from clipvis_jax.data.shapes.classes import PARTITIONS
from clipvis_jax.evaluation import ground_truth_from, parse_results
from clipvis_jax.evaluation.inputs import GroundTruth
from clipvis_jax.evaluation.outcomes import TrackOutcome, track_outcomes
from clipvis_jax.inference.dataset_run import DatasetFrames
from clipvis_jax.inference.loading import enable_compilation_cache, load
from clipvis_jax.inference.results import Track, VideoResult
from clipvis_jax.inference.segmenter import InferenceConfig
from clipvis_jax.media.video_reader import FrameSelection

_MIN_SCORE = 0.4
"""Lower ones are mostly second tracks of the same object, which the method does not suppress."""
_MIN_OVERLAP = 0.5
"""From which overlap on a track follows an object, as for AP50."""


@dataclasses.dataclass(frozen=True)
class Demo:
    """Run the bundled model on the bundled clip.

    Needs no weights, no data and no network. The model was trained on the Shapes world alone: masks of base
    classes, captions of base and novel ones. Asked for all 360 classes at once, it segments, tracks and names the
    objects of a clip that it never saw, novel and unseen classes among them. Prints what each track follows and
    whether its name is right, and writes tracks.json and overlay.mp4.
    """

    out: Annotated[Path, arg(metavar="DIR")] = Path("clipvis_demo")
    """Folder for the results; made if it does not exist. Results of an earlier run are replaced."""

    def run(self) -> None:
        """Run ``clipvis demo``.

        Raises:
            InputError: A bundled file is missing or damaged, or the output folder cannot be used.
        """
        with stopping_at_once():
            bundled.check_files()
            dataset = open_dataset(bundled.CLIP)
            source, selection = DatasetFrames(dataset, 0), FrameSelection()
            names = [category.name for category in dataset.categories]
            enable_compilation_cache()
            segmenter = load(bundled.MODEL, config=InferenceConfig(size=bundled.SIZE, temp_dir=self.out))
        with predict_outputs.output_folder(self.out) as out:
            result = segmenter.predict(source, names, min_score=_MIN_SCORE, show_progress=True)
            written = predict_outputs.write_results(out, result, source, selection, overlay=True, show_progress=True)
        ground_truth = ground_truth_from(dataset)
        category_ids = [category.id for category in dataset.categories]
        tracks = parse_results(_with_best_names(result).to_ytvis(source.record.id, category_ids), ground_truth)
        print_tracks(dataset, ground_truth, track_outcomes(ground_truth, tracks, _MIN_OVERLAP))
        print("wrote " + " and ".join(str(path) for path in written))


def _with_best_names(result: VideoResult) -> VideoResult:
    """Keep every track once, under its best name."""
    best: dict[int, Track] = {}
    for track in result.tracks:
        best.setdefault(track.track_id, track)
    return dataclasses.replace(result, tracks=list(best.values()))


def print_tracks(dataset: Dataset, ground_truth: GroundTruth, outcomes: Sequence[TrackOutcome]) -> None:
    """Print what each track follows, the objects that none follows, and how many were found and named.

    Args:
        dataset: Names the classes and says in which part each is.
        ground_truth: The objects, as read from ``dataset``.
        outcomes: What became of every track, see `track_outcomes`.
    """
    seen = {"base": "masks, captions", "novel": "captions", "unseen": "neither"}
    seen_of = {number: f"{part}: {seen[part]}" for part, number in PARTITIONS.items()}
    categories = {category.id: category for category in dataset.categories}

    def describe(category_id: int) -> tuple[str, str]:
        category = categories[category_id]
        return category.name, seen_of[category.partition or 0]

    table = Table(
        title=f"Tracks that score at least {_MIN_SCORE}",
        caption="Seen: what training showed of the object's class. Overlap: intersection over union over all frames; "
        f"from {_MIN_OVERLAP} on a track follows the object, and of several the best-scoring one comes first; a track "
        "that follows none strays: from object to object, or over the background.",
        title_justify="left",
        caption_justify="left",
    )
    for heading in ("named", "score", "object", "seen", "overlap", ""):
        table.add_column(heading, justify="right" if heading in ("score", "overlap") else "left")
    verdicts = []
    for outcome in outcomes:
        result, annotation = outcome.result, outcome.annotation
        if annotation is None:
            verdict = "strays"
        elif outcome.is_second:
            verdict = "second track"
        else:
            verdict = "right" if result.category_id == annotation.category_id else "wrong"
        verdicts.append(verdict)
        true = ("-", "") if annotation is None else describe(annotation.category_id)
        table.add_row(
            categories[result.category_id].name, f"{result.score:.2f}", *true, f"{outcome.overlap:.2f}", verdict
        )
    found = {outcome.annotation.id for outcome in outcomes if outcome.annotation is not None}
    for annotation in ground_truth.annotations:
        if annotation.id not in found:
            table.add_row("-", "", *describe(annotation.category_id), "", "missed")
    Console().print(table)
    print(
        f"{len(found)} of {len(ground_truth.annotations)} objects found, {verdicts.count('right')} of them named "
        f"rightly out of {len(categories)} class names; surplus tracks: {verdicts.count('second track')} second, "
        f"{verdicts.count('strays')} astray"
    )
