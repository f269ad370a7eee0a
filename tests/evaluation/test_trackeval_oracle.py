"""The evaluator against trackeval (``pip install trackeval==1.3.0``), where the official code agrees with it."""

import json

import numpy as np
import pytest
import trackeval
from conftest import GOLDENS
from plain_evaluation import read_truth
from pycocotools import mask as coco_mask

from clipvis_jax.evaluation import ABSENT, PROTOCOLS, evaluate, load_results
from clipvis_jax.masks.rle import to_counts

# Not those with results of other lengths, crowds, or overlaps at a threshold: trackeval has its own ways with them.
CASES = ["c01_basic", "c05_absent_classes", "c06_area_ranges", "c07_maxdets", "c09_gt_formats"]
NAMES = {"AP": "AP_all", "APs": "AP_area_s", "APm": "AP_area_m", "APl": "AP_area_l", "AR100": "AR_all"}


def write_folders(folder, case):
    """Lay files out as trackeval wants them, with masks as plain run lengths."""
    ground_truth = json.loads((GOLDENS / "eval" / case / "gt.json").read_text())
    sizes = {video["id"]: [video["height"], video["width"]] for video in ground_truth["videos"]}
    for annotation in ground_truth["annotations"]:
        size = sizes[annotation["video_id"]]
        for frame, mask in enumerate(annotation["segmentations"]):
            if mask is not None:
                flat = coco_mask.decode({"size": size, "counts": to_counts(mask, size)[0]}).ravel(order="F")
                edges = np.flatnonzero(np.diff(flat, prepend=0)).tolist()
                counts = np.diff([0, *edges, flat.size]).tolist()
                annotation["segmentations"][frame] = {"size": size, "counts": counts}
    for part, content in (("gt", ground_truth), ("trackers", None)):
        file = folder / part / "youtube_vis_test" / ("ours/data/results.json" if part == "trackers" else "gt.json")
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps(content) if content else (GOLDENS / "eval" / case / "results.json").read_text())


@pytest.mark.parametrize("case", CASES)
def test_equals_trackeval(case, tmp_path):
    write_folders(tmp_path, case)
    dataset = trackeval.datasets.YouTubeVIS(
        {
            "GT_FOLDER": f"{tmp_path}/gt/",
            "TRACKERS_FOLDER": f"{tmp_path}/trackers/",
            "SPLIT_TO_EVAL": "test",
            "PRINT_CONFIG": False,
        }
    )
    dataset.global_tid_counter = 1  # it takes a track of id 0 for none
    metric = trackeval.metrics.TrackMAP(
        {
            "AREA_RANGES": [[0, 128**2], [128**2, 256**2], [256**2, 1e10]],
            "USE_TIME_RANGES": False,
            "MAX_DETECTIONS": 100,
            "PRINT_CONFIG": False,
        }
    )
    raw = {name: dataset.get_raw_seq_data("ours", name) for name in dataset.seq_list}
    truth = read_truth(json.loads((GOLDENS / "eval" / case / "gt.json").read_text()))
    results = load_results(GOLDENS / "eval" / case / "results.json", truth)
    metrics = evaluate(truth, results, PROTOCOLS["ytvis"])
    for category_id, scores in metrics.per_category.items():
        name = truth.categories[category_id]["name"]
        sequences = {
            sequence: metric.eval_sequence(dataset.get_preprocessed_seq_data(data, name))
            for sequence, data in raw.items()
        }
        combined = metric.combine_sequences(sequences)
        for ours, theirs in NAMES.items():
            expected = np.mean(combined[theirs])
            assert scores[ours] == pytest.approx(ABSENT if expected < 0 else expected, abs=1e-12), (name, ours)
