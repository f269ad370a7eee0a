"""Curves of precision over recall as an inline picture."""

from collections.abc import Collection, Mapping

import numpy as np
from jaxtyping import Float

from clipvis_jax.evaluation.report.markup import Markup, element
from clipvis_jax.evaluation.video_ap import ABSENT, RECALL_POINTS, THRESHOLDS, VideoMetrics

_WIDTH, _HEIGHT = 560, 320
_LEFT, _TOP, _RIGHT, _BOTTOM = 46, 12, 14, 40
_TICKS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)


Curves = dict[str, Float[np.ndarray, " recalls"]]
"""Precision at `RECALL_POINTS`, by the name of the curve."""


def overlap_curves(metrics: VideoMetrics) -> Curves:
    """Average the precision over the classes that have ground truth, by overlap; no curves if there are none."""
    precision = metrics.precision[metrics.precision[:, 0, 0] != ABSENT]
    if len(precision) == 0:
        return {}
    mean = precision.mean(axis=0)
    at = {round(float(threshold), 2): i for i, threshold in enumerate(THRESHOLDS)}
    return {
        "overlap 0.5": mean[at[0.5]],
        "overlap 0.75": mean[at[0.75]],
        "mean of 0.5 to 0.95": mean.mean(axis=0),
    }


def group_curves(metrics: VideoMetrics, groups: Mapping[str, Collection[int]]) -> Curves:
    """Average the precision over the classes of each group and over all overlaps; empty groups have no curve."""
    exists = metrics.precision[:, 0, 0] != ABSENT
    curves = {}
    for name, members in groups.items():
        chosen = exists & np.isin(list(metrics.per_category), list(members))
        if chosen.any():
            curves[name] = metrics.precision[chosen].mean(axis=(0, 1))
    return curves


def draw_curves(curves: Curves) -> Markup:
    """Draw curves with axes and a legend; their colours are those of the page's classes ``curve-0`` to ``curve-3``."""
    title = "Precision over recall: " + ", ".join(
        f"{name}: area {curve.mean() * 100:.1f}" for name, curve in curves.items()
    )
    drawing = element(
        "svg",
        element("title", title),
        _axes(),
        [_curve(curve, f"curve-{i % 4}") for i, curve in enumerate(curves.values())],
        viewBox=f"0 0 {_WIDTH} {_HEIGHT}",
        role="img",
    )
    legend = [
        element(
            "li",
            element("span", class_=f"swatch curve-{i % 4}"),
            f"{name} ",
            element("b", f"{curve.mean() * 100:.1f}"),
        )
        for i, (name, curve) in enumerate(curves.items())
    ]
    return element("figure", drawing, element("ul", legend, class_="legend"), class_="curves")


def _x(recall: float) -> float:
    return round(_LEFT + recall * (_WIDTH - _LEFT - _RIGHT), 1)


def _y(precision: float) -> float:
    return round(_TOP + (1 - precision) * (_HEIGHT - _TOP - _BOTTOM), 1)


def _axes() -> Markup:
    parts = []
    for tick in _TICKS:
        label = f"{tick:.1f}"
        parts += [
            element("line", x1=_x(0.0), x2=_x(1.0), y1=_y(tick), y2=_y(tick), class_="grid"),
            element("line", x1=_x(tick), x2=_x(tick), y1=_y(0.0), y2=_y(1.0), class_="grid"),
            element("text", label, x=_LEFT - 8, y=_y(tick) + 4, text_anchor="end"),
            element("text", label, x=_x(tick), y=_y(0.0) + 18, text_anchor="middle"),
        ]
    middle = _y(0.5)
    return element(
        "g",
        parts,
        element("text", "recall", x=_x(0.5), y=_HEIGHT - 4, text_anchor="middle"),
        element("text", "precision", x=12, y=middle, text_anchor="middle", transform=f"rotate(-90 12 {middle})"),
    )


def _curve(precision: Float[np.ndarray, " recalls"], name: str) -> Markup:
    points = " ".join(f"{_x(r)},{_y(p)}" for r, p in zip(RECALL_POINTS.tolist(), precision.tolist(), strict=True))
    return element("polyline", points=points, class_=name)
