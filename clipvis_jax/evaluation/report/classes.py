"""Scores by class, and what instances were taken for."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence

from clipvis_jax.evaluation.outcomes import Outcome, confusions
from clipvis_jax.evaluation.report.markup import Markup, element, join
from clipvis_jax.evaluation.video_ap import ABSENT, NO_SCORE, VideoMetrics, percent

_MOST_CONFUSIONS = 40
_SCORES = ("AP", "AP50", "AP75", "AR100")


def class_table(
    metrics: VideoMetrics,
    outcomes: Sequence[Outcome],
    names: Mapping[int, str],
    groups: Mapping[str, Collection[int]],
) -> Markup:
    """Write a table of all classes with ground truth, which the page's script sorts and filters."""
    instances = Counter(outcome.annotation.category_id for outcome in outcomes)
    tracked = Counter(x.annotation.category_id for x in outcomes if x.track_overlap >= 0.5)
    named = Counter(x.annotation.category_id for x in outcomes if x.named == x.annotation.category_id)
    rows = []
    for category_id, scores in metrics.per_category.items():
        if scores["AP"] == ABSENT:
            continue
        count = instances[category_id]
        member_of = [name for name, ids in groups.items() if category_id in ids]
        cells = [element("th", names[category_id], scope="row", data_value=names[category_id].lower())]
        if groups:
            cells.append(element("td", ", ".join(member_of), class_="text", data_value=" ".join(member_of)))
        cells.append(element("td", str(count), data_value=count))
        cells += [_score_cell(scores[x]) for x in _SCORES]
        cells += [_score_cell(n[category_id] / count if count else ABSENT) for n in (tracked, named)]
        rows.append(element("tr", cells, data_groups=f" {' '.join(member_of)} "))
    absent = len(metrics.per_category) - len(rows)
    columns = ["Class", *(["Group"] if groups else []), "Instances", *_SCORES, "Tracked", "Named"]
    head = element(
        "tr",
        [
            element("th", element("button", x, type="button"), scope="col", class_="text" if x == "Group" else None)
            for x in columns
        ],
    )
    note = f" {absent:,} classes without ground truth are not listed." if absent else ""
    return join(
        element(
            "p",
            "Tracked: instances that one track overlaps by 0.5 or more. Named: those of them whose best-scoring track "
            f"has the right class. Both in % of all instances.{note}",
            class_="note",
        ),
        _filters(groups, len(rows)),
        element(
            "div",
            element("table", element("thead", head), element("tbody", rows), id="classes", class_="sortable"),
            class_="scroll tall",
            tabindex=0,
        ),
    )


def confusion_tables(outcomes: Sequence[Outcome], names: Mapping[int, str]) -> Markup:
    """Write the most frequent mistakes: instances under a wrong name, and instances that nothing overlaps enough."""
    instances = Counter(outcome.annotation.category_id for outcome in outcomes)
    wrong: list[Markup] = []
    missed: list[Markup] = []
    num_wrong = num_missed = 0
    for mistake in confusions(outcomes):
        share = f"{100 * mistake.count / instances[mistake.true_id]:.0f} %"
        cells = [names[mistake.true_id], str(mistake.count), share]
        if mistake.predicted_id is None:
            num_missed += mistake.count
            missed.append(_plain_row(cells))
        else:
            num_wrong += mistake.count
            wrong.append(_plain_row([cells[0], names[mistake.predicted_id], *cells[1:]]))
    return element(
        "div",
        _mistakes(f"Taken for another class ({num_wrong:,})", ["Class", "Taken for", "Instances", "Of class"], wrong),
        _mistakes(f"Missed ({num_missed:,})", ["Class", "Instances", "Of class"], missed),
        class_="columns",
    )


def _filters(groups: Mapping[str, Collection[int]], count: int) -> Markup:
    """Write the controls above the table; without the script they would do nothing, so it is what shows them."""
    fields = [
        element("input", type="search", placeholder="Find a class", aria_label="Find a class", data_filter="name")
    ]
    if groups:
        options = [element("option", "all groups", value="")] + [element("option", name, value=name) for name in groups]
        fields.append(element("select", options, aria_label="Group", data_filter="group"))
    shown = element("output", f"{count:,} {'class' if count == 1 else 'classes'}")
    return element("form", fields, shown, class_="filters", hidden=True, data_table="classes")


def _score_cell(score: float) -> Markup:
    """Write a score with a bar behind it; one that does not exist is sorted behind all others."""
    if score == ABSENT:
        return element("td", NO_SCORE)
    return element("td", percent(score), data_value=f"{score:.6f}", style=f"--share:{100 * min(score, 1.0):.0f}%")


def _plain_row(cells: Sequence[str]) -> Markup:
    texts = len(cells) - 2
    return element("tr", [element("td", cell, class_="text" if i < texts else None) for i, cell in enumerate(cells)])


def _mistakes(title: str, columns: Sequence[str], rows: Sequence[Markup]) -> Markup:
    if not rows:
        return element("div", element("h3", title), element("p", "None.", class_="note"))
    texts = len(columns) - 2
    head = [element("th", x, scope="col", class_="text" if i < texts else None) for i, x in enumerate(columns)]
    more = f"The {_MOST_CONFUSIONS} most frequent of {len(rows):,}." if len(rows) > _MOST_CONFUSIONS else ""
    return element(
        "div",
        element("h3", title),
        element(
            "div",
            element(
                "table",
                element("thead", element("tr", head)),
                element("tbody", list(rows[:_MOST_CONFUSIONS])),
            ),
            class_="scroll tall",
            tabindex=0,
        ),
        element("p", more, class_="note"),
    )
