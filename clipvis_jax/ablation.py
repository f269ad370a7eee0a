"""The switches of the method, one by one, on cached per-frame predictions: the paper's ablations."""

import csv
import dataclasses
import hashlib
import io
import json
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from clipvis_jax.association import AssociationConfig
from clipvis_jax.data.records import Dataset
from clipvis_jax.dataset_run import DatasetFrames, RunFolder, order_by_size
from clipvis_jax.evaluation import VideoMetrics, percent
from clipvis_jax.files import atomic_path, prepare_output_dir
from clipvis_jax.prediction_cache import VideoReplay, collect_video, load_video, save_video
from clipvis_jax.scores import ScoreConfig
from clipvis_jax.segmenter import VIDEO_TOP_K, Segmenter
from clipvis_jax.text import PROMPT_TEMPLATES

SINGLE_TEMPLATE = ("a photo of a {}.",)
NAME_ALONE = ("{}",)


@dataclasses.dataclass(frozen=True)
class Setting:
    """One row of a table: what is switched, and how.

    ``table`` is the table that the row belongs to, ``label`` what the row is called there.
    """

    table: str
    label: str
    association: AssociationConfig = AssociationConfig()
    scores: ScoreConfig = ScoreConfig()
    templates: tuple[str, ...] = PROMPT_TEMPLATES


def identity(setting: Setting) -> str:
    """Digest what a setting switches, whatever it is called."""
    what = [dataclasses.asdict(setting.association), dataclasses.asdict(setting.scores), setting.templates]
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()[:16]


def paper_settings(
    k_values: Sequence[int] = (1, 3, 5, 7, 9), t_values: Sequence[int] = (1, 5, 9, 13)
) -> tuple[Setting, ...]:
    """Return the paper's ablations: components, K, T, matching modes and prompt templates.

    Source: CLIP-VIS (arXiv 2403.12455), section IV-C. Rows that say the same in different tables are computed once.
    """
    previous = AssociationConfig(mode="previous")
    plain = ScoreConfig(use_objectness=False, use_iou=False)
    return (
        Setting("components", "baseline: previous frame, no weights", previous, plain),
        Setting("components", "+ top-K matching", scores=plain),
        Setting("components", "+ objectness", scores=ScoreConfig(use_iou=False)),
        Setting("components", "+ mask IoU (the method)"),
        Setting("weights", "neither", scores=plain),
        Setting("weights", "objectness", scores=ScoreConfig(use_iou=False)),
        Setting("weights", "mask IoU", scores=ScoreConfig(use_objectness=False)),
        Setting("weights", "both"),
        Setting("matching", "previous frame", previous),
        Setting("matching", "all of the memory", AssociationConfig(mode="all")),
        Setting("matching", "top-K of the memory"),
        *(Setting("K", str(k), AssociationConfig(top_k=k)) for k in k_values),
        *(Setting("T", str(t), AssociationConfig(memory_length=t)) for t in t_values),
        Setting("templates", "name alone", templates=NAME_ALONE),
        Setting("templates", "a photo of a", templates=SINGLE_TEMPLATE),
        Setting("templates", f"{len(PROMPT_TEMPLATES)} templates"),
    )


def cache_dataset(
    segmenter: Segmenter, dataset: Dataset, folder: Path, count: int, *, show_progress: bool = False
) -> list[Path]:
    """Run the network over the first videos of a data set and keep what it predicts; videos that are there are left.

    Returns:
        The file of every video, in the data set's order. About 1 MB per frame for a full-size model.

    Raises:
        InputError: A frame cannot be used, or a file cannot be written.
    """
    prepare_output_dir(folder)
    paths = [folder / f"{index:06d}.npz" for index in range(count)]
    todo = [index for index in order_by_size(segmenter, dataset, count) if not paths[index].is_file()]
    lengths = [length for _, _, length in dataset.video_sizes()]
    # Class probabilities are not kept, so any vocabulary serves; a small one is quick.
    names = [dataset.categories[0].name]
    total = sum(lengths[index] for index in todo)
    with tqdm(total=total, desc="network", unit="frame", disable=not show_progress) as bar:
        for index in todo:
            frames = (image for _, image in DatasetFrames(dataset, index))
            with segmenter.start(names, keep_frames=False) as state:
                save_video(paths[index], collect_video(segmenter.predict_frames(state, frames), state))
            bar.update(lengths[index])
    return paths


def replay_dataset(
    segmenter: Segmenter,
    dataset: Dataset,
    cache: Sequence[Path],
    settings: Sequence[Setting],
    runs: Sequence[RunFolder],
    *,
    top_k: int = VIDEO_TOP_K,
    show_progress: bool = False,
) -> None:
    """Associate and score cached videos under every setting; results go to the setting's run, videos there are left.

    Args:
        segmenter: The model that the cache is from; its text encoder alone is used.
        dataset: The data set that the cache is from; all of its classes are the vocabulary.
        cache: The files of its first videos.
        settings: What to switch.
        runs: Where the results of each setting go.
        top_k: Number of (track, class) pairs per video.
        show_progress: Show a progress bar with the time left.

    Raises:
        InputError: A file of the cache is damaged.
    """
    names = [category.name for category in dataset.categories]
    ids = [category.id for category in dataset.categories]
    templates = {setting.templates for setting in settings}
    classifiers = {
        group: segmenter.encode_classes(names, templates=group, show_progress=show_progress) for group in templates
    }
    name_probs = jax.jit(
        lambda visual, classifier: jax.nn.softmax(
            segmenter.model.name_embeddings(segmenter.clip_vars, visual, classifier), axis=-1
        )
    )
    for index, path in enumerate(tqdm(cache, "settings", unit="video", disable=not show_progress)):
        todo = [(setting, run) for setting, run in zip(settings, runs, strict=True) if not run.has(index)]
        if not todo:
            continue
        video, video_id = load_video(path), dataset[index].id
        for group in {setting.templates for setting, _ in todo}:
            # Frame by frame, as the network does: one compilation for videos of all lengths.
            probs = np.stack(
                [np.asarray(name_probs(jnp.asarray(visual), classifiers[group])) for visual in video.visual_embed]
            )
            replay = VideoReplay(video, probs[:, :, : len(names)])
            for setting, run in todo:
                if setting.templates == group:
                    records = replay.run(
                        setting.association, setting.scores, top_k=top_k, video_id=video_id, category_ids=ids
                    )
                    run.write(index, records)


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
