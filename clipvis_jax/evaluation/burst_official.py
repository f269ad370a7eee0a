"""BURST's own metrics, through trackeval (the extra ``burst``): HOTA and its parts, and AP, of the class-guided task.

They differ from the metrics of YouTube-VIS in more than the formula: only classes that are known to be present or
absent in a video are judged there, results in excess of incomplete annotations cost nothing, and some classes that are
easily confused with others are left out.
"""

import io
import json
import tempfile
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from tqdm import tqdm

from clipvis_jax.data.fields import field, load_json
from clipvis_jax.errors import InputError
from clipvis_jax.evaluation.inputs import Result, by_video
from clipvis_jax.evaluation.video_ap import ABSENT

METRICS = ("HOTA", "DetA", "AssA", "AP")
"""Names of the scores: tracking as a whole, its detection and its association; mean precision of tracks."""

# fmt: off
COMMON_IDS = frozenset((
    4, 13, 34, 35, 36, 41, 45, 58, 60, 78, 79, 81, 91, 95, 99, 118, 126, 133, 139, 154, 174, 185,
    211, 221, 229, 235, 237, 276, 299, 347, 371, 382, 392, 428, 429, 452, 475, 480, 502, 544, 579,
    621, 625, 642, 699, 714, 717, 729, 747, 779, 805, 829, 852, 896, 926, 937, 961, 979, 980, 982,
    993, 1001, 1018, 1038, 1057, 1091, 1097, 1099, 1115, 1117, 1122, 1132, 1135, 1144, 1155, 1162,
    1215, 1229,
))
# fmt: on
"""Classes that count as common, those that COCO has as well. Source: Ali2500/BURST-benchmark, burstapi/eval/run.py."""

_TRACKER = "ours"
_FIELDS = (
    "id",
    "dataset",
    "seq_name",
    "width",
    "height",
    "annotated_image_paths",
    "segmentations",
    "track_category_ids",
    "neg_category_ids",
    "not_exhaustive_category_ids",
)


def check_burst(annotations: str | Path) -> None:
    """Make sure that `evaluate_burst` can score by an annotation file, before there are results.

    Raises:
        InputError: trackeval is not installed, or the file is not in BURST's original format or has no ground truth.
    """
    _import_trackeval()
    _load_sequences(annotations, None)


def evaluate_burst(
    annotations: str | Path,
    results: Sequence[Result],
    *,
    video_ids: Collection[int] | None = None,
    show_progress: bool = False,
) -> dict[str, dict[str, float]]:
    """Score results by BURST's own metrics, equal to its evaluation script.

    Args:
        annotations: BURST's annotation file (``all_classes.json``) in its original format.
        results: What was found; ``video_id`` is a sequence's id and ``category_id`` a class's, as in the file. Every
            result has one mask or none for every annotated frame.
        video_ids: Score these sequences only; None: all.
        show_progress: Show a progress bar over videos.

    Returns:
        Scores by `METRICS`, 0 to 1, of ``all``, ``common`` and ``uncommon`` classes; `ABSENT` where there are none.

    Raises:
        InputError: trackeval is not installed, the file is not in BURST's original format, or results do not fit it.
    """
    trackeval = _import_trackeval()
    truth = _load_sequences(annotations, video_ids)
    predictions = _to_burst(truth, results, str(annotations))
    # trackeval reports on standard output whatever it does.
    with tempfile.TemporaryDirectory(prefix="clipvis-burst-") as folder, redirect_stdout(io.StringIO()):
        dataset = _open_dataset(trackeval, Path(folder), truth, predictions)
        by_class = _score_classes(trackeval, dataset, show_progress)
    ids = {name: dataset.class_name_to_class_id[name] for name in by_class}
    splits = {
        "all": list(by_class),
        "common": [name for name in by_class if ids[name] in COMMON_IDS],
        "uncommon": [name for name in by_class if ids[name] not in COMMON_IDS],
    }
    return {
        split: {
            metric: float(np.mean([by_class[name][metric] for name in names])) if names else ABSENT
            for metric in METRICS
        }
        for split, names in splits.items()
    }


def _import_trackeval() -> ModuleType:
    try:
        with redirect_stdout(io.StringIO()):
            import trackeval  # noqa: PLC0415
    except ImportError as error:
        raise InputError(
            f"BURST's own metrics need trackeval ({error}); install it: pip install 'clipvis-jax[burst]'"
        ) from error
    return trackeval


