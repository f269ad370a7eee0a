"""All scores of one evaluation: computed together, as JSON, and as a table on the terminal."""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from clipvis_jax.evaluation.best_score import BestScores, find_best_scores
from clipvis_jax.evaluation.diagnostics import (
    evaluate_class_agnostic,
    evaluate_classification,
    evaluate_segmentation,
)
from clipvis_jax.evaluation.inputs import GroundTruth, Result
from clipvis_jax.evaluation.protocols import Protocol, group_members
from clipvis_jax.evaluation.video_ap import (
    THRESHOLDS,
    VideoMetrics,
    evaluate,
    percent,
)
from clipvis_jax.io.terminal import print_lines, print_table


@dataclasses.dataclass(frozen=True)
class Summary:
    """Scores by every protocol asked for, the first being the data set's own, and what tells where results are weak.

    ``class_agnostic`` counts all classes as one, with recall by group; ``oracle_names`` judges masks and tracks as if
    the names were perfect, ``oracle_masks`` the names as if the masks were. ``best_scores`` tells from which
    score on results are worth showing; None if none is right.
    """

    protocols: tuple[VideoMetrics, ...]
    class_agnostic: VideoMetrics
    oracle_names: VideoMetrics
    oracle_masks: VideoMetrics
    best_scores: BestScores | None

    @property
    def main(self) -> VideoMetrics:
        """Scores by the data set's own protocol."""
        return self.protocols[0]


def summarize(
    ground_truth: GroundTruth,
    results: Sequence[Result],
    protocols: Sequence[Protocol],
    *,
    groups: Mapping[str, Collection[int]] | None = None,
    show_progress: bool = False,
) -> Summary:
    """Compute all scores; ``groups`` are further sets of category ids to report, by name.

    Raises:
        InputError: See `evaluate`.
    """
    main = protocols[0]
    all_groups = group_members(ground_truth.categories, main, ground_truth.source) | dict(groups or {})
    return Summary(
        tuple(
            evaluate(ground_truth, results, protocol, groups=groups, show_progress=show_progress)
            for protocol in protocols
        ),
        evaluate_class_agnostic(ground_truth, results, main, groups=all_groups, show_progress=show_progress),
        evaluate_segmentation(ground_truth, results, main, show_progress=show_progress),
        evaluate_classification(ground_truth, results, main, show_progress=show_progress),
        find_best_scores(ground_truth, results, main),
    )


def scores_to_json(scores: Mapping[str, float]) -> dict[str, float | None]:
    """Write scores as JSON: 0..1, null where there is no ground truth to compare with."""
    return {name: None if value < 0 else value for name, value in scores.items()}


def summary_to_json(summary: Summary, ground_truth: GroundTruth) -> dict[str, Any]:
    """Write the scores as JSON: 0..1, null where there is no ground truth to compare with."""
    return {
        "metrics": {
            metrics.protocol: {
                "stats": scores_to_json(metrics.stats),
                "groups": {name: scores_to_json(values) for name, values in metrics.groups.items()},
                "categories": [
                    {"id": number, "name": ground_truth.categories[number].get("name"), **scores_to_json(values)}
                    for number, values in metrics.per_category.items()
                ],
            }
            for metrics in summary.protocols
        },
        "class_agnostic": {
            "stats": scores_to_json(summary.class_agnostic.stats),
            "groups": {name: scores_to_json(values) for name, values in summary.class_agnostic.groups.items()},
        },
        "oracle_names": scores_to_json(summary.oracle_names.stats),
        "oracle_masks": scores_to_json(summary.oracle_masks.stats),
        "best_f1": best_to_json(summary.best_scores),
        "thresholds": THRESHOLDS.tolist(),
        "max_results": [int(name[2:]) for name in summary.main.stats if name[2:].isdecimal() and name[:2] == "AR"],
    }


def best_to_json(best: BestScores | None) -> dict[str, Any] | None:
    """Write the best scores, overall and by class, as JSON."""
    if best is None:
        return None
    categories = [{"id": number, **dataclasses.asdict(score)} for number, score in best.per_category.items()]
    return dataclasses.asdict(best.overall) | {"categories": categories}


def print_summary(summary: Summary, *, title: str) -> None:
    """Print the scores as one table per protocol, in percent; a name in the title is nothing but text."""
    for metrics in summary.protocols:
        columns = {"all": metrics.stats, **metrics.groups}
        if metrics is summary.main:
            columns |= {"oracle names": summary.oracle_names.stats, "oracle masks": summary.oracle_masks.stats}
        print_table(
            f"{title}, {metrics.protocol}",
            ["%", *columns],
            [[name, *(percent(values[name]) for values in columns.values())] for name in metrics.stats],
            left=["%"],
        )
    print_lines(
        "oracle names: each track named as the object that it overlaps most; oracle masks: each with that object's "
        "masks, of the objects found"
    )
    agnostic = {"all": summary.class_agnostic.stats, **summary.class_agnostic.groups}
    listed = ", ".join(f"{name} {percent(values['AR100'])}" for name, values in agnostic.items())
    if summary.best_scores is not None:
        best = summary.best_scores.overall
        print_lines(
            f"best F1 {percent(best.f1)} with a --min-score of {best.shown}: precision {percent(best.precision)}, "
            f"recall {percent(best.recall)}, at IoU 0.5"
        )
    print_lines(f"class-agnostic: AP {percent(summary.class_agnostic.stats['AP'])}; AR100 {listed}")
