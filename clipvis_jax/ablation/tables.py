"""Scores of many settings as Markdown, CSV and plots."""

import csv
import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path

from clipvis_jax.ablation.settings import Setting
from clipvis_jax.evaluation import VideoMetrics, percent
from clipvis_jax.io.files import atomic_path


@dataclasses.dataclass(frozen=True)
class Row:
    """A setting and its scores by name, 0..1 or below 0 where there is no ground truth."""

    setting: Setting
    scores: dict[str, float]


def score_columns(metrics: VideoMetrics) -> dict[str, float]:
    """Choose what a table shows: AP, AP50, AP75, the groups' AP, AR10."""
    stats = metrics.stats
    groups = {f"AP {name}": group["AP"] for name, group in metrics.groups.items()}
    return {"AP": stats["AP"], "AP50": stats["AP50"], "AP75": stats["AP75"], **groups, "AR10": stats["AR10"]}


def markdown_tables(rows: Sequence[Row]) -> str:
    """Write one Markdown table for each table of settings; scores in percent."""
    parts = []
    for table in dict.fromkeys(row.setting.table for row in rows):
        chosen = [row for row in rows if row.setting.table == table]
        columns = list(chosen[0].scores)
        lines = [f"## {table}", "", f"| {table} | {' | '.join(columns)} |", f"|---|{'---:|' * len(columns)}"]
        lines += [f"| {row.setting.label} | {' | '.join(map(percent, row.scores.values()))} |" for row in chosen]
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def csv_table(rows: Sequence[Row]) -> str:
    """Write all rows as one CSV table; scores 0..1, empty where there is no ground truth."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["table", "setting", *rows[0].scores])
    for row in rows:
        writer.writerow(
            [row.setting.table, row.setting.label, *("" if x < 0 else repr(x) for x in row.scores.values())]
        )
    return text.getvalue()


def plot_table(path: Path, rows: Sequence[Row], table: str) -> None:
    """Draw the scores of a table whose labels are numbers (K or T), as SVG.

    Raises:
        InputError: The file cannot be written.
    """
    import matplotlib as mpl  # noqa: PLC0415 (slow to import)
    from matplotlib.figure import Figure  # noqa: PLC0415

    chosen = [row for row in rows if row.setting.table == table]
    values = [int(row.setting.label) for row in chosen]
    figure = Figure(figsize=(5, 3.5), layout="constrained")
    axes = figure.subplots()
    for name in [name for name in chosen[0].scores if name.startswith("AP") and chosen[0].scores[name] >= 0]:
        axes.plot(values, [100 * row.scores[name] for row in chosen], marker="o", label=name)
    axes.set(xlabel=table, ylabel="score, %", xticks=values)
    axes.grid(alpha=0.3)
    axes.legend()
    # Without a date and with fixed ids, so that the same scores give the same file.
    with atomic_path(path) as temporary, mpl.rc_context({"svg.hashsalt": "clipvis"}):
        figure.savefig(temporary, format="svg", metadata={"Date": None})
