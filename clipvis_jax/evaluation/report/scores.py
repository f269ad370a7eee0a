"""Scores: the headline beside published figures, and where results are weak."""

import dataclasses
from collections.abc import Mapping, Sequence

from clipvis_jax.evaluation.outcomes import Outcome
from clipvis_jax.evaluation.published import PublishedRow
from clipvis_jax.evaluation.video_ap import ABSENT, VideoMetrics, percent

_PRECISIONS = ("AP", "AP50", "AP75")
_OTHERS = ("APs", "APm", "APl", "AR1", "AR10", "AR100")

Bar = tuple[str, float, str]
"""Its label, its length from 0 to 1, and the figure beside it."""


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of scores; ``kind`` is its class in report.css."""

    label: str
    cells: list[str]
    kind: str = ""


@dataclasses.dataclass(frozen=True)
class Table:
    """Names of columns, without that of the labels, and rows."""

    columns: list[str]
    rows: list[Row]


def headline_table(evaluations: Mapping[str, VideoMetrics], published: Sequence[PublishedRow]) -> Table:
    """Return the scores of one or more protocols, the first one's marked as ours, above the published rows."""
    groups = list(dict.fromkeys(name for metrics in evaluations.values() for name in metrics.groups))
    columns = [*_PRECISIONS, *(f"AP {name}" for name in groups), *_OTHERS]
    rows = []
    for i, (label, metrics) in enumerate(evaluations.items()):
        by_group = [metrics.groups[name]["AP"] if name in metrics.groups else ABSENT for name in groups]
        scores = [*(metrics.stats[x] for x in _PRECISIONS), *by_group, *(metrics.stats[x] for x in _OTHERS)]
        rows.append(Row(label, [percent(score) for score in scores], "" if i else "ours"))
    for row in published:
        known = {"AP": row.ap, "AP novel": row.ap_novel}
        cells = [f"{score:.1f}" if (score := known.get(column)) is not None else "" for column in columns]
        rows.append(Row(f"Published: {row.backbone}, trained on {row.trained_on}", cells, "published"))
    return Table(columns, rows)


def burst_table(burst: Mapping[str, Mapping[str, float]]) -> Table:
    """Return BURST's own metrics, a row for every group of classes."""
    columns = list(next(iter(burst.values())))
    return Table(columns, [Row(group, [percent(scores[x]) for x in columns]) for group, scores in burst.items()])


def score_bars(
    metrics: VideoMetrics, segmentation: VideoMetrics | None, classification: VideoMetrics | None
) -> list[Bar]:
    """Return the AP beside that of masks and tracks alone and that of names alone."""
    scores = [
        ("AP", metrics),
        ("Masks and tracks alone (AP with oracle names)", segmentation),
        ("Names alone (AP with oracle masks)", classification),
    ]
    return [(name, max(x.stats["AP"], 0.0), percent(x.stats["AP"])) for name, x in scores if x is not None]


def step_bars(outcomes: Sequence[Outcome]) -> list[Bar]:
    """Return how many instances come through each step."""
    total = len(outcomes)
    counts = {
        "Segmented": sum(outcome.mask_overlap >= 0.5 for outcome in outcomes),
        "Tracked": sum(outcome.track_overlap >= 0.5 for outcome in outcomes),
        "Named": sum(outcome.named == outcome.annotation.category_id for outcome in outcomes),
    }
    shares = {name: count / max(total, 1) for name, count in counts.items()}
    return [
        (f"{name} ({counts[name]:,} of {total:,})", share, f"{100 * share:.1f} %") for name, share in shares.items()
    ]
