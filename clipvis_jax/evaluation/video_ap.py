"""Average precision and recall of video instance segmentation, as the official evaluators compute them.

The official code is COCO's evaluation with tracks in place of boxes: the overlap of two tracks is the sum of their
intersections over all frames divided by the sum of their unions. Here overlaps are computed only where a video has
both results and annotations of a class, and matching runs over all thresholds and area ranges together.
"""

import dataclasses
import warnings
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int
from tqdm import tqdm

from clipvis_jax.errors import InputError
from clipvis_jax.evaluation.inputs import Annotation, GroundTruth, Result, Video
from clipvis_jax.evaluation.protocols import Protocol, group_members
from clipvis_jax.masks.rle import empty_mask, overlaps

ABSENT = -1.0
"""A score that does not exist: there is no ground truth to compare with."""
NO_SCORE = "—"
"""Stands for it where people read."""

# Matches the official code: these very floats. np.arange gives others, and overlaps such as 3/5 change sides.
THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALL_POINTS = np.linspace(0, 1, 101)
MAX_RESULTS = (1, 10, 100)
"""Recall is reported with so many results per video and class; precision with the largest number."""

# Matches the official code: both bounds belong to a range, so a mean area of 128**2 is small and medium.
AREA_RANGES = np.array([[0, 1e10], [0, 128**2], [128**2, 256**2], [256**2, 1e10]])
"""All, small, medium, large: bounds of a track's mean area in pixels."""

STATS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
"""Names of the scores: precision (AP) or recall (AR); at an IoU, an area range, or a number of results.

Those by the rules of LVIS have one more, AR300."""


@dataclasses.dataclass(frozen=True)
class VideoMetrics:
    """Scores by name (see `STATS`), 0..1 or `ABSENT`; recall may exceed 1 where results may share an annotation.

    ``stats`` are means over the classes that have ground truth, ``groups`` over those of them in a group.
    ``per_category`` has all classes by id. ``precision`` holds the curves behind AP: by class (in the order of ids),
    overlap threshold and recall point.
    """

    protocol: str
    stats: dict[str, float]
    per_category: dict[int, dict[str, float]]
    groups: dict[str, dict[str, float]]
    precision: Float[np.ndarray, "c thresholds recalls"]


def percent(score: float) -> str:
    """Write a score times 100, as papers do."""
    return NO_SCORE if score == ABSENT else f"{100 * score:.1f}"


def evaluate(
    ground_truth: GroundTruth,
    results: Sequence[Result],
    protocol: Protocol,
    *,
    groups: Mapping[str, Collection[int]] | None = None,
    show_progress: bool = False,
) -> VideoMetrics:
    """Score results against ground truth.

    Args:
        ground_truth: From `ground_truth_from`.
        results: From `load_results` or `parse_results` with the same ground truth. The order matters among equal
            scores. Without results, every class that has ground truth scores 0.
        protocol: Which official evaluator to follow.
        groups: Further groups of category ids to report, by name, beside the protocol's own.
        show_progress: Show a progress bar over classes.

    Raises:
        InputError: A category lacks the field by which the protocol groups, or a group names an unknown one.
    """
    members = group_members(ground_truth.categories, protocol, ground_truth.source)
    members |= {name: set(ids) for name, ids in (groups or {}).items()}
    category_ids = sorted(ground_truth.categories)
    for name, ids in members.items():
        if unknown := sorted(set(ids) - set(category_ids)):
            raise InputError(f"group '{name}': {ground_truth.source} has no category {unknown[0]}")

    if protocol.image_rules is None and any(annotation.id == 0 for annotation in ground_truth.annotations):
        warnings.warn(
            f"{ground_truth.source}: annotation 0 counts as never found, since the official code takes its id for "
            "'none'; number annotations from 1 to avoid it",
            stacklevel=2,
        )

    if protocol.image_rules is None:
        scores, precision = _score_videos(ground_truth, results, protocol, show_progress)
    else:
        from clipvis_jax.evaluation.image_ap import score_images  # noqa: PLC0415 - a library that videos do not need

        scores, precision = score_images(ground_truth, results, protocol)
    return VideoMetrics(
        protocol.name,
        {name: _mean(values) for name, values in scores.items()},
        {number: {name: float(x[row]) for name, x in scores.items()} for row, number in enumerate(category_ids)},
        {
            group: {name: _mean(values[np.isin(category_ids, list(ids))]) for name, values in scores.items()}
            for group, ids in members.items()
        },
        precision,
    )


