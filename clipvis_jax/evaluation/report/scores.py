"""Tables and bars of scores: the headline beside published figures, and where results are weak."""

from collections.abc import Mapping, Sequence

from clipvis_jax.evaluation.outcomes import Outcome
from clipvis_jax.evaluation.published import SOURCE, PublishedRow
from clipvis_jax.evaluation.report.markup import Markup, element, join
from clipvis_jax.evaluation.video_ap import ABSENT, NO_SCORE, VideoMetrics, percent

_PRECISIONS = ("AP", "AP50", "AP75")
_OTHERS = ("APs", "APm", "APl", "AR1", "AR10", "AR100")


def bar(label: str, share: float, text: str) -> Markup:
    """Draw a labelled bar of a length of 0 to 1."""
    filled = element("span", style=f"width:{100 * min(max(share, 0.0), 1.0):.1f}%")
    return element(
        "div",
        element("span", label),
        element("b", text),
        element("div", filled, class_="track"),
        class_="bar",
    )


def headline_table(
    evaluations: Mapping[str, VideoMetrics], published: Sequence[PublishedRow], burst: Mapping[str, Mapping[str, float]]
) -> Markup:
    """Write the scores of one or more protocols, the first one's in bold, above the published rows."""
    groups = list(dict.fromkeys(name for metrics in evaluations.values() for name in metrics.groups))
    columns = [*_PRECISIONS, *(f"AP {name}" for name in groups), *_OTHERS]
    rows = []
    for i, (label, metrics) in enumerate(evaluations.items()):
        by_group = [metrics.groups[name]["AP"] if name in metrics.groups else ABSENT for name in groups]
        scores = [*(metrics.stats[x] for x in _PRECISIONS), *by_group, *(metrics.stats[x] for x in _OTHERS)]
        rows.append(_row(label, [percent(score) for score in scores], "ours" if i == 0 else None))
    for row in published:
        known = {"AP": row.ap, "AP novel": row.ap_novel}
        cells = [f"{score:.1f}" if (score := known.get(column)) is not None else "" for column in columns]
        rows.append(_row(f"Published: {row.backbone}, trained on {row.trained_on}", cells, "published"))
    parts = [_scrolling_table("Model", columns, rows)]
    source = element("a", "the authors' release", href=SOURCE)
    parts.append(
        element(
            "p",
            f"All scores are times 100; {NO_SCORE} means that nothing counts.",
            join(" Published ones are from ", source, ".") if published else "",
            class_="note",
        )
    )
    if burst:
        metrics_names = list(next(iter(burst.values())))
        lines = [_row(group, [percent(scores[x]) for x in metrics_names], None) for group, scores in burst.items()]
        parts += [element("h3", "BURST's own metrics"), _scrolling_table("Classes", metrics_names, lines)]
    return join(parts)


def weakness(
    metrics: VideoMetrics,
    segmentation: VideoMetrics | None,
    classification: VideoMetrics | None,
    outcomes: Sequence[Outcome],
) -> Markup:
    """Show what is weak: masks, tracking or names."""
    scores = [
        ("AP", metrics),
        ("Masks and tracks alone (AP with the names of the ground truth)", segmentation),
        ("Names alone (AP with the masks of the ground truth)", classification),
    ]
    bars = [bar(name, x.stats["AP"], percent(x.stats["AP"])) for name, x in scores if x is not None]
    return element(
        "div",
        element(
            "div",
            bars,
            element(
                "p",
                "If the AP with true names is low, masks or tracking are weak; if it is much higher than the AP, names "
                "are. There each track is named as the instance that it overlaps most. The AP with true masks judges "
                "the names of the instances that were found.",
                class_="note",
            ),
        ),
        element("div", _steps(outcomes)),
        class_="columns",
    )


def _steps(outcomes: Sequence[Outcome]) -> Markup:
    """Show how many instances come through each step."""
    total = len(outcomes)
    segmented = sum(outcome.mask_overlap >= 0.5 for outcome in outcomes)
    tracked = sum(outcome.track_overlap >= 0.5 for outcome in outcomes)
    named = sum(outcome.named == outcome.annotation.category_id for outcome in outcomes)
    bars = [
        bar(f"{label} ({count:,} of {total:,})", count / max(total, 1), f"{100 * count / max(total, 1):.1f} %")
        for label, count in (("Segmented", segmented), ("Tracked", tracked), ("Named", named))
    ]
    return join(
        bars,
        element(
            "p",
            "The largest step down is where most instances are lost. Segmented: the best masks of all frames together "
            "overlap the instance by 0.5 or more, whichever tracks they belong to. Tracked: one track does. Named: "
            "the best-scoring track that does has the right class.",
            class_="note",
        ),
    )


def _row(label: str, cells: Sequence[str], class_: str | None) -> Markup:
    return element("tr", element("th", label, scope="row"), [element("td", x) for x in cells], class_=class_)


def _scrolling_table(first: str, columns: Sequence[str], rows: list[Markup]) -> Markup:
    head = element("tr", [element("th", name, scope="col") for name in (first, *columns)])
    return element("div", element("table", element("thead", head), element("tbody", rows)), class_="scroll")
