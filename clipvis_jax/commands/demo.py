"""``clipvis demo``."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import arg

from clipvis_jax.commands.interrupt import stopping_at_once
from clipvis_jax.io.terminal import print_lines, print_table

if TYPE_CHECKING:
    from clipvis_jax.data.records import Dataset
    from clipvis_jax.evaluation.inputs import GroundTruth
    from clipvis_jax.evaluation.outcomes import TrackOutcome

_MIN_SCORE = 0.4
"""Lower ones are mostly second tracks of the same object, which the method does not suppress."""
_MIN_IOU = 0.5
"""From which IoU on a track follows an object, as for AP50."""


@dataclasses.dataclass(frozen=True)
class Demo:
    """Run the bundled model on the bundled clip.

    Needs no weights, no data and no network. The model was trained on the Shapes world alone: masks of base
    classes, captions of base and novel ones. Asked for all 360 classes at once, it segments, tracks and names the
    objects of a clip that it never saw, novel and unseen classes among them. Prints what each track follows and
    whether its name is correct, and writes tracks.json and overlay.mp4. Then the clip is written as a video file,
    clip.mp4, and segmented once more from that.
    """

    out: Annotated[Path, arg(metavar="DIR")] = Path("clipvis_demo")
    """Folder for the results; made if it does not exist. Results of an earlier run are replaced."""

    def run(self) -> None:
        """Run ``clipvis demo``.

        Raises:
            InputError: A bundled file is missing or damaged, or the output folder cannot be used.
        """
        with stopping_at_once():
            from clipvis_jax import bundled
            from clipvis_jax.commands import predict_outputs
            from clipvis_jax.data.catalog import open_dataset
            from clipvis_jax.evaluation import ground_truth_from, parse_results
            from clipvis_jax.evaluation.outcomes import track_outcomes
            from clipvis_jax.inference.dataset_run import DatasetFrames
            from clipvis_jax.inference.loading import enable_compilation_cache, load
            from clipvis_jax.inference.segmenter import InferenceConfig
            from clipvis_jax.media.video_reader import FrameSelection, open_frames
            from clipvis_jax.media.video_writer import VideoWriter

            bundled.check_files()
            dataset = open_dataset(bundled.CLIP)
            source, selection = DatasetFrames(dataset, 0), FrameSelection()
            names = [category.name for category in dataset.categories]
            enable_compilation_cache()
            segmenter = load(bundled.MODEL, config=InferenceConfig(temp_dir=self.out))
        with predict_outputs.output_folder(self.out) as out:
            result = segmenter.predict(source, names, min_score=_MIN_SCORE, show_progress=True)
            written = predict_outputs.write_results(out, result, source, selection, overlay=True, show_progress=True)
            clip = out / "clip.mp4"
            with VideoWriter(clip, source.height, source.width, predict_outputs.FOLDER_FPS) as writer:
                for _, frame in source:
                    writer.write(frame)
            # What users have is a video file: this shows that theirs can be read, too.
            from_file = segmenter.predict(open_frames(clip), names, min_score=_MIN_SCORE, show_progress=True)
        ground_truth = ground_truth_from(dataset)
        outcomes, outcomes_from_file = (
            track_outcomes(
                ground_truth,
                parse_results(
                    given.best().to_ytvis(source.record.id, [category.id for category in dataset.categories]),
                    ground_truth,
                ),
                _MIN_IOU,
            )
            for given in (result, from_file)
        )
        print_tracks(dataset, ground_truth, outcomes)
        print_lines(f"from {clip.name}: {_summary(ground_truth, outcomes_from_file)}")
        print_lines("wrote " + ", ".join(str(path) for path in (*written, clip)))


def print_tracks(dataset: "Dataset", ground_truth: "GroundTruth", outcomes: "Sequence[TrackOutcome]") -> None:
    """Print what each track follows, the objects that none follows, and how many were found and named.

    Args:
        dataset: Names the classes and says in which part each is.
        ground_truth: The objects, as read from ``dataset``.
        outcomes: What became of every track, see `track_outcomes`.
    """
    from clipvis_jax.data.shapes.classes import PARTITIONS

    seen = {"base": "masks, captions", "novel": "captions", "unseen": "neither"}
    seen_of = {number: f"{part}: {seen[part]}" for part, number in PARTITIONS.items()}
    categories = {category.id: category for category in dataset.categories}

    def describe(category_id: int) -> tuple[str, str]:
        category = categories[category_id]
        return category.name, seen_of[category.partition or 0]

    rows, verdicts = [], []
    for outcome in outcomes:
        result, annotation = outcome.result, outcome.annotation
        if annotation is None:
            verdict = "strays"
        elif outcome.is_second:
            verdict = "second track"
        else:
            verdict = "correct" if result.category_id == annotation.category_id else "wrong"
        verdicts.append(verdict)
        true = ("-", "") if annotation is None else describe(annotation.category_id)
        named = categories[result.category_id].name
        rows.append((named, f"{result.score:.2f}", *true, f"{outcome.overlap:.2f}", verdict))
    found = _found(outcomes)
    for annotation in ground_truth.annotations:
        if annotation.id not in found:
            rows.append(("-", "", *describe(annotation.category_id), "", "missed"))
    print_table(
        f"Tracks that score at least {_MIN_SCORE}",
        ["named", "score", "object", "seen", "IoU", ""],
        rows,
        left=["named", "object", "seen", ""],
        caption="Seen: what training showed of the object's class. IoU: intersection over union over all frames; "
        f"from {_MIN_IOU} on a track follows the object, and of several the best-scoring one comes first; a track "
        "that follows none strays: from object to object, or over the background.",
    )
    print_lines(
        f"{_summary(ground_truth, outcomes)} out of {len(categories)}; surplus tracks: "
        f"{verdicts.count('second track')} second, {verdicts.count('strays')} astray"
    )


def _found(outcomes: "Sequence[TrackOutcome]") -> set[int]:
    """Return the ids of the objects that a track follows."""
    return {outcome.annotation.id for outcome in outcomes if outcome.annotation is not None}


def _summary(ground_truth: "GroundTruth", outcomes: "Sequence[TrackOutcome]") -> str:
    """Say how many objects are found, and how many of them have the correct class name."""
    correct = sum(
        outcome.annotation is not None
        and not outcome.is_second
        and outcome.result.category_id == outcome.annotation.category_id
        for outcome in outcomes
    )
    return (
        f"{len(_found(outcomes))} of {len(ground_truth.annotations)} objects found, {correct} of them with the "
        "correct class name"
    )
