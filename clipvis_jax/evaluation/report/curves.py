"""Curves of precision over recall, and where they lie in the picture that report.html draws."""

import dataclasses
from collections.abc import Collection, Mapping

import numpy as np
from jaxtyping import Float

from clipvis_jax.evaluation.best_score import BestScores
from clipvis_jax.evaluation.video_ap import ABSENT, RECALL_POINTS, THRESHOLDS, VideoMetrics

_WIDTH, _HEIGHT = 560, 320
_LEFT, _TOP, _RIGHT, _BOTTOM = 46, 12, 14, 40
_TICKS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)


Curves = dict[str, Float[np.ndarray, " recalls"]]
"""Precision at `RECALL_POINTS`, or shares at as many scores, by the name of the curve."""


@dataclasses.dataclass(frozen=True)
class Curve:
    """A curve's name, the area below it times 100, and its points in the picture."""

    name: str
    area: str
    points: str


@dataclasses.dataclass(frozen=True)
class Plot:
    """A picture of curves: places in pixels from the upper left corner.

    Attributes:
        curves: What is drawn; the page's classes ``curve-0`` to ``curve-3`` give the colours.
        ticks: Label, place along the axis of recall, and along that of precision.
        width: Width of the whole picture.
        height: Its height.
        left: Left edge of the field of curves.
        right: Its right edge.
        top: Its upper edge.
        bottom: Its lower edge.
        centre: Its middle from left to right.
        middle: Its middle from top to bottom.
    """

    curves: list[Curve]
    ticks: list[tuple[str, float, float]]
    width: int
    height: int
    left: float
    right: float
    top: float
    bottom: float
    centre: float
    middle: float


def iou_curves(metrics: VideoMetrics) -> Curves:
    """Average the precision over the classes that have ground truth, by IoU; no curves if there are none."""
    precision = metrics.precision[metrics.precision[:, 0, 0] != ABSENT]
    if len(precision) == 0:
        return {}
    mean = precision.mean(axis=0)
    at = {round(float(threshold), 2): i for i, threshold in enumerate(THRESHOLDS)}
    return {"IoU 0.5": mean[at[0.5]], "IoU 0.75": mean[at[0.75]], "mean of 0.5 to 0.95": mean.mean(axis=0)}


def group_curves(metrics: VideoMetrics, groups: Mapping[str, Collection[int]]) -> Curves:
    """Average the precision over the classes of each group and over all IoUs; empty groups have no curve."""
    exists = metrics.precision[:, 0, 0] != ABSENT
    curves = {}
    for name, members in groups.items():
        chosen = exists & np.isin(list(metrics.per_category), list(members))
        if chosen.any():
            curves[name] = metrics.precision[chosen].mean(axis=(0, 1))
    return curves


def score_curves(best: BestScores) -> Curves:
    """F1, precision and recall over the score, of all classes together."""
    return {"F1": best.curves.f1, "precision": best.curves.precision, "recall": best.curves.recall}


def plot(curves: Curves) -> Plot:
    """Place curves, axes and their labels."""
    return Plot(
        curves=[Curve(name, f"{curve.mean() * 100:.1f}", _points(curve)) for name, curve in curves.items()],
        ticks=[(f"{tick:.1f}", _x(tick), _y(tick)) for tick in _TICKS],
        width=_WIDTH,
        height=_HEIGHT,
        left=_x(0.0),
        right=_x(1.0),
        top=_y(1.0),
        bottom=_y(0.0),
        centre=_x(0.5),
        middle=_y(0.5),
    )


def _x(recall: float) -> float:
    return round(_LEFT + recall * (_WIDTH - _LEFT - _RIGHT), 1)


def _y(precision: float) -> float:
    return round(_TOP + (1 - precision) * (_HEIGHT - _TOP - _BOTTOM), 1)


def _points(precision: Float[np.ndarray, " recalls"]) -> str:
    return " ".join(f"{_x(r)},{_y(p)}" for r, p in zip(RECALL_POINTS.tolist(), precision.tolist(), strict=True))
