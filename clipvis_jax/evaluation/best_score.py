"""From which score on results are worth showing: precision, recall and F1 over the score.

F1 is 2 x precision x recall / (precision + recall). A result is right if it has an IoU of 0.5 or more with an object of
its class that no better result has taken, as for AP50; classes without ground truth take no part.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float

from clipvis_jax.evaluation.inputs import GroundTruth, Result
from clipvis_jax.evaluation.protocols import Protocol
from clipvis_jax.evaluation.video_ap import by_category_and_video, match_class

SCORES = np.linspace(0, 1, 101)
"""Where the curves have their points."""


@dataclasses.dataclass(frozen=True)
class BestScore:
    """The lowest score of the results that together have the best F1; all are 0..1."""

    min_score: float
    f1: float
    precision: float
    recall: float

    @property
    def shown(self) -> str:
        """The score, rounded down, so that it leaves out none of them."""
        return f"{math.floor(self.min_score * 1000) / 1000:.3f}"


@dataclasses.dataclass(frozen=True)
class ScoreCurves:
    """Of all classes together, at `SCORES`: what is kept are results with that score or more."""

    f1: Float[np.ndarray, " scores"]
    precision: Float[np.ndarray, " scores"]
    recall: Float[np.ndarray, " scores"]


@dataclasses.dataclass(frozen=True)
class BestScores:
    """Best scores of all classes together, and of each with ground truth and a right result, by its id."""

    overall: BestScore
    per_category: dict[int, BestScore]
    curves: ScoreCurves


def find_best_scores(ground_truth: GroundTruth, results: Sequence[Result], protocol: Protocol) -> BestScores | None:
    """Find the scores with the best F1; None if no result is right, or if nobody looked for all of an image's classes.

    The latter is so by the rules of LVIS, where a result that has no annotation may be right.
    """
    if protocol.image_rules == "lvis":
        return None
    annotations_of, results_of = by_category_and_video(ground_truth.annotations), by_category_and_video(results)
    scores, right, num_true = [np.zeros(0)], [np.zeros(0, bool)], 0
    per_category = {}
    for category_id, annotations in sorted(annotations_of.items()):
        matches = match_class(annotations, results_of.get(category_id, {}), ground_truth.videos, protocol)
        # Of all areas, at the lowest IoU. Results on what does not count are neither right nor wrong.
        true, false, number = matches.true[0, 0], matches.false[0, 0], int(matches.num_true[0])
        counted = true | false
        num_true += number
        scores.append(matches.scores[counted])
        right.append(true[counted])
        if true.any():
            per_category[category_id] = _best(scores[-1], right[-1], number)
    all_scores, all_right = np.concatenate(scores), np.concatenate(right)
    if not all_right.any():
        return None
    num_kept, num_right = (
        len(some) - np.searchsorted(np.sort(some), SCORES) for some in (all_scores, all_scores[all_right])
    )
    return BestScores(
        _best(all_scores, all_right, num_true),
        per_category,
        ScoreCurves(*_f1(num_right, num_kept, num_true)),
    )


def _best(scores: Float[np.ndarray, " n"], right: Bool[np.ndarray, " n"], num_true: int) -> BestScore:
    order = np.argsort(-scores, kind="stable")
    scores, num_right = scores[order], np.cumsum(right[order])
    f1, precision, recall = _f1(num_right, np.arange(1, len(scores) + 1), num_true)
    # Only the last of equal scores is a place to cut.
    f1 = np.where(np.append(scores[1:] < scores[:-1], True), f1, -1)
    best = int(np.argmax(f1))
    return BestScore(float(scores[best]), float(f1[best]), float(precision[best]), float(recall[best]))


def _f1(
    num_right: np.ndarray, num_kept: np.ndarray, num_true: int
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Return F1, precision (1 where nothing is kept) and recall."""
    precision = np.where(num_kept > 0, num_right / np.maximum(num_kept, 1), 1.0)
    return 2 * num_right / (num_kept + num_true), precision, num_right / max(num_true, 1)