def _score_videos(
    ground_truth: GroundTruth, results: Sequence[Result], protocol: Protocol, show_progress: bool
) -> tuple[dict[str, Float[np.ndarray, " c"]], Float[np.ndarray, "c thresholds recalls"]]:
    """Score every class, in the order of ids: scores by name, and the precision behind AP."""
    annotations_of = by_category_and_video(ground_truth.annotations)
    results_of = by_category_and_video(results)
    category_ids = sorted(ground_truth.categories)
    table = np.full((len(category_ids), len(STATS)), ABSENT)
    precision = np.full((len(category_ids), len(THRESHOLDS), len(RECALL_POINTS)), ABSENT)
    for row, category_id in enumerate(tqdm(category_ids, "scoring", unit="class", disable=not show_progress)):
        if category_id in annotations_of:
            matches = match_class(
                annotations_of[category_id], results_of.get(category_id, {}), ground_truth.videos, protocol
            )
            table[row], precision[row] = _score_class(matches)
    return dict(zip(STATS, table.T, strict=True)), precision


def track_overlaps(
    results: Sequence[Result], annotations: Sequence[Annotation], video: Video
) -> Float[np.ndarray, "d g"]:
    """Return the overlap of each result's track with each annotation's: intersection over union over all frames.

    Two tracks that are both empty overlap by 0.
    """
    result_areas = np.stack([result.track.areas for result in results]).astype(float)
    true_areas = np.stack([annotation.track.areas for annotation in annotations]).astype(float)
    counted = np.stack([result.track.counted for result in results]).astype(float)
    absent = np.array([[text is None for text in annotation.track.counts] for annotation in annotations], float)
    # Matches the official code: a mask of another size leaves its frame out, but not where the annotation has none.
    areas = (
        np.sum(result_areas * counted, axis=1, keepdims=True)
        + (result_areas * (1 - counted)) @ absent.T
        + counted @ true_areas.T
    )
    intersections = frame_intersections(results, annotations, video).sum(axis=0)
    unions = areas - intersections
    return np.divide(intersections, unions, out=np.zeros_like(unions), where=unions > 0)


def frame_intersections(
    results: Sequence[Result], annotations: Sequence[Annotation], video: Video
) -> Float[np.ndarray, "t d g"]:
    """Count the pixels that each result shares with each annotation in every frame."""
    result_areas = np.stack([result.track.areas for result in results]).astype(float)
    true_areas = np.stack([annotation.track.areas for annotation in annotations]).astype(float)
    frame_overlaps = np.zeros((video.length, len(results), len(annotations)))
    empty = empty_mask(video.size)
    for frame in np.flatnonzero(result_areas.any(axis=0) & true_areas.any(axis=0)):
        frame_overlaps[frame] = overlaps(
            [result.track.counts[frame] or empty for result in results],
            [annotation.track.counts[frame] or empty for annotation in annotations],
            video.size,
        )
    # From i / (a + b - i) back to i, exactly: it is a whole number far below the 2**53 of a float.
    sums = result_areas.T[:, :, None] + true_areas.T[:, None, :]
    return np.rint(frame_overlaps * sums / (1 + frame_overlaps))


