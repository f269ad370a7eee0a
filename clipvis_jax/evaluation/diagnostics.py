"""Scores that tell where results are weak: the tracks themselves, the names they are given, or single videos."""

import dataclasses
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from tqdm import tqdm

from clipvis_jax.evaluation.inputs import Annotation, GroundTruth, Result, by_video
from clipvis_jax.evaluation.outcomes import distinct_tracks
from clipvis_jax.evaluation.protocols import COCO, Protocol
from clipvis_jax.evaluation.video_ap import ABSENT, VideoMetrics, evaluate, track_overlaps


def evaluate_class_agnostic(
    ground_truth: GroundTruth,
    results: Sequence[Result],
    protocol: Protocol,
    *,
    groups: Mapping[str, Collection[int]] | None = None,
    show_progress: bool = False,
) -> VideoMetrics:
    """Score the tracks without regard to class, as if all classes were one.

    Results of a video with the very same masks, which are one track under several classes, count once, with their
    best score. The metrics have one class, of id 1.

    Args:
        ground_truth: The true tracks.
        results: The tracks found, under any classes.
        protocol: Which official evaluator to follow; its groups are not used.
        groups: Sets of category ids, by name. For each the metrics have the recall (``AR...``) of the annotations of
            these classes. Not the precision: tracks on nothing belong to no class, so the smaller a group is, the
            more of them there are for each of its annotations.
        show_progress: Show a progress bar.
    """
    # LVIS's rules are about which classes an image was annotated with; COCO's are the same without.
    protocol = dataclasses.replace(COCO if protocol.image_rules == "lvis" else protocol, groups={})
    found = [dataclasses.replace(result, category_id=1) for result in distinct_tracks(_best_first(results))]

    def score(protocol: Protocol, counted: Collection[int] | None = None) -> VideoMetrics:
        annotations = [
            dataclasses.replace(
                annotation,
                category_id=1,
                is_crowd=annotation.is_crowd or (counted is not None and annotation.category_id not in counted),
            )
            for annotation in ground_truth.annotations
        ]
        one_class = dataclasses.replace(ground_truth, categories={1: {"id": 1, "name": "any"}}, annotations=annotations)
        return evaluate(one_class, found, protocol, show_progress=show_progress)

    ignoring = dataclasses.replace(protocol, ignores_crowd=True, shared="crowd")
    recalls = {
        name: {stat: value for stat, value in score(ignoring, ids).stats.items() if stat.startswith("AR")}
        for name, ids in (groups or {}).items()
    }
    return dataclasses.replace(score(protocol), groups=recalls)


def evaluate_segmentation(
    ground_truth: GroundTruth, results: Sequence[Result], protocol: Protocol, *, show_progress: bool = False
) -> VideoMetrics:
    """Score masks and tracks as if the names were perfect.

    Each track takes the class of the annotation that it overlaps most, however little; one that overlaps none is left
    out. Results with the very same masks count once, with their best score.
    """
    nearest = _nearest_annotations(ground_truth, distinct_tracks(_best_first(results)), show_progress=show_progress)
    named = [
        dataclasses.replace(result, category_id=annotation.category_id)
        for result, annotation, overlap in nearest
        if overlap > 0
    ]
    return evaluate(ground_truth, named, protocol, show_progress=show_progress)


def evaluate_classification(
    ground_truth: GroundTruth,
    results: Sequence[Result],
    protocol: Protocol,
    *,
    min_overlap: float = 0.5,
    show_progress: bool = False,
) -> VideoMetrics:
    """Score the classes as if the masks were perfect: how well are instances named once they are found?

    Each result takes the masks of the annotation that it overlaps most, of any class; results that overlap none by
    at least `min_overlap` are left out, and so are annotations that no result overlaps. Of several results with the
    same class on the same annotation, the best counts.
    """
    best: dict[tuple[int, int, int], Result] = {}
    for result, annotation, overlap in _nearest_annotations(ground_truth, results, show_progress=show_progress):
        key = annotation.video_id, annotation.id, result.category_id
        if overlap >= min_overlap and (key not in best or best[key].score < result.score):
            best[key] = dataclasses.replace(result, track=annotation.track)
    found_ids = {(video_id, annotation_id) for video_id, annotation_id, _ in best}
    return evaluate(
        dataclasses.replace(
            ground_truth,
            annotations=[a for a in ground_truth.annotations if (a.video_id, a.id) in found_ids],
        ),
        list(best.values()),
        protocol,
        show_progress=show_progress,
    )


def _best_first(results: Iterable[Result]) -> list[Result]:
    return sorted(results, key=lambda result: result.score, reverse=True)


def _nearest_annotations(
    ground_truth: GroundTruth, results: Iterable[Result], *, show_progress: bool
) -> Iterator[tuple[Result, Annotation, float]]:
    """Yield each result with the annotation of any class that it overlaps most, and by how much.

    Results of videos without annotations are left out.
    """
    annotations_of = by_video(ground_truth.annotations)
    results_of = by_video(result for result in results if result.video_id in annotations_of)
    for video_id, found in tqdm(results_of.items(), "overlaps", unit="video", disable=not show_progress):
        overlap = track_overlaps(found, annotations_of[video_id], ground_truth.videos[video_id])
        for result, nearest, value in zip(found, overlap.argmax(axis=1), overlap.max(axis=1), strict=True):
            yield result, annotations_of[video_id][nearest], float(value)


def video_scores(
    ground_truth: GroundTruth, results: Sequence[Result], protocol: Protocol, *, show_progress: bool = False
) -> dict[int, float]:
    """Score every video by itself: its AP over the classes that it shows, by video id.

    Results of other classes cost nothing, as everywhere. Videos in which nothing counts are left out. The mean over
    videos is not the AP of the data set, which ranks the results of all videos together.
    """
    annotations_of = by_video(ground_truth.annotations)
    results_of = by_video(results)
    protocol = dataclasses.replace(protocol, groups={})
    scores = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what there is to say of annotations, `evaluate` says once for all videos
        for video_id, annotations in tqdm(
            sorted(annotations_of.items()), "videos", unit="video", disable=not show_progress
        ):
            shown = {
                annotation.category_id: ground_truth.categories[annotation.category_id] for annotation in annotations
            }
            alone = dataclasses.replace(ground_truth, categories=shown, annotations=annotations)
            found = [result for result in results_of[video_id] if result.category_id in shown]
            score = evaluate(alone, found, protocol).stats["AP"]
            if score != ABSENT:
                scores[video_id] = score
    return scores
