"""Scores of results against ground truth, by the official protocols (numpy)."""

from clipvis_jax.evaluation.diagnostics import (
    evaluate_class_agnostic,
    evaluate_classification,
    evaluate_segmentation,
)
from clipvis_jax.evaluation.inputs import check_masks, ground_truth_from, load_results, parse_results
from clipvis_jax.evaluation.protocols import PROTOCOLS, Protocol, scoring_rules
from clipvis_jax.evaluation.video_ap import ABSENT, VideoMetrics, evaluate, percent

__all__ = [
    "ABSENT",
    "PROTOCOLS",
    "Protocol",
    "VideoMetrics",
    "check_masks",
    "evaluate",
    "evaluate_class_agnostic",
    "evaluate_classification",
    "evaluate_segmentation",
    "ground_truth_from",
    "load_results",
    "parse_results",
    "percent",
    "scoring_rules",
]
