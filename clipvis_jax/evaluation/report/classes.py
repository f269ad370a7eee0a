"""Scores by class, and what instances were taken for."""

import dataclasses
from collections import Counter
from collections.abc import Collection, Mapping, Sequence

from clipvis_jax.evaluation.best_score import BestScores
from clipvis_jax.evaluation.outcomes import Outcome, confusions
from clipvis_jax.evaluation.video_ap import ABSENT, VideoMetrics

_MOST_CONFUSIONS = 40
_SCORES = ("AP", "AP50", "AP75", "AR100")


@dataclasses.dataclass(frozen=True)
class ClassRow:
    """A class with ground truth: its groups, and scores of 0 to 1, None where there is none, by `class_columns`."""

    name: str
    groups: list[str]
    num_instances: int
    scores: list[float | None]


@dataclasses.dataclass(frozen=True)
class Mistakes:
    """The most frequent mistakes of a kind, by texts of cells.

    Attributes:
        total: The number of instances.
        count: The number of kinds of mistakes, of which the most frequent are shown.
        shown: Names of classes, number of instances, and their share of the class.
    """

    total: int
    count: int
    shown: list[list[str]]


def class_columns(has_groups: bool) -> list[str]:
    """Return the names of the columns of the table of classes."""
    return ["Class", *(["Group"] if has_groups else []), "Instances", *_SCORES, "Tracked", "Named", "F1", "From score"]


def class_rows(
    metrics: VideoMetrics,
    outcomes: Sequence[Outcome],
    names: Mapping[int, str],
    groups: Mapping[str, Collection[int]],
    best_scores: BestScores | None,
) -> list[ClassRow]:
    """Return all classes with ground truth, which the page's script sorts and filters."""
    instances = Counter(outcome.annotation.category_id for outcome in outcomes)
    tracked = Counter(x.annotation.category_id for x in outcomes if x.track_overlap >= 0.5)
    named = Counter(x.annotation.category_id for x in outcomes if x.named == x.annotation.category_id)
    rows = []
    for category_id, scores in metrics.per_category.items():
        if scores["AP"] == ABSENT:
            continue
        count = instances[category_id]
        values = [None if scores[x] == ABSENT else scores[x] for x in _SCORES]
        values += [n[category_id] / count if count else None for n in (tracked, named)]
        best = best_scores and best_scores.per_category.get(category_id)
        values += [best.f1, best.min_score] if best else [None, None]
        member_of = [name for name, ids in groups.items() if category_id in ids]
        rows.append(ClassRow(names[category_id], member_of, count, values))
    return rows


def confusion_rows(outcomes: Sequence[Outcome], names: Mapping[int, str]) -> tuple[Mistakes, Mistakes]:
    """Return instances under a wrong name, and instances that no track has IoU enough with."""
    instances = Counter(outcome.annotation.category_id for outcome in outcomes)
    mistakes = confusions(outcomes)
    kinds = []
    for missed in (False, True):
        chosen = [mistake for mistake in mistakes if (mistake.predicted_id is None) == missed]
        rows = [
            [
                names[mistake.true_id],
                *([] if mistake.predicted_id is None else [names[mistake.predicted_id]]),
                str(mistake.count),
                f"{100 * mistake.count / instances[mistake.true_id]:.0f} %",
            ]
            for mistake in chosen[:_MOST_CONFUSIONS]
        ]
        kinds.append(Mistakes(sum(mistake.count for mistake in chosen), len(chosen), rows))
    return kinds[0], kinds[1]
