"""The page: its sections, style and script in one file."""

import base64
import hashlib
from collections.abc import Collection, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from clipvis_jax.data.records import Dataset
from clipvis_jax.evaluation.diagnostics import video_scores
from clipvis_jax.evaluation.inputs import GroundTruth, Result
from clipvis_jax.evaluation.outcomes import instance_outcomes
from clipvis_jax.evaluation.protocols import PROTOCOLS, group_members
from clipvis_jax.evaluation.published import PublishedRow
from clipvis_jax.evaluation.report.classes import class_table, confusion_tables
from clipvis_jax.evaluation.report.curves import draw_curves, group_curves, overlap_curves
from clipvis_jax.evaluation.report.markup import Markup, element, join
from clipvis_jax.evaluation.report.scores import headline_table, weakness
from clipvis_jax.evaluation.report.videos import video_cards
from clipvis_jax.evaluation.video_ap import VideoMetrics
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
    sections = {
        "Scores": headline_table(evaluations, published, burst or {}),
        "What is weak: masks, tracking or names?": weakness(video_metrics, segmentation, classification, outcomes),
        "Precision and recall": _curves(video_metrics, members),
        "Classes": class_table(video_metrics, outcomes, names, members),
        "Confusions": confusion_tables(outcomes, names),
        "Videos": video_cards(
            by_video, outcomes, ground_truth, results, names=names, dataset=dataset, show_progress=show_progress
        ),
        "How this was made": _provenance(metrics),
    }
    body = join(
        _header(metrics, ground_truth),
        [element("section", element("h2", title), content) for title, content in sections.items()],
    )
    page = _page(_title(metrics), body)
    write_text(path, page)


def _curves(metrics: VideoMetrics, groups: Mapping[str, Collection[int]]) -> Markup:
    if not (by_overlap := overlap_curves(metrics)):
        return element("p", "There is no ground truth.", class_="note")
    by_group = group_curves(metrics, groups)
    return join(
        element("p", "Means over classes. The area below a curve is the AP, given beside its name.", class_="note"),
        element(
            "div",
            element("div", element("h3", "All classes, by overlap"), draw_curves(by_overlap)),
            element("div", element("h3", "By group, all overlaps"), draw_curves(by_group)) if by_group else "",
            class_="columns",
        ),
    )


def _title(metrics: Mapping[str, Any]) -> str:
    folder = _lookup(metrics, "model", "folder")
    # A path of either kind of system: the file may have been written on another one.
    model = folder.replace("\\", "/").rstrip("/").rpartition("/")[2] or "Results"
    dataset = _lookup(metrics, "dataset", "name")
    return f"{model} on {dataset}" if dataset else model


def _lookup(metrics: Mapping[str, Any], section: str, field: str) -> str:
    record = metrics.get(section)
    return str(record.get(field, "")) if isinstance(record, Mapping) else ""


def _header(metrics: Mapping[str, Any], ground_truth: GroundTruth) -> Markup:
    frames = sum(video.length for video in ground_truth.videos.values())
    facts = [
        f"{len(ground_truth.videos):,} videos",
        f"{frames:,} frames",
        f"{len(ground_truth.annotations):,} instances",
        f"{len(ground_truth.categories):,} classes",
    ]
    if "date" in metrics:
        facts.append(str(metrics["date"]))
    return element("header", element("h1", _title(metrics)), element("p", " · ".join(facts)))


def _provenance(metrics: Mapping[str, Any]) -> Markup:
    known = {key: metrics[key] for key in _PROVENANCE if key in metrics}
    if not known:
        return element("p", "The metrics do not say.", class_="note")
    return element("details", element("summary", "Command, data, model, settings and versions"), _definitions(known))


def _definitions(record: Mapping[str, Any]) -> Markup:
    return element("dl", [element("div", element("dt", str(key)), _value(value)) for key, value in record.items()])


def _value(value: object) -> Markup:
    if isinstance(value, Mapping):
        return element("dd", _definitions(value), class_="nested")
    return element("dd", ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value))


def _page(title: str, body: Markup) -> str:
    """Put the page together. Its policy lets the browser load nothing and run this one script only."""
    style, script = (
        resources.files(__package__).joinpath(name).read_text(encoding="utf-8") for name in ("report.css", "report.js")
    )
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name_="viewport", content="width=device-width, initial-scale=1"),
        element("title", title),
        element("style", Markup(style)),
    )
    page = element("html", head, element("body", body, element("script", Markup(script))), lang="en")
    return f"<!doctype html>\n{page}\n"