@dataclasses.dataclass(frozen=True)
class ClassMatches:
    """The results of one class in all videos, and how they fare by area range (r) and threshold (t).

    ``ranks`` count from 0 within a video, best first. ``true`` and ``false`` are true and false positives; a result
    may be neither. ``num_true`` is the number of annotations that count.
    """

    scores: Float[np.ndarray, " n"]
    ranks: Int[np.ndarray, " n"]
    true: Bool[np.ndarray, "r t n"]
    false: Bool[np.ndarray, "r t n"]
    num_true: Int[np.ndarray, " r"]


def by_category_and_video(records: Sequence[Annotation] | Sequence[Result]) -> dict[int, dict[int, list]]:
    """Group by class, then by video."""
    table: dict[int, dict[int, list]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        table[record.category_id][record.video_id].append(record)
    return table


def match_class(
    annotations_of: Mapping[int, list[Annotation]],
    results_of: Mapping[int, list[Result]],
    videos: Mapping[int, Video],
    protocol: Protocol,
) -> ClassMatches:
    """Match the results of one class with its annotations in all videos, given by video id."""
    best_of = {
        video_id: sorted(found, key=lambda result: -result.score)[: MAX_RESULTS[-1]]
        for video_id, found in sorted(results_of.items())
    }
    results = [result for found in best_of.values() for result in found]
    shape = (len(AREA_RANGES), len(THRESHOLDS), len(results))
    matched, ignored = np.zeros(shape, bool), np.zeros(shape, bool)
    num_true = np.zeros(len(AREA_RANGES), int)
    stops = np.cumsum([len(found) for found in best_of.values()])
    part_of = {
        video_id: slice(stop - len(found), stop) for (video_id, found), stop in zip(best_of.items(), stops, strict=True)
    }
    for video_id, annotations in annotations_of.items():
        outside = _outside_ranges([_mean_area(annotation, protocol) for annotation in annotations])
        crowd = np.array([annotation.is_crowd for annotation in annotations], bool)
        left_out = outside | (crowd & protocol.ignores_crowd)
        num_true += np.count_nonzero(~left_out, axis=1)
        if video_id in part_of:
            part = part_of[video_id]
            overlap = track_overlaps(best_of[video_id], annotations, videos[video_id])
            if protocol.image_rules and crowd.any():
                shared_pixels = frame_intersections(best_of[video_id], annotations, videos[video_id]).sum(axis=0)
                result_areas = np.array([result.track.areas.sum() for result in best_of[video_id]])[:, None]
                overlap[:, crowd] = (shared_pixels / np.maximum(result_areas, 1))[:, crowd]
            matched[..., part], ignored[..., part] = match_tracks(
                overlap,
                np.array([annotation.id for annotation in annotations]),
                left_out,
                crowd if protocol.shared == "crowd" else np.ones_like(crowd),
            )
    areas = [0.0 if protocol.areas == "none" else result.track.mean_area for result in results]
    ignored |= ~matched & _outside_ranges(areas)[:, None]
    return ClassMatches(
        np.array([result.score for result in results], float),
        np.array([rank for found in best_of.values() for rank in range(len(found))], int),
        matched & ~ignored,
        ~matched & ~ignored,
        num_true,
    )


def _mean_area(annotation: Annotation, protocol: Protocol) -> float:
    """Return the mean area of an annotation over the frames where it has one."""
    if protocol.areas == "none":
        return 0.0
    if annotation.areas is None:
        return annotation.track.mean_area
    areas = [area for area in annotation.areas if area]
    if protocol.areas == "whole":
        areas = [float(int(area)) for area in areas]
    return float(np.mean(areas)) if areas else 0.0


def _outside_ranges(areas: Sequence[float]) -> Bool[np.ndarray, "r n"]:
    """Mark areas that lie outside each of the ranges."""
    low, high = AREA_RANGES.T[..., None]
    return (np.array(areas, float) < low) | (np.array(areas, float) > high)


def match_tracks(
    overlap: Float[np.ndarray, "d g"],
    ids: Int[np.ndarray, " g"],
    left_out: Bool[np.ndarray, "r g"],
    shared: Bool[np.ndarray, " g"],
) -> tuple[Bool[np.ndarray, "r t d"], Bool[np.ndarray, "r t d"]]:
    """Give results their annotations, for all area ranges (r) and thresholds (t) together.

    Each result in turn takes, of the free annotations that it overlaps enough, the one with the largest overlap; one
    that is left out of the count only if there is no other.

    Args:
        overlap: Of results, best first, with annotations.
        ids: Ids of the annotations.
        left_out: Annotations that do not count in an area range.
        shared: Annotations that stay free when taken.

    Returns:
        Which results have an annotation, and which have one that is left out.
    """
    num_ranges, num_true = left_out.shape
    # Matches the official code: of annotations with exactly the same overlap, the later one goes first.
    order = np.argsort(overlap, axis=1, kind="stable")
    preference = np.argsort(order, axis=1)[:, None, :] + num_true * ~left_out[:, None, None, :]
    enough = overlap[:, None, :] >= np.minimum(THRESHOLDS, 1 - 1e-10)[:, None]
    free = np.ones((num_ranges, len(THRESHOLDS), num_true), bool)
    matched = np.zeros((num_ranges, len(THRESHOLDS), len(overlap)), bool)
    on_left_out = np.zeros_like(matched)
    for result in np.flatnonzero(enough.any(axis=(1, 2))):
        wanted = np.where(free & enough[result], preference[:, result], -1)
        choice = wanted.argmax(axis=-1)
        r, t = np.nonzero(wanted.max(axis=-1) >= 0)
        taken = choice[r, t]
        free[r, t, taken] = shared[taken]
        # Matches the official code: an id serves as the flag, so annotation 0 is taken but never found.
        matched[r, t, result] = ids[taken] != 0
        on_left_out[r, t, result] = left_out[r, taken]
    return matched, on_left_out


def _score_class(matches: ClassMatches) -> tuple[Float[np.ndarray, " stats"], Float[np.ndarray, "t recalls"]]:
    """Return the scores of a class in the order of `STATS`, and its precision in the range of all areas."""
    shape = (len(AREA_RANGES), len(THRESHOLDS))
    precision = np.full((*shape, len(RECALL_POINTS)), ABSENT)
    recall = np.full((*shape, len(MAX_RESULTS)), ABSENT)
    order = np.argsort(-matches.scores, kind="stable")
    for r, num_true in enumerate(matches.num_true.tolist()):
        if num_true == 0:
            continue
        true = np.cumsum(matches.true[r][:, order], axis=1)
        false = np.cumsum(matches.false[r][:, order], axis=1)
        precision[r] = _interpolate(true, false, num_true)
        for i, max_results in enumerate(MAX_RESULTS):
            recall[r, :, i] = np.count_nonzero(matches.true[r][:, matches.ranks < max_results], axis=1) / num_true
    ap = precision.mean(axis=-1)
    ar = recall.mean(axis=1)
    by_area = ap.mean(axis=1)
    scores = [by_area[0], ap[0, 0], ap[0, 5], *by_area[1:], *ar[0], *ar[1:, -1]]
    return np.array(scores), precision[0]


def _interpolate(
    true: Int[np.ndarray, "t n"], false: Int[np.ndarray, "t n"], num_true: int
) -> Float[np.ndarray, "t recalls"]:
    """Return the best precision at each recall or beyond, from running counts of true and false positives."""
    precision = true / (true + false + np.spacing(1))
    precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    # Beyond the recall that is reached, precision is 0.
    precision = np.pad(precision, ((0, 0), (0, 1)))
    reached = [np.searchsorted(recall, RECALL_POINTS) for recall in true / num_true]
    return np.take_along_axis(precision, np.stack(reached), axis=1)


def _mean(scores: Float[np.ndarray, " c"]) -> float:
    """Average over the classes in which a score exists."""
    exists = scores > ABSENT
    return float(np.mean(scores[exists])) if exists.any() else ABSENT
