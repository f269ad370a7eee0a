"""What became of every true instance: was it segmented, tracked, named? And what does every track follow?"""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Sequence
from operator import itemgetter

import numpy as np
from jaxtyping import Float
from tqdm import tqdm

from clipvis_jax.evaluation.inputs import Annotation, GroundTruth, Result, Video, by_video
from clipvis_jax.evaluation.video_ap import frame_intersections, track_overlaps


@dataclasses.dataclass(frozen=True, slots=True)
class Outcome:
    """What the results make of one true instance.

    Attributes:
        annotation: The instance.
        mask_overlap: Its overlap with the best mask of every frame, whichever track that mask belongs to: what a
            perfect tracker could have made of the same masks. Never below ``track_overlap``.
        track_overlap: Its overlap with the best track.
        named: The class of the best-scoring result that overlaps it enough, None if there is none: it was missed.
    """

    annotation: Annotation
    mask_overlap: float
    track_overlap: float
    named: int | None


@dataclasses.dataclass(frozen=True, slots=True)
class TrackOutcome:
    """What a result follows.

    Attributes:
        result: The result.
        annotation: The true instance that it overlaps most; None if it overlaps that too little, or there is none.
        overlap: Its largest overlap with an instance, enough or not.
        is_second: A result before it follows the same instance.
    """

    result: Result
    annotation: Annotation | None
    overlap: float
    is_second: bool


@dataclasses.dataclass(frozen=True, slots=True)
class Confusion:
    """How often instances of one class were named as another, or missed (``predicted_id`` is None)."""

    true_id: int
    predicted_id: int | None
    count: int


def instance_outcomes(
    ground_truth: GroundTruth, results: Sequence[Result], min_overlap: float = 0.5, *, show_progress: bool = False
) -> list[Outcome]:
    """Follow every true instance, of any class and apart from crowds, video by video.

    Many instances may have the same result: nothing is matched one to one here.

    Args:
        ground_truth: The instances.
        results: What was found; equal scores count in their order.
        min_overlap: From which overlap on a result counts as one of an instance, above 0.
        show_progress: Show a progress bar over videos.
    """
    annotations_of = by_video(annotation for annotation in ground_truth.annotations if not annotation.is_crowd)
    results_of = by_video(sorted(results, key=lambda result: -result.score))
    outcomes = []
    for video_id, annotations in tqdm(annotations_of.items(), "instances", unit="video", disable=not show_progress):
        outcomes += _video_outcomes(results_of[video_id], annotations, ground_truth.videos[video_id], min_overlap)
    return outcomes


def track_outcomes(
    ground_truth: GroundTruth, results: Sequence[Result], min_overlap: float = 0.5
) -> list[TrackOutcome]:
    """Find the true instance, of any class and no crowd, that each result follows.

    Args:
        ground_truth: The instances.
        results: What was found, each track under one class.
        min_overlap: From which overlap on a result follows an instance, above 0.

    Returns:
        An outcome for each result, best scores first; equal scores stay in their order.
    """
    annotations_of = by_video(annotation for annotation in ground_truth.annotations if not annotation.is_crowd)
    outcomes: list[TrackOutcome] = []
    followed: set[tuple[int, int]] = set()
    for result in sorted(results, key=lambda result: -result.score):
        candidates = annotations_of[result.video_id]
        video = ground_truth.videos[result.video_id]
        overlaps = track_overlaps([result], candidates, video)[0].tolist() if candidates else []
        overlap, closest = max(zip(overlaps, candidates, strict=True), key=itemgetter(0), default=(0.0, None))
        if closest is None or overlap < min_overlap:
            outcomes.append(TrackOutcome(result, None, overlap, is_second=False))
        else:
            # Ids may repeat from video to video.
            key = result.video_id, closest.id
            outcomes.append(TrackOutcome(result, closest, overlap, is_second=key in followed))
            followed.add(key)
    return outcomes


def confusions(outcomes: Sequence[Outcome]) -> list[Confusion]:
    """Count what instances were taken for, the most frequent mistakes first; right names are left out."""
    counts = Counter((outcome.annotation.category_id, outcome.named) for outcome in outcomes)
    mistakes = [Confusion(true, named, count) for (true, named), count in counts.items() if true != named]
    return sorted(mistakes, key=lambda mistake: (-mistake.count, mistake.true_id, mistake.predicted_id or 0))


def distinct_tracks(results: Iterable[Result]) -> list[Result]:
    """Keep the first result of every track, which is a video's very same masks: it may come under several classes."""
    first: dict[tuple[int, tuple[str | None, ...]], Result] = {}
    for result in results:
        first.setdefault((result.video_id, tuple(result.track.counts)), result)
    return list(first.values())


def _video_outcomes(
    results: Sequence[Result], annotations: Sequence[Annotation], video: Video, min_overlap: float
) -> list[Outcome]:
    """Follow the instances of one video; results come best first."""
    if not results:
        return [Outcome(annotation, 0.0, 0.0, None) for annotation in annotations]
    # The best-scoring result of a track names it, so the others of the same track say nothing more.
    tracks = distinct_tracks(results)
    mask_overlap, track_overlap = _mask_and_track_overlaps(tracks, annotations, video)
    outcomes = []
    for i, annotation in enumerate(annotations):
        enough = np.flatnonzero(track_overlap[:, i] >= min_overlap)
        best = float(track_overlap[:, i].max())
        named = tracks[enough[0]].category_id if len(enough) else None
        outcomes.append(Outcome(annotation, max(float(mask_overlap[i]), best), best, named))
    return outcomes


def _mask_and_track_overlaps(
    tracks: Sequence[Result], annotations: Sequence[Annotation], video: Video
) -> tuple[Float[np.ndarray, " g"], Float[np.ndarray, "d g"]]:
    """Return each annotation's overlap with the best masks of all frames, and with each track."""
    shared = frame_intersections(tracks, annotations, video)
    true_areas = np.stack([annotation.track.areas for annotation in annotations], axis=1).astype(float)
    # Masks of another size (see `parse_results`) have an area, but are not there.
    areas = np.stack([result.track.areas * result.track.counted for result in tracks], axis=1).astype(float)
    unions = areas[:, :, None] + true_areas[:, None, :] - shared
    best = _divide(shared, unions).argmax(axis=1)[:, None, :]
    best_shared = np.take_along_axis(shared, best, axis=1)[:, 0]
    # Where nothing overlaps, a perfect tracker takes no mask at all.
    best_unions = np.where(best_shared > 0, np.take_along_axis(unions, best, axis=1)[:, 0], true_areas)
    return _divide(best_shared.sum(axis=0), best_unions.sum(axis=0)), _divide(shared.sum(axis=0), unions.sum(axis=0))


def _divide(part: Float[np.ndarray, "*shape"], whole: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)
