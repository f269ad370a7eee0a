"""The page: what report.html shows, with its style and script in one file."""

import base64
import hashlib
from collections.abc import Collection, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2

from clipvis_jax.data.records import Dataset
from clipvis_jax.evaluation.best_score import BestScores
from clipvis_jax.evaluation.diagnostics import video_scores
from clipvis_jax.evaluation.inputs import GroundTruth, Result
from clipvis_jax.evaluation.outcomes import instance_outcomes
from clipvis_jax.evaluation.protocols import PROTOCOLS, group_members
from clipvis_jax.evaluation.published import SOURCE, PublishedRow
from clipvis_jax.evaluation.report.classes import class_columns, class_rows, confusion_rows
from clipvis_jax.evaluation.report.curves import group_curves, iou_curves, plot, score_curves
from clipvis_jax.evaluation.report.scores import burst_table, headline_table, score_bars, step_bars
from clipvis_jax.evaluation.report.videos import video_cards
from clipvis_jax.evaluation.video_ap import NO_SCORE, VideoMetrics, percent
from clipvis_jax.io.files import write_text

_PROVENANCE = ("command", "date", "dataset", "model", "config", "seed", "results", "device", "versions")
"""Fields of metrics.json that say how the scores came about, in the order in which they are shown."""


def write_report(
    path: str | Path,
    metrics: Mapping[str, Any],
    *,
    video_metrics: VideoMetrics,
    ground_truth: GroundTruth,
    results: Sequence[Result],
    segmentation: VideoMetrics | None = None,
    classification: VideoMetrics | None = None,
    best_scores: BestScores | None = None,
    groups: Mapping[str, Collection[int]] | None = None,
    other_protocols: Mapping[str, VideoMetrics] | None = None,
    burst: Mapping[str, Mapping[str, float]] | None = None,
    published: Sequence[PublishedRow] = (),
    dataset: Dataset | None = None,
    show_progress: bool = False,
) -> None:
    """Write the report of an evaluation as one HTML page that needs no network.

    Args:
        path: The file to write.
        metrics: The content of metrics.json, for what it says of the origin of the scores: ``command``, ``date``,
            ``dataset`` (with ``name``), ``model`` (with ``folder``), ``config``, ``seed``, ``results``, ``device``,
            ``versions``. Any may be missing.
        video_metrics: The scores, from `evaluate`.
        ground_truth: What was scored against.
        results: What was scored.
        segmentation: From `evaluate_segmentation`; None leaves it out.
        classification: From `evaluate_classification`; None leaves it out.
        best_scores: From `find_best_scores`; None leaves it out.
        groups: The groups that were given to `evaluate` beside the protocol's own.
        other_protocols: Scores of the same results by other protocols, by the names to show.
        burst: From `evaluate_burst`.
        published: Rows to compare with, from `published_rows`.
        dataset: Where frames for the pictures are read; None leaves the pictures out. Frames that cannot be read
            leave a message in their place.
        show_progress: Show progress bars.

    Raises:
        InputError: The file cannot be written, or a category lacks the field by which the protocol groups.
    """
    protocol = PROTOCOLS[video_metrics.protocol]
    members = group_members(ground_truth.categories, protocol, ground_truth.source) | dict(groups or {})
    names = {i: str(record.get("name", f"class {i}")) for i, record in ground_truth.categories.items()}
    outcomes = instance_outcomes(ground_truth, results, show_progress=show_progress)
    by_video = video_scores(ground_truth, results, protocol, show_progress=show_progress)
    evaluations = {f"This evaluation ({protocol.name})": video_metrics} | dict(other_protocols or {})
    classes = class_rows(video_metrics, outcomes, names, members, best_scores)
    wrong, missed = confusion_rows(outcomes, names)
    best, worst = video_cards(
        by_video, outcomes, ground_truth, results, names=names, dataset=dataset, show_progress=show_progress
    )
    by_iou = iou_curves(video_metrics)
    style, script = _read("report.css"), _read("report.js")
    page = _template().render(
        title=_title(metrics),
        facts=_facts(metrics, ground_truth),
        no_score=NO_SCORE,
        headline=headline_table(evaluations, published),
        published_source=SOURCE if published else "",
        burst=burst_table(burst) if burst else None,
        score_bars=score_bars(video_metrics, segmentation, classification),
        step_bars=step_bars(outcomes),
        by_iou=plot(by_iou) if by_iou else None,
        by_group=plot(group_curves(video_metrics, members)),
        best=best_scores.overall if best_scores else None,
        by_score=plot(score_curves(best_scores)) if best_scores else None,
        groups=list(members),
        class_columns=class_columns(bool(members)),
        classes=classes,
        num_absent=len(video_metrics.per_category) - len(classes),
        wrong=wrong,
        missed=missed,
        has_pictures=dataset is not None,
        best_videos=best,
        worst=worst,
        provenance={key: metrics[key] for key in _PROVENANCE if key in metrics},
        style=style,
        script=script,
        script_digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii"),
    )
    # The command may name a file whose name is no text; Python reads it with lone surrogates, which no file can hold.
    write_text(path, page.encode(errors="replace").decode())


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_read),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["percent"] = percent
    return environment.get_template("report.html")


def _read(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _title(metrics: Mapping[str, Any]) -> str:
    folder = _lookup(metrics, "model", "folder")
    # A path of either kind of system: the file may have been written on another one.
    model = folder.replace("\\", "/").rstrip("/").rpartition("/")[2] or "Results"
    dataset = _lookup(metrics, "dataset", "name")
    return f"{model} on {dataset}" if dataset else model


def _lookup(metrics: Mapping[str, Any], section: str, field: str) -> str:
    record = metrics.get(section)
    return str(record.get(field, "")) if isinstance(record, Mapping) else ""


def _facts(metrics: Mapping[str, Any], ground_truth: GroundTruth) -> list[str]:
    frames = sum(video.length for video in ground_truth.videos.values())
    facts = [
        f"{len(ground_truth.videos):,} videos",
        f"{frames:,} frames",
        f"{len(ground_truth.annotations):,} instances",
        f"{len(ground_truth.categories):,} classes",
    ]
    return facts + [str(metrics[name]) for name in ("note", "date") if name in metrics]