def _load_sequences(path: str | Path, video_ids: Collection[int] | None) -> dict[str, Any]:
    """Read the annotation file, with the chosen sequences only."""
    data = load_json(path)
    if not isinstance(data, Mapping) or "sequences" not in data:
        raise InputError(
            f"{path}: has no 'sequences'; BURST's own metrics need its original annotations (all_classes.json), "
            "not converted ones"
        )
    sequences = []
    for index, sequence in enumerate(data["sequences"]):
        for name in _FIELDS:
            field(sequence, name, f"{path}: sequences[{index}]")
        if video_ids is None or sequence["id"] in video_ids:
            sequences.append(sequence)
    if not any(sequence["track_category_ids"] for sequence in sequences):
        raise InputError(f"{path}: none of the sequences to score has a track; scores need ground truth")
    return {"split": field(data, "split", f"{path}:"), "sequences": sequences}


def _to_burst(truth: Mapping[str, Any], results: Sequence[Result], source: str) -> dict[str, Any]:
    """Write results in BURST's format."""
    results_of = by_video(results)
    sequences = []
    for sequence in truth["sequences"]:
        frames: list[dict[str, Any]] = [{} for _ in sequence["annotated_image_paths"]]
        categories = {}
        # Track ids start at 1: trackeval takes 0 for none, and then counts surplus results as right.
        for track, result in enumerate(results_of.pop(sequence["id"], []), 1):
            if len(result.track.counts) != len(frames):
                raise InputError(
                    f"results: a track of video {result.video_id} has {len(result.track.counts)} masks, but {source} "
                    f"has {len(frames)} annotated frames; predict on exactly those"
                )
            categories[str(track)] = result.category_id
            for frame, counts, area in zip(frames, result.track.counts, result.track.areas, strict=True):
                # Absent masks are left out; empty ones would count as detections.
                if counts is not None and area:
                    frame[str(track)] = {"rle": counts, "score": result.score}
        kept = ("id", "dataset", "seq_name", "width", "height", "annotated_image_paths")
        sequences.append(
            {key: sequence[key] for key in kept} | {"segmentations": frames, "track_category_ids": categories}
        )
    return {"split": truth["split"], "sequences": sequences}


def _open_dataset(trackeval: ModuleType, folder: Path, truth: object, predictions: object) -> Any:
    """Lay files out as trackeval wants them, and let it read them."""
    for name, content in (("gt", truth), (f"trackers/{_TRACKER}/data", predictions)):
        (folder / name).mkdir(parents=True)
        (folder / name / "all_classes.json").write_text(json.dumps(content), encoding="utf-8")
    config = {"GT_FOLDER": str(folder / "gt"), "TRACKERS_FOLDER": str(folder / "trackers"), "PRINT_CONFIG": False}
    return trackeval.datasets.BURST(config)


def _score_classes(trackeval: ModuleType, dataset: Any, show_progress: bool) -> dict[str, dict[str, float]]:
    """Score every class that has ground truth, by name."""
    hota, track_map = trackeval.metrics.HOTA(), trackeval.metrics.TrackMAP({"PRINT_CONFIG": False})
    names = {number: name for name, number in dataset.class_name_to_class_id.items()}
    parts: dict[str, dict[str, tuple[Any, Any]]] = defaultdict(dict)
    for sequence in tqdm(sorted(dataset.seq_list), "BURST metrics", unit="video", disable=not show_progress):
        raw = dataset.get_raw_seq_data(_TRACKER, sequence)
        true_tracks, found_tracks = raw["classes_to_gt_tracks"], raw["classes_to_dt_tracks"]
        for number, name in names.items():
            # Other classes have nothing to add. Leaving them out saves nearly all of the time.
            if not true_tracks[number] and not found_tracks[number]:
                continue
            data = dataset.get_preprocessed_seq_data(raw, name)
            parts[name][sequence] = hota.eval_sequence(data), track_map.eval_sequence(data)
    scores = {}
    for name in dataset.class_list:
        tracking = hota.combine_sequences({sequence: part for sequence, (part, _) in parts[name].items()})
        precision = track_map.combine_sequences({sequence: part for sequence, (_, part) in parts[name].items()})
        values = [*(tracking[metric] for metric in METRICS[:-1]), precision["AP_all"]]
        scores[name] = {metric: float(np.mean(value)) for metric, value in zip(METRICS, values, strict=True)}
    return scores
